"""Multiple choice: a softmax over the choices that a row has, whatever the batch pads it with."""

import itertools
import re
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import BertTokenizer, PreTrainedTokenizerBase
from transformers.modeling_outputs import MultipleChoiceModelOutput

from steadytune.data import Examples, PaddingCollator
from steadytune.tasks import MultipleChoice, TaskError, features, multiple_choice
from tolerances import PRINTED, SAME

EXACT: dict[str, float] = {"rtol": SAME[torch.float64], "atol": SAME[torch.float64]}
TASK = MultipleChoice()
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij"]
CLS, SEP = 2, 3


def tokenizer(side: str = "right") -> PreTrainedTokenizerBase:
    return BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}, padding_side=side)


def ids(words: str) -> list[int]:
    return [WORDS.index(word) for word in words.split()]


def rows_of(*rows: tuple[str, list[str], int]) -> Examples:
    texts, choices, labels = zip(*rows, strict=True)
    return Examples(tuple(f"row{i}" for i in range(len(rows))), texts, tuple(map(tuple, choices)), labels)


UNEQUAL = rows_of(("a b", ["c", "d e"], 1), ("f", ["g", "h i", "j"], 2), ("a", ["b", "c", "d", "e"], 0))


def batch_of(rows: Examples, side: str = "right") -> dict[str, Any]:
    encoded = TASK.encode(rows, tokenizer(side), 16)
    return dict(PaddingCollator(tokenizer(side), TASK.label_dtype)([encoded[i] for i in range(len(encoded))]))


def model(weights: Tensor, batch: dict[str, Any]) -> MultipleChoiceModelOutput:
    """Scores a choice by a sum over its tokens, like a model that does not see padding."""
    return MultipleChoiceModelOutput(logits=(weights[batch["input_ids"]] * batch["attention_mask"]).sum(-1))


def scored(weights: Tensor, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Scores and labels of the items of a batch, which is left as it is."""
    batch = dict(batch)
    items = TASK.items(batch)
    return items.scores(model(weights, batch)), items.labels


def weights() -> Tensor:
    return torch.randn(len(WORDS), generator=torch.Generator().manual_seed(0)).double().requires_grad_()


# -- loss -------------------------------------------------------------------------------------------------------------


def test_loss_is_the_mean_surprise_of_the_right_choices() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0], [0.5, 0.5, 0.5]]).double()
    first = -np.log(np.exp(2) / (np.exp(1) + np.exp(2) + np.exp(3)))
    expected = (first + np.log(3)) / 2
    assert float(TASK.loss(logits, torch.tensor([1, 0]))) == pytest.approx(expected, rel=0, abs=PRINTED[torch.float64])


def test_rows_without_a_label_are_left_out() -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)).double()
    found = TASK.loss(logits, torch.tensor([2, -100, 0, -100]))
    torch.testing.assert_close(found, cross_entropy(logits[[0, 2]], torch.tensor([2, 0])), **EXACT)


def test_without_any_label_loss_and_gradient_are_0() -> None:
    logits = torch.randn(2, 3).requires_grad_()
    loss = TASK.loss(logits, torch.full((2,), -100))
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None and not logits.grad.any()


def test_loss_of_bfloat16_scores_is_float32() -> None:
    assert TASK.loss(torch.randn(2, 3).bfloat16(), torch.tensor([0, 1])).dtype == torch.float32


# -- divergence -------------------------------------------------------------------------------------------------------


def test_divergence_is_the_symmetric_relative_entropy_over_the_choices() -> None:
    one, other = torch.tensor([[1.0, 2.0, 3.0]]).double(), torch.tensor([[3.0, 2.0, 1.0]]).double()
    assert float(TASK.divergence(one, other)) == pytest.approx(1.150421, rel=0, abs=PRINTED[torch.float64])


def test_divergence_is_a_mean_over_the_rows() -> None:
    one, other = torch.randn(5, 3).double(), torch.randn(5, 3).double()
    rows = [TASK.divergence(a[None], b[None]) for a, b in zip(one, other, strict=True)]
    torch.testing.assert_close(TASK.divergence(one, other), torch.stack(rows).mean(), **EXACT)


def test_the_sum_is_twice_the_mean_and_both_directions_make_it() -> None:
    one, other = torch.randn(5, 3).double(), torch.randn(5, 3).double()
    both = TASK.divergence(one, other, "directed") + TASK.divergence(other, one, "directed")
    torch.testing.assert_close(TASK.divergence(one, other, "sum"), both, **EXACT)
    torch.testing.assert_close(2 * TASK.divergence(one, other), both, **EXACT)


@pytest.mark.parametrize("form", ["mean", "sum", "directed"])
def test_a_choice_that_is_not_there_adds_nothing_to_the_divergence(form: Any) -> None:
    one, other = torch.randn(5, 3).double(), torch.randn(5, 3).double()
    absent = torch.tensor([[False, False, False, True]]).expand(5, 4)
    wider = [
        multiple_choice.without(torch.cat([scores, fill * torch.ones(5, 1).double()], dim=1), absent)
        for scores, fill in ((one, 7.0), (other, -3.0))
    ]
    torch.testing.assert_close(TASK.divergence(*wider, form), TASK.divergence(one, other, form), **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gradients_with_a_choice_that_is_not_there_are_finite_and_0_at_its_score(dtype: torch.dtype) -> None:
    logits = torch.randn(3, 4).to(dtype).requires_grad_()
    absent = torch.tensor([[False, False, True, True], [False] * 4, [False, False, False, True]])
    seen = multiple_choice.without(logits, absent)
    (TASK.loss(seen, torch.tensor([0, 3, 1])) + TASK.divergence(seen, seen.flip(0).detach(), "directed")).backward()
    assert logits.grad is not None and bool(logits.grad.isfinite().all())
    assert not logits.grad[absent].any()


# -- items ------------------------------------------------------------------------------------------------------------


def test_an_index_and_a_mark_per_choice_say_the_same() -> None:
    batch = batch_of(rows_of(("a b", ["c", "d e", "f"], 1), ("f", ["g", "h i", "j"], 2)))
    assert batch["labels"].tolist() == [[0, 1, 0], [0, 0, 1]]
    marked, labels = scored(weights(), batch)
    for given in (torch.tensor([1, 2]), torch.tensor([[1], [2]])):
        indexed, same = scored(weights(), {**batch, "labels": given})
        assert torch.equal(marked, indexed) and labels.tolist() == same.tolist() == [1, 2]


def test_a_row_with_fewer_choices_is_filled_up_with_its_first_one_and_no_label() -> None:
    batch = batch_of(UNEQUAL)
    assert batch["labels"].tolist() == [[0, 1, -100, -100], [0, 0, 1, -100], [1, 0, 0, 0]]
    assert torch.equal(batch["input_ids"][0, 2], batch["input_ids"][0, 0])
    assert torch.equal(batch["input_ids"][1, 3], batch["input_ids"][1, 0])


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_batch_of_unequal_rows_has_the_loss_and_the_gradient_of_its_rows_alone(side: str) -> None:
    together, alone = weights(), weights()
    loss = TASK.loss(*scored(together, batch_of(UNEQUAL, side)))
    loss.backward()
    single = [TASK.loss(*scored(alone, batch_of(UNEQUAL.select([row]), side))) for row in range(3)]
    expected = torch.stack(single).mean()
    expected.backward()
    torch.testing.assert_close(loss, expected, **EXACT)
    torch.testing.assert_close(together.grad, alone.grad, **EXACT)


def test_choices_that_a_row_does_not_have_never_reach_the_model() -> None:
    batch = batch_of(UNEQUAL)
    TASK.items(batch)
    assert batch["input_ids"].shape[:2] == batch["attention_mask"].shape[:2] == (1, 2 + 3 + 4)


@pytest.mark.parametrize("counts", [(2, 3, 4), (50, 40), (97, 89, 83, 79, 73, 71, 67, 61, 59, 53, 2)])
def test_every_row_has_the_same_part_in_a_mean_however_many_choices_it_has(counts: tuple[int, ...]) -> None:
    batch = batch_of(rows_of(*[("a", ["b"] * count, 0) for count in counts]))
    per_text = TASK.items(batch).per_text
    assert per_text is not None
    parts = (per_text.double() / per_text.double().sum()).split(counts)
    for own in parts:
        torch.testing.assert_close(own, torch.full_like(own, 1 / len(counts) / len(own)), **EXACT)


def test_a_row_without_a_label_has_no_part_in_a_mean() -> None:
    batch = batch_of(UNEQUAL)
    batch["labels"][1] = torch.where(batch["labels"][1] == 1, 0, batch["labels"][1])
    per_text = TASK.items(batch).per_text
    assert per_text is not None and [bool(own.any()) for own in per_text.split((2, 3, 4))] == [True, False, True]


def test_a_batch_of_equal_rows_reaches_the_model_as_it_is() -> None:
    batch = batch_of(UNEQUAL.select([1]))
    given = dict(batch)
    TASK.items(batch)
    assert all(batch[name] is given[name] for name in ("input_ids", "attention_mask"))


@pytest.mark.parametrize("mark", [0, -100])
def test_a_row_without_a_right_choice_has_no_label_and_keeps_its_choices(mark: int) -> None:
    batch = batch_of(rows_of(("a b", ["c", "d e"], 1), ("f", ["g", "h"], 1)))
    scores, labels = scored(weights(), {**batch, "labels": torch.tensor([[0, 1], [mark, mark]])})
    whole, _ = scored(weights(), {**batch, "labels": torch.tensor([1, 1])})
    assert labels.tolist() == [1, -100] and torch.equal(scores, whole)


def test_a_batch_without_any_label_has_finite_scores_and_a_loss_of_0() -> None:
    scores, labels = scored(weights(), {**batch_of(UNEQUAL), "labels": torch.full((3, 4), -100)})
    assert bool(scores.isfinite().all()) and TASK.loss(scores, labels).item() == 0


@pytest.mark.parametrize("labels", [torch.rand(2, 3), torch.zeros(2, 3, 4).long()])
def test_labels_of_another_kind_are_refused(labels: Tensor) -> None:
    with pytest.raises(TaskError) as caught:
        TASK.items({"labels": labels})
    assert str(caught.value) == (
        f"multiple_choice takes integers (batch,) or (batch, choices) as labels; got {labels.dtype} of shape "
        f"{tuple(labels.shape)}."
    )


# -- tokens -----------------------------------------------------------------------------------------------------------


def test_each_choice_is_read_with_the_text() -> None:
    encoded = TASK.encode(rows_of(("a b", ["c", "d e"], 1)), tokenizer(), 16)
    assert encoded.input_ids == [
        [[CLS, *ids("a b"), SEP, *ids("c"), SEP], [CLS, *ids("a b"), SEP, *ids("d e"), SEP]],
    ]
    assert encoded.token_type_ids == [[[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 1, 1]]]
    assert (encoded.targets, encoded.labels, encoded.lengths, encoded.truncated_rows) == ([[0, 1]], (1,), [7], 0)


def test_a_long_text_is_cut_and_its_choices_are_whole() -> None:
    encoded = TASK.encode(rows_of(("a b c d e f", ["g", "h i"], 0), ("a", ["b", "c"], 0)), tokenizer(), 8)
    assert encoded.input_ids[0] == [
        [CLS, *ids("a b c d"), SEP, *ids("g"), SEP],
        [CLS, *ids("a b c"), SEP, *ids("h i"), SEP],
    ]
    assert encoded.truncated_rows == 1


def test_rows_may_differ_in_their_choices() -> None:
    encoded = TASK.encode(UNEQUAL, tokenizer(), 16)
    assert [len(choices) for choices in encoded.input_ids] == [2, 3, 4]
    assert encoded.targets == [[0, 1], [0, 0, 1], [1, 0, 0, 0]]


def test_rows_without_labels_have_no_targets() -> None:
    rows = Examples(UNEQUAL.ids, UNEQUAL.texts, UNEQUAL.pairs)
    encoded = TASK.encode(rows, tokenizer(), 16)
    assert encoded.targets is None and "labels" not in encoded[0]


def test_no_rows_are_no_items() -> None:
    assert len(TASK.encode(UNEQUAL.select([]), tokenizer(), 16)) == 0


def test_tokens_do_not_depend_on_how_many_texts_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = TASK.encode(UNEQUAL, tokenizer(), 6)
    for module in (features, multiple_choice):
        monkeypatch.setattr(module, "TOKENIZED_AT_ONCE", 2)
    parts = TASK.encode(UNEQUAL, tokenizer(), 6)
    assert (parts.input_ids, parts.token_type_ids) == (whole.input_ids, whole.token_type_ids)
    assert parts.truncated_rows == whole.truncated_rows == 1


def test_a_choice_that_leaves_no_place_for_the_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiple_choice, "TOKENIZED_AT_ONCE", 1)
    message = "row 'row1' has a choice of 4 tokens, which leaves no place for its text in max_length 7; raise it."
    with pytest.raises(TaskError, match=re.escape(message)):
        TASK.encode(rows_of(("a", ["b", "c"], 0), ("a", ["b", "c d e f"], 1)), tokenizer(), 7)


def test_texts_without_choices_are_refused() -> None:
    with pytest.raises(TaskError) as caught:
        TASK.encode(Examples(("row0",), ("a",)), tokenizer(), 16)
    assert str(caught.value) == (
        "multiple_choice needs choices beside each text; name their column with --pair-column."
    )


# -- predictions ------------------------------------------------------------------------------------------------------

SCORES = [np.array([0.0, 1.0, 5.0, 5.0]), np.array([3.0, 1.0, 2.0, 9.0]), np.array([0.0, 0.0, 1.0, 0.5])]


def test_only_a_rows_own_choices_are_chosen_from() -> None:
    predicted = TASK.by_row(SCORES, TASK.encode(UNEQUAL, tokenizer(), 16))
    assert [row.tolist() for row in predicted] == [[0.0, 1.0], [3.0, 1.0, 2.0], [0.0, 0.0, 1.0, 0.5]]
    assert [answer["choice"] for answer in TASK.decode(predicted)] == [1, 0, 2]


def test_accuracy_is_that_of_scikit_learn() -> None:
    draw = np.random.default_rng(0)
    predicted = [draw.normal(size=count) for count in itertools.islice(itertools.cycle([2, 3, 4]), 50)]
    labels = [int(draw.integers(len(row))) for row in predicted]
    expected = accuracy_score(labels, [row.argmax() for row in predicted])
    assert TASK.scores(predicted, labels) == {"accuracy": expected}


def test_probabilities_are_those_of_the_choices() -> None:
    (answer,) = TASK.decode([np.log([0.2, 0.7, 0.1])])
    assert answer["choice"] == 1
    assert answer["probabilities"] == pytest.approx([0.2, 0.7, 0.1], rel=0, abs=PRINTED[torch.float64])


def test_what_is_kept_are_labels_and_scores() -> None:
    kept = TASK.columns(SCORES[:1], [1])
    assert kept["label"] == [1] and [row.tolist() for row in kept["logits"]] == [[0.0, 1.0, 5.0, 5.0]]


def test_the_head_has_one_output() -> None:
    assert TASK.head_config() == {"num_labels": 1}

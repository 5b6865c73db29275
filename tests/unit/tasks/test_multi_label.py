"""Multi-label: the loss and the divergence of one coin per class, scikit-learn's own scores, and answers by name."""

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from steadytune.data import Examples, PaddingCollator
from steadytune.tasks import MultiLabel, TaskError
from tolerances import SAME

NAMES = ("date", "people", "time")
EXACT = SAME[torch.float64]
LN3 = math.log(3)  # σ(ln 3) = 3/4
LABELS = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0]])
UNKNOWN = torch.full((4, 3), -100.0)


def logits(seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return (3 * torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))).to(dtype).requires_grad_()


# -- loss -------------------------------------------------------------------------------------------------------------


def test_loss_is_the_mean_surprise_of_every_class_of_every_text() -> None:
    scores = torch.tensor([[0.0, LN3], [-LN3, 0.0]], dtype=torch.float64)  # probabilities 1/2, 3/4, 1/4, 1/2
    labels = torch.tensor([[1.0, 1.0], [0.0, 1.0]]).double()
    expected = -(math.log(1 / 2) + math.log(3 / 4) + math.log(1 - 1 / 4) + math.log(1 / 2)) / 4
    assert MultiLabel(("a", "b")).loss(scores, labels).item() == pytest.approx(expected, rel=EXACT)


def test_loss_is_that_of_torch() -> None:
    expected = binary_cross_entropy_with_logits(logits(), LABELS.double())
    torch.testing.assert_close(MultiLabel(NAMES).loss(logits(), LABELS), expected, rtol=EXACT, atol=EXACT)


def test_a_class_about_which_nothing_is_known_does_not_count() -> None:
    labels = LABELS.clone()
    labels[0, 1] = labels[2, 0] = labels[3, 2] = -100
    known = labels != -100
    expected = binary_cross_entropy_with_logits(logits()[known], LABELS.double()[known])
    torch.testing.assert_close(MultiLabel(NAMES).loss(logits(), labels), expected, rtol=EXACT, atol=EXACT)


def test_loss_without_any_label_is_0_and_so_is_its_gradient() -> None:
    scores = logits()
    loss = MultiLabel(NAMES).loss(scores, UNKNOWN)
    loss.backward()
    assert loss.item() == 0
    assert scores.grad is not None and torch.equal(scores.grad, torch.zeros_like(scores))


def test_every_known_class_counts_in_the_mean() -> None:
    labels = LABELS.clone()
    labels[0, 1] = -100
    assert MultiLabel(NAMES).count(labels).item() == 11


@pytest.mark.parametrize("size", [1e2, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_loss_of_large_scores_is_finite_with_finite_gradients(dtype: torch.dtype, size: float) -> None:
    scores = torch.tensor([[size, -size, size], [-size, size, -size]], dtype=dtype, requires_grad=True)
    loss = MultiLabel(NAMES).loss(scores, LABELS[:2])  # half of the second row and one of the first are wrong
    loss.backward()
    assert loss.item() == pytest.approx(size / 6, rel=0.01)
    assert scores.grad is not None and torch.isfinite(scores.grad).all()


def test_loss_of_bfloat16_scores_is_float32() -> None:
    assert MultiLabel(NAMES).loss(logits(dtype=torch.bfloat16), LABELS).dtype == torch.float32


# -- divergence -------------------------------------------------------------------------------------------------------


def relative_entropy(p: Tensor, q: Tensor) -> Tensor:
    """KL of two coins, outcome by outcome."""
    return p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()


@pytest.mark.parametrize("form", ["mean", "sum", "directed"])
def test_divergence_is_the_relative_entropy_of_coins_summed_over_classes_and_mean_over_texts(form: Any) -> None:
    one, other = logits(0), logits(1)
    there = relative_entropy(one.sigmoid(), other.sigmoid()).sum(dim=-1).mean()
    back = relative_entropy(other.sigmoid(), one.sigmoid()).sum(dim=-1).mean()
    expected = {"mean": (there + back) / 2, "sum": there + back, "directed": there}[form]
    torch.testing.assert_close(MultiLabel(NAMES).divergence(one, other, form), expected, rtol=EXACT, atol=EXACT)


def test_divergence_of_an_even_and_a_three_to_one_coin() -> None:
    expected = (1 / 2) * (3 / 4 - 1 / 2) * LN3  # ½ (q − p)(logit q − logit p)
    found = MultiLabel(("a",)).divergence(torch.zeros(1, 1).double(), torch.tensor([[LN3]], dtype=torch.float64))
    assert found.item() == pytest.approx(expected, rel=EXACT)


def test_divergence_of_equal_scores_is_exactly_0() -> None:
    assert MultiLabel(NAMES).divergence(logits(), logits()).item() == 0


@pytest.mark.parametrize("form", ["mean", "sum", "directed"])
def test_divergence_of_large_scores_is_finite_with_finite_gradients(form: Any) -> None:
    one = torch.tensor([[1e4, -1e4, 1e4]], requires_grad=True)
    other = torch.tensor([[-1e4, 1e4, 1e4]], requires_grad=True)
    divergence = MultiLabel(NAMES).divergence(one, other, form)
    divergence.backward()
    times = {"mean": 2, "sum": 4, "directed": 2}[form]  # two classes flip from sure to sure of the contrary
    assert divergence.item() == pytest.approx(times * 1e4)
    assert all(scores.grad is not None and torch.isfinite(scores.grad).all() for scores in (one, other))


def test_divergence_of_no_text_is_0() -> None:
    assert MultiLabel(NAMES).divergence(torch.zeros(0, 3), torch.zeros(0, 3)).item() == 0


def test_divergence_of_bfloat16_scores_is_float32() -> None:
    one, other = logits(0, torch.bfloat16), logits(1, torch.bfloat16)
    assert MultiLabel(NAMES).divergence(one, other).dtype == torch.float32


# -- scores -----------------------------------------------------------------------------------------------------------

PREDICTED = np.asarray([[2.0, -1.0, 0.5], [-3.0, -0.1, -2.0], [0.3, -4.0, 1.0], [1.0, 2.0, -1.0]])
TRUE = ((0, 2), (), (0, 1, 2), (1,))
AS_INDICATORS = np.asarray([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])


def test_micro_f1_is_over_all_decisions() -> None:
    """Right: two of the first row, two of the third, one of the last; one is missed, and one too many."""
    assert MultiLabel(NAMES).scores(PREDICTED, TRUE)["micro_f1"] == pytest.approx(2 * 5 / (2 * 5 + 1 + 1), rel=EXACT)


def test_scores_are_those_of_scikit_learn() -> None:
    found = MultiLabel(NAMES).scores(PREDICTED, TRUE)
    decided = (PREDICTED > 0).astype(int)
    assert found == {
        "micro_f1": f1_score(AS_INDICATORS, decided, average="micro"),
        "macro_f1": f1_score(AS_INDICATORS, decided, average="macro"),
        "exact_match": accuracy_score(AS_INDICATORS, decided),
    }
    assert found["exact_match"] == 2 / 4


def test_a_class_that_neither_occurs_nor_is_predicted_scores_0_without_a_warning(
    recwarn: pytest.WarningsRecorder,
) -> None:
    found = MultiLabel(NAMES).scores(np.asarray([[1.0, -1.0, -1.0]]), ((0,),))
    assert (found["macro_f1"], len(recwarn)) == (1 / 3, 0)


def test_a_single_class_is_scored_by_its_own_rows_alone() -> None:
    """One row of four has the class: found beside one too many, then not found."""
    task, truth = MultiLabel(("a",)), ((0,), (), (), ())
    found = task.scores(np.asarray([[1.0], [1.0], [-1.0], [-1.0]]), truth)
    assert (found["micro_f1"], found["macro_f1"]) == pytest.approx((2 / 3, 2 / 3), rel=EXACT)
    nothing = task.scores(np.full((4, 1), -1.0), truth)
    assert nothing == {"micro_f1": 0.0, "macro_f1": 0.0, "exact_match": 3 / 4}


# -- answers and head -------------------------------------------------------------------------------------------------


def test_decoded_labels_are_those_above_one_half_and_every_class_has_its_probability() -> None:
    first, second = MultiLabel(NAMES).decode(np.asarray([[LN3, -LN3, 0.5], [-1.0, -2.0, 0.0]], dtype=np.float32))
    assert (first["labels"], second["labels"]) == (["date", "time"], [])
    assert tuple(first["probabilities"]) == NAMES
    assert first["probabilities"]["date"] == pytest.approx(0.75, rel=SAME[torch.float32])
    assert second["probabilities"]["time"] == 0.5


def test_the_head_names_its_labels() -> None:
    assert MultiLabel(("a", "b")).head_config() == {
        "num_labels": 2,
        "id2label": {0: "a", 1: "b"},
        "label2id": {"a": 0, "b": 1},
        "problem_type": "multi_label_classification",
    }


def test_no_class_at_all_is_refused() -> None:
    with pytest.raises(TaskError, match=r"^multi_label needs at least one class; got none\.$"):
        MultiLabel(())


# -- from rows to a batch ---------------------------------------------------------------------------------------------


def tokenizer(**settings: Any) -> Any:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "table", "for", "two", "at", "nine"]
    return transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)}, **settings)


ROWS = Examples(("1", "2", "3"), ("a table for two", "a table", "at nine for two"), None, ((1,), (), (1, 2)))


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_has_a_0_or_1_for_every_class_wherever_it_is_padded(side: str) -> None:
    task, words = MultiLabel(NAMES), tokenizer(padding_side=side)
    encoded = task.encode(ROWS, words, 16)
    batch = PaddingCollator(words, task.label_dtype)([encoded[row] for row in range(3)])
    assert batch["labels"].tolist() == [[0, 1, 0], [0, 0, 0], [0, 1, 1]]
    assert (batch["labels"].dtype, encoded.labels) == (torch.float32, ROWS.labels)
    assert torch.equal(task.items(dict(batch)).labels, batch["labels"])


def test_rows_without_labels_make_batches_without() -> None:
    encoded = MultiLabel(NAMES).encode(Examples(ROWS.ids, ROWS.texts), tokenizer(), 16)
    assert "labels" not in encoded[0]


def test_predictions_of_rows_are_their_scores() -> None:
    rows = MultiLabel(NAMES).encode(ROWS, tokenizer(), 16)
    scores = list(PREDICTED[:3])
    assert np.array_equal(MultiLabel(NAMES).by_row(scores, rows), PREDICTED[:3])
    kept = MultiLabel(NAMES).columns(PREDICTED[:3], TRUE[:3])
    assert kept["label"] == [(0, 2), (), (0, 1, 2)]
    assert [row.dtype for row in kept["logits"]] == [np.float32] * 3


def test_whole_numbers_as_labels_of_a_batch_are_taken() -> None:
    items = MultiLabel(NAMES).items({"labels": LABELS.long()})
    assert torch.equal(items.labels, LABELS)


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 2), (4, 3, 1)])
def test_labels_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    said = f"multi_label takes one number per text and class, (batch, 3); got labels of shape {shape}."
    with pytest.raises(TaskError, match=f"^{re.escape(said)}$"):
        MultiLabel(NAMES).items({"labels": torch.zeros(shape)})

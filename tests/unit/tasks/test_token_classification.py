"""Tagged words: from words to tokens and back, seqeval's own scores, and answers by name."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import seqeval.metrics
import sklearn.metrics
import tokenizers
import torch
import transformers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase

from steadytune.data import Examples, PaddingCollator
from steadytune.tasks import TaskError, TokenClassification
from tolerances import SAME

TAGS = ("O", "B-person", "I-person", "B-city", "I-city")
EXACT = SAME[torch.float64]
TASK = TokenClassification(TAGS)

NO_TOKEN = "\u200b"  # a space of no width, which a BERT tokenizer removes
ROWS = Examples(
    ("1", "2", "3"),
    (("ada", "sleeps"), ("ada", "lovelace", "sleeping", "in", "new", "york"), ("in", NO_TOKEN, "york")),
    None,
    ((1, 0), (1, 2, 0, 0, 3, 4), (0, 0, 3)),
)
PIECES = ["ada", "love", "##lace", "sleep", "##s", "##ing", "in", "new", "york"]


def bert_tokenizer(**settings: Any) -> Any:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *PIECES]
    return transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)}, **settings)


def tags_of(labels: list[list[int]]) -> Tensor:
    return torch.tensor(labels)


# -- words, tokens, tags ----------------------------------------------------------------------------------------------


def test_the_tag_of_a_word_stands_at_its_first_token_alone() -> None:
    encoded = TASK.encode(ROWS, bert_tokenizer(), 16)
    words = bert_tokenizer().convert_ids_to_tokens(encoded[1]["input_ids"])
    assert words == ["[CLS]", "ada", "love", "##lace", "sleep", "##ing", "in", "new", "york", "[SEP]"]
    assert encoded[1]["labels"] == [-100, 1, 2, -100, 0, -100, 0, 3, 4, -100]


def test_a_word_without_a_token_has_no_place_for_its_tag() -> None:
    encoded = TASK.encode(ROWS, bert_tokenizer(), 16)
    assert encoded[2]["labels"] == [-100, 0, 3, -100]
    assert encoded.places is not None and encoded.places[2] == [1, -1, 2]


def test_words_beyond_the_maximum_length_are_cut_and_their_rows_counted() -> None:
    encoded = TASK.encode(ROWS, bert_tokenizer(), 5)
    assert [len(row) for row in encoded.input_ids] == [5, 5, 4]
    assert encoded[1]["labels"] == [-100, 1, 2, -100, -100]
    assert encoded.truncated_rows == 1
    assert encoded.labels == ROWS.labels


def test_rows_come_in_their_order_however_many_there_are() -> None:
    rows = Examples(tuple(map(str, range(2500))), tuple(("in",) * (1 + i % 3) for i in range(2500)))
    encoded = TASK.encode(rows, bert_tokenizer(), 16)
    assert encoded.lengths == [3 + i % 3 for i in range(2500)]
    assert "labels" not in encoded[0]


def byte_level_tokenizer() -> Any:
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, special_tokens=["<pad>"], initial_alphabet=alphabet)
    inner.train_from_iterator(["in new york", "ada in new york"] * 20, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>")


def test_a_byte_level_tokenizer_reads_every_word_as_in_running_text(tmp_path: Path) -> None:
    words = byte_level_tokenizer()
    expected = words(" in new york")["input_ids"]
    encoded = TASK.encode(Examples(("1",), (("in", "new", "york"),)), words, 16)
    assert encoded.input_ids == [expected]
    words.save_pretrained(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert again(["in", "new", "york"], is_split_into_words=True)["input_ids"] == expected


def tokenizer_with_splits_before_its_bytes() -> Any:
    """As many recent vocabularies have it: a pattern splits the text, and only then come the bytes."""
    words = byte_level_tokenizer()
    splits, bytes_of = tokenizers.pre_tokenizers.Split, tokenizers.pre_tokenizers.ByteLevel
    words.backend_tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            splits(tokenizers.Regex(r" ?[a-z]+| ?[^a-z\s]+"), "isolated"),
            bytes_of(add_prefix_space=False, use_regex=False),
        ]
    )
    return words


def test_a_tokenizer_that_splits_before_its_bytes_reads_words_as_in_running_text_too(tmp_path: Path) -> None:
    words = tokenizer_with_splits_before_its_bytes()
    expected = words(" in new-york")["input_ids"]
    rows = Examples(("1",), (("in", "new-york"),))
    assert TASK.encode(rows, words, 16).input_ids == TASK.encode(rows, words, 16).input_ids == [expected]
    words.save_pretrained(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert again(["in", "new-york"], is_split_into_words=True)["input_ids"] == expected


def test_a_tokenizer_that_knows_words_without_their_space_is_left_as_it_is() -> None:
    words = bert_tokenizer()
    before = words.backend_tokenizer.to_str()
    TASK.encode(Examples(("1",), (("in", "new", "york"),)), words, 16)
    settings = json.loads(words.backend_tokenizer.to_str())
    assert settings["pre_tokenizer"] == json.loads(before)["pre_tokenizer"]


def test_a_slow_tokenizer_is_refused() -> None:
    slow = MagicMock(spec=PreTrainedTokenizerBase, is_fast=False, model_max_length=64)
    slow.num_special_tokens_to_add.return_value = 2
    with pytest.raises(TaskError, match=r"^token_classification needs a fast tokenizer, which knows the words"):
        TASK.encode(ROWS, slow, 16)


def test_a_row_without_any_token_is_refused() -> None:
    with pytest.raises(TaskError, match=r"^row '1' gives no token with this tokenizer; fill its text or remove"):
        TASK.encode(Examples(("1",), (("",),)), byte_level_tokenizer(), 16)


# -- batches and predictions ------------------------------------------------------------------------------------------


def batch_of(words: Any, rows: Examples = ROWS, max_length: int = 16) -> tuple[Any, dict[str, Tensor]]:
    encoded = TASK.encode(rows, words, max_length)
    collator = PaddingCollator(words, TASK.label_dtype, labels_by_token=TASK.labels_by_token)
    return encoded, collator([encoded[row] for row in range(len(rows))])


def answer(labels: Tensor) -> Any:
    """What a model returns that is right at every tagged token and wrong elsewhere."""
    right = torch.nn.functional.one_hot(labels.clamp(min=0), len(TAGS)).float()
    wrong = torch.nn.functional.one_hot(torch.full_like(labels, 4), len(TAGS)).float()
    return SimpleNamespace(logits=torch.where((labels != -100)[..., None], right, wrong))


@pytest.mark.parametrize("side", ["left", "right"])
def test_every_word_gets_the_tag_of_its_first_token_wherever_the_batch_is_padded(side: str) -> None:
    encoded, batch = batch_of(bert_tokenizer(padding_side=side))
    scores = TASK.item_scores(answer(batch["labels"]), batch["attention_mask"])
    assert [len(row) for row in scores] == encoded.lengths
    assert TASK.by_row(scores, encoded) == [list(tags) for tags in ROWS.labels or ()]


def test_words_that_the_model_does_not_see_are_outside() -> None:
    encoded, batch = batch_of(bert_tokenizer(), max_length=5)
    scores = TASK.item_scores(answer(batch["labels"]), batch["attention_mask"])
    assert TASK.by_row(scores, encoded) == [[1, 0], [1, 2, 0, 0, 0, 0], [0, 0, 3]]


def test_without_an_outside_tag_unseen_words_get_the_first() -> None:
    task = TokenClassification(("NOUN", "VERB"))
    encoded = task.encode(Examples(("1",), (("ada", NO_TOKEN),)), bert_tokenizer(), 16)
    assert task.by_row([np.asarray([[0, 1], [0, 1], [0, 1]])], encoded) == [[1, 0]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_items_are_the_tagged_tokens_wherever_the_batch_is_padded(side: str) -> None:
    _, batch = batch_of(bert_tokenizer(padding_side=side))
    output = answer(batch["labels"])
    items = TASK.items(batch)
    assert items.labels.tolist() == [1, 0, 1, 2, 0, 0, 3, 4, 0, 3]
    assert items.scores(output).argmax(dim=-1).tolist() == items.labels.tolist()
    assert items.per_text is not None and items.per_text.tolist() == [2, 6, 2]
    assert "labels" not in batch


@pytest.mark.parametrize("labels", [torch.zeros(3), torch.zeros(2, 3), torch.zeros(2, 3, 1, dtype=torch.long)])
def test_labels_that_are_not_one_integer_per_token_are_refused(labels: Tensor) -> None:
    said = f"(batch, tokens); got {labels.dtype} of shape {tuple(labels.shape)}."
    with pytest.raises(TaskError, match=f"^token_classification takes one integer per token, {re.escape(said)}$"):
        TASK.items({"labels": labels})


# -- loss and divergence ----------------------------------------------------------------------------------------------

LABELS = tags_of([[-100, 1, -100, 0], [-100, 3, 4, -100], [-100, -100, -100, -100]])


def logits(seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


def loss_of(scores: Tensor, labels: Tensor = LABELS) -> Tensor:
    items = TASK.items({"labels": labels})
    return TASK.loss(items.scores(SimpleNamespace(logits=scores)), items.labels)


def divergence_of(one: Tensor, other: Tensor, labels: Tensor = LABELS, form: Any = "mean") -> Tensor:
    items = TASK.items({"labels": labels})
    first, second = (items.scores(SimpleNamespace(logits=scores)) for scores in (one, other))
    return TASK.divergence(first, second, form)


def test_loss_is_the_mean_surprise_over_the_tagged_tokens_of_all_texts() -> None:
    shares = logits().softmax(dim=-1)
    at = [(0, 1, 1), (0, 3, 0), (1, 1, 3), (1, 2, 4)]
    expected = -torch.stack([shares[row, token, tag].log() for row, token, tag in at]).mean()
    torch.testing.assert_close(loss_of(logits()), expected, rtol=EXACT, atol=EXACT)


def test_loss_is_that_of_torch_over_all_tokens() -> None:
    expected = cross_entropy(logits().flatten(0, 1), LABELS.flatten())
    torch.testing.assert_close(loss_of(logits()), expected, rtol=EXACT, atol=EXACT)


def test_loss_without_a_tagged_token_is_0_and_so_is_its_gradient() -> None:
    scores = logits()
    loss = loss_of(scores, torch.full((3, 4), -100))
    loss.backward()
    assert loss.item() == 0
    assert scores.grad is not None and torch.equal(scores.grad, torch.zeros_like(scores))


def test_divergence_is_a_mean_over_the_tagged_tokens() -> None:
    one, other = logits(0).softmax(dim=-1), logits(1).softmax(dim=-1)
    at = [(0, 1), (0, 3), (1, 1), (1, 2)]
    each = [((one[p] - other[p]) * (one[p].log() - other[p].log())).sum() / 2 for p in at]
    expected = torch.stack(each).mean()
    torch.testing.assert_close(divergence_of(logits(0), logits(1)), expected, rtol=EXACT, atol=EXACT)


def test_untagged_tokens_are_in_neither_loss_nor_divergence() -> None:
    one, other = logits(0), logits(1)
    changed = torch.where((LABELS == -100)[..., None], 9.0, one.detach())
    assert torch.equal(loss_of(one), loss_of(changed))
    assert torch.equal(divergence_of(one, other), divergence_of(changed, other))


def test_more_padding_changes_nothing() -> None:
    labels = torch.nn.functional.pad(LABELS, (0, 3), value=-100)
    one, other = (torch.nn.functional.pad(scores, (0, 0, 0, 3), value=7.0) for scores in (logits(0), logits(1)))
    assert torch.equal(loss_of(one, labels), loss_of(logits(0)))
    assert torch.equal(divergence_of(one, other, labels), divergence_of(logits(0), logits(1)))


def test_divergence_without_a_tagged_token_is_0() -> None:
    assert divergence_of(logits(0), logits(1), torch.full((3, 4), -100)).item() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", ["mean", "sum", "directed"])
def test_large_scores_give_finite_values_with_finite_gradients(form: Any, dtype: torch.dtype) -> None:
    one = (1e4 * torch.sign(logits(0))).detach().to(dtype).requires_grad_()
    other = (1e4 * torch.sign(logits(1))).detach().to(dtype).requires_grad_()
    total = loss_of(one) + divergence_of(one, other, form=form)
    total.backward()
    assert total.dtype == torch.float32 and torch.isfinite(total)
    assert all(scores.grad is not None and torch.isfinite(scores.grad).all() for scores in (one, other))


# -- scores -----------------------------------------------------------------------------------------------------------

TRUE = [[0, 1, 2, 0], [3, 0, 3, 4], [0, 0]]
PREDICTED = [[0, 1, 2, 0], [3, 0, 3, 0], [1, 0]]


def named(rows: list[list[int]], names: tuple[str, ...] = TAGS) -> list[list[str]]:
    return [[names[tag] for tag in row] for row in rows]


def test_an_entity_counts_if_its_span_and_its_type_are_right() -> None:
    """Right: one person, one city; the second city ends too soon; one person is made up."""
    found = TASK.scores(PREDICTED, TRUE)
    assert (found["precision"], found["recall"]) == (2 / 4, 2 / 3)
    assert found["entity_f1"] == pytest.approx(2 * 2 / (4 + 3), rel=EXACT)
    assert found["accuracy"] == 8 / 10


def test_scores_are_those_of_seqeval() -> None:
    draw = np.random.default_rng(0)
    truth, predicted = ([draw.integers(0, 5, size).tolist() for size in range(1, 40)] for _ in range(2))
    assert TASK.scores(predicted, truth) == {
        "entity_f1": seqeval.metrics.f1_score(named(truth), named(predicted)),
        "precision": seqeval.metrics.precision_score(named(truth), named(predicted)),
        "recall": seqeval.metrics.recall_score(named(truth), named(predicted)),
        "accuracy": seqeval.metrics.accuracy_score(named(truth), named(predicted)),
    }


def test_rows_without_entities_score_0_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    assert TASK.scores([[0, 0]], [[0, 0]]) == {"entity_f1": 0.0, "precision": 0.0, "recall": 0.0, "accuracy": 1.0}
    assert len(recwarn) == 0


LAST_AND_UNIT = ("O", "B-person", "I-person", "L-person", "U-person")  # ends and single words by other letters


def test_single_words_marked_by_u_are_entities_of_their_own() -> None:
    """Two persons of one word each stand side by side; one person of two words is another thing."""
    found = TokenClassification(LAST_AND_UNIT).scores([[1, 3]], [[4, 4]])
    assert (found["entity_f1"], found["accuracy"]) == (0.0, 0.0)


def test_last_words_marked_by_l_end_an_entity(recwarn: pytest.WarningsRecorder) -> None:
    """Two persons of two words each stand side by side; one of them is found."""
    found = TokenClassification(LAST_AND_UNIT).scores([[1, 3, 0, 4]], [[1, 3, 1, 3]])
    assert (found["precision"], found["recall"], len(recwarn)) == (1 / 2, 1 / 2, 0)


def test_decoded_rows_keep_the_letters_of_their_tags_and_part_adjacent_entities() -> None:
    (row,) = TokenClassification(LAST_AND_UNIT).decode([[4, 4, 1, 2, 3, 1, 3]])
    assert row["tags"][:2] == ["U-person", "U-person"]
    assert [(one["first_word"], one["last_word"]) for one in row["entities"]] == [(0, 0), (1, 1), (2, 4), (5, 6)]


SPEECH = ("ADJ", "NOUN", "VERB")


def test_tags_that_mark_no_entities_are_scored_word_by_word(recwarn: pytest.WarningsRecorder) -> None:
    task = TokenClassification(SPEECH)
    truth, predicted = [[0, 1, 2, 1], [1, 2]], [[0, 1, 1, 1], [1, 2]]
    words = ([name for row in named(rows, SPEECH) for name in row] for rows in (truth, predicted))
    assert task.scores(predicted, truth) == {
        "accuracy": 5 / 6,
        "macro_f1": sklearn.metrics.f1_score(*words, average="macro"),
    }
    assert (task.metric, TASK.metric, len(recwarn)) == ("accuracy", "entity_f1", 0)


@pytest.mark.parametrize(
    ("names", "entities"),
    [
        (("O", "B-x", "I-x", "E-x", "S-x"), True),
        (("B-x", "I-x"), True),
        (("O", "X"), False),
        (("O", "B-"), False),
        (("A-x", "N-x"), False),
    ],
)
def test_entities_are_known_by_the_first_letters_of_their_tags(names: tuple[str, ...], entities: bool) -> None:
    assert TokenClassification(names).marks_entities == entities


# -- answers and head -------------------------------------------------------------------------------------------------


def test_decoded_rows_name_every_tag_and_say_where_entities_begin_and_end() -> None:
    assert TASK.decode([[1, 2, 0, 3], [0]]) == [
        {
            "tags": ["B-person", "I-person", "O", "B-city"],
            "entities": [
                {"label": "person", "first_word": 0, "last_word": 1},
                {"label": "city", "first_word": 3, "last_word": 3},
            ],
        },
        {"tags": ["O"], "entities": []},
    ]


def test_decoded_tags_without_entities_are_tags_alone() -> None:
    assert TokenClassification(SPEECH).decode([[0, 2]]) == [{"tags": ["ADJ", "VERB"]}]


def test_kept_columns_are_plain_lists_of_tags() -> None:
    assert TASK.columns([[0, 1]], ((0, 2),)) == {"label": [[0, 2]], "predicted": [[0, 1]]}


def test_the_head_names_its_tags() -> None:
    assert TokenClassification(("O", "B-x")).head_config() == {
        "num_labels": 2,
        "id2label": {0: "O", 1: "B-x"},
        "label2id": {"O": 0, "B-x": 1},
    }


@pytest.mark.parametrize("names", [(), ("O",)])
def test_fewer_than_two_tags_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(TaskError, match=re.escape(f"token_classification needs at least two tags; got {list(names)}.")):
        TokenClassification(names)

"""Question answering: two softmaxes over the tokens of a window, and the best answer over the windows of a text."""

import itertools
import re
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import BertTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.modeling_outputs import QuestionAnsweringModelOutput

from steadytune.data import Examples, PaddingCollator
from steadytune.tasks import Encoded, QuestionAnswering, TaskError, question_answering
from steadytune.tasks.question_answering import LONGEST_ANSWER, Answer, Window
from tolerances import PRINTED, SAME

EXACT: dict[str, float] = {"rtol": SAME[torch.float64], "atol": SAME[torch.float64]}
TASK = QuestionAnswering()
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
CLS, SEP = 2, 3
NO_TOKEN = "\u200b"  # a space of no width, which a BERT tokenizer removes
LONG = " ".join(WORDS[5:])  # the alphabet: the n-th letter begins at character 2 n


def tokenizer(side: str = "right") -> PreTrainedTokenizerBase:
    return BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}, padding_side=side)


def ids(words: str) -> list[int]:
    return [WORDS.index(word) for word in words.split()]


def rows_of(*rows: tuple[str, str, list[tuple[str, int]]]) -> Examples:
    texts, questions, labels = zip(*rows, strict=True)
    return Examples(tuple(f"row{i}" for i in range(len(rows))), texts, questions, tuple(map(tuple, labels)))


def encoded_of(*rows: tuple[str, str, list[tuple[str, int]]], length: int = 16) -> Encoded:
    return TASK.encode(rows_of(*rows), tokenizer(), length)


def batch_of(encoded: Encoded, side: str = "right") -> dict[str, Any]:
    items = [encoded[index] for index in range(len(encoded))]
    return dict(PaddingCollator(tokenizer(side), TASK.label_dtype)(items))


def weights() -> Tensor:
    return torch.randn(len(WORDS), 2, generator=torch.Generator().manual_seed(0)).double().requires_grad_()


def model(weights: Tensor, batch: dict[str, Any]) -> QuestionAnsweringModelOutput:
    """Scores a token by what it is."""
    start, end = weights[batch["input_ids"]].unbind(-1)
    return QuestionAnsweringModelOutput(start_logits=start, end_logits=end)


def scored(weights: Tensor, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Scores and labels of the items of a batch, which is left as it is."""
    batch = dict(batch)
    items = TASK.items(batch)
    return items.scores(model(weights, batch)), items.labels


UNEQUAL = (("a b c", "d", [("b", 2)]), ("e f g h i", "j k", [("g h", 4)]), ("l", "m", []))


# -- loss -------------------------------------------------------------------------------------------------------------


def test_loss_is_the_mean_surprise_of_starts_and_ends() -> None:
    start, end = torch.tensor([[1.0, 2.0, 3.0]]).double(), torch.tensor([[0.0, 0.0, 0.0]]).double()
    items = TASK.items({"input_ids": torch.zeros(1, 3).long(), "labels": torch.tensor([[1, 2]])})
    logits = items.scores(QuestionAnsweringModelOutput(start_logits=start, end_logits=end))
    expected = (-np.log(np.exp(2) / (np.exp(1) + np.exp(2) + np.exp(3))) + np.log(3)) / 2
    assert float(TASK.loss(logits, items.labels)) == pytest.approx(expected, rel=0, abs=PRINTED[torch.float64])


def test_a_batch_has_two_items_per_window() -> None:
    labels = TASK.items(batch_of(encoded_of(*UNEQUAL))).labels
    assert labels.tolist() == [4, 6, 0, 4, 7, 0]  # all starts, then all ends
    assert TASK.count(labels) == 6


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_takes_no_part_in_the_loss_or_its_gradient(side: str) -> None:
    together, alone = weights(), weights()
    loss = TASK.loss(*scored(together, batch_of(encoded_of(*UNEQUAL), side)))
    loss.backward()
    expected = torch.stack([TASK.loss(*scored(alone, batch_of(encoded_of(row), side))) for row in UNEQUAL]).mean()
    expected.backward()
    torch.testing.assert_close(loss, expected, **EXACT)
    torch.testing.assert_close(together.grad, alone.grad, **EXACT)
    assert together.grad is not None and not together.grad[0].any()  # the padding token


def test_positions_as_transformers_has_them_give_the_same_loss() -> None:
    batch = batch_of(encoded_of(*UNEQUAL))
    ours = TASK.loss(*scored(weights(), batch))
    start, end = batch.pop("labels").T
    theirs = TASK.loss(*scored(weights(), {**batch, "start_positions": start, "end_positions": end}))
    column = TASK.loss(*scored(weights(), {**batch, "start_positions": start[:, None], "end_positions": end[:, None]}))
    assert torch.equal(ours, theirs) and torch.equal(ours, column)


def test_positions_as_transformers_has_them_count_padding_on_the_left() -> None:
    batch = batch_of(encoded_of(*UNEQUAL), "left")
    before = (1 - batch["attention_mask"]).sum(dim=1)
    start, end = batch["labels"].T + before
    given = {name: value for name, value in batch.items() if name != "labels"}
    theirs = scored(weights(), {**given, "start_positions": start, "end_positions": end})
    ours = scored(weights(), batch)
    assert torch.equal(theirs[0], ours[0]) and torch.equal(theirs[1], ours[1])


def test_unknown_positions_are_left_out() -> None:
    batch = batch_of(encoded_of(*UNEQUAL))
    batch["labels"][1] = -100
    batch["labels"][2, 0] = -100
    scores, labels = scored(weights(), batch)
    known = [0, 3, 5]
    assert (labels != -100).nonzero().flatten().tolist() == known
    torch.testing.assert_close(TASK.loss(scores, labels), cross_entropy(scores[known], labels[known]), **EXACT)


def test_a_batch_without_known_positions_has_loss_and_gradient_0() -> None:
    own = weights()
    loss = TASK.loss(*scored(own, {**batch_of(encoded_of(*UNEQUAL)), "labels": torch.full((3, 2), -100)}))
    loss.backward()
    assert loss.item() == 0 and own.grad is not None and not own.grad.any()


@pytest.mark.parametrize("place", [6, 7, 99])  # two tokens of padding, and one that is not there
def test_a_position_outside_the_tokens_is_unknown(place: int) -> None:
    batch = batch_of(encoded_of(("a b", "c", [("b", 2)]), ("a b c d", "e", [("d", 6)])))
    batch["labels"][0] = torch.tensor([4, place])
    scores, labels = scored(weights(), batch)
    assert labels.tolist() == [4, 6, -100, 6] and bool(TASK.loss(scores, labels).isfinite())


def test_loss_of_bfloat16_scores_is_float32() -> None:
    assert TASK.loss(torch.randn(4, 3).bfloat16(), torch.tensor([0, 1, 2, 0])).dtype == torch.float32


@pytest.mark.parametrize("labels", [torch.rand(2, 2), torch.zeros(2, 3).long(), torch.zeros(2).long()])
def test_labels_of_another_kind_are_refused(labels: Tensor) -> None:
    with pytest.raises(TaskError) as caught:
        TASK.items({"input_ids": torch.zeros(2, 4).long(), "labels": labels})
    assert str(caught.value) == (
        "question_answering takes integers (batch, 2) as labels, start and end of each answer; got "
        f"{labels.dtype} of shape {tuple(labels.shape)}."
    )


def test_a_start_without_an_end_is_refused() -> None:
    with pytest.raises(TaskError) as caught:
        TASK.items({"input_ids": torch.zeros(1, 4).long(), "start_positions": torch.tensor([1])})
    assert str(caught.value) == (
        "question_answering needs labels (batch, 2), start and end of each answer, or start_positions and "
        "end_positions."
    )


# -- divergence -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["mean", "sum", "directed"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_divergence_is_a_mean_over_starts_and_ends_without_padding(side: str, form: Any) -> None:
    one, other = weights(), weights().detach().flip(0)
    whole = batch_of(encoded_of(*UNEQUAL), side)
    found = TASK.divergence(scored(one, whole)[0], scored(other, whole)[0], form)
    by_hand = []
    for row, side_of_answer in itertools.product(UNEQUAL, (0, 1)):
        tokens = torch.tensor(encoded_of(row).input_ids[0])
        p, q = (own[tokens, side_of_answer].softmax(0) for own in (one, other))
        there, back = (p * (p / q).log()).sum(), (q * (q / p).log()).sum()
        by_hand.append({"mean": (there + back) / 2, "sum": there + back, "directed": there}[form])
    torch.testing.assert_close(found, torch.stack(by_hand).mean(), **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gradients_are_finite_and_0_at_padding(dtype: torch.dtype) -> None:
    batch = batch_of(encoded_of(*UNEQUAL))
    padding = batch["attention_mask"] == 0
    start, end = (torch.randn(padding.shape).to(dtype).requires_grad_() for _ in range(2))
    items = TASK.items(batch)
    scores = items.scores(QuestionAnsweringModelOutput(start_logits=start, end_logits=end))
    (TASK.loss(scores, items.labels) + TASK.divergence(scores, scores.detach().roll(1, 0))).backward()
    for part in (start, end):
        assert part.grad is not None and bool(part.grad.isfinite().all()) and not part.grad[padding].any()


# -- windows ----------------------------------------------------------------------------------------------------------


def test_a_short_text_is_one_window_after_its_question() -> None:
    encoded = encoded_of(("a b c", "d e", [("b c", 2)]))
    assert encoded.input_ids == [[CLS, *ids("d e"), SEP, *ids("a b c"), SEP]]
    assert encoded.token_type_ids == [[0, 0, 0, 0, 1, 1, 1, 1]]
    assert encoded.targets == [[5, 6]] and encoded.rows == [0]


def test_a_long_text_is_several_windows_that_overlap_by_a_third() -> None:
    encoded = encoded_of((LONG, "a", []), length=16)  # 16 less [CLS] a [SEP] [SEP] leaves 12, of which 5 come again
    read = [[WORDS[token] for token in window[3:-1]] for window in encoded.input_ids]
    assert [f"{window[0]}-{window[-1]}" for window in read] == ["a-l", "h-s", "o-z"]
    assert encoded.rows == [0, 0, 0]


@pytest.mark.parametrize("length", [5, 6, 7, 9, 12, 16, 40])
@pytest.mark.parametrize("question", ["a", "a b c d e f g h i j k l m n o"])
def test_every_character_of_a_text_lies_in_some_window(question: str, length: int) -> None:
    if length < 20 and len(question) > 1:
        length += 15
    encoded = encoded_of((LONG, question, []), length=length)
    assert encoded.places is not None and max(encoded.lengths) <= length
    seen = {place for window in encoded.places for begin, end in window.spans for place in range(begin, end)}
    assert seen - {-1} == {place for place, letter in enumerate(LONG) if letter != " "}


@pytest.mark.parametrize("answer", [0, 7, 11, 12, 14, 18, 24, 25])
def test_an_answer_is_pointed_at_in_every_window_that_holds_it_and_nothing_in_the_others(answer: int) -> None:
    letters = LONG.split()
    encoded = encoded_of((LONG, "a", [(letters[answer], 2 * answer)]), length=16)
    assert encoded.targets is not None
    for tokens, (start, end) in zip(encoded.input_ids, encoded.targets, strict=True):
        text = [WORDS[token] for token in tokens[3:-1]]
        place = 3 + text.index(letters[answer]) if letters[answer] in text else 0
        assert (start, end) == (place, place)


def test_a_window_that_cuts_the_answer_points_to_nothing() -> None:
    encoded = encoded_of((LONG, "a", [("k l m", 20)]), length=16)  # the first window ends with l
    assert encoded.targets == [[0, 0], [6, 8], [0, 0]]


def test_an_answer_within_a_token_is_that_token() -> None:
    words = BertTokenizer(vocab={word: i for i, word in enumerate([*WORDS[:5], "in", "1850s"])})
    encoded = TASK.encode(rows_of(("in 1850s", "in", [("1850", 3)])), words, 16)
    assert encoded.targets == [[4, 4]]


SPACED = "a b  c d"


@pytest.mark.parametrize(("said", "start"), [(" b", 1), ("b ", 2), (" b  ", 1), ("b", 2)])
@pytest.mark.parametrize("with_space", [False, True])
def test_white_space_at_the_ends_of_an_answer_is_no_part_of_it(said: str, start: int, with_space: bool) -> None:
    words = with_space_in_tokens() if with_space else tokenizer()
    encoded = TASK.encode(rows_of((SPACED, "d", [(said, start)])), words, 16)
    tokens = words.convert_ids_to_tokens(encoded.input_ids[0])
    place = tokens.index("▁b" if with_space else "b")
    assert (encoded.targets, encoded.unheld_answers) == ([[place, place]], 0)


@pytest.mark.parametrize("said", ["b c", f"{NO_TOKEN}b c", f"b c{NO_TOKEN}", f"{NO_TOKEN}b c{NO_TOKEN}"])
def test_characters_without_a_token_at_the_ends_of_an_answer_are_no_matter(said: str) -> None:
    encoded = encoded_of((f"a {said} d", "d", [(said, 2)]))
    assert encoded.input_ids == [[CLS, *ids("d"), SEP, *ids("a b c d"), SEP]]
    assert encoded.targets == [[4, 5]]


def test_an_answer_that_begins_before_its_window_is_not_in_it_whatever_stands_between() -> None:
    """The windows are a-l, h-s and o-z; a character without a token stands before g, the first letter of the answer."""
    text = LONG.replace("f g", f"f {NO_TOKEN}g")
    encoded = encoded_of((text, "a", [(f"{NO_TOKEN}g h", 12)]), length=16)
    assert encoded.targets == [[9, 10], [0, 0], [0, 0]]


def test_answers_that_no_window_holds_are_counted() -> None:
    held, cut = (LONG, "a", [("k l m", 20)]), (LONG, "a", [("a b c d e f g h i j k l m n", 0)])
    silent, nothing = ("a b", "c", []), (f"a {NO_TOKEN} b", "c", [(NO_TOKEN, 2)])
    assert encoded_of(held, cut, silent, nothing).unheld_answers == 2
    assert encoded_of(held, silent).unheld_answers == 0


@pytest.mark.parametrize("blank", [" ", "  ", ""])
def test_a_blank_answer_is_pointed_at_by_no_token(blank: str) -> None:
    encoded = TASK.encode(rows_of((SPACED, "d", [(blank, 3)])), with_space_in_tokens(), 16)
    assert (encoded.targets, encoded.unheld_answers) == ([[0, 0]], 1)


def test_of_several_answers_the_first_is_learnt() -> None:
    assert encoded_of(("a b c", "d", [("c", 4), ("a", 0)])).targets == [[5, 5]]


def test_an_unanswerable_question_points_to_nothing() -> None:
    assert encoded_of(("a b c", "d", [])).targets == [[0, 0]]


def test_rows_with_long_and_short_questions_keep_their_order() -> None:
    rows = ((LONG, "a b c d e f g h", []), ("a b", "c", []), (LONG, "d", []))
    encoded = encoded_of(*rows, length=16)
    assert encoded.rows == sorted(encoded.rows or []) and set(encoded.rows) == {0, 1, 2}
    for row, own in enumerate(rows):
        alone = encoded_of(own, length=16)
        assert [t for t, r in zip(encoded.input_ids, encoded.rows, strict=True) if r == row] == alone.input_ids


def test_windows_do_not_depend_on_how_many_rows_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = encoded_of(*UNEQUAL, (LONG, "a", [("z", 50)]))
    monkeypatch.setattr(question_answering, "TOKENIZED_AT_ONCE", 1)
    parts = encoded_of(*UNEQUAL, (LONG, "a", [("z", 50)]))
    assert (parts.input_ids, parts.targets, parts.rows) == (whole.input_ids, whole.targets, whole.rows)


def test_rows_without_labels_have_no_targets() -> None:
    encoded = TASK.encode(Examples(("row0",), ("a b",), ("c",)), tokenizer(), 16)
    assert encoded.targets is None and "labels" not in encoded[0]


def test_no_rows_are_no_items() -> None:
    assert len(TASK.encode(Examples((), (), (), ()), tokenizer(), 16)) == 0


def test_a_question_that_leaves_no_place_for_the_text_is_refused() -> None:
    message = "row 'row1' has a question of 4 tokens, which leaves no place for its text in max_length 7; raise it."
    with pytest.raises(TaskError, match=re.escape(message)):
        encoded_of(("a", "b c d", []), ("a", "b c d e", []), length=7)


def test_texts_without_questions_are_refused() -> None:
    with pytest.raises(TaskError) as caught:
        TASK.encode(Examples(("row0",), ("a",)), tokenizer(), 16)
    assert str(caught.value) == (
        "question_answering needs a question beside each text; name its column with --pair-column."
    )


def test_a_slow_tokenizer_is_refused() -> None:
    slow = MagicMock(spec=PreTrainedTokenizerBase, is_fast=False, model_max_length=512)
    slow.num_special_tokens_to_add.return_value = 3
    with pytest.raises(TaskError) as caught:
        TASK.encode(rows_of(UNEQUAL[0]), slow, 16)
    assert str(caught.value) == ("question_answering needs a fast tokenizer, which knows the characters of its tokens.")


def with_space_in_tokens() -> PreTrainedTokenizerBase:
    """Words that begin with a space, which belongs to their characters, as in sentencepiece vocabularies."""
    vocabulary = ["<pad>", "<unk>", "<s>", "</s>", "▁", *(f"▁{letter}" for letter in "abcdef")]
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", cls_token="<s>", sep_token="</s>")


def test_spaces_that_belong_to_tokens_are_no_part_of_an_answer() -> None:
    encoded = TASK.encode(rows_of(("a b  c", "d", [("b", 2)])), with_space_in_tokens(), 16)
    tokens = encoded.input_ids[0]
    assert encoded.targets == [[5, 5]]  # <s> d </s> </s> a b ▁ c </s>
    scores = np.zeros((len(tokens), 2))
    scores[5], scores[6] = (3, 3), (9, 9)  # alone, a space is no answer
    assert TASK.by_row([scores], encoded)[0].text == "b"


# -- answers ----------------------------------------------------------------------------------------------------------


def scores_of(encoded: Encoded, *best: tuple[int, int, int, float]) -> list[np.ndarray]:
    """0 everywhere, but for a (window, start, end, score)."""
    found = [np.zeros((length, 2)) for length in encoded.lengths]
    for window, start, end, score in best:
        found[window][start, 0] = found[window][end, 1] = score
    return found


def test_the_best_answer_of_all_windows_is_the_rows() -> None:
    encoded = encoded_of((LONG, "a", []), ("a b c", "d", []), length=16)
    scores = scores_of(encoded, (0, 3, 4, 2.0), (1, 5, 7, 3.0), (2, 4, 4, 1.0), (3, 5, 5, 0.5))
    assert TASK.by_row(scores, encoded) == [Answer("j k l", 18, 6.0), Answer("c", 4, 1.0)]


def test_an_answer_does_not_end_before_it_begins() -> None:
    encoded = encoded_of(("a b c", "d", []))
    scores = scores_of(encoded)
    scores[0][5, 0], scores[0][4, 1] = 9.0, 8.0
    assert TASK.by_row(scores, encoded) == [Answer("c", 4, 9.0)]


def test_tokens_of_the_question_are_no_answer() -> None:
    encoded = encoded_of(("a b c", "d", []))
    scores = scores_of(encoded, (0, 1, 1, 9.0), (0, 0, 0, 9.0), (0, 4, 4, 0.1))
    assert TASK.by_row(scores, encoded)[0].text == "b"


def test_the_longest_answer_has_thirty_tokens() -> None:
    text = " ".join(["a"] * 40)
    encoded = encoded_of((text, "b", []), length=64)
    for tokens, fits in ((LONGEST_ANSWER, True), (LONGEST_ANSWER + 1, False)):
        (answer,) = TASK.by_row(scores_of(encoded, (0, 3, 2 + tokens, 5.0)), encoded)
        assert (len(answer.text.split()) == tokens) is fits


def test_the_best_pair_is_found_among_all_pairs() -> None:
    encoded = encoded_of((LONG, "a", []), length=40)
    assert encoded.places is not None
    scores = np.random.default_rng(3).normal(size=(encoded.lengths[0], 2))
    pairs = [(scores[i, 0] + scores[j, 1], i, j) for i, j in itertools.combinations_with_replacement(range(3, 29), 2)]
    score, start, end = max(pairs)
    found = encoded.places[0].best(scores, LONG)
    assert found.score == score and found.text == LONG[2 * (start - 3) : 2 * (end - 3) + 1]


def test_no_answer_is_given_only_where_it_may_be() -> None:
    encoded = encoded_of(("a b c", "d", []))
    scores = scores_of(encoded, (0, 0, 0, 9.0), (0, 4, 4, 1.0))
    assert TASK.by_row(scores, encoded) == [Answer("b", 2, 2.0)]
    assert QuestionAnswering(allow_empty=True).by_row(scores, encoded) == [Answer("", 0, 18.0)]


def test_no_answer_must_beat_the_best_answer_in_every_window() -> None:
    task, encoded = QuestionAnswering(allow_empty=True), encoded_of((LONG, "a", []), length=16)
    sure = scores_of(encoded, (0, 0, 0, 9.0), (1, 0, 0, 9.0), (2, 0, 0, 9.0), (1, 5, 5, 4.0))
    unsure = scores_of(encoded, (0, 0, 0, 9.0), (1, 0, 0, 1.0), (2, 0, 0, 9.0), (1, 5, 5, 4.0))
    assert [task.by_row(scores, encoded)[0].text for scores in (sure, unsure)] == ["", "j"]


@pytest.mark.parametrize("text", ["", "   "])
def test_a_text_without_words_has_no_answer(text: str) -> None:
    encoded = encoded_of((text, "d", []))
    assert [answer.text for answer in TASK.by_row(scores_of(encoded), encoded)] == [""]


def test_scores_that_are_no_numbers_give_some_answer() -> None:
    encoded = encoded_of(("a b c", "d", []))
    assert len(TASK.by_row([np.full((encoded.lengths[0], 2), np.nan)], encoded)) == 1


def test_scores_of_a_batch_come_without_padding() -> None:
    batch = batch_of(encoded_of(*UNEQUAL), "left")
    found = TASK.item_scores(model(weights().detach(), batch), batch["attention_mask"])
    expected = [weights()[torch.tensor(tokens)].detach().float().numpy() for tokens in encoded_of(*UNEQUAL).input_ids]
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


# -- metrics ----------------------------------------------------------------------------------------------------------


def test_exact_match_and_f1_are_means_over_the_rows() -> None:
    """F1 of each row: 1, 2·1·⅔/(1+⅔), 1, 0, 0, 2·1·½/(1+½); the first and the third match exactly."""
    predicted = ["The cat", "dog barks", "", "", "nine", "x"]
    truth: list[list[tuple[str, int]]] = [
        *([("cat", 0)], [("a cat", 0), ("the dog barks loudly", 0)], [], [("here", 3)], [], [("x y z", 0), ("x y", 0)]),
    ]
    found = TASK.scores([Answer(text, 0, 0.0) for text in predicted], truth)
    expected = {"exact_match": 2 / 6, "f1": (1 + 4 / 5 + 1 + 0 + 0 + 2 / 3) / 6}
    assert found == pytest.approx(expected, rel=0, abs=PRINTED[torch.float32])


@pytest.mark.parametrize(
    ("predicted", "answers", "exact", "f1"),
    [
        pytest.param("", [], 1, 1, id="rightly no answer"),
        pytest.param("cat", [], 0, 0, id="an answer where there is none"),
        pytest.param("", [("cat", 0)], 0, 0, id="no answer where there is one"),
        pytest.param("The Cat.", [("cat", 0)], 1, 1, id="articles, case and punctuation do not count"),
        pytest.param("black cat", [("dog", 0), ("a black cat", 3)], 1, 1, id="the best of several answers counts"),
        pytest.param("black cat", [("cat", 0)], 0, 2 / 3, id="shared words count in part"),
        pytest.param("cat cat dog", [("cat dog dog", 0)], 0, 2 / 3, id="a word counts as often as in both"),
        pytest.param("cat-dog", [("cat dog", 0)], 0, 0, id="punctuation vanishes and parts no words"),
        pytest.param("a1, b2!", [("b2 A1", 0)], 0, 1, id="order does not count in F1"),
        pytest.param("", [("the", 0)], 1, 1, id="an answer of articles alone is no answer"),
        pytest.param("the", [("A.", 0)], 1, 1, id="so is a prediction of articles alone"),
        pytest.param("cat", [("the", 0)], 0, 0, id="a word where the answer has articles alone"),
        pytest.param("", [("the", 0), ("cat", 4)], 0, 0, id="no answer beside one of articles alone and one of words"),
        pytest.param("cat", [("the", 0), ("cat", 4)], 1, 1, id="the answer of words where another has articles alone"),
    ],
)
def test_a_prediction_is_judged_as_on_squad(
    predicted: str, answers: list[tuple[str, int]], exact: float, f1: float
) -> None:
    found = TASK.scores([Answer(predicted, 0, 0.0)], [answers])
    assert found == pytest.approx({"exact_match": exact, "f1": f1}, rel=0, abs=PRINTED[torch.float32])


def test_what_is_kept_are_places_and_no_text() -> None:
    kept = TASK.columns([Answer("b c", 2, 1.5), Answer("", 0, 3.0)], [(("b", 2), ("b c d", 2)), ()])
    assert kept == {"label": [[2, 1, 2, 5], []], "predicted": [[2, 3], [0, 0]], "exact_match": [False, True]}


def test_an_answer_is_text_place_and_score() -> None:
    assert TASK.decode([Answer("b c", 2, 1.5)]) == [{"answer": "b c", "start": 2, "score": 1.5}]


@pytest.mark.parametrize("allow_empty", [False, True])
def test_the_head_has_two_outputs_and_says_whether_there_may_be_no_answer(allow_empty: bool) -> None:
    assert QuestionAnswering(allow_empty).head_config() == {"num_labels": 2, "allow_empty_answer": allow_empty}


def test_a_window_knows_its_answer_by_characters() -> None:
    window = Window(np.array([[-1, -1], [0, 3], [4, 7], [-1, -1]], dtype=np.int32), 0)
    assert [window.target(answer) for answer in ((4, 7), (0, 2), (4, 8), None)] == [[2, 2], [1, 1], [0, 0], [0, 0]]

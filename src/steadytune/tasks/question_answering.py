"""Extractive question answering: where in a text the answer begins and ends, or that it is not there."""

import string
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from steadytune.tasks.features import TOKENIZED_AT_ONCE, Encoded, Rows, TaskError, check_length
from steadytune.tasks.multiple_choice import choice_divergence, choice_loss, without
from steadytune.tasks.task import DivergenceForm, Items, Task

LONGEST_ANSWER = 30  # tokens, the usual limit of SQuAD scripts
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Answer:
    """A part of a row's text.

    Attributes:
        text: what it says; empty for "no answer".
        start: character at which it begins.
        score: sum of the scores of its two ends.
    """

    text: str
    start: int
    score: float


@dataclass(frozen=True)
class Window:
    """The tokens of one item.

    Attributes:
        spans: (tokens, 2), characters of the row's text that a token stands for; -1 outside the text.
        nothing: position of the token that means "no answer here".
    """

    spans: np.ndarray
    nothing: int

    def target(self, answer: tuple[int, int] | None) -> list[int]:
        """First and last token of an answer, or twice the token for "nothing" if it is not all in here.

        Args:
            answer: where the characters that have tokens begin and end; None without an answer.
        """
        if answer is not None:
            begin, end = answer
            inside = np.flatnonzero(_overlap(self.spans, begin, end))
            if len(inside) and self.spans[inside[0], 0] <= begin and self.spans[inside[-1], 1] >= end:
                return [int(inside[0]), int(inside[-1])]
        return [self.nothing, self.nothing]

    def best(self, scores: np.ndarray, text: str) -> Answer | None:
        """The answer of at most `LONGEST_ANSWER` tokens with the largest score; None where there is no text.

        Args:
            scores: (tokens, 2), of its start and its end.
            text: of the row.
        """
        spans = self.spans.tolist()
        inside = [place for place, (begin, end) in enumerate(spans) if begin >= 0 and text[begin:end].strip()]
        if not inside:
            return None
        sums = scores[inside, 0][:, None].astype(np.float64) + scores[inside, 1][None, :]
        allowed = np.triu(np.ones(sums.shape, dtype=bool)) & ~np.triu(np.ones(sums.shape, dtype=bool), LONGEST_ANSWER)
        first, last = np.unravel_index(np.where(allowed, sums, -np.inf).argmax(), sums.shape)
        begin, end = spans[inside[first]][0], spans[inside[last]][1]
        said = text[begin:end]
        begin += len(said) - len(said.lstrip())  # to some tokenizers the space before a word is part of it
        return Answer(said.strip(), begin, float(sums[first, last]))


class QuestionAnswering(Task):
    """Start and end of the answer, each a choice among the tokens; mean of both cross-entropies.

    Long texts are read in windows that overlap by a third; a window without the answer points to its [CLS] token.
    Padding takes no part in either choice; in the loss that models of transformers compute themselves it does.

    Args:
        allow_empty: whether a prediction may be "no answer"; set it where training rows have none.
    """

    name: ClassVar[str] = "question_answering"
    model_class: ClassVar[str] = "AutoModelForQuestionAnswering"
    head_reads_one_token: ClassVar[bool] = False
    metric: str = "f1"

    def __init__(self, allow_empty: bool = False) -> None:
        self.allow_empty = allow_empty

    def encode(self, rows: Rows, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoded:
        """Question and text as tokens, in as many windows as the text needs.

        Args:
            rows: texts, questions as pairs, and labels as lists of (answer, character at which it begins).
            tokenizer: fast, so that it knows which characters a token stands for.
            max_length: tokens per window.
        Raises:
            TaskError: the tokenizer is slow, there are no questions, or one leaves no place for the text.
        """
        check_length(tokenizer, max_length, pair=True)
        if not tokenizer.is_fast:
            raise TaskError("question_answering needs a fast tokenizer, which knows the characters of its tokens.")
        if rows.pairs is None:
            raise TaskError("question_answering needs a question beside each text; name its column with --pair-column.")
        found = _windows(rows.ids, rows.texts, rows.pairs, tokenizer, max_length)
        of_row = [row for row, own in enumerate(found) for _ in own]
        windows = [window for own in found for window in own]
        segments = [own for _, own, _ in windows if own is not None]
        places = [place for _, _, place in windows]
        targets, unheld = None, 0
        if rows.labels is not None:
            targets, unheld = _targets(rows.labels, [[place for _, _, place in own] for own in found])
        input_ids = [ids for ids, _, _ in windows]
        texts = tuple(rows.texts)
        return Encoded(rows.ids, input_ids, segments or None, rows.labels, 0, targets, of_row, places, texts, unheld)

    def items(self, batch: MutableMapping[str, Any]) -> Items:
        """Two items per window: all starts, then all ends; padding takes no part. See `Task.items`.

        Args:
            batch: "labels" (batch, 2), counted without padding on the left, -100 where unknown; or "start_positions"
                and "end_positions" (batch,) as transformers has them. Those outside the tokens are unknown.
        """
        real = batch.get("attention_mask")
        real = real.bool() if isinstance(real, Tensor) and real.ndim == 2 else None
        labels = _positions(batch, real)
        tokens = (batch["input_ids"] if batch.get("input_ids") is not None else batch["inputs_embeds"]).shape[1]
        known = (labels >= 0) & (labels < tokens)
        if real is not None:
            known &= real.gather(1, labels.clamp(0, tokens - 1))
        labels = torch.where(known, labels, -100)

        def scores(output: Any) -> Tensor:
            both = torch.cat([output.start_logits, output.end_logits])
            return both if real is None else without(both, ~torch.cat([real, real]))

        return Items(labels.T.reshape(-1), scores, per_text=(labels != -100).sum(dim=1))

    def loss(self, logits: Float[Tensor, "items outputs"], labels: Int[Tensor, " items"]) -> Float[Tensor, ""]:
        """Mean cross-entropy in nats over starts and ends; see `Task.loss`.

        Args:
            logits: (items, tokens).
            labels: positions; -100 marks an unknown one.
        """
        return choice_loss(logits, labels)

    def divergence(
        self,
        one: Float[Tensor, "items outputs"],
        other: Float[Tensor, "items outputs"],
        form: DivergenceForm = "mean",
    ) -> Float[Tensor, ""]:
        """Kullback–Leibler divergence in nats over the tokens, mean over starts and ends.

        Args:
            one: (items, tokens).
            other: (items, tokens).
            form: both directions or one.
        """
        return choice_divergence(one, other, form)

    def item_scores(self, output: Any, real: Tensor) -> list[np.ndarray]:
        """Scores of start and end of the real tokens of each window; see `Task.item_scores`.

        Args:
            output: what the model returns.
            real: attention mask of the batch.
        """
        both = torch.stack([output.start_logits, output.end_logits], dim=-1).float()
        return [row[mask].cpu().numpy() for row, mask in zip(both, real.bool(), strict=True)]

    def by_row(self, scores: Sequence[np.ndarray], rows: Encoded) -> list[Answer]:
        """The best answer of each row over its windows.

        Args:
            scores: (tokens, 2) of each window.
            rows: that were scored.
        """
        assert rows.places is not None and rows.rows is not None and rows.texts is not None
        best: list[Answer | None] = [None] * len(rows.ids)
        nothing = [np.inf] * len(rows.ids)
        for own, window, row in zip(scores, rows.places, rows.rows, strict=True):
            nothing[row] = min(nothing[row], float(own[window.nothing].sum()))
            found, known = window.best(own, rows.texts[row]), best[row]
            if found is not None and (known is None or found.score > known.score):
                best[row] = found
        return [
            Answer("", 0, absent) if found is None or (self.allow_empty and absent > found.score) else found
            for found, absent in zip(best, nothing, strict=True)
        ]

    def scores(self, predictions: Sequence[Answer], labels: Sequence[Sequence[tuple[str, int]]]) -> dict[str, float]:
        """Exact match and F1 over the words of the answer, by torchmetrics, in [0, 1].

        As on SQuAD, articles and punctuation are no words, and an answer without words is none.

        Args:
            predictions: of each row.
            labels: all right answers of each row; none means that there is no answer.
        """
        from torchmetrics.functional.text import squad

        given = [{"prediction_text": answer.text, "id": str(row)} for row, answer in enumerate(predictions)]
        truth = [
            {"answers": {"text": [text for text, _ in answers if _counts(text)] or [""]}, "id": str(row)}
            for row, answers in enumerate(labels)
        ]
        found = squad(given, truth)  # type: ignore[arg-type]
        return {"f1": float(found["f1"]) / 100, "exact_match": float(found["exact_match"]) / 100}

    def decode(self, predictions: Sequence[Answer]) -> list[dict[str, Any]]:
        """The answer, where it begins and its score, one mapping per row.

        Args:
            predictions: of each row.
        """
        return [{"answer": one.text, "start": one.start, "score": one.score} for one in predictions]

    def columns(self, predictions: Sequence[Answer], labels: Sequence[Any]) -> dict[str, list[Any]]:
        """Answers as characters of the text, first and length, and which match; see `Task.columns`. No text is kept.

        Args:
            predictions: of each row.
            labels: all right answers of each row.
        """
        both = zip(predictions, labels, strict=True)
        return {
            "label": [[number for text, start in answers for number in (start, len(text))] for answers in labels],
            "predicted": [[answer.start, len(answer.text)] for answer in predictions],
            "exact_match": [self.scores([answer], [answers])["exact_match"] == 1 for answer, answers in both],
        }

    def head_config(self) -> dict[str, Any]:
        """Two outputs, and whether a prediction may be "no answer"."""
        return {"num_labels": 2, "allow_empty_answer": self.allow_empty}


def _positions(batch: MutableMapping[str, Any], real: Tensor | None) -> Int[Tensor, "batch 2"]:
    """Start and end of each answer, padding on the left counted; taken out of the batch."""
    if batch.get("labels") is not None:
        labels = batch.pop("labels")
        before = 0 if real is None else real.long().argmax(dim=1, keepdim=True)
    else:
        ends = [batch.pop(name, None) for name in ("start_positions", "end_positions")]
        if any(one is None for one in ends):
            raise TaskError(
                "question_answering needs labels (batch, 2), start and end of each answer, or start_positions and "
                "end_positions."
            )
        labels, before = torch.stack([one.flatten() for one in ends], dim=1), 0
    if labels.ndim != 2 or labels.shape[1] != 2 or labels.is_floating_point():
        raise TaskError(
            "question_answering takes integers (batch, 2) as labels, start and end of each answer; got "
            f"{labels.dtype} of shape {tuple(labels.shape)}."
        )
    return torch.where(labels >= 0, labels + before, -100)


def _targets(labels: Sequence[Any], windows: Sequence[Sequence[Window]]) -> tuple[list[list[int]], int]:
    """The target of every window of all rows, and the number of rows with an answer that no window holds."""
    targets, unheld = [], 0
    for answers, places in zip(labels, windows, strict=True):
        asked = _characters(answers, places)
        own = [place.target(asked) for place in places]
        unheld += bool(answers) and all(start == place.nothing for (start, _), place in zip(own, places, strict=True))
        targets += own
    return targets, unheld


def _overlap(spans: np.ndarray, begin: int, end: int) -> np.ndarray:
    """Which tokens stand for some of these characters."""
    found: np.ndarray = (spans[:, 0] < end) & (spans[:, 1] > begin)
    return found


def _characters(answers: Sequence[tuple[str, int]], windows: Sequence[Window]) -> tuple[int, int] | None:
    """Where the first answer begins and ends, less white space and what else has no token at its ends."""
    if not answers or not answers[0][0].strip():
        return None
    said, begin = answers[0]
    begin += len(said) - len(said.lstrip())
    end = begin + len(said.strip())
    spans = np.concatenate([window.spans for window in windows])
    own = spans[_overlap(spans, begin, end)]
    return (max(begin, int(own[:, 0].min())), min(end, int(own[:, 1].max()))) if len(own) else None


def _counts(answer: str) -> bool:
    """Whether an answer has words, of which articles are none."""
    return not {*answer.lower().translate(_NO_PUNCTUATION).split()} <= {"a", "an", "the"}


def _windows(
    ids: Sequence[str], texts: Sequence[str], questions: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int
) -> list[list[tuple[list[int], list[int] | None, Window]]]:
    """By row, the tokens, segments and characters of its windows."""
    found: list[list[tuple[list[int], list[int] | None, Window]]] = [[] for _ in ids]
    for start in range(0, len(ids), TOKENIZED_AT_ONCE):
        rows = range(start, min(start + TOKENIZED_AT_ONCE, len(ids)))
        overlaps = _overlaps([ids[row] for row in rows], [questions[row] for row in rows], tokenizer, length)
        for overlap in sorted(set(overlaps)):
            group = [row for row, own in zip(rows, overlaps, strict=True) if own == overlap]
            tokens = tokenizer(
                [questions[row] for row in group],
                [texts[row] for row in group],
                truncation="only_second",
                max_length=length,
                stride=overlap,
                return_overflowing_tokens=True,
                return_attention_mask=False,
                verbose=False,
            )
            segments = tokens.get("token_type_ids")
            for place, row in enumerate(tokens["overflow_to_sample_mapping"]):
                own, encoding = tokens["input_ids"][place], tokens.encodings[place]
                outside = np.asarray([part != 1 for part in encoding.sequence_ids])
                spans = np.asarray(encoding.offsets, dtype=np.int32).reshape(-1, 2)
                spans[outside] = -1
                nothing = own.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in own else 0
                found[group[row]].append((own, None if segments is None else segments[place], Window(spans, nothing)))
    return found


def _overlaps(
    ids: Sequence[str], questions: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int
) -> list[int]:
    """By row, the tokens that two windows share: a third of a window, or half of what a long question leaves."""
    special = tokenizer.num_special_tokens_to_add(pair=True)
    asked = tokenizer(list(questions), add_special_tokens=False, return_attention_mask=False, verbose=False)
    overlaps = []
    for row_id, own in zip(ids, asked["input_ids"], strict=True):
        room = length - special - len(own)
        if room < 1:
            raise TaskError(
                f"row {row_id!r} has a question of {len(own)} tokens, which leaves no place for its text in max_length "
                f"{length}; raise it."
            )
        overlaps.append(min(length // 3, room // 2))
    return overlaps

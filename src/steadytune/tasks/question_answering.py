"""Extractive question answering: where in a text the answer begins and ends, or that it is not there."""

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from steadytune.functional import directed_kl, symmetric_kl
from steadytune.tasks.features import Encoded, Rows, TaskError, check_length
from steadytune.tasks.multiple_choice import without
from steadytune.tasks.task import DivergenceForm, Items, Task

LONGEST_ANSWER = 30  # tokens, the usual limit of SQuAD scripts
_BEST = 20  # starts and ends that are paired with each other


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
        offsets: characters of the row's text that a token stands for; None outside the text.
        nothing: position of the token that means "no answer here".
    """

    offsets: list[tuple[int, int] | None]
    nothing: int


class QuestionAnswering(Task):
    """Start and end of the answer, each a choice among the tokens; mean of both cross-entropies.

    Long texts are read in windows that overlap by a third; a window without the answer points to its first token.

    Args:
        allow_empty: whether a prediction may be "no answer"; set it where training rows have none.
    """

    name: ClassVar[str] = "question_answering"
    model_class: ClassVar[str] = "AutoModelForQuestionAnswering"
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
            TaskError: the tokenizer is slow, or a question leaves no place for the text.
        """
        check_length(tokenizer, max_length, pair=True)
        if not tokenizer.is_fast:
            raise TaskError("question_answering needs a fast tokenizer, which knows the characters of its tokens.")
        assert rows.pairs is not None
        input_ids, segments, places, of_row = [], [], [], []
        targets: list[list[int]] | None = None if rows.labels is None else []
        special = tokenizer.num_special_tokens_to_add(pair=True)
        for row, (row_id, text, question) in enumerate(zip(rows.ids, rows.texts, rows.pairs, strict=True)):
            room = max_length - special - len(tokenizer(question, add_special_tokens=False)["input_ids"])
            if room < 1:
                raise TaskError(
                    f"row {row_id!r} has a question that leaves no place for its text in max_length {max_length}; "
                    "raise it."
                )
            tokens = tokenizer(
                question,
                text,
                truncation="only_second",
                max_length=max_length,
                stride=min(max_length // 3, room // 2),
                return_overflowing_tokens=True,
                return_offsets_mapping=True,
                return_attention_mask=False,
                verbose=False,
            )
            for place, ids in enumerate(tokens["input_ids"]):
                window = Window(
                    [
                        span if part == 1 else None
                        for span, part in zip(tokens["offset_mapping"][place], tokens.sequence_ids(place), strict=True)
                    ],
                    ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else 0,
                )
                input_ids.append(ids)
                places.append(window)
                of_row.append(row)
                if "token_type_ids" in tokens:
                    segments.append(tokens["token_type_ids"][place])
                if targets is not None and rows.labels is not None:
                    targets.append(_ends(rows.labels[row], window))
        return Encoded(
            rows.ids, input_ids, segments or None, rows.labels, 0, targets, of_row, places, tuple(rows.texts)
        )

    def items(self, batch: MutableMapping[str, Any]) -> Items:
        """Two items per window: all starts, then all ends; padding takes no part. See `Task.items`.

        Args:
            batch: "labels" (batch, 2), counted without padding on the left, -100 where unknown; or "start_positions"
                and "end_positions" (batch,) as transformers has them.
        """
        real = batch.get("attention_mask")
        if "labels" in batch:
            labels = batch.pop("labels")
        elif "start_positions" in batch and "end_positions" in batch:
            labels = torch.stack([batch.pop("start_positions"), batch.pop("end_positions")], dim=1)
            real = None
        else:
            labels = torch.empty(0)
        if labels.ndim != 2 or labels.shape[1] != 2 or labels.is_floating_point():
            raise TaskError(
                "question_answering takes integers (batch, 2) as labels, start and end of each answer; got shape "
                f"{tuple(labels.shape)}."
            )
        tokens = batch["input_ids"].shape[1] if "input_ids" in batch else int(labels.max()) + 1
        if real is not None:
            labels = torch.where(labels >= 0, labels + real.long().argmax(dim=1, keepdim=True), -100)
        labels = torch.where((labels >= 0) & (labels < tokens), labels, -100)
        mask: Tensor | None = batch.get("attention_mask")

        def scores(output: Any) -> Tensor:
            both = torch.cat([output.start_logits, output.end_logits])
            return both if mask is None else without(both, torch.cat([mask, mask]) == 0)

        return Items(labels.T.reshape(-1), scores)

    def loss(self, logits: Float[Tensor, "items outputs"], labels: Int[Tensor, " items"]) -> Float[Tensor, ""]:
        """Mean cross-entropy in nats over starts and ends; see `Task.loss`.

        Args:
            logits: (items, tokens).
            labels: positions; -100 marks an unknown one.
        """
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        total = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        return total / self.count(labels).clamp(min=1)

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
        return directed_kl(one, other) if form == "directed" else symmetric_kl(one, other) * (1 + (form == "sum"))

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
        for row, window, own in zip(rows.rows, rows.places, scores, strict=True):
            nothing[row] = min(nothing[row], float(own[window.nothing].sum()))
            found, known = _best_span(own, window, rows.texts[row]), best[row]
            if found is not None and (known is None or found.score > known.score):
                best[row] = found
        return [
            Answer("", 0, absent) if found is None or (self.allow_empty and absent > found.score) else found
            for found, absent in zip(best, nothing, strict=True)
        ]

    def scores(self, predictions: Sequence[Answer], labels: Sequence[Sequence[tuple[str, int]]]) -> dict[str, float]:
        """Exact match and F1 over the words of the answer, by torchmetrics, in [0, 1].

        Args:
            predictions: of each row.
            labels: all right answers of each row; none means that there is no answer.
        """
        from torchmetrics.functional.text import squad

        given = [{"prediction_text": answer.text, "id": str(row)} for row, answer in enumerate(predictions)]
        truth = [
            {"answers": {"text": [text for text, _ in answers] or [""], "answer_start": [0]}, "id": str(row)}
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
        """Answers as characters of the text, first and length; see `Task.columns`. Texts are not kept.

        Args:
            predictions: of each row.
            labels: all right answers of each row.
        """
        return {
            "label": [[number for text, start in answers for number in (start, len(text))] for answers in labels],
            "predicted": [[answer.start, len(answer.text)] for answer in predictions],
        }

    def head_config(self) -> dict[str, Any]:
        """Two outputs, and whether a prediction may be "no answer"."""
        return {"num_labels": 2, "allow_empty_answer": self.allow_empty}


def _ends(answers: Sequence[tuple[str, int]], window: Window) -> list[int]:
    """First and last token of the first answer, or twice the token for "nothing" if it is not all in the window."""
    if answers:
        text, begin = answers[0]
        end = begin + len(text)
        inside = [place for place, span in enumerate(window.offsets) if span and span[0] < end and span[1] > begin]
        if inside:
            first, last = window.offsets[inside[0]], window.offsets[inside[-1]]
            if first and last and first[0] <= begin and last[1] >= end:
                return [inside[0], inside[-1]]
    return [window.nothing, window.nothing]


def _best_span(scores: np.ndarray, window: Window, text: str) -> Answer | None:
    """The best pair of a start and an end in the text."""
    inside = np.asarray([place for place, span in enumerate(window.offsets) if span is not None and span[0] < span[1]])
    if len(inside) == 0:
        return None
    starts, ends = (inside[np.argsort(-scores[inside, side], kind="stable")[:_BEST]] for side in (0, 1))
    best: Answer | None = None
    for start in starts:
        for end in ends:
            score = float(scores[start, 0] + scores[end, 1])
            if start <= end < start + LONGEST_ANSWER and (best is None or score > best.score):
                first, last = window.offsets[start], window.offsets[end]
                assert first is not None and last is not None
                best = Answer(text[first[0] : last[1]], first[0], score)
    if best is None:  # none of the best pairs fits: the best single token
        place = int(inside[np.argmax(scores[inside].sum(axis=1))])
        span = window.offsets[place]
        assert span is not None
        best = Answer(text[span[0] : span[1]], span[0], float(scores[place].sum()))
    return best

"""One of several answers, each read together with the text."""

from collections.abc import MutableMapping, Sequence
from itertools import accumulate
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import softmax
from sklearn.metrics import accuracy_score
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase

from steadytune.functional import directed_kl, symmetric_kl
from steadytune.tasks.features import TOKENIZED_AT_ONCE, Encoded, Rows, TaskError, check_length, tokenized
from steadytune.tasks.task import DivergenceForm, Items, Task, logits_of

T = TypeVar("T")
_WHOLE = 2**53  # the part of a row in a mean, so large that the parts of its choices, integers, are equal to float64


class MultipleChoice(Task):
    """The right one of the choices of each row; cross-entropy over a row's choices, however many it has."""

    name: ClassVar[str] = "multiple_choice"
    model_class: ClassVar[str] = "AutoModelForMultipleChoice"
    metric: str = "accuracy"

    def encode(self, rows: Rows, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoded:
        """Each choice as a pair of texts with the row's text, which is the one to be cut.

        Args:
            rows: pairs are lists of choices, labels indices into them.
            tokenizer: of the model.
            max_length: tokens per choice.
        Raises:
            TaskError: there are no choices, or one leaves no place for the text.
        """
        check_length(tokenizer, max_length, pair=True)
        if rows.pairs is None:
            raise TaskError("multiple_choice needs choices beside each text; name their column with --pair-column.")
        counts = [len(choices) for choices in rows.pairs]
        choices = [choice for own in rows.pairs for choice in own]
        texts = [text for text, count in zip(rows.texts, counts, strict=True) for _ in range(count)]
        owners = [row_id for row_id, count in zip(rows.ids, counts, strict=True) for _ in range(count)]
        _check_room(tokenizer, choices, owners, max_length)
        tokens = tokenized(tokenizer, texts, choices, max_length, truncation="only_first")
        targets = None
        if rows.labels is not None:
            targets = [
                [int(place == label) for place in range(count)]
                for label, count in zip(rows.labels, counts, strict=True)
            ]
        segments = None if tokens.token_type_ids is None else _by_row(tokens.token_type_ids, counts)
        truncated = sum(map(any, _by_row(tokens.cut, counts)))
        return Encoded(rows.ids, _by_row(tokens.input_ids, counts), segments, rows.labels, truncated, targets)

    def items(self, batch: MutableMapping[str, Any]) -> Items:
        """One item per row; see `Task.items`. Choices that a row does not have are taken out of the batch too.

        Args:
            batch: inputs are (batch, choices, tokens); "labels" are indices (batch,), or (batch, choices) with 1 for
                the right choice, 0 for a wrong one and -100 where a row has fewer choices than others. A row whose
                choices are all -100, or all 0, has no label.
        """
        labels = batch.pop("labels")
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        if labels.is_floating_point() or labels.ndim not in (1, 2):
            raise TaskError(
                f"multiple_choice takes integers (batch,) or (batch, choices) as labels; got {labels.dtype} of shape "
                f"{tuple(labels.shape)}."
            )
        if labels.ndim == 1:
            return Items(labels, logits_of)
        right = torch.where((labels == 1).any(dim=1), (labels == 1).long().argmax(dim=1), -100)
        there = (labels != -100) | (labels == -100).all(dim=1, keepdim=True)
        if bool(there.all()):
            return Items(right, logits_of)
        for name, value in list(batch.items()):  # the model reads all choices that there are as those of one row
            if isinstance(value, Tensor) and value.ndim > 2 and value.shape[:2] == labels.shape:
                batch[name] = value[there][None]
        of_each = (right != -100) * (_WHOLE // there.sum(dim=1))
        return Items(
            right,
            lambda output: _in_rows(logits_of(output)[0], there),
            per_text=of_each[:, None].expand_as(there)[there],
        )

    def loss(self, logits: Float[Tensor, "items outputs"], labels: Int[Tensor, " items"]) -> Float[Tensor, ""]:
        """Mean cross-entropy in nats over the rows with a label; see `Task.loss`.

        Args:
            logits: (rows, choices).
            labels: index of the right choice; -100 marks a row without one.
        """
        return choice_loss(logits, labels)

    def divergence(
        self,
        one: Float[Tensor, "items outputs"],
        other: Float[Tensor, "items outputs"],
        form: DivergenceForm = "mean",
    ) -> Float[Tensor, ""]:
        """Kullback–Leibler divergence in nats over the choices, mean over the rows.

        Args:
            one: (rows, choices).
            other: (rows, choices).
            form: both directions or one.
        """
        return choice_divergence(one, other, form)

    def by_row(self, scores: Sequence[np.ndarray], rows: Encoded) -> list[np.ndarray]:
        """The scores of each row's own choices.

        Args:
            scores: of each row, as many as the batch had choices.
            rows: that were scored.
        """
        return [own[: len(choices)] for own, choices in zip(scores, rows.input_ids, strict=True)]

    def scores(self, predictions: Sequence[np.ndarray], labels: Sequence[int]) -> dict[str, float]:
        """Accuracy.

        Args:
            predictions: scores of the choices of each row.
            labels: index of the right one.
        """
        return {"accuracy": float(accuracy_score(list(labels), [int(row.argmax()) for row in predictions]))}

    def decode(self, predictions: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        """Index of the choice, counted from 0, and the probability of each, one mapping per row.

        Args:
            predictions: scores of the choices of each row.
        """
        return [
            {"choice": int(row.argmax()), "probabilities": [float(p) for p in softmax(row.astype(np.float64))]}
            for row in predictions
        ]

    def head_config(self) -> dict[str, Any]:
        """One output per choice, whatever their number."""
        return {"num_labels": 1}


def choice_loss(logits: Float[Tensor, "items outputs"], labels: Int[Tensor, " items"]) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats over the items with a label, float32 or wider; 0 if there is none.

    Args:
        logits: one row per choice to make.
        labels: index of the right one; -100 marks an item without a label.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return cross_entropy(logits, labels, reduction="sum") / (labels != -100).sum().clamp(min=1)


def choice_divergence(
    one: Float[Tensor, "items outputs"], other: Float[Tensor, "items outputs"], form: DivergenceForm
) -> Float[Tensor, ""]:
    """Kullback–Leibler divergence in nats, mean over the items; see `symmetric_kl` and `directed_kl`.

    Args:
        one: one row per choice to make.
        other: likewise.
        form: both directions or one.
    """
    if form == "directed":
        return directed_kl(one, other)
    return symmetric_kl(one, other) * (2 if form == "sum" else 1)


def without(scores: Float[Tensor, "rows outputs"], absent: Tensor) -> Float[Tensor, "rows outputs"]:
    """Scores that give no probability where there is nothing to choose.

    Args:
        scores: one row per choice to make.
        absent: true where there is nothing.
    """
    return scores.masked_fill(absent, torch.finfo(scores.dtype).min / 2)


def _in_rows(scores: Float[Tensor, " flat"], there: Tensor) -> Float[Tensor, "rows choices"]:
    """Scores of the choices of all rows, row by row, without probability where a row has none."""
    rows = scores.new_zeros(there.shape).masked_scatter(there, scores)
    return without(rows, ~there)


def _by_row(values: list[T], counts: Sequence[int]) -> list[list[T]]:
    """Consecutive values, so many of them for each row."""
    ends = list(accumulate(counts))
    return [values[end - count : end] for end, count in zip(ends, counts, strict=True)]


def _check_room(
    tokenizer: PreTrainedTokenizerBase, choices: Sequence[str], owners: Sequence[str], max_length: int
) -> None:
    room = max_length - tokenizer.num_special_tokens_to_add(pair=True)
    for start in range(0, len(choices), TOKENIZED_AT_ONCE):
        part = list(choices[start : start + TOKENIZED_AT_ONCE])
        tokens = tokenizer(part, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        for row_id, own in zip(owners[start:], tokens, strict=False):
            if len(own) >= room:
                raise TaskError(
                    f"row {row_id!r} has a choice of {len(own)} tokens, which leaves no place for its text in "
                    f"max_length {max_length}; raise it."
                )

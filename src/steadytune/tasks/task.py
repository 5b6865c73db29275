"""What a task is: how rows become tokens, labels a loss, and scores of a model words."""

import abc
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from steadytune.tasks.features import Encoded, Rows, TaskError, encode_texts

DivergenceForm = Literal["mean", "sum", "directed"]
"""Of KL(p ‖ q) and KL(q ‖ p): their mean, their sum, or the first alone. A squared difference knows no such choice."""


@dataclass(frozen=True)
class Items:
    """What the loss of one batch is a mean over: texts, or tokens, or places in a text.

    Attributes:
        labels: one entry per item; -100 marks an item without a label.
        scores: one entry per item, from what the model returns.
        head_reads: (batch, tokens), true at the positions whose states the head is given, as one row and in order;
            None for all of them.
        per_text: how many labelled items each text has (batch,), up to a factor; None where all count alike.
    """

    labels: Tensor
    scores: Callable[[Any], Tensor]
    head_reads: Tensor | None = None
    per_text: Tensor | None = None


def logits_of(output: Any) -> Tensor:
    """The scores of a model that gives one row of them per text.

    Args:
        output: what the model returns.
    """
    logits = output.logits
    assert isinstance(logits, Tensor)
    return logits


class Task(abc.ABC):
    """One kind of prediction.

    Attributes:
        name: as written in records and on the command line.
        has_classes: a text has one label and labels are class indices, so that "same class" has a meaning.
        whole_text: a text has one row of scores, and the batch one label per text.
        metric: the score that decides, higher is better.
        label_dtype: dtype of a batch of labels.
        labels_by_token: a label belongs to a token, so that a batch of them is padded.
        head_reads_one_token: of each sequence, so that it must not be padding; other heads read every token.
        model_class: of transformers, which loads a model with the head of this task.
    """

    name: ClassVar[str]
    has_classes: ClassVar[bool] = False
    whole_text: ClassVar[bool] = False
    metric: str
    label_dtype: ClassVar[torch.dtype] = torch.long
    labels_by_token: ClassVar[bool] = False
    head_reads_one_token: ClassVar[bool] = True
    model_class: ClassVar[str] = "AutoModelForSequenceClassification"

    # -- training -----------------------------------------------------------------------------------------------------

    def encode(self, rows: Rows, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoded:
        """Rows as tokens.

        Args:
            rows: as read from the data.
            tokenizer: of the model.
            max_length: tokens per item, special tokens included.
        Raises:
            TaskError: with the reason.
        """
        return encode_texts(rows, tokenizer, max_length)

    def items(self, batch: MutableMapping[str, Any]) -> Items:
        """What the loss of a batch is a mean over; the labels are taken out of the batch.

        Args:
            batch: keyword arguments of the model, and "labels".
        Raises:
            TaskError: the labels do not fit.
        """
        return Items(self.checked(batch.pop("labels")), logits_of)

    @abc.abstractmethod
    def loss(self, logits: Float[Tensor, "items outputs"], labels: Shaped[Tensor, "items ..."]) -> Float[Tensor, ""]:
        """Mean loss over the labelled items, float32 or wider; 0 if there is none.

        Args:
            logits: scores, from `Items.scores`.
            labels: one entry per item; -100 marks an item without a label.
        """

    @abc.abstractmethod
    def divergence(
        self,
        one: Float[Tensor, "items outputs"],
        other: Float[Tensor, "items outputs"],
        form: DivergenceForm = "mean",
    ) -> Float[Tensor, ""]:
        """How far two predictions of one batch are apart, mean over the items; float32 or wider.

        Args:
            one: scores of one pass.
            other: scores of another.
            form: for distributions.
        """

    @abc.abstractmethod
    def head_config(self) -> dict[str, Any]:
        """Configuration values for `from_pretrained` of `model_class`."""

    def checked(self, labels: Shaped[Tensor, "..."]) -> Shaped[Tensor, "items ..."]:
        """The labels as one per text; a trailing axis of one is dropped.

        Args:
            labels: as the caller gave them.
        Raises:
            TaskError: several labels per text, or the wrong kind of number.
        """
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        if labels.ndim != 1:
            raise TaskError(f"{self.name} takes one label per example; got labels of shape {tuple(labels.shape)}.")
        if self.has_classes and labels.is_floating_point():
            raise TaskError(f"{self.name} takes class indices as integers; got {labels.dtype}.")
        return labels

    def count(self, labels: Shaped[Tensor, "items ..."]) -> Tensor:
        """Number of labels, which the mean loss divides by.

        Args:
            labels: as in `loss`.
        """
        return (labels != -100).sum()

    # -- prediction ---------------------------------------------------------------------------------------------------

    def item_scores(self, output: Any, real: Tensor) -> list[np.ndarray]:
        """The scores of each item of a batch, without padding, as float32.

        Args:
            output: what the model returns.
            real: attention mask of the batch.
        """
        return list(logits_of(output).float().cpu().numpy())

    def by_row(self, scores: Sequence[np.ndarray], rows: Encoded) -> Any:
        """Predictions of the rows from the scores of their items: one entry per row.

        Args:
            scores: of each item, from `item_scores`.
            rows: that were scored.
        """
        return np.stack(scores)

    @abc.abstractmethod
    def scores(self, predictions: Any, labels: Sequence[Any]) -> dict[str, float]:
        """Metrics on one split, from libraries.

        Args:
            predictions: from `by_row`.
            labels: of the rows, as in the data.
        """

    @abc.abstractmethod
    def decode(self, predictions: Any) -> list[dict[str, Any]]:
        """Predictions as plain values, one mapping per row.

        Args:
            predictions: from `by_row`.
        """

    def columns(self, predictions: Any, labels: Sequence[Any]) -> Mapping[str, Sequence[Any]]:
        """What is kept of every row: its label and what was predicted, as columns of plain values.

        Args:
            predictions: from `by_row`.
            labels: of the rows, as in the data.
        """
        return {"label": list(labels), "logits": [row.astype(np.float32) for row in predictions]}

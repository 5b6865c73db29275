"""What a task is: how labels become a loss, scores and words."""

import abc
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

DivergenceForm = Literal["mean", "sum", "directed"]
"""Of KL(p ‖ q) and KL(q ‖ p): their mean, their sum, or the first alone. A squared difference knows no such choice."""


class TaskError(ValueError):
    """A model or its labels do not fit the task."""


class Task(abc.ABC):
    """One kind of prediction.

    Attributes:
        name: as written in records and on the command line.
        has_classes: labels are class indices, so that "same class" has a meaning.
        metric: the score that decides, higher is better.
        label_dtype: dtype of a batch of labels.
    """

    name: ClassVar[str]
    has_classes: ClassVar[bool]
    metric: str
    label_dtype: ClassVar[torch.dtype]

    @abc.abstractmethod
    def loss(self, logits: Float[Tensor, "batch outputs"], labels: Shaped[Tensor, " batch"]) -> Float[Tensor, ""]:
        """Mean loss over the labelled examples, float32 or wider; 0 if there is none.

        Args:
            logits: scores of the model.
            labels: one label per example; -100 marks an example without one.
        """

    @abc.abstractmethod
    def divergence(
        self,
        one: Float[Tensor, "batch outputs"],
        other: Float[Tensor, "batch outputs"],
        form: DivergenceForm = "mean",
    ) -> Float[Tensor, ""]:
        """How far two predictions of one batch are apart, mean over the examples; float32 or wider.

        Args:
            one: scores of one pass.
            other: scores of another.
            form: for distributions.
        """

    @abc.abstractmethod
    def scores(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Metrics on one split, from libraries.

        Args:
            logits: (examples, outputs).
            labels: (examples,).
        """

    @abc.abstractmethod
    def decode(self, logits: np.ndarray) -> list[dict[str, Any]]:
        """Predictions as plain values, one mapping per example.

        Args:
            logits: (examples, outputs).
        """

    @abc.abstractmethod
    def head_config(self) -> dict[str, Any]:
        """Configuration values for `AutoModelForSequenceClassification.from_pretrained`."""

    def checked(self, labels: Shaped[Tensor, "..."]) -> Shaped[Tensor, " batch"]:
        """The labels as one per example; a trailing axis of one is dropped.

        Args:
            labels: as the caller gave them.
        Raises:
            TaskError: several labels per example, or the wrong kind of number.
        """
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        if labels.ndim != 1:
            raise TaskError(f"{self.name} takes one label per example; got labels of shape {tuple(labels.shape)}.")
        if self.has_classes and labels.is_floating_point():
            raise TaskError(f"{self.name} takes class indices as integers; got {labels.dtype}.")
        return labels

    def count(self, labels: Shaped[Tensor, " batch"]) -> Tensor:
        """Number of labelled items, which the mean loss divides by.

        Args:
            labels: as in `loss`.
        """
        return (labels != -100).sum()

"""Classification of a text or a pair of texts into one of several classes."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import softmax
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from torch import Tensor
from torch.nn.functional import cross_entropy

from steadytune.functional import directed_kl, symmetric_kl
from steadytune.tasks.features import TaskError
from steadytune.tasks.task import DivergenceForm, Task

ClassificationMetric = Literal["accuracy", "macro_f1", "matthews"]


class Classification(Task):
    """One class per example; cross-entropy.

    Args:
        label_names: names of the classes, in the order of their indices.
        metric: the score that decides.
        label_smoothing: share of the target mass spread evenly over all classes.
    Raises:
        TaskError: fewer than two classes.
    """

    name: ClassVar[str] = "classification"
    has_classes: ClassVar[bool] = True
    whole_text: ClassVar[bool] = True

    def __init__(
        self,
        label_names: tuple[str, ...],
        metric: ClassificationMetric = "accuracy",
        label_smoothing: float = 0.0,
    ) -> None:
        if len(label_names) < 2:
            raise TaskError(f"classification needs at least two classes; got {list(label_names)}.")
        self.label_names = label_names
        self.metric = metric
        self.label_smoothing = label_smoothing

    def loss(self, logits: Float[Tensor, "items outputs"], labels: Int[Tensor, " items"]) -> Float[Tensor, ""]:
        """Mean cross-entropy in nats over the labelled items; see `Task.loss`.

        Args:
            logits: (items, classes).
            labels: class indices; -100 marks an item without a label.
        """
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        total = cross_entropy(logits, labels, reduction="sum", label_smoothing=self.label_smoothing)
        return total / self.count(labels).clamp(min=1)

    def divergence(
        self,
        one: Float[Tensor, "items outputs"],
        other: Float[Tensor, "items outputs"],
        form: DivergenceForm = "mean",
    ) -> Float[Tensor, ""]:
        """Kullback–Leibler divergence in nats; see `symmetric_kl` and `directed_kl`.

        Args:
            one: (items, classes).
            other: (items, classes).
            form: both directions or one.
        """
        if form == "directed":
            return directed_kl(one, other)
        return symmetric_kl(one, other) * (2 if form == "sum" else 1)

    def scores(self, predictions: np.ndarray, labels: Sequence[int] | np.ndarray) -> dict[str, float]:
        """Accuracy, macro-averaged F1 and Matthews correlation.

        Args:
            predictions: (rows, classes), scores.
            labels: class indices.
        """
        predicted = predictions.argmax(axis=-1)
        return {
            "accuracy": float(accuracy_score(labels, predicted)),
            "macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0.0)),
            "matthews": float(matthews_corrcoef(labels, predicted)),
        }

    def decode(self, predictions: np.ndarray) -> list[dict[str, Any]]:
        """Label and probability of every class, one mapping per row.

        Args:
            predictions: (rows, classes), scores.
        """
        shares = softmax(predictions.astype(np.float64), axis=-1)
        return [
            {
                "label": self.label_names[int(row.argmax())],
                "probabilities": dict(zip(self.label_names, map(float, row), strict=True)),
            }
            for row in shares
        ]

    def head_config(self) -> dict[str, Any]:
        """Number, names and kind of the labels."""
        return {
            "num_labels": len(self.label_names),
            "id2label": dict(enumerate(self.label_names)),
            "label2id": {name: index for index, name in enumerate(self.label_names)},
            "problem_type": "single_label_classification",
        }

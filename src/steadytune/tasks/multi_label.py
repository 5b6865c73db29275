"""Classification of a text or a pair of texts into any number of classes."""

from collections.abc import MutableMapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import expit
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid
from transformers import PreTrainedTokenizerBase

from steadytune.tasks.features import Encoded, Rows, TaskError, encode_texts
from steadytune.tasks.task import DivergenceForm, Items, Task, logits_of


class MultiLabel(Task):
    """Any of several classes per text; binary cross-entropy of each.

    Args:
        label_names: names of the classes, in the order of their indices.
    Raises:
        TaskError: there is no class.
    """

    name: ClassVar[str] = "multi_label"
    label_dtype: ClassVar[torch.dtype] = torch.float32
    metric: str = "micro_f1"

    def __init__(self, label_names: tuple[str, ...]) -> None:
        if not label_names:
            raise TaskError("multi_label needs at least one class; got none.")
        self.label_names = label_names

    def encode(self, rows: Rows, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoded:
        """Rows as tokens, with a 0 or 1 for every class.

        Args:
            rows: labels are tuples of class indices.
            tokenizer: of the model.
            max_length: tokens per row.
        """
        targets = None if rows.labels is None else self._indicators(rows.labels).tolist()
        return encode_texts(rows, tokenizer, max_length, targets)

    def _indicators(self, labels: Sequence[Sequence[int]]) -> np.ndarray:
        found = np.zeros((len(labels), len(self.label_names)))
        for row, classes in enumerate(labels):
            found[row, list(classes)] = 1
        return found

    def items(self, batch: MutableMapping[str, Any]) -> Items:
        """One item per text, with one label per class; see `Task.items`.

        Args:
            batch: with "labels" (batch, classes): 1, 0, or -100 for a class about which nothing is known.
        """
        labels = batch.pop("labels")
        if labels.ndim != 2 or labels.shape[1] != len(self.label_names):
            raise TaskError(
                f"multi_label takes one number per text and class, (batch, {len(self.label_names)}); got labels of "
                f"shape {tuple(labels.shape)}."
            )
        return Items(labels.to(torch.promote_types(labels.dtype, torch.float32)), logits_of)

    def loss(self, logits: Float[Tensor, "items outputs"], labels: Float[Tensor, "items outputs"]) -> Float[Tensor, ""]:
        """Mean binary cross-entropy in nats over texts and classes with a label; see `Task.loss`.

        Args:
            logits: (items, classes).
            labels: 1 or 0; -100 marks an unknown one.
        """
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        known = labels != -100
        each = binary_cross_entropy_with_logits(
            logits, torch.where(known, labels, 0.0).to(logits.dtype), reduction="none"
        )
        return torch.where(known, each, 0.0).sum() / self.count(labels).clamp(min=1)

    def divergence(
        self,
        one: Float[Tensor, "items outputs"],
        other: Float[Tensor, "items outputs"],
        form: DivergenceForm = "mean",
    ) -> Float[Tensor, ""]:
        """Kullback–Leibler divergence of the two coins of each class in nats, sum over classes, mean over texts.

        Args:
            one: (items, classes).
            other: (items, classes).
            form: both directions or one.
        """
        dtype = torch.promote_types(one.dtype, torch.float32)
        one, other = one.to(dtype), other.to(dtype)
        if form == "directed":
            p = one.sigmoid()
            each = p * (logsigmoid(one) - logsigmoid(other)) + (1 - p) * (logsigmoid(-one) - logsigmoid(-other))
        else:
            each = (one.sigmoid() - other.sigmoid()) * (one - other) * (1.0 if form == "sum" else 0.5)
        return each.sum() / max(len(one), 1)

    def scores(self, predictions: np.ndarray, labels: Sequence[Sequence[int]]) -> dict[str, float]:
        """F1 over all decisions, mean F1 of the classes, and the share of rows that are right in every class.

        Args:
            predictions: (rows, classes), scores; a class is predicted above 0.
            labels: class indices of each row.
        """
        truth, predicted = self._indicators(labels), (predictions > 0).astype(float)
        only = [1] if len(self.label_names) == 1 else None  # one column reads as a choice between two classes
        return {
            "micro_f1": float(f1_score(truth, predicted, labels=only, average="micro", zero_division=0.0)),
            "macro_f1": float(f1_score(truth, predicted, labels=only, average="macro", zero_division=0.0)),
            "exact_match": float(accuracy_score(truth, predicted)),
        }

    def decode(self, predictions: np.ndarray) -> list[dict[str, Any]]:
        """Predicted labels, and the probability of every class, one mapping per row.

        Args:
            predictions: (rows, classes), scores.
        """
        return [
            {
                "labels": [name for name, score in zip(self.label_names, row, strict=True) if score > 0],
                "probabilities": dict(zip(self.label_names, map(float, expit(row.astype(np.float64))), strict=True)),
            }
            for row in predictions
        ]

    def head_config(self) -> dict[str, Any]:
        """Number, names and kind of the labels."""
        return {
            "num_labels": len(self.label_names),
            "id2label": dict(enumerate(self.label_names)),
            "label2id": {name: index for index, name in enumerate(self.label_names)},
            "problem_type": "multi_label_classification",
        }

"""Regression of one number from a text or a pair of texts."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import mean_squared_error
from torch import Tensor

from steadytune.tasks.task import DivergenceForm, Task


class Regression(Task):
    """One number per example; mean squared error."""

    name: ClassVar[str] = "regression"
    whole_text: ClassVar[bool] = True
    label_dtype: ClassVar[torch.dtype] = torch.float32
    metric: str = "pearson_spearman"

    def loss(self, logits: Float[Tensor, "items outputs"], labels: Float[Tensor, " items"]) -> Float[Tensor, ""]:
        """Mean squared error over the labelled examples; see `Task.loss`.

        Args:
            logits: (batch, 1).
            labels: targets; -100 marks an example without one.
        """
        predicted = logits.squeeze(-1).to(torch.promote_types(logits.dtype, torch.float32))
        error = torch.where(labels != -100, predicted - labels.to(predicted.dtype), 0.0)
        return error.square().sum() / self.count(labels).clamp(min=1)

    def divergence(
        self,
        one: Float[Tensor, "items outputs"],
        other: Float[Tensor, "items outputs"],
        form: DivergenceForm = "mean",
    ) -> Float[Tensor, ""]:
        """Mean squared difference of the two predictions.

        Args:
            one: (batch, 1).
            other: (batch, 1).
            form: without effect; there is one squared difference.
        """
        dtype = torch.promote_types(one.dtype, torch.float32)
        return (one.to(dtype) - other.to(dtype)).square().sum() / max(one.numel(), 1)

    def scores(self, predictions: np.ndarray, labels: Sequence[float] | np.ndarray) -> dict[str, float]:
        """Pearson and Spearman correlation, their mean, and the mean squared error.

        A constant prediction has no correlation; it counts as 0.

        Args:
            predictions: (rows, 1).
            labels: targets.
        """
        predicted = predictions.reshape(len(labels)).astype(np.float64)
        constant = np.ptp(predicted) == 0 or np.ptp(labels) == 0
        pearson = 0.0 if constant else float(pearsonr(predicted, labels).statistic)
        spearman = 0.0 if constant else float(spearmanr(predicted, labels).statistic)
        return {
            "pearson": pearson,
            "spearman": spearman,
            "pearson_spearman": (pearson + spearman) / 2,
            "mse": float(mean_squared_error(labels, predicted)),
        }

    def decode(self, predictions: np.ndarray) -> list[dict[str, Any]]:
        """The predicted number, one mapping per row.

        Args:
            predictions: (rows, 1).
        """
        return [{"value": float(value)} for value in predictions.reshape(-1)]

    def head_config(self) -> dict[str, Any]:
        """One output and its kind."""
        return {"num_labels": 1, "problem_type": "regression"}

"""Masked language modeling: the tokens that were hidden, guessed from the rest."""

import math
from collections.abc import MutableMapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.metrics import accuracy_score
from torch import Tensor
from torch.nn.functional import cross_entropy

from steadytune.functional import directed_kl, symmetric_kl
from steadytune.tasks.features import TaskError
from steadytune.tasks.task import DivergenceForm, Items, Task, logits_of


class MaskedLM(Task):
    """One token per masked place, of the whole vocabulary; cross-entropy, mean over the masked places of all texts.

    The head is given the states of masked places only, so that scores exist nowhere else.
    """

    name: ClassVar[str] = "masked_lm"
    labels_by_token: ClassVar[bool] = True
    head_reads_one_token: ClassVar[bool] = False
    model_class: ClassVar[str] = "AutoModelForMaskedLM"
    metric: str = "accuracy"

    def items(self, batch: MutableMapping[str, Any]) -> Items:
        """One item per masked place; see `Task.items`.

        Args:
            batch: with "labels" (batch, tokens), the hidden token at masked places and -100 elsewhere.
        """
        labels = batch.pop("labels")
        if labels.ndim != 2 or labels.is_floating_point():
            raise TaskError(
                f"masked_lm takes one integer per token, (batch, tokens); got {labels.dtype} of shape "
                f"{tuple(labels.shape)}."
            )
        masked = labels != -100
        return Items(labels[masked], lambda output: logits_of(output).squeeze(0), head_reads=masked)

    def loss(self, logits: Float[Tensor, "items outputs"], labels: Int[Tensor, " items"]) -> Float[Tensor, ""]:
        """Mean cross-entropy in nats over the masked places; see `Task.loss`.

        Args:
            logits: (places, vocabulary).
            labels: tokens.
        """
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return cross_entropy(logits, labels, reduction="sum") / self.count(labels).clamp(min=1)

    def divergence(
        self,
        one: Float[Tensor, "items outputs"],
        other: Float[Tensor, "items outputs"],
        form: DivergenceForm = "mean",
    ) -> Float[Tensor, ""]:
        """Kullback–Leibler divergence in nats, mean over the masked places.

        Args:
            one: (places, vocabulary).
            other: (places, vocabulary).
            form: both directions or one.
        """
        if form == "directed":
            return directed_kl(one, other)
        return symmetric_kl(one, other) * (2 if form == "sum" else 1)

    @staticmethod
    def judged(logits: Float[Tensor, "items outputs"], labels: Int[Tensor, " items"]) -> np.ndarray:
        """The likeliest token of each masked place and the surprise at the hidden one: (places, 2), float64.

        Args:
            logits: (places, vocabulary).
            labels: tokens.
        """
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        surprise = cross_entropy(logits, labels, reduction="none")
        return torch.stack([logits.argmax(dim=-1).double(), surprise.double()], dim=1).cpu().numpy()

    def scores(self, predictions: np.ndarray, labels: Sequence[int]) -> dict[str, float]:
        """Share of right tokens, mean surprise in nats, and its exponential.

        Args:
            predictions: (places, 2), from `judged`.
            labels: tokens.
        """
        loss = float(predictions[:, 1].mean())
        return {
            "accuracy": float(accuracy_score(labels, predictions[:, 0].astype(int))),
            "loss": loss,
            "perplexity": math.exp(loss) if loss < 700 else math.inf,
        }

    def decode(self, predictions: np.ndarray) -> list[dict[str, Any]]:
        """The likeliest token of each place, one mapping per place.

        Args:
            predictions: (places, 2), from `judged`.
        """
        return [{"token": int(token)} for token in predictions[:, 0]]

    def head_config(self) -> dict[str, Any]:
        """Nothing: the head is as wide as the vocabulary."""
        return {}

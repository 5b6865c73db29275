"""One of several answers, each read together with the text."""

from collections.abc import MutableMapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import softmax
from sklearn.metrics import accuracy_score
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from steadytune.functional import directed_kl, symmetric_kl
from steadytune.tasks.features import Encoded, Rows, TaskError, check_length
from steadytune.tasks.task import DivergenceForm, Items, Task, logits_of


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
            TaskError: a choice leaves no place for the text.
        """
        check_length(tokenizer, max_length, pair=True)
        assert rows.pairs is not None
        input_ids: list[list[list[int]]] = []
        segments: list[list[list[int]]] = []
        truncated = 0
        for row_id, text, choices in zip(rows.ids, rows.texts, rows.pairs, strict=True):
            longest = max(len(tokenizer(choice, add_special_tokens=False)["input_ids"]) for choice in choices)
            if longest + tokenizer.num_special_tokens_to_add(pair=True) >= max_length:
                raise TaskError(
                    f"row {row_id!r} has a choice of {longest} tokens, which leaves no place for its text in "
                    f"max_length {max_length}; raise it."
                )
            tokens = tokenizer(
                [text] * len(choices),
                list(choices),
                truncation="only_first",
                max_length=max_length,
                return_attention_mask=False,
                verbose=False,
            )
            input_ids.append(tokens["input_ids"])
            segments.append(tokens.get("token_type_ids", []))
            truncated += any(bool(one.overflowing) for one in tokens.encodings or ())
        targets = None
        if rows.labels is not None:
            targets = [
                [int(place == label) for place in range(len(choices))]
                for label, choices in zip(rows.labels, rows.pairs, strict=True)
            ]
        has_segments = bool(segments) and bool(segments[0])
        return Encoded(rows.ids, input_ids, segments if has_segments else None, rows.labels, truncated, targets)

    def items(self, batch: MutableMapping[str, Any]) -> Items:
        """One item per row; see `Task.items`.

        Args:
            batch: inputs are (batch, choices, tokens); "labels" are indices (batch,), or (batch, choices) with 1 for
                the right choice, 0 for a wrong one and -100 where a row has fewer choices than others.
        """
        labels = batch.pop("labels")
        if labels.is_floating_point() or labels.ndim not in (1, 2):
            raise TaskError(
                f"multiple_choice takes integers (batch,) or (batch, choices) as labels; got {labels.dtype} of shape "
                f"{tuple(labels.shape)}."
            )
        if labels.ndim == 1:
            return Items(labels, logits_of)
        absent = labels == -100
        right = torch.where((labels == 1).any(dim=1), (labels == 1).long().argmax(dim=1), -100)
        return Items(right, lambda output: without(logits_of(output), absent))

    def loss(self, logits: Float[Tensor, "items outputs"], labels: Int[Tensor, " items"]) -> Float[Tensor, ""]:
        """Mean cross-entropy in nats over the rows with a label; see `Task.loss`.

        Args:
            logits: (rows, choices).
            labels: index of the right choice; -100 marks a row without one.
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
        """Kullback–Leibler divergence in nats over the choices, mean over the rows.

        Args:
            one: (rows, choices).
            other: (rows, choices).
            form: both directions or one.
        """
        return directed_kl(one, other) if form == "directed" else symmetric_kl(one, other) * (1 + (form == "sum"))

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


def without(scores: Float[Tensor, "rows outputs"], absent: Tensor) -> Float[Tensor, "rows outputs"]:
    """Scores that give no probability where there is nothing to choose.

    Args:
        scores: one row per choice to make.
        absent: true where there is nothing.
    """
    return scores.masked_fill(absent, torch.finfo(scores.dtype).min / 2)

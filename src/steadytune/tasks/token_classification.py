"""One tag per word: names, slots, parts of speech."""

from collections.abc import MutableMapping, Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int
from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from steadytune.tasks.classification import Classification
from steadytune.tasks.features import Encoded, Rows, TaskError, check_length, check_tokens
from steadytune.tasks.task import DivergenceForm, Items, Task, logits_of

OUTSIDE = "O"


class TokenClassification(Task):
    """One tag per word, read from its first token; cross-entropy, mean over the words of all texts.

    Args:
        label_names: names of the tags in the BIO scheme, in the order of their indices; words that a model does not
            see are tagged "O", or with the first tag if there is none of that name.
    Raises:
        TaskError: fewer than two tags.
    """

    name: ClassVar[str] = "token_classification"
    labels_by_token: ClassVar[bool] = True
    model_class: ClassVar[str] = "AutoModelForTokenClassification"
    metric: str = "entity_f1"

    def __init__(self, label_names: tuple[str, ...]) -> None:
        self.label_names = label_names
        self._of_words = Classification(label_names)

    def encode(self, rows: Rows, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoded:
        """Words as tokens; the tag of a word stands at its first token.

        Args:
            rows: texts are lists of words, labels lists of tags.
            tokenizer: fast, so that it knows which token belongs to which word.
            max_length: tokens per row; words beyond it are not tagged.
        Raises:
            TaskError: the tokenizer is slow, or a row gives no token.
        """
        check_length(tokenizer, max_length, pair=False)
        if not tokenizer.is_fast:
            raise TaskError("token_classification needs a fast tokenizer, which knows the words of its tokens.")
        if not rows.ids:
            return Encoded((), [], None, rows.labels, 0, [], None, [])
        tokens = tokenizer(
            [list(words) for words in rows.texts],
            is_split_into_words=True,
            truncation=True,
            max_length=max_length,
            return_attention_mask=False,
            verbose=False,
        )
        check_tokens(rows.ids, tokens["input_ids"])
        places: list[list[int]] = []
        truncated = 0
        for row, words in enumerate(rows.texts):
            first: dict[int, int] = {}
            for place, word in enumerate(tokens.word_ids(row)):
                if word is not None:
                    first.setdefault(word, place)
            places.append([first.get(word, -1) for word in range(len(words))])
            truncated += bool(tokens.encodings[row].overflowing)
        targets = (
            None
            if rows.labels is None
            else [
                _tags_at(places[row], rows.labels[row], len(tokens["input_ids"][row])) for row in range(len(rows.ids))
            ]
        )
        return Encoded(
            rows.ids,
            tokens["input_ids"],
            tokens.get("token_type_ids"),
            rows.labels,
            truncated,
            targets,
            None,
            places,
        )

    def items(self, batch: MutableMapping[str, Any]) -> Items:
        """One item per token with a tag; see `Task.items`.

        Args:
            batch: with "labels" (batch, tokens), -100 at tokens without a tag.
        """
        labels = batch.pop("labels")
        if labels.ndim != 2 or labels.is_floating_point():
            raise TaskError(
                f"token_classification takes one integer per token, (batch, tokens); got {labels.dtype} of shape "
                f"{tuple(labels.shape)}."
            )
        tagged = labels != -100
        return Items(labels[tagged], lambda output: logits_of(output)[tagged])

    def loss(self, logits: Float[Tensor, "items outputs"], labels: Int[Tensor, " items"]) -> Float[Tensor, ""]:
        """Mean cross-entropy in nats over the tagged words; see `Task.loss`.

        Args:
            logits: (items, tags).
            labels: tag indices.
        """
        return self._of_words.loss(logits, labels)

    def divergence(
        self,
        one: Float[Tensor, "items outputs"],
        other: Float[Tensor, "items outputs"],
        form: DivergenceForm = "mean",
    ) -> Float[Tensor, ""]:
        """Kullback–Leibler divergence in nats, mean over the tagged words.

        Args:
            one: (items, tags).
            other: (items, tags).
            form: both directions or one.
        """
        return self._of_words.divergence(one, other, form)

    def item_scores(self, output: Any, real: Tensor) -> list[np.ndarray]:
        """Scores of the real tokens of each text; see `Task.item_scores`.

        Args:
            output: what the model returns.
            real: attention mask of the batch.
        """
        return [row[mask].float().cpu().numpy() for row, mask in zip(logits_of(output), real.bool(), strict=True)]

    def by_row(self, scores: Sequence[np.ndarray], rows: Encoded) -> list[list[int]]:
        """The tag of every word; a word without a token, or cut off, is outside.

        Args:
            scores: (tokens, tags) of each text.
            rows: that were scored.
        """
        assert rows.places is not None
        outside = self.label_names.index(OUTSIDE) if OUTSIDE in self.label_names else 0
        return [
            [int(own[place].argmax()) if place >= 0 else outside for place in words]
            for own, words in zip(scores, rows.places, strict=True)
        ]

    def scores(self, predictions: Sequence[Sequence[int]], labels: Sequence[Sequence[int]]) -> dict[str, float]:
        """F1, precision and recall of whole entities (span and type), and the share of right tags, by seqeval.

        Args:
            predictions: tags of each text.
            labels: tags of each text.
        """
        truth, predicted = self._named(labels), self._named(predictions)
        return {
            "entity_f1": float(f1_score(truth, predicted, zero_division=0)),
            "precision": float(precision_score(truth, predicted, zero_division=0)),
            "recall": float(recall_score(truth, predicted, zero_division=0)),
            "accuracy": float(accuracy_score(truth, predicted)),
        }

    def _named(self, tags: Sequence[Sequence[int]]) -> list[list[str]]:
        return [[self.label_names[tag] for tag in row] for row in tags]

    def decode(self, predictions: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
        """The name of every word's tag, one mapping per row.

        Args:
            predictions: tags of each text.
        """
        return [{"tags": row} for row in self._named(predictions)]

    def columns(self, predictions: Sequence[Sequence[int]], labels: Sequence[Sequence[int]]) -> dict[str, list[Any]]:
        """Tags as in the data and as predicted; see `Task.columns`.

        Args:
            predictions: tags of each text.
            labels: tags of each text.
        """
        return {"label": [list(row) for row in labels], "predicted": [list(row) for row in predictions]}

    def head_config(self) -> dict[str, Any]:
        """Number and names of the tags."""
        return {
            "num_labels": len(self.label_names),
            "id2label": dict(enumerate(self.label_names)),
            "label2id": {name: index for index, name in enumerate(self.label_names)},
        }


def _tags_at(places: Sequence[int], tags: Sequence[int], length: int) -> list[int]:
    """A tag at the first token of each word, -100 elsewhere."""
    found = [-100] * length
    for place, tag in zip(places, tags, strict=True):
        if place >= 0:
            found[place] = tag
    return found

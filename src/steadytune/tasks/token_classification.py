"""One tag per word: names, slots, parts of speech."""

from collections.abc import MutableMapping, Sequence
from itertools import chain
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.metrics.sequence_labeling import get_entities
from sklearn.metrics import accuracy_score
from sklearn.metrics import f1_score as f1_of_classes
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from steadytune.tasks.classification import Classification
from steadytune.tasks.features import TOKENIZED_AT_ONCE, Encoded, Rows, TaskError, check_length, check_tokens
from steadytune.tasks.task import DivergenceForm, Items, Task, logits_of

OUTSIDE = "O"
_IN_AN_ENTITY = "BIESLU"  # the first letters of BIO and of the schemes that also mark ends and entities of one word
_TO_SEQEVAL = {"L": "E", "U": "S"}  # which knows the last and the single word of an entity by one letter each
_SPACE = "Ġ"  # as byte-level vocabularies write it


class TokenClassification(Task):
    """One tag per word, read from its first token; cross-entropy, mean over the words of all texts.

    Tags like "O", "B-person" and "I-person" mark entities, and whole entities are scored; other tags, as parts of
    speech, are scored word by word.

    Args:
        label_names: names of the tags, in the order of their indices; words that a model does not see are tagged "O",
            or with the first tag if there is none of that name.
    Raises:
        TaskError: fewer than two tags.
    """

    name: ClassVar[str] = "token_classification"
    labels_by_token: ClassVar[bool] = True
    head_reads_one_token: ClassVar[bool] = False
    model_class: ClassVar[str] = "AutoModelForTokenClassification"

    def __init__(self, label_names: tuple[str, ...]) -> None:
        if len(label_names) < 2:
            raise TaskError(f"token_classification needs at least two tags; got {list(label_names)}.")
        self.label_names = label_names
        self.marks_entities = all(
            name == OUTSIDE or (name[:1] in _IN_AN_ENTITY and name[1:2] == "-" and len(name) > 2)
            for name in label_names
        )
        self.metric = "entity_f1" if self.marks_entities else "accuracy"
        self._marks = tuple(_TO_SEQEVAL.get(name[:1], name[:1]) + name[1:] for name in label_names)
        self._of_words = Classification(label_names)

    def encode(self, rows: Rows, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoded:
        """Words as tokens; the tag of a word stands at its first token.

        A byte-level tokenizer is set to read every word with the space before it, as in running text.

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
        _read_words_with_their_space(tokenizer)
        input_ids: list[list[int]] = []
        segments: list[list[int]] = []
        places: list[list[int]] = []
        truncated = 0
        for start in range(0, len(rows.ids), TOKENIZED_AT_ONCE):
            texts = rows.texts[start : start + TOKENIZED_AT_ONCE]
            tokens = tokenizer(
                [list(words) for words in texts],
                is_split_into_words=True,
                truncation=True,
                max_length=max_length,
                return_attention_mask=False,
                verbose=False,
            )
            input_ids += tokens["input_ids"]
            segments += tokens.get("token_type_ids", [])
            places += [_first_tokens(tokens.word_ids(row), len(words)) for row, words in enumerate(texts)]
            truncated += sum(bool(encoding.overflowing) for encoding in tokens.encodings or ())
        check_tokens(rows.ids, input_ids)
        targets = None
        if rows.labels is not None:
            targets = [
                _tags_at(own, tags, len(row)) for own, tags, row in zip(places, rows.labels, input_ids, strict=True)
            ]
        return Encoded(rows.ids, input_ids, segments or None, rows.labels, truncated, targets, None, places)

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
        return Items(labels[tagged], lambda output: logits_of(output)[tagged], per_text=tagged.sum(dim=1))

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
        """Of entities F1, precision and recall (span and type) by seqeval; of other tags macro-averaged F1.

        In both cases also the share of right tags.

        Args:
            predictions: tags of each text.
            labels: tags of each text.
        """
        words = list(chain(*self._named(labels))), list(chain(*self._named(predictions)))
        accuracy = float(accuracy_score(*words))
        if not self.marks_entities:
            return {"accuracy": accuracy, "macro_f1": float(f1_of_classes(*words, average="macro", zero_division=0.0))}
        truth, predicted = self._marked(labels), self._marked(predictions)
        return {
            "entity_f1": float(f1_score(truth, predicted, zero_division=0)),
            "precision": float(precision_score(truth, predicted, zero_division=0)),
            "recall": float(recall_score(truth, predicted, zero_division=0)),
            "accuracy": accuracy,
        }

    def _named(self, tags: Sequence[Sequence[int]]) -> list[list[str]]:
        return [[self.label_names[tag] for tag in row] for row in tags]

    def _marked(self, tags: Sequence[Sequence[int]]) -> list[list[str]]:
        """Names in the letters that seqeval knows."""
        return [[self._marks[tag] for tag in row] for row in tags]

    def decode(self, predictions: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
        """The name of every word's tag, and the entities with the places of their words, one mapping per row.

        Args:
            predictions: tags of each text.
        """
        rows = self._named(predictions)
        if not self.marks_entities:
            return [{"tags": row} for row in rows]
        return [
            {
                "tags": row,
                "entities": [
                    {"label": kind, "first_word": first, "last_word": last} for kind, first, last in get_entities(marks)
                ],
            }
            for row, marks in zip(rows, self._marked(predictions), strict=True)
        ]

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


def _read_words_with_their_space(tokenizer: PreTrainedTokenizerBase) -> None:
    """Byte-level tokenizers know a word by the space before it; words that come one by one have none."""
    whole: Any = tokenizer
    splitter = whole.backend_tokenizer.pre_tokenizer
    if getattr(splitter, "add_prefix_space", True) is False:
        splitter.add_prefix_space = True
        whole.add_prefix_space = True  # some classes make their splitter anew from this setting when they are loaded
    elif splitter is not None and _loses_the_space(splitter):  # in a sequence, every part of a word would get a space
        space = pre_tokenizers.Metaspace(replacement=" ", prepend_scheme="always", split=False)
        whole.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([space, splitter])


def _loses_the_space(splitter: Any) -> bool:
    """Whether a word in a text has a mark for the space before it, and a word alone has none."""
    marked = [part.startswith(_SPACE) for part, _ in splitter.pre_tokenize_str("a a")]
    return any(marked) and not marked[0]


def _first_tokens(words_of_tokens: Sequence[int | None], words: int) -> list[int]:
    """The place of the first token of each word; -1 for a word without one."""
    first: dict[int, int] = {}
    for place, word in enumerate(words_of_tokens):
        if word is not None:
            first.setdefault(word, place)
    return [first.get(word, -1) for word in range(words)]


def _tags_at(places: Sequence[int], tags: Sequence[int], length: int) -> list[int]:
    """A tag at the first token of each word, -100 elsewhere."""
    found = [-100] * length
    for place, tag in zip(places, tags, strict=True):
        if place >= 0:
            found[place] = tag
    return found

"""Tokenized rows, as a model reads them: one item per row, or several windows of a long one."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.utils.data import Dataset as TorchDataset
from transformers import PreTrainedTokenizerBase
from typing_extensions import Protocol, runtime_checkable

TOKENIZED_AT_ONCE = 1000  # bounds the memory that the tokenizer's own records take


class TaskError(ValueError):
    """A model, its tokens or its labels do not fit the task."""


@runtime_checkable
class Rows(Protocol):
    """Rows of one split, as parallel tuples; what each column holds is the task's affair."""

    @property
    def ids(self) -> tuple[str, ...]:
        """Names."""
        ...

    @property
    def texts(self) -> tuple[Any, ...]:
        """First texts, or lists of words."""
        ...

    @property
    def pairs(self) -> tuple[Any, ...] | None:
        """Second texts, or lists of them."""
        ...

    @property
    def labels(self) -> tuple[Any, ...] | None:
        """Labels as in the data."""
        ...


@dataclass(frozen=True, eq=False)
class Encoded(TorchDataset[dict[str, Any]]):
    """Tokenized rows, unpadded; a map-style torch dataset of items for `PaddingCollator`.

    Args:
        ids: names of the rows.
        input_ids: tokens of each item; of a multiple choice, tokens of each of its choices.
        token_type_ids: segment of each token, if the tokenizer tells segments apart.
        labels: of the rows, as in the data, if there are any.
        truncated_rows: how many rows lost tokens to the maximum length.
        targets: of the items, as the loss takes them; None for the labels as they are.
        rows: the row that each item belongs to; None where rows are items.
        places: by item, what leads from its tokens back to its row, for the task that made it.
        texts: of the rows, where an answer is a part of its text.
        unheld_answers: how many rows have an answer that none of their items holds as a whole.
    """

    ids: tuple[str, ...]
    input_ids: list[Any]
    token_type_ids: list[Any] | None
    labels: tuple[Any, ...] | None
    truncated_rows: int
    targets: Sequence[Any] | None = None
    rows: list[int] | None = None
    places: list[Any] | None = None
    texts: tuple[str, ...] | None = None
    unheld_answers: int = 0
    lengths: list[int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengths", [_length(tokens) for tokens in self.input_ids])

    def first(self, count: int) -> "Encoded":
        """At most so many of the first rows, where rows are items.

        Args:
            count: how many.
        """
        assert self.rows is None and self.targets is None
        segments = None if self.token_type_ids is None else self.token_type_ids[:count]
        labels = None if self.labels is None else self.labels[:count]
        return Encoded(self.ids[:count], self.input_ids[:count], segments, labels, self.truncated_rows)

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        tokens = self.input_ids[index]
        nested = isinstance(tokens[0], list)
        mask: list[Any] = [[1] * len(choice) for choice in tokens] if nested else [1] * len(tokens)
        item: dict[str, Any] = {"input_ids": tokens, "attention_mask": mask}
        if self.token_type_ids is not None:
            item["token_type_ids"] = self.token_type_ids[index]
        targets = self.labels if self.targets is None else self.targets
        if targets is not None:
            item["labels"] = targets[index]
        return item


def _length(tokens: list[Any]) -> int:
    return max(map(len, tokens)) if tokens and isinstance(tokens[0], list) else len(tokens)


def encode_texts(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, max_length: int, targets: Sequence[Any] | None = None
) -> Encoded:
    """All rows as tokens, cut to at most `max_length`, the longer text of a pair first.

    Args:
        rows: texts, with or without pairs and labels.
        tokenizer: fast or slow.
        max_length: tokens per row, special tokens included.
        targets: see `Encoded`.
    Returns:
        The rows in their order, with the number of rows that were cut.
    Raises:
        TaskError: `max_length` leaves no place for a token beside the special ones, or is more than the model can
            read; or a row gives no token at all.
    """
    check_length(tokenizer, max_length, pair=rows.pairs is not None)
    tokens = tokenized(tokenizer, rows.texts, rows.pairs, max_length, truncation=True)
    check_tokens(rows.ids, tokens.input_ids)
    return Encoded(rows.ids, tokens.input_ids, tokens.token_type_ids, rows.labels, sum(tokens.cut), targets)


@dataclass(frozen=True)
class Tokens:
    """Texts as tokens.

    Attributes:
        input_ids: of each text or pair.
        token_type_ids: segment of each token, if the tokenizer tells segments apart.
        cut: which lost tokens to the maximum length.
    """

    input_ids: list[list[int]]
    token_type_ids: list[list[int]] | None
    cut: list[bool]


def tokenized(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    max_length: int,
    *,
    truncation: bool | str,
) -> Tokens:
    """Texts or pairs of them as tokens, a thousand at a time.

    Args:
        tokenizer: fast or slow.
        texts: first texts.
        pairs: second texts, if there are any.
        max_length: tokens of each, special tokens included.
        truncation: what is cut, in the words of the tokenizer.
    """
    input_ids: list[list[int]] = []
    segments: list[list[int]] = []
    cut: list[bool] = []
    for start in range(0, len(texts), TOKENIZED_AT_ONCE):
        part = slice(start, start + TOKENIZED_AT_ONCE)
        both = (list(texts[part]), None if pairs is None else list(pairs[part]))
        tokens = tokenizer(
            *both, truncation=truncation, max_length=max_length, return_attention_mask=False, verbose=False
        )
        input_ids += tokens["input_ids"]
        segments += tokens.get("token_type_ids", [])
        if tokens.encodings is not None:
            cut += [bool(encoding.overflowing) for encoding in tokens.encodings]
        else:  # a slow tokenizer does not say what it cut
            whole = tokenizer(*both, return_attention_mask=False, verbose=False)["input_ids"]
            cut += [len(row) > max_length for row in whole]
    return Tokens(input_ids, segments or None, cut)


def check_length(tokenizer: PreTrainedTokenizerBase, max_length: int, *, pair: bool) -> None:
    """Refuse a length that leaves no place for a text, or that the model cannot read.

    Args:
        tokenizer: of the model.
        max_length: tokens of an item.
        pair: whether it holds two texts.
    Raises:
        TaskError: with what is allowed.
    """
    least = tokenizer.num_special_tokens_to_add(pair=pair) + 1
    if max_length < least:
        raise TaskError(f"max_length must be an integer ≥ {least} with this tokenizer; got {max_length}.")
    if max_length > tokenizer.model_max_length:
        raise TaskError(f"max_length must be at most {tokenizer.model_max_length} with this model; got {max_length}.")


def check_tokens(ids: Sequence[str], input_ids: Sequence[Sequence[Any]]) -> None:
    """Refuse a row without a token.

    Args:
        ids: names of the rows.
        input_ids: their tokens.
    Raises:
        TaskError: with the row.
    """
    for row_id, row in zip(ids, input_ids, strict=True):
        if not row:
            raise TaskError(f"row {row_id!r} gives no token with this tokenizer; fill its text or remove the row.")

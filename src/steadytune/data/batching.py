"""From rows to padded tensors: tokenization once, and the order in which batches come.

The order of an epoch depends on (seed, epoch) alone. It comes from raw words of
`PCG64(SeedSequence(seed, spawn_key=(stream, epoch)))`, as in `sampling`, with stream 8 for `LengthGroupedBatches` and 9
for `ClassBalancedBatches`.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler
from transformers import PreTrainedTokenizerBase

from steadytune.data.examples import Examples
from steadytune.data.tables import DataError

MEGA_BATCH = 50  # batches among which rows are sorted by length; the usual choice of transformers' grouped sampler
_T = TypeVar("_T")
_LENGTH_STREAM, _CLASS_STREAM = 8, 9
_TOKENIZED_AT_ONCE = 1000  # bounds the memory that the tokenizer's own records take


@dataclass(frozen=True, eq=False)
class Encoded(TorchDataset[dict[str, Any]]):
    """Tokenized rows, unpadded; a map-style torch dataset for `PaddingCollator`.

    Args:
        ids: names of the rows.
        input_ids: tokens of each row.
        token_type_ids: segment of each token, if the tokenizer tells segments apart.
        labels: class indices or scores, if there are any.
        truncated_rows: how many rows lost tokens to the maximum length.
    """

    ids: tuple[str, ...]
    input_ids: list[list[int]]
    token_type_ids: list[list[int]] | None
    labels: tuple[int, ...] | tuple[float, ...] | None
    truncated_rows: int
    lengths: list[int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengths", [len(tokens) for tokens in self.input_ids])

    def first(self, count: int) -> "Encoded":
        """At most so many of the first rows.

        Args:
            count: how many.
        """
        segments = None if self.token_type_ids is None else self.token_type_ids[:count]
        labels = None if self.labels is None else self.labels[:count]
        return Encoded(self.ids[:count], self.input_ids[:count], segments, labels, self.truncated_rows)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item: dict[str, Any] = {"input_ids": self.input_ids[index], "attention_mask": [1] * self.lengths[index]}
        if self.token_type_ids is not None:
            item["token_type_ids"] = self.token_type_ids[index]
        if self.labels is not None:
            item["labels"] = self.labels[index]
        return item


def encode(examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoded:
    """All rows as tokens, cut to at most `max_length`, the longer text of a pair first.

    Args:
        examples: texts, with or without pairs and labels.
        tokenizer: fast or slow.
        max_length: tokens per row, special tokens included.
    Returns:
        The rows in their order, with the number of rows that were cut.
    Raises:
        DataError: `max_length` leaves no place for a token beside the special ones, or is more than the model can
            read; or a row gives no token at all.
    """
    least = tokenizer.num_special_tokens_to_add(pair=examples.pairs is not None) + 1
    if max_length < least:
        raise DataError(f"max_length must be an integer ≥ {least} with this tokenizer; got {max_length}.")
    if max_length > tokenizer.model_max_length:
        raise DataError(f"max_length must be at most {tokenizer.model_max_length} with this model; got {max_length}.")
    input_ids: list[list[int]] = []
    token_type_ids: list[list[int]] = []
    truncated_rows = 0
    for start in range(0, len(examples), _TOKENIZED_AT_ONCE):
        rows = slice(start, start + _TOKENIZED_AT_ONCE)
        texts = list(examples.texts[rows])
        pairs = None if examples.pairs is None else list(examples.pairs[rows])
        tokens = tokenizer(
            texts, pairs, truncation=True, max_length=max_length, return_attention_mask=False, verbose=False
        )
        input_ids += tokens["input_ids"]
        token_type_ids += tokens.get("token_type_ids", [])
        if tokens.encodings is not None:
            truncated_rows += sum(bool(encoding.overflowing) for encoding in tokens.encodings)
        else:  # a slow tokenizer does not say what it cut
            whole = tokenizer(texts, pairs, return_attention_mask=False, verbose=False)["input_ids"]
            truncated_rows += sum(len(row) > max_length for row in whole)
    for row_id, row in zip(examples.ids, input_ids, strict=True):
        if not row:
            raise DataError(f"row {row_id!r} gives no token with this tokenizer; fill its text or remove the row.")
    return Encoded(examples.ids, input_ids, token_type_ids or None, examples.labels, truncated_rows)


class PaddingCollator:
    """Rows of one batch as tensors, padded to the longest of them on the tokenizer's side.

    Args:
        tokenizer: says the padding token, its segment and its side.
        label_dtype: torch.long for classes, torch.float32 for scores.
    Raises:
        DataError: the tokenizer has no padding token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, label_dtype: torch.dtype) -> None:
        if tokenizer.pad_token_id is None:
            raise DataError("the model's tokenizer must have a padding token; it has none, so set its pad_token.")
        self.label_dtype = label_dtype
        self.left = tokenizer.padding_side == "left"
        self.padding = {
            "input_ids": int(tokenizer.pad_token_id),
            "attention_mask": 0,
            "token_type_ids": int(tokenizer.pad_token_type_id),
        }

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The batch: `input_ids`, `attention_mask`, and `token_type_ids` and `labels` where the rows have them."""
        longest = max(len(row["input_ids"]) for row in rows)
        batch: dict[str, Tensor] = {}
        for name, value in self.padding.items():
            if name in rows[0]:
                fill = [[value] * (longest - len(row[name])) for row in rows]
                padded = [f + row[name] if self.left else row[name] + f for row, f in zip(rows, fill, strict=True)]
                batch[name] = torch.tensor(padded, dtype=torch.long)
        if "labels" in rows[0]:
            batch["labels"] = torch.tensor([row["labels"] for row in rows], dtype=self.label_dtype)
        return batch


class LengthGroupedBatches(Sampler[list[int]]):
    """Batches of rows of like length, every row once per epoch.

    Rows are shuffled, sorted by length within stretches of at most 50 batches and a quarter of the rows, cut into
    batches, and the batches shuffled. One stretch over a small set would give the same batches in every epoch. The
    batch with most padded tokens comes first, so that too little memory shows at once. A batch with fewer rows than
    the others comes last: where processes share batches, accelerate drops what stands beside a short one.

    Args:
        lengths: tokens of each row.
        batch_size: rows per batch, at least 1.
        seed: at least 0.
    Raises:
        ValueError: a setting is out of range.
    """

    drop_last = False  # accelerate reads this and `batch_size` when it shares batches among processes

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        _check_at_least("batch_size", batch_size, 1)
        _check_at_least("seed", seed, 0)
        self.lengths = list(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    @property
    def sampler(self) -> "LengthGroupedBatches":
        """This object: accelerate looks for `set_epoch` of a sharded batch sampler under this name."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(len(self.lengths) / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        words = _Words(self.seed, _LENGTH_STREAM, self.epoch)
        order = words.shuffled(range(len(self.lengths)))
        batches: list[list[int]] = []
        stretch = self.batch_size * max(1, min(MEGA_BATCH, len(order) // (4 * self.batch_size)))
        for start in range(0, len(order), stretch):
            rows = sorted(order[start : start + stretch], key=lambda row: -self.lengths[row])
            batches += [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        batches = words.shuffled(batches)
        if batches:
            costs = [len(batch) * max(self.lengths[row] for row in batch) for batch in batches]
            batches.insert(0, batches.pop(costs.index(max(costs))))
            batches.sort(key=lambda batch: len(batch) < self.batch_size)  # stable: only the short one moves
        yield from batches


class ClassBalancedBatches(Sampler[list[int]]):
    """Batches in which every class that occurs has several rows, as contrastive terms need.

    An epoch has ceil(rows / batch_size) batches. Each batch has batch_size // per_class visits, a visit being the next
    `per_class` rows of one class. The visits of an epoch are shared among classes in proportion to their size (largest
    remainder; a class left without a visit gets one from the class with most, if there are as many visits as classes)
    and spread evenly over the epoch, in a seeded order. The places that remain in a batch go one by one to the classes
    in it. The rows of a class come in a shuffled order without replacement; when all have come, they are shuffled anew,
    and no row comes twice in one batch.

    What follows, and is tested:

    - a batch has `per_class` rows of each class in it, or all rows of a class that has fewer;
    - no row stands twice in a batch, and in an epoch two rows of one class occur equally often, give or take one;
    - a batch has exactly `batch_size` rows unless its classes together have fewer;
    - if the classes are of equal size, `per_class` divides that size and `batch_size`, and `batch_size` divides the
      number of rows, then every row occurs exactly once per epoch. Otherwise some rows occur twice or not at all in an
      epoch; which ones changes from epoch to epoch.

    Args:
        labels: class index of each row.
        batch_size: rows per batch, at least `per_class`.
        per_class: rows of a class per visit, at least 2.
        seed: at least 0.
    Raises:
        ValueError: a setting is out of range.
    """

    drop_last = False  # accelerate reads this and `batch_size` when it shares batches among processes

    def __init__(self, labels: Sequence[int], batch_size: int, *, per_class: int, seed: int) -> None:
        _check_at_least("per_class", per_class, 2)
        if batch_size < per_class:
            raise ValueError(f"batch_size must be an integer ≥ per_class ({per_class}); got {batch_size}.")
        _check_at_least("seed", seed, 0)
        self.rows_of: dict[int, list[int]] = {}
        for row, label in enumerate(labels):
            self.rows_of.setdefault(int(label), []).append(row)
        self.size = len(labels)
        self.batch_size = batch_size
        self.per_class = per_class
        self.seed = seed
        self.epoch = 0

    @property
    def sampler(self) -> "ClassBalancedBatches":
        """This object: accelerate looks for `set_epoch` of a sharded batch sampler under this name."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self.size / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        words = _Words(self.seed, _CLASS_STREAM, self.epoch)
        visits = self._visits(words)
        decks = {label: _Deck(rows, words) for label, rows in self.rows_of.items()}
        per_batch = self.batch_size // self.per_class
        dealt: list[list[int]] = []
        for start in range(0, len(visits), per_batch):
            batch: dict[int, None] = {}  # an ordered set
            present = visits[start : start + per_batch]
            for label in present:
                decks[label].deal(self.per_class, batch)
            open_labels = list(dict.fromkeys(present))
            while len(batch) < self.batch_size and open_labels:
                places = open_labels[: self.batch_size - len(batch)]
                full = [label for label in places if not decks[label].deal(1, batch)]
                open_labels = [label for label in open_labels if label not in full]
            dealt.append(list(batch))
        yield from sorted(dealt, key=lambda rows: len(rows) < self.batch_size)  # short ones last, as above

    def _visits(self, words: "_Words") -> list[int]:
        """The class of each visit of one epoch, in order."""
        total = len(self) * (self.batch_size // self.per_class)
        labels = words.shuffled(self.rows_of)
        count = {label: total * len(self.rows_of[label]) // self.size for label in labels}
        by_remainder = sorted(labels, key=lambda label: -(total * len(self.rows_of[label]) % self.size))
        for label in by_remainder[: total - sum(count.values())]:
            count[label] += 1
        for label in labels if total >= len(labels) else ():
            if count[label] == 0:
                count[max(labels, key=count.__getitem__)] -= 1
                count[label] = 1
        # The k-th of n visits falls somewhere in the k-th n-th of the epoch, so that no class clumps.
        places = [(visit, n, label) for label, n in count.items() for visit in range(n)]
        at = [(visit + offset) / n for (visit, n, _), offset in zip(places, words.fractions(len(places)), strict=True)]
        return [places[i][2] for i in sorted(range(len(places)), key=at.__getitem__)]


class _Words:
    """Numbers of one epoch, from raw words that no version of NumPy changes."""

    def __init__(self, seed: int, stream: int, epoch: int) -> None:
        self.bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(stream, epoch)))

    def shuffled(self, items: Iterable[_T]) -> list[_T]:
        rows = list(items)
        return [rows[i] for i in np.argsort(self.bits.random_raw(len(rows)), kind="stable")]

    def fractions(self, count: int) -> list[float]:
        """Numbers in [0, 1)."""
        return [float(word >> np.uint64(11)) * 2.0**-53 for word in self.bits.random_raw(count)]


class _Deck:
    """The rows of one class, dealt without replacement and shuffled anew when all are dealt."""

    def __init__(self, rows: list[int], words: _Words) -> None:
        self.rows = rows
        self.words = words
        self.pile: list[int] = []

    def deal(self, count: int, batch: dict[int, None]) -> int:
        """Adds up to `count` rows that are not yet in the batch; how many were added."""
        for dealt in range(count):
            self.pile = self.pile or self.words.shuffled(self.rows)
            place = next((i for i in reversed(range(len(self.pile))) if self.pile[i] not in batch), None)
            if place is None:  # happens only when all rows of the class are in the batch
                return dealt
            batch[self.pile.pop(place)] = None
        return count


def _check_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} must be an integer ≥ {least}; got {value}.")

"""From tokens to padded tensors, and the order in which batches come.

The order of an epoch depends on (seed, epoch) alone. It comes from raw words of
`PCG64(SeedSequence(seed, spawn_key=(stream, epoch)))`, as in `sampling`, with stream 8 for `LengthGroupedBatches` and 9
for `ClassBalancedBatches`.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PreTrainedTokenizerBase

from steadytune.data.tables import DataError

MEGA_BATCH = 50  # batches among which rows are sorted by length; the usual choice of transformers' grouped sampler
_T = TypeVar("_T")
_LENGTH_STREAM, _CLASS_STREAM = 8, 9


class PaddingCollator:
    """Items of one batch as tensors, padded to the longest of them on the tokenizer's side.

    A row with fewer choices than others gets its first one again, with the label -100.

    Args:
        tokenizer: says the padding token, its segment and its side.
        label_dtype: torch.long for classes, torch.float32 for scores.
        labels_by_token: labels are lists as long as the tokens, padded with -100.
    Raises:
        DataError: the tokenizer has no padding token.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, label_dtype: torch.dtype, *, labels_by_token: bool = False
    ) -> None:
        if tokenizer.pad_token_id is None:
            raise DataError("the model's tokenizer must have a padding token; it has none, so set its pad_token.")
        self.label_dtype, self.labels_by_token = label_dtype, labels_by_token
        self.left = tokenizer.padding_side == "left"
        self.padding = {
            "input_ids": int(tokenizer.pad_token_id),
            "attention_mask": 0,
            "token_type_ids": int(tokenizer.pad_token_type_id),
        }

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The batch: `input_ids`, `attention_mask`, and `token_type_ids` and `labels` where the rows have them."""
        nested = isinstance(rows[0]["input_ids"][0], list)
        if nested:
            rows = _with_as_many_choices(rows)
        longest = max(max(map(len, row["input_ids"])) if nested else len(row["input_ids"]) for row in rows)
        batch: dict[str, Tensor] = {}
        for name, value in self.padding.items():
            if name in rows[0]:
                padded = [
                    [self._padded(part, longest, value) for part in row[name]]
                    if nested
                    else self._padded(row[name], longest, value)
                    for row in rows
                ]
                batch[name] = torch.tensor(padded, dtype=torch.long)
        if "labels" in rows[0]:
            labels = [row["labels"] for row in rows]
            labels = [self._padded(row, longest, -100) for row in labels] if self.labels_by_token else labels
            batch["labels"] = torch.tensor(labels, dtype=self.label_dtype)
        return batch

    def _padded(self, values: list[int], longest: int, fill: int) -> list[int]:
        rest = [fill] * (longest - len(values))
        return rest + values if self.left else values + rest


def _with_as_many_choices(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    most = max(len(row["input_ids"]) for row in rows)
    filled = []
    for row in rows:
        missing = most - len(row["input_ids"])
        filled.append(
            {name: v + ([-100] if name == "labels" else v[:1]) * missing for name, v in row.items()} if missing else row
        )
    return filled  # type: ignore[return-value]


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

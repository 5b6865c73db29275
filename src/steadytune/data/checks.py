"""What should be known about rows before anything is trained on them: repeats, label counts, lengths, gaps."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from steadytune.data.examples import Examples
from steadytune.data.sampling import Selection, contents
from steadytune.data.sources import Dataset

_SHOWN = 5  # ids per pair of splits


@dataclass(frozen=True)
class Quartiles:
    """Smallest value, quartiles (linear between neighbors) and largest value."""

    min: float
    lower: float
    median: float
    upper: float
    max: float


@dataclass(frozen=True)
class SplitReport:
    """One split.

    Attributes:
        rows: how many.
        labels: rows by the name of their class, in the order of the labels, absent ones with 0; None without classes.
            A row of several classes counts for each; where words are tagged, words are counted.
        unseen_labels: names of the classes or tags that occur here and not in train.
        scores: distribution of the labels of a regression; None otherwise.
        words: distribution of the number of words of a row, both texts of a pair together; of several
            choices the longest counts. None without rows.
        empty_texts: rows of which a text is blank.
    """

    rows: int
    labels: dict[str, int] | None
    unseen_labels: tuple[str, ...]
    scores: Quartiles | None
    words: Quartiles | None
    empty_texts: int


@dataclass(frozen=True)
class Repeats:
    """Rows that stand in two splits, compared without regard to case and to the amount of white space.

    Attributes:
        split: the later split.
        other: the earlier one.
        rows: rows of `split` whose content stands in `other`.
        other_rows: rows of `other` whose content stands in `split`.
        ids: of the first five such rows of `split`, each with the first row of `other` that it repeats.
    """

    split: str
    other: str
    rows: int
    other_rows: int
    ids: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class DataReport:
    """The rows of a run or of a data set, without any text.

    Attributes:
        splits: each split by its name.
        repeats: each two splits that share content; none for those that do not.
    """

    splits: dict[str, SplitReport]
    repeats: tuple[Repeats, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    def notes(self) -> list[str]:
        """What a reader of a score should know, one sentence each."""
        said = [
            f"{same.rows} rows of {same.split!r} stand in {same.other!r} too, but for case and white space"
            for same in self.repeats
        ]
        for name, split in self.splits.items():
            if split.empty_texts:
                said.append(f"{split.empty_texts} rows of {name!r} have a blank text")
            if split.unseen_labels:
                said.append(f"{name!r} has classes without a training row: {', '.join(split.unseen_labels)}")
        return said


def data_report(dataset: Dataset, selection: Selection | None = None) -> DataReport:
    """Checks of the rows of a data set, or of the rows of it that one run uses.

    Args:
        dataset: says the names of the classes.
        selection: rows to look at; None looks at every split of the data set.
    Returns:
        Counts, distributions and row ids; what they mean is for the reader to judge.
    """
    if selection is None:
        splits = dict(dataset.splits)
    else:
        splits = {"train": selection.train, "dev": selection.dev, "test": selection.test}
    train = splits.get("train")
    folded = {name: _folded(rows) for name, rows in splits.items()}
    shared = (_repeats(splits, folded, other, split) for other, split in combinations(splits, 2))
    return DataReport(
        splits={name: _split_report(rows, dataset, train) for name, rows in splits.items()},
        repeats=tuple(repeats for repeats in shared if repeats.rows),
    )


def repeated_rows(rows: Examples, others: Examples) -> int:
    """How many rows stand among others, compared as in `Repeats`.

    Args:
        rows: those that are counted.
        others: those that they are looked for in.
    """
    known = set(_folded(others))
    return sum(content in known for content in _folded(rows))


def _split_report(rows: Examples, dataset: Dataset, train: Examples | None) -> SplitReport:
    names = dataset.label_names
    labels: dict[str, int] | None = None
    scores: Quartiles | None = None
    unseen: tuple[str, ...] = ()
    if rows.labels is not None and names:
        counts = Counter(_each(rows.labels))
        labels = {name: counts[index] for index, name in enumerate(names)}
        if train is not None and train.labels is not None:
            unseen = tuple(names[int(index)] for index in sorted(counts.keys() - set(_each(train.labels))))
    elif rows.labels is not None and dataset.task == "regression":
        scores = _quartiles(rows.labels)
    texts, columns = contents(rows), 1 if rows.pairs is None else 2
    return SplitReport(
        rows=len(rows),
        labels=labels,
        unseen_labels=unseen,
        scores=scores,
        words=_quartiles(_words(rows)),
        empty_texts=sum(not all(text.strip() for text in parts[:columns]) for parts in texts),
    )


def _words(rows: Examples) -> list[int]:
    """Words of each row: of both texts, or of the text and of one choice, as they are read together."""
    beside = [pair if isinstance(pair, tuple) else (pair,) for pair in rows.pairs or [""] * len(rows)]
    return [
        len(text.split()) + max(len(one.split()) for one in pairs)
        for (text, _), pairs in zip(contents(rows), beside, strict=True)
    ]


def _each(labels: Sequence[Any]) -> Iterator[int]:
    """Every class index, of rows that have one or several."""
    return (one for label in labels for one in (label if isinstance(label, tuple) else (label,)))


def _repeats(splits: dict[str, Examples], folded: dict[str, list[tuple[str, ...]]], other: str, split: str) -> Repeats:
    first: dict[tuple[str, ...], str] = {}
    for content, row_id in zip(folded[other], splits[other].ids, strict=True):
        first.setdefault(content, row_id)
    twins = [
        (row_id, first[content])
        for content, row_id in zip(folded[split], splits[split].ids, strict=True)
        if content in first
    ]
    here = set(folded[split])
    back = sum(content in here for content in folded[other])
    return Repeats(split, other, len(twins), back, tuple(twins[:_SHOWN]))


def _folded(rows: Examples) -> list[tuple[str, ...]]:
    return [tuple(" ".join(text.split()).casefold() for text in texts) for texts in contents(rows)]


def _quartiles(values: Sequence[float]) -> Quartiles | None:
    return Quartiles(*np.percentile(values, [0, 25, 50, 75, 100]).tolist()) if len(values) else None

"""Seeded choice of rows: few-shot and part samples, and the train, dev and test rows of one run.

A permutation is the stable order of raw 64-bit words of `PCG64(SeedSequence(seed, spawn_key=(stream,)))`. NumPy
promises that these words never change, which it does not for `Generator.permutation`; so the same arguments give the
same rows on every machine and version. Rows keep the order of their source. The streams:

    0  rows for training, and all of `take_rows`, `take_k_shot`, `take_fraction`
    1  rows taken from the training split as test
    2  rows taken from the training split as dev
    3  rows of dev kept under `eval_rows`
    4  rows of test kept under `eval_rows`

Stream 0 sees only the training split and its own setting: the choice of dev and test never changes what it draws.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from steadytune.data.examples import Examples
from steadytune.data.sources import DEV_NAMES, Dataset, check_trainable
from steadytune.data.tables import DataError

MIN_CARVED_ROWS = 100  # a dev or test set taken from unused rows may always have this many, however small train is
_SEVERAL_PER_TEXT = ("multiple_choice", "question_answering")  # tasks that ask more than one question about a text
_TRAIN, _CARVED_TEST, _CARVED_DEV, _CAPPED_DEV, _CAPPED_TEST = range(5)


@dataclass(frozen=True)
class Selection:
    """The rows of one run, and in `notes` how they came about where that is not plain."""

    train: Examples
    dev: Examples
    test: Examples
    notes: tuple[str, ...]

    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of the rows of "train", "dev" and "test"."""
        return {name: getattr(self, name).fingerprint() for name in ("train", "dev", "test")}


def take_rows(examples: Examples, n: int, seed: int) -> Examples:
    """n rows in total, stratified by class.

    Classes share n in proportion to their size (largest remainder, ties by a seeded order); while n reaches, a class
    left without a row gets one from the class with most. Scores and unlabelled rows are drawn plainly.

    Args:
        examples: the rows to draw from.
        n: from 1 to the number of rows.
        seed: at least 0.
    Returns:
        The chosen rows in their old order.
    Raises:
        DataError: `n` is out of range.
    """
    return examples.select(_rows(examples, _checked_count("n", n, len(examples)), seed, _TRAIN))


def take_k_shot(examples: Examples, k: int, seed: int) -> Examples:
    """k rows of each class; all rows of a class that has fewer.

    The rows for a smaller k are among those for a larger k.

    Args:
        examples: the rows to draw from; labels are class indices.
        k: at least 1.
        seed: at least 0.
    Returns:
        The chosen rows in their old order.
    Raises:
        DataError: `k` is below 1, or the rows have no classes.
    """
    _checked_count("k", k, None)
    if not _has_classes(examples):
        raise DataError("k rows per class need class labels, one per row; take a number of rows in total instead.")
    return examples.select(_first_of_each_class(examples, dict.fromkeys(_groups(examples), k), seed, _TRAIN))


def take_fraction(examples: Examples, fraction: float, seed: int) -> Examples:
    """The same share of each class: fraction · size, halves rounded up, and at least one row.

    Args:
        examples: the rows to draw from; scores and unlabelled rows count as one class.
        fraction: in (0, 1].
        seed: at least 0.
    Returns:
        The chosen rows in their old order.
    Raises:
        DataError: `fraction` is out of range.
    """
    if not 0 < fraction <= 1:
        raise DataError(f"fraction must be a number in (0, 1]; got {fraction}.")
    return examples.select(_first_of_each_class(examples, _share_of_each_class(examples, fraction), seed, _TRAIN))


def resolve_splits(
    available: Sequence[str], *, train_split: str = "train", dev_split: str | None = None, test_split: str | None = None
) -> tuple[str, str | None, str | None]:
    """Names of the splits that give the train, dev and test rows; None where rows must come out of train.

    A missing test split: the published dev becomes test, unless `dev_split` names it.

    Args:
        available: names of all splits of the data set.
        train_split: where training rows come from.
        dev_split: None takes "dev" or "validation", if there is one.
        test_split: None takes "test", if there is one.
    Returns:
        The names for train, dev and test.
    Raises:
        DataError: a named split is missing, or named twice.
    """
    named = [name for name in (train_split, dev_split, test_split) if name is not None]
    for index, name in enumerate(named):
        if name not in available:
            raise DataError(f"there is no split {name!r}; the splits are {', '.join(map(repr, available))}.")
        if name in named[:index]:
            raise DataError(f"train_split, dev_split and test_split must differ; got {name!r} twice.")
    free = [name for name in available if name not in named]
    test = test_split or ("test" if "test" in free else None)
    dev = dev_split or next((name for name in DEV_NAMES if name in free), None)
    if test is None and dev_split is None:
        test, dev = dev, None
    return train_split, dev, test


def select(
    dataset: Dataset,
    *,
    train_split: str = "train",
    dev_split: str | None = None,
    test_split: str | None = None,
    train_rows: int | None = None,
    k_shot: int | None = None,
    fraction: float | None = None,
    eval_rows: int | None = None,
    seed: int = 0,
) -> Selection:
    """The rows of one run.

    A dev or test set that no split gives is a stratified part of the training rows that are not used, of at most
    max(100, training rows) rows. If none are left over, it is a tenth of each class of the training rows (at least
    one row, never the last), which then do not train. Where a task asks several questions about a text, each text goes
    to one of the three; a set taken from the training split has all questions on its texts, but for the last.

    Args:
        dataset: with at least the training split read.
        train_split: where training rows come from.
        dev_split: None takes "dev" or "validation", if there is one and it need not serve as test.
        test_split: None takes "test", else the published dev.
        train_rows: this many rows in total, as `take_rows`.
        k_shot: this many rows per class, as `take_k_shot`.
        fraction: this share of each class, as `take_fraction`.
        eval_rows: cap on dev and on test, stratified.
        seed: at least 0.
    Returns:
        Three sets of rows; none stands in two of them.
    Raises:
        DataError: a setting is out of range, a split is missing, or the rows do not suffice.
    """
    train_name, dev_name, test_name = resolve_splits(
        tuple(dataset.splits), train_split=train_split, dev_split=dev_split, test_split=test_split
    )
    check_trainable(dataset, train_name)
    pool = dataset.splits[train_name]
    train = _training_rows(pool, train_rows, k_shot, fraction, seed)
    missing = [part for part, name in (("test", test_name), ("dev", dev_name)) if name is None]
    carved, train, notes = _carve(pool, train, missing, seed, by_text=dataset.task in _SEVERAL_PER_TEXT)
    if test_name in DEV_NAMES and test_split is None:
        notes.append(f"test: the published split {test_name!r}, because there is no test split")
    parts = {
        "dev": carved["dev"] if dev_name is None else dataset.splits[dev_name],
        "test": carved["test"] if test_name is None else dataset.splits[test_name],
    }
    if eval_rows is not None:
        _checked_count("eval_rows", eval_rows, None)
        for part, stream in (("dev", _CAPPED_DEV), ("test", _CAPPED_TEST)):
            rows = parts[part]
            if len(rows) > eval_rows:
                parts[part] = rows.select(_rows(rows, eval_rows, seed, stream))
                notes.append(f"{part}: {eval_rows} of {len(rows)} rows (eval_rows)")
    chosen = pool.select(train)
    notes += _remarks(dataset, chosen, k_shot, parts)
    return Selection(chosen, parts["dev"], parts["test"], tuple(notes))


def contents(examples: Examples) -> list[tuple[str, str]]:
    """Both texts of each row, of several parts one after the other; the second is empty where rows have one text."""
    return [
        (_joined(text), _joined(pair))
        for text, pair in zip(examples.texts, examples.pairs or [""] * len(examples), strict=True)
    ]


def _joined(text: str | tuple[str, ...]) -> str:
    return text if isinstance(text, str) else " ".join(text)


def _training_rows(
    pool: Examples, train_rows: int | None, k_shot: int | None, fraction: float | None, seed: int
) -> list[int]:
    given = [
        name
        for name, value in (("train_rows", train_rows), ("k_shot", k_shot), ("fraction", fraction))
        if value is not None
    ]
    if len(given) > 1:
        raise DataError(f"give at most one of train_rows, k_shot and fraction; got {' and '.join(given)}.")
    if train_rows is not None:
        return _rows(pool, _checked_count("train_rows", train_rows, len(pool)), seed, _TRAIN)
    chosen = pool
    if k_shot is not None:
        chosen = take_k_shot(pool, k_shot, seed)
    elif fraction is not None:
        chosen = take_fraction(pool, fraction, seed)
    ids = set(chosen.ids)
    return [index for index, row_id in enumerate(pool.ids) if row_id in ids]


def _carve(
    pool: Examples, train: list[int], missing: list[str], seed: int, *, by_text: bool
) -> tuple[dict[str, Examples], list[int], list[str]]:
    """Rows for the missing parts, the rows left to train on, and a note for each part."""
    whole = pool.texts if by_text else range(len(pool))  # what goes to one part only: a text, or a row
    unused = _unused(pool, train, whole)
    from_unused = len({whole[index] for index in unused}) >= len(missing)
    room = min(max(MIN_CARVED_ROWS, len(train)), len(unused) // max(1, len(missing)))
    tenth = _share_of_each_class(pool.select(train), 0.1)
    carved, notes = {}, []
    for place, part in enumerate(missing, start=1):
        stream = _CARVED_TEST if part == "test" else _CARVED_DEV
        source = unused if from_unused else train
        rows = pool.select(source)
        if by_text:
            n, others = (room, 0) if from_unused else (sum(tenth.values()), 1)
            others += len(missing) - place  # one text for each part to come, and one to train on
            taken = {source[i] for i in _first_of_texts(rows.texts, n, others, seed, stream)}
        elif from_unused:
            taken = {source[i] for i in _rows(rows, room, seed, stream)}
        else:
            spare = {label: len(members) - 1 for label, members in _groups(rows).items()}
            counts = {label: min(tenth[label], spare[label]) for label in spare}
            taken = {source[i] for i in _first_of_each_class(rows, counts, seed, stream)}
        if not taken:
            raise DataError(
                f"the {len(train)} training rows are too few to set any aside as {part}; name a {part} split."
            )
        carved[part] = pool.select(sorted(taken))
        gone = {whole[index] for index in taken}
        left = [index for index in source if whole[index] not in gone]
        unused, train = (left, train) if from_unused else (unused, left)
        origin = "unused rows of the training split" if from_unused else "training rows, which do not train"
        notes.append(f"{part}: {len(taken)} {origin}, because there is no {part} split to use")
    return carved, train, notes


def _unused(pool: Examples, train: Sequence[int], whole: Sequence[Any]) -> list[int]:
    """Rows to take a part from: what trains, or stands here already, says nothing as dev or test."""
    texts = contents(pool)
    known, trained = {texts[index] for index in train}, {whole[index] for index in train}
    unused = []
    for index, text in enumerate(texts):
        if whole[index] not in trained and text not in known:
            known.add(text)
            unused.append(index)
    return unused


def _remarks(dataset: Dataset, train: Examples, k_shot: int | None, parts: dict[str, Examples]) -> list[str]:
    """What a reader of the scores should know about these rows."""
    remarks = []
    if dataset.task == "classification":
        groups = _groups(train)
        absent = len(dataset.label_names) - len(groups)
        if absent:
            remarks.append(f"train: no row of {absent} of the {len(dataset.label_names)} classes")
        short = sum(len(rows) < k_shot for rows in groups.values()) if k_shot else 0
        if short:
            remarks.append(f"train: {short} classes have fewer than {k_shot} rows")
    by_text = dataset.task in _SEVERAL_PER_TEXT
    seen = set(train.texts if by_text else contents(train))
    for part, rows in parts.items():
        repeated = sum(content in seen for content in (rows.texts if by_text else contents(rows)))
        if repeated:
            remarks.append(f"{part}: {repeated} of {len(rows)} rows repeat the text of a training row")
    return remarks


def _checked_count(name: str, value: int, most: int | None) -> int:
    if value < 1 or (most is not None and value > most):
        allowed = "an integer ≥ 1" if most is None else f"an integer from 1 to the {most} rows there are"
        raise DataError(f"{name} must be {allowed}; got {value}.")
    return value


def _has_classes(examples: Examples) -> bool:
    of_choices = bool(examples.pairs) and isinstance(examples.pairs[0], tuple)  # type: ignore[index]
    return _has_integers(examples) and not of_choices


def _has_integers(examples: Examples) -> bool:
    return bool(examples.labels) and isinstance(examples.labels[0], int)  # type: ignore[index]


def _groups(examples: Examples) -> dict[int, list[int]]:
    """Row indices by class, or by the place of the right choice; all rows under 0 where there is neither."""
    groups: dict[int, list[int]] = {}
    labels = examples.labels if examples.labels and _has_integers(examples) else (0,) * len(examples)
    for index, label in enumerate(labels):
        groups.setdefault(int(label), []).append(index)
    return groups


def _share_of_each_class(examples: Examples, fraction: float) -> dict[int, int]:
    return {label: max(1, math.floor(fraction * len(rows) + 0.5)) for label, rows in _groups(examples).items()}


def _permutation(size: int, seed: int, stream: int) -> list[int]:
    if seed < 0:
        raise DataError(f"seed must be an integer ≥ 0; got {seed}.")
    words = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(stream,))).random_raw(size)
    return [int(index) for index in np.argsort(words, kind="stable")]


def _first_of_each_class(examples: Examples, counts: Mapping[int, int], seed: int, stream: int) -> list[int]:
    """The first rows of each class in the stream's order, sorted by position."""
    rank = {row: place for place, row in enumerate(_permutation(len(examples), seed, stream))}
    chosen = [sorted(rows, key=rank.__getitem__)[: counts[label]] for label, rows in _groups(examples).items()]
    return sorted(row for rows in chosen for row in rows)


def _first_of_texts(texts: Sequence[str], n: int, others: int, seed: int, stream: int) -> list[int]:
    """The first n rows, text after text in the stream's order, all but the last `others` texts; sorted by position."""
    distinct = list(dict.fromkeys(texts))
    rank = {distinct[text]: place for place, text in enumerate(_permutation(len(distinct), seed, stream))}
    rows = [row for row, text in enumerate(texts) if rank[text] < len(distinct) - others]
    return sorted(sorted(rows, key=lambda row: rank[texts[row]])[:n])


def _rows(examples: Examples, n: int, seed: int, stream: int) -> list[int]:
    """n rows, stratified as `take_rows` says, sorted by position."""
    groups = _groups(examples)
    label_of = {row: label for label, rows in groups.items() for row in rows}
    order = list(dict.fromkeys(label_of[row] for row in _permutation(len(examples), seed, stream)))  # breaks ties
    quota = {label: n * len(groups[label]) // len(examples) for label in order}
    by_remainder = sorted(order, key=lambda label: -(n * len(groups[label]) % len(examples)))
    for label in by_remainder[: n - sum(quota.values())]:
        quota[label] += 1
    for label in order if n >= len(order) else ():
        if quota[label] == 0:
            quota[max(order, key=quota.__getitem__)] -= 1
            quota[label] = 1
    return _first_of_each_class(examples, quota, seed, stream)

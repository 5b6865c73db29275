"""Damage to the training rows on purpose: wrong labels, misspelt words, rare classes. Dev and test stay clean.

Every draw is named by the run's seed, the setting and the id of the row (`keyed_seed`). So a row meets the same draws
on every machine and whichever rows stand beside it, and the rows and words that a smaller noise hits are among those
that a larger one hits.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, TypeVar

import numpy as np

from steadytune.data.examples import Examples
from steadytune.data.sampling import Selection, contents
from steadytune.data.sources import Dataset
from steadytune.data.tables import DataError
from steadytune.functional import keyed_seed

LabelNoise = Literal["uniform", "pair"]
_T = TypeVar("_T")
_SWAPPED, _SHORTENED, _LENGTHENED, _DROPPED = "with a swap", "shortened", "lengthened", "dropped"


def corrupt(
    dataset: Dataset,
    selection: Selection,
    *,
    imbalance: float | None = None,
    label_noise: float = 0.0,
    label_noise_kind: LabelNoise | None = None,
    text_noise: float = 0.0,
    seed: int = 0,
) -> Selection:
    """A selection with damaged training rows: first fewer of some classes, then wrong labels, then noised texts.

    Args:
        dataset: where the rows come from; says how many classes there are.
        selection: the rows as drawn; its notes still speak of these.
        imbalance: as `thin_classes`; None leaves the classes as they are.
        label_noise: as `flip_labels`; 0 switches it off.
        label_noise_kind: None means "uniform".
        text_noise: as `noise_words`; 0 switches it off.
        seed: of the run.
    Returns:
        The same dev and test rows, and one more note for each damage, with its exact extent.
    Raises:
        DataError: a setting is out of range, has no effect on these rows, or needs classes where there are scores.
    """
    if label_noise_kind is not None and label_noise == 0:
        raise DataError(f"label_noise_kind has no effect without label_noise; got {label_noise_kind!r} with 0.")
    train, notes = selection.train, []
    if text_noise != 0 and dataset.task not in ("classification", "regression", "multi_label"):
        raise DataError(f"text_noise has no meaning for a {dataset.task} task; leave it out.")
    if (label_noise != 0 or imbalance is not None) and dataset.task not in ("classification", "regression"):
        raise DataError(
            f"label_noise and imbalance need one class per row, which a {dataset.task} task has not; leave them out."
        )
    if imbalance is not None:
        train, note = thin_classes(train, imbalance, seed)
        notes.append(note)
    if label_noise != 0:
        kind = label_noise_kind or "uniform"
        train, note = flip_labels(train, label_noise, kind, len(dataset.label_names), seed)
        notes.append(note)
    if text_noise != 0:
        train, note = noise_words(train, text_noise, seed)
        notes.append(note)
    return replace(selection, train=train, notes=(*selection.notes, *notes))


def flip_labels(examples: Examples, fraction: float, kind: LabelNoise, classes: int, seed: int) -> tuple[Examples, str]:
    """A share of the rows, drawn whatever their class, with the label of another class.

    Args:
        examples: labels are class indices.
        fraction: share of the rows in (0, 1); fraction · rows, halves rounded up, get another label.
        kind: "uniform" takes any other class, each with the same probability; "pair" takes the next in the order of
            the labels, and the first after the last.
        classes: how many there are, with or without rows here; at least 2.
        seed: of the run.
    Returns:
        The rows in their order, and a sentence with the number of wrong labels.
    Raises:
        DataError: `fraction` is out of range or comes to no row, or the rows have no classes.

    Source: "uniform" and "pair" as the symmetric and pair flips of Han et al. 2018 (Co-teaching), with an exact count.
    """
    labels = list(_classes("label_noise", examples))
    if not 0 < fraction < 1:
        raise DataError(f"label_noise must be a number in (0, 1); got {fraction:g}.")
    count = math.floor(fraction * len(labels) + 0.5)
    if count == 0:
        raise DataError(f"label_noise {fraction:g} of {len(labels)} training rows is no row; raise it or take more.")
    order = sorted(range(len(labels)), key=lambda row: keyed_seed(seed, "label_noise", examples.ids[row]))
    for row in order[:count]:
        ahead = 1 + keyed_seed(seed, "label_noise class", examples.ids[row]) % (classes - 1) if kind == "uniform" else 1
        labels[row] = (labels[row] + ahead) % classes
    note = f"label_noise {fraction:g} ({kind}): {count} of {len(labels)} training rows have the label of another class"
    return replace(examples, labels=tuple(labels)), note


def noise_words(examples: Examples, probability: float, seed: int) -> tuple[Examples, str]:
    """Character and word noise: each word is changed with this probability.

    A word, which is what stands between white space, has two neighboring characters swapped, loses a character, has one
    repeated, or is dropped: one of these, each with the same probability, of those that change the word, leave at least
    one character of it and, if it is the last one left, do not drop it. The white space between words stays.

    Args:
        examples: the rows; both texts of a pair are noised.
        probability: in (0, 1].
        seed: of the run.
    Returns:
        The rows in their order, and a sentence with the number of changed words by kind.
    Raises:
        DataError: `probability` is out of range.
    """
    if not 0 < probability <= 1:
        raise DataError(f"text_noise must be a number in (0, 1]; got {probability:g}.")
    done: Counter[str] = Counter()

    def noised(column: tuple[str, ...], name: str) -> tuple[str, ...]:
        seeds = (keyed_seed(seed, f"text_noise {name}", row_id) for row_id in examples.ids)
        return tuple(_noised(text, probability, key, done) for text, key in zip(column, seeds, strict=True))

    texts = noised(examples.texts, "text")
    pairs = None if examples.pairs is None else noised(examples.pairs, "pair")
    new = replace(examples, texts=texts, pairs=pairs)
    rows = sum(old != now for old, now in zip(contents(examples), contents(new), strict=True))
    words = sum(len(text.split()) for content in contents(examples) for text in content)
    kinds = ", ".join(f"{done[kind]} {kind}" for kind in (_SWAPPED, _SHORTENED, _LENGTHENED, _DROPPED))
    note = f"text_noise {probability:g}: {done.total()} of {words} words changed in {rows} of {len(examples)} training "
    return new, f"{note}rows ({kinds})"


def thin_classes(examples: Examples, ratio: float, seed: int) -> tuple[Examples, str]:
    """As many rows as can stay where class sizes fall geometrically.

    With C classes the one at place i keeps largest · ratio^(−i / (C − 1)) rows, halves rounded up and at least one;
    `largest` is the most that every class can meet. Classes stand in the order of their size, which keeps most rows,
    and those of one size in a seeded order. Only classes with rows here count.

    Args:
        examples: labels are class indices.
        ratio: rows of the largest class over those of the smallest, at least 1; 1 makes all classes as large as the
            smallest.
        seed: of the run; also decides which of the classes of one size is the largest.
    Returns:
        The rows that stay, in their order, and a sentence with their number.
    Raises:
        DataError: `ratio` is out of range, there are too few rows to be thinned, or the rows have no classes.

    Source: the long-tailed profile of Cui et al. 2019, §5.1; there the classes begin with one size.
    """
    rows_of: dict[int, list[int]] = {}
    for row, label in enumerate(_classes("imbalance", examples)):
        rows_of.setdefault(label, []).append(row)
    if not (1 <= ratio < math.inf):
        raise DataError(f"imbalance must be a finite number ≥ 1; got {ratio:g}.")
    if len(rows_of) < 2:
        raise DataError("imbalance needs training rows of two classes; there is one, so take more rows.")
    order = sorted(rows_of, key=lambda label: (-len(rows_of[label]), keyed_seed(seed, "imbalance class", label)))
    shares = {label: ratio ** (-place / (len(order) - 1)) for place, label in enumerate(order)}
    largest = min(len(rows_of[label]) / share for label, share in shares.items())
    sizes = {label: max(1, math.floor(largest * share + 0.5)) for label, share in shares.items()}
    if ratio > 1 and len(set(sizes.values())) == 1:
        raise DataError(
            f"imbalance {ratio:g} of {len(examples)} training rows leaves {sizes[order[0]]} to every one of the "
            f"{len(order)} classes; raise it or take more rows."
        )
    kept = sorted(
        row
        for label, rows in rows_of.items()
        for row in sorted(rows, key=lambda row: keyed_seed(seed, "imbalance", examples.ids[row]))[: sizes[label]]
    )
    note = f"imbalance {ratio:g}: {len(kept)} of the {len(examples)} training rows drawn are kept, "
    return examples.select(kept), f"{note}from {sizes[order[0]]} down to {sizes[order[-1]]} per class"


def _classes(setting: str, examples: Examples) -> tuple[int, ...]:
    labels = tuple(label for label in examples.labels or () if isinstance(label, int))
    if len(labels) < len(examples):
        raise DataError(f"{setting} needs rows with classes, and these have scores or no labels; leave it out.")
    return labels


def _noised(text: str, probability: float, seed: int, done: Counter[str]) -> str:
    """One text with noise; what was done to its words is added to `done`."""
    words, gaps = re.findall(r"\S+", text), re.split(r"\S+", text)  # a gap before each word and one at the end
    if not words:
        return text
    left = len(words)
    for place, (whether, what, where) in enumerate(np.random.PCG64(seed).random_raw((left, 3)).tolist()):
        if whether < probability * 2.0**64:
            kind, words[place] = _damaged(words[place], what, where, may_go=left > 1)
            left -= kind == _DROPPED
            done[kind] += 1
    kept = "".join(gap + word for gap, word in zip(gaps, words, strict=False) if word)
    return gaps[0] + kept.strip() + gaps[-1]


def _damaged(word: str, what: int, where: int, *, may_go: bool) -> tuple[str, str]:
    """What is done to a word, and what is left of it."""
    swaps = [i for i in range(len(word) - 1) if word[i] != word[i + 1]]
    possible = {_SWAPPED: bool(swaps), _SHORTENED: len(word) > 1, _LENGTHENED: True, _DROPPED: may_go}
    kind = _picked(what, [kind for kind, can in possible.items() if can])
    i = _picked(where, swaps if kind == _SWAPPED else range(len(word)))
    outcomes = {
        _SWAPPED: word[:i] + word[i : i + 2][::-1] + word[i + 2 :],
        _SHORTENED: word[:i] + word[i + 1 :],
        _LENGTHENED: word[: i + 1] + word[i:],
        _DROPPED: "",
    }
    return kind, outcomes[kind]


def _picked(draw: int, options: Sequence[_T]) -> _T:
    """The option that a number below 2⁶⁴ stands for."""
    return options[draw * len(options) >> 64]

"""Robustness sets: further splits that a trained model is scored on, with labels matched by name to the model's."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from steadytune.data.examples import Examples, is_missing
from steadytune.data.pairing import paired_rows
from steadytune.data.sources import DEV_NAMES, available_splits, load_dataset, read_split
from steadytune.data.tables import DataError, Table, listed

SLICES = {"heuristic": True, "subcase": False, "capability": False, "test": False, "original": False}
"""Columns whose values are scored apart where a set has them; true: apart by label too, as HANS' authors do."""
_YES_OR_NO = "original"  # of those, the one that tells whether a row is an original
_SETS = "group"  # the column that names the contrast set of a row
_SAME = {"non_entailment": "not_entailment", "pos": "positive", "neg": "negative"}
_PARTS = {"not_entailment": ("neutral", "contradiction")}  # a class and those that make it up
_BETWEEN = ("neutral", "mixed")  # rows that a model without such a class is not asked about


class RobustnessSet(BaseModel):
    """Which rows a trained model is also scored on, and what their labels mean to it.

    Attributes:
        source: as of `data`.
        split: its name; several joined with "+", the originals first, are scored as one set of pairs; null for test,
            else dev, else the first.
        name: in records and tables; null for that of the data set and its split.
        labels: class of the model by label of the set, for labels of another name; null leaves their rows out.
        slices: columns whose values are scored apart; null for those of heuristic, subcase, capability and test that
            have at least two rows for each value on average, and for original if it says yes or no.
        sets: column that names the contrast set of a row, empty for a row of none; null for `group` where there is one.
        text_column: for tables; inferred if null.
        pair_column: for tables; inferred if null.
        label_column: for tables; inferred if null.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    split: str | None = None
    name: str | None = None
    labels: dict[str, str | None] = {}
    slices: list[str] | None = None
    sets: str | None = None
    text_column: str | None = None
    pair_column: str | None = None
    label_column: str | None = None

    @classmethod
    def parse(cls, text: str) -> "RobustnessSet":
        """From its short form.

        Args:
            text: `SOURCE` or `SOURCE:SPLIT`; a configuration of a hub set is followed by its split.
        """
        source, colon, split = text.rpartition(":")
        if not colon or Path(text).exists():
            return cls(source=text)
        return cls(source=source, split=split)

    def like(self, columns: Mapping[str, str | None]) -> "RobustnessSet":
        """This set, if it is a table, read as another table of the same make.

        Args:
            columns: names of columns, by the name of the field.
        """
        if not Path(self.source).is_file():
            return self
        return self.model_copy(update={key: getattr(self, key) or value for key, value in columns.items()})


@dataclass(frozen=True)
class RobustnessRows:
    """A robustness set as read for one model.

    Attributes:
        name: of the set.
        origin: short name of its data set.
        rows: that are scored; without labels.
        labels: class of each row, in words that `classes` has too.
        classes: what each class of the model counts as, in the order of its classes.
        slices: by column, the value of each row.
        sets: contrast set of each row, None for a row of no set or of one that lost a row; None if there are no sets.
        left_out: rows that are not scored, since the model has no such class.
        notes: what was matched, merged or left out.
    """

    name: str
    origin: str
    rows: Examples
    labels: tuple[str, ...]
    classes: tuple[str, ...]
    slices: Mapping[str, tuple[str, ...]]
    sets: tuple[str | None, ...] | None
    left_out: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class LabelMatch:
    """Two lists of labels, in common words.

    Attributes:
        classes: what each class of the model counts as.
        labels: what each label of the set counts as; None for one whose rows are left out.
        notes: what was merged or left out.
    """

    classes: tuple[str, ...]
    labels: tuple[str | None, ...]
    notes: tuple[str, ...]


def match_labels(
    classes: Sequence[str], labels: Sequence[str], given: Mapping[str, str | None], where: str
) -> LabelMatch:
    """Labels of a set in terms of a model's classes: equal but for case and punctuation, or merged.

    Neutral and contradiction make up non-entailment, in the model or in the set. Rows labelled neutral or mixed are
    left out for a model without such a class.

    Args:
        classes: of the model.
        labels: of the set.
        given: class by label, before any rule; None leaves the label out.
        where: name of the set, for messages.
    Raises:
        DataError: a label has no counterpart.

    Source: McCoy et al. 2019, appendix on the conversion of labels, for the merger of a model's classes.
    """
    own = {_plain(name): name for name in classes}
    theirs = {_plain(name): name for name in labels}
    for label, name in given.items():
        if label not in labels:
            raise DataError(f"{where}: `labels` names {label!r}, which is no label there; there are {listed(labels)}.")
        if name is not None and name not in classes:
            raise DataError(f"{where}: `labels` names the class {name!r}; the model's are {listed(classes)}.")
    merged: dict[str, str] = {}
    for whole, parts in _PARTS.items():
        if whole in theirs and whole not in own and theirs[whole] not in given:
            merged |= {own[part]: theirs[whole] for part in parts if part in own}
    found: list[str | None] = []
    for label in labels:
        name = given[label] if label in given else _counterpart(label, own, merged, where, classes)
        found.append(None if name is None else merged.get(name, name))
    changed = {name: str(other) for name, other in zip(labels, found, strict=True) if other not in (None, name)}
    notes = [f"class {name!r} counts as {whole!r}" for name, whole in merged.items()]
    notes += [f"label {name!r} counts as {other!r}" for name, other in changed.items() if _plain(name) != _plain(other)]
    return LabelMatch(tuple(merged.get(name, name) for name in classes), tuple(found), tuple(notes))


def _counterpart(
    label: str, own: Mapping[str, str], merged: Mapping[str, str], where: str, classes: Sequence[str]
) -> str | None:
    plain = _plain(label)
    wholes = [own[whole] for whole, parts in _PARTS.items() if plain in parts and whole in own]
    if plain in own:
        return own[plain]
    if label in merged.values():
        return label
    if wholes:
        return wholes[0]
    if plain in _BETWEEN:
        return None
    raise DataError(
        f"{where}: the label {label!r} is none of the model's classes, {listed(classes)}; score another set, or say in "
        "`labels` of the robustness set in a plan which class it is."
    )


def _plain(name: str) -> str:
    plain = re.sub(r"[\W_]+", "_", name.strip().lower())
    return _SAME.get(plain, plain)


def read_robustness_sets(
    wanted: Sequence[RobustnessSet], classes: Sequence[str], *, pairs: bool
) -> list[RobustnessRows]:
    """The rows of robustness sets for one model.

    Args:
        wanted: which.
        classes: of the model.
        pairs: whether the model was trained on pairs of texts.
    Raises:
        DataError: a set cannot be read, or does not fit the model; or two have one name.
    """
    read = [_read_set(one, classes, pairs) for one in wanted]
    names = [one.name for one in read]
    if twice := [name for name in names if names.count(name) > 1]:
        raise DataError(f"two robustness sets have the name {twice[0]!r}; leave one out, or give it a name in a plan.")
    return read


def _read_set(wanted: RobustnessSet, classes: Sequence[str], pairs: bool) -> RobustnessRows:
    names = _splits(wanted)
    columns = (wanted.text_column, wanted.pair_column, wanted.label_column)
    read = [_read(wanted.source, name, columns) for name in names]
    usual = read[0].name if Path(wanted.source).is_file() else f"{read[0].name}:{'+'.join(names)}"
    name = wanted.name or usual
    if len({one.label_names for one in read}) > 1:
        raise DataError(f"{name}: its splits have labels of different names; score them one by one.")
    for one in read:
        if (one.rows.pairs is not None) != pairs:
            kinds = ("two texts", "one") if pairs else ("one text", "two")
            raise DataError(f"{name}: the model was trained on rows of {kinds[0]}, and a row here has {kinds[1]}.")
    given = [read[0].label_names[int(label)] for one in read for label in one.rows.labels or ()]
    labels = [label for label in read[0].label_names if label in given]  # those that some row has
    match = match_labels(classes, labels, wanted.labels, name)
    counted = dict(zip(labels, match.labels, strict=True))
    kept = [place for place, label in enumerate(given) if counted[label] is not None]
    if not kept:
        raise DataError(f"{name}: no row has a label that the model knows; score another set.")
    gold = [str(counted[given[place]]) for place in kept]
    sets, parted = _whole(_sets(wanted, read, names, name), kept)
    slices, not_apart = _slices(wanted, read, names, kept, gold)
    unknown = [
        f"{count} rows labelled {label!r} are left out: the model has no such class"
        for label, count in sorted(Counter(given).items())
        if counted[label] is None
    ]
    return RobustnessRows(
        name=name,
        origin=read[0].name,
        rows=_joined([one.rows for one in read]).select(kept),
        labels=tuple(gold),
        classes=match.classes,
        slices=slices,
        sets=sets,
        left_out=len(given) - len(kept),
        notes=(*match.notes, *unknown, *parted, *not_apart),
    )


@dataclass(frozen=True)
class _Read:
    """One split: rows labelled in its own words, and all its columns."""

    name: str
    rows: Examples
    label_names: tuple[str, ...]
    table: Table


def _splits(wanted: RobustnessSet) -> list[str]:
    if wanted.split:
        return wanted.split.split("+")
    there = available_splits(wanted.source)
    return [next(name for name in ("test", *DEV_NAMES, *there) if name in there)]


def _read(source: str, split: str, columns: tuple[str | None, str | None, str | None]) -> _Read:
    text, pair, label = columns
    found = load_dataset(
        source, splits=[split], text_column=text, pair_column=pair, label_column=label, require_classes=False
    )
    if found.task != "classification":
        raise DataError(f"{source}: a robustness set has classes as labels; split {split!r} is for {found.task}.")
    rows = found.splits[split]
    return _Read(found.name, rows, found.label_names, read_split(source, split))


def _joined(parts: Sequence[Examples]) -> Examples:
    """All rows, without labels."""
    pairs = None if parts[0].pairs is None else tuple(pair for part in parts for pair in part.pairs or ())
    ids = tuple(row for part in parts for row in part.ids)
    return Examples(ids, tuple(text for part in parts for text in part.texts), pairs)


def _slices(
    wanted: RobustnessSet, read: Sequence[_Read], splits: Sequence[str], kept: Sequence[int], gold: Sequence[str]
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """By column, the value of each row; and a note on each known column whose values name no groups."""
    found: dict[str, tuple[str, ...]] = {}
    notes = []
    if len(read) > 1:
        origin = [split for split, one in zip(splits, read, strict=True) for _ in one.rows.ids]
        found["split"] = tuple(origin[place] for place in kept)
    for column in SLICES if wanted.slices is None else wanted.slices:
        if wanted.slices is None and not all(_holds_words(one.table, column) for one in read):
            continue
        values = _column(read, column)
        if wanted.slices is None and (reason := _no_groups(column, values)):
            notes.append(f"{column!r} is not scored apart, since {reason}; name it in `slices` if it should be")
            continue
        names = [_word(values[place]) for place in kept]
        if wanted.slices is None and SLICES[column]:
            found[f"{column} and label"] = tuple(f"{name}, {label}" for name, label in zip(names, gold, strict=True))
        else:
            found[column] = tuple(names)
    return found, notes


def _no_groups(column: str, values: Sequence[Any]) -> str:
    """Why the values of a known column are no names of groups but, say, texts; empty if they are."""
    different = {_word(value) for value in values}
    if column == _YES_OR_NO:
        yes_or_no = {name.strip().lower() for name in different} <= {"yes", "no", "true", "false", "1", "0"}
        return "" if yes_or_no else "its values are not yes and no"
    return f"it has {len(different)} values in {len(values)} rows" if 2 * len(different) > len(values) else ""


def _sets(wanted: RobustnessSet, read: Sequence[_Read], splits: Sequence[str], where: str) -> list[str | None] | None:
    """The contrast set of each row, None for a row of none."""
    if wanted.sets is not None or all(_names_sets(one.table) for one in read):
        return [None if is_missing(value) else _word(value) for value in _column(read, wanted.sets or _SETS)]
    if len(read) == 1:
        return None
    places = paired_rows([one.rows for one in read], splits, where)
    return [None if place is None else str(place) for part in places for place in part]


def _whole(sets: Sequence[str | None] | None, kept: Sequence[int]) -> tuple[tuple[str | None, ...] | None, list[str]]:
    """The contrast set of each row that is kept, if all rows of the set are; and a note on the others."""
    if sets is None:
        return None, []
    parted = {sets[place] for place in set(range(len(sets))).difference(kept)} - {None}
    notes = [f"{len(parted)} contrast sets are not counted: a row of each is left out"] if parted else []
    return tuple(None if sets[place] in parted else sets[place] for place in kept), notes


def _column(read: Sequence[_Read], column: str) -> list[Any]:
    for one in read:
        if column not in one.table.columns:
            raise DataError(f"{one.table.where} has no column {column!r}; its columns are {listed(one.table.columns)}.")
    return [row.get(column) for one in read for row in one.table.rows]


def _holds_words(table: Table, column: str) -> bool:
    """Whether every row has one value there."""
    return all(isinstance(row.get(column), str | int) for row in table.rows)


def _names_sets(table: Table) -> bool:
    """Whether there are contrast sets, each with one name or number; a row may be of none."""
    named = [row.get(_SETS) for row in table.rows if not is_missing(row.get(_SETS))]
    return bool(named) and all(isinstance(value, str | int) for value in named)


def _word(value: Any) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)

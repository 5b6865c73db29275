"""Rows as examples: which column is what, and labels as indices into one list of names."""

import difflib
import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from steadytune.data.tables import DataError, Table, listed

TEXT_COLUMNS = (
    *("text", "sentence", "sentence1", "question1", "premise"),
    *("question", "review", "utterance", "query", "content"),
)
PAIR_COLUMNS = ("text_pair", "sentence2", "question2", "hypothesis", "premise")
LABEL_COLUMNS = ("label", "labels", "intent", "category", "class", "target", "score")
MAX_TEXT_CHARACTERS = 1_000_000


@dataclass(frozen=True)
class Examples:
    """The rows of one split, as parallel tuples.

    Args:
        ids: one name per row, distinct within the split.
        texts: the first text of each row; for token classification its words.
        pairs: the second text of each row, or None where rows have one text; for a multiple choice its choices.
        labels: class indices; scores for regression; indices of all classes of a row, or of the tags of its words;
            answers with the character at which they begin; or None where there are no labels.
        choices: of a multiple choice, as in the data, while `pairs` may have a question before each; otherwise None.
    Raises:
        ValueError: the tuples differ in length.
    """

    ids: tuple[str, ...]
    texts: tuple[Any, ...]
    pairs: tuple[Any, ...] | None = None
    labels: tuple[Any, ...] | None = None
    choices: tuple[tuple[str, ...], ...] | None = None

    def __post_init__(self) -> None:
        for name in ("texts", "pairs", "labels", "choices"):
            column = getattr(self, name)
            if column is not None and len(column) != len(self.ids):
                raise ValueError(f"{name} must have one entry per id ({len(self.ids)}); got {len(column)}.")

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, indices: Sequence[int]) -> "Examples":
        """The rows at these positions, in this order."""
        return Examples(
            ids=tuple(self.ids[i] for i in indices),
            texts=tuple(self.texts[i] for i in indices),
            pairs=None if self.pairs is None else tuple(self.pairs[i] for i in indices),
            labels=None if self.labels is None else tuple(self.labels[i] for i in indices),
            choices=None if self.choices is None else tuple(self.choices[i] for i in indices),
        )

    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 over ids, texts, pairs and labels, in row order."""
        content = json.dumps([self.ids, self.texts, self.pairs, self.labels], separators=(",", ":"))
        return hashlib.sha256(content.encode("ascii")).hexdigest()


@dataclass(frozen=True)
class Columns:
    """Which column of a table is what; None for one that is not read."""

    text: str
    pair: str | None
    label: str | None


def choose_columns(
    table: Table, fixed: bool, given: tuple[str | None, str | None, str | None], require_labels: bool
) -> Columns:
    """The columns to read: those given, else the usual names.

    Args:
        table: the split that says which columns there are.
        fixed: the names are those of the format of dataset.json.
        given: text, pair and label; an empty pair says that there is none.
        require_labels: with False, the label is read only if it is given.
    Raises:
        DataError: a column is missing.
    """
    text, pair, label = given
    if fixed:
        text, label = text or "text", label or ("label" if require_labels else None)
        pair = pair if pair is not None else "text_pair" * ("text_pair" in table.columns)
    text = _find(table, text, TEXT_COLUMNS, "text")
    if pair is None:
        pair = next((name for key in PAIR_COLUMNS if (name := _known_names(table).get(key)) and name != text), "")
    if pair and pair not in table.columns:
        raise _no_column(table, pair, "pair")
    if require_labels or label:
        label = _find(table, label, LABEL_COLUMNS, "label")
    return Columns(text, pair or None, label)


def _find(table: Table, given: str | None, candidates: Sequence[str], role: str) -> str:
    if given:
        found = given if given in table.columns else None
    else:
        known = _known_names(table)
        found = next((known[name] for name in candidates if name in known), None)
    if found is None:
        raise _no_column(table, given, role)
    return found


def _known_names(table: Table) -> dict[str, str]:
    """Columns by their name in lower case."""
    return {name.strip().lower(): name for name in reversed(table.columns)}


def _no_column(table: Table, given: str | None, role: str) -> DataError:
    fault = f"no column {given!r}" if given else f"no {role} column that steadytune knows by name"
    hint = f"name it with --{role}-column"
    if len(table.columns) == 1 and (other := re.search(r"[;\t|,]", table.columns[0])):
        hint = f"it seems to be separated by {other.group()!r}, so save it with commas (.csv) or tabs (.tsv)"
    return DataError(f"{table.where} has {fault}; its columns are {listed(table.columns)}: {hint}.")


def examples_of(table: Table, columns: Columns, names: tuple[str, ...] | None, split: str) -> Examples:
    """Rows of one split.

    Args:
        table: as read.
        columns: which to take.
        names: of the classes; None says that labels are scores.
        split: its name, for rows without an id.
    Raises:
        DataError: a column, a text, a label or an id cannot be used.
    """
    for role, column in (("text", columns.text), ("pair", columns.pair), ("label", columns.label)):
        if column is not None and column not in table.columns:
            raise _no_column(table, column, role)
    labels: tuple[int, ...] | tuple[float, ...] | None = None
    if columns.label is not None:
        labels = _scores(table, columns.label) if names is None else _classes(table, columns.label, names)
    pairs = row_texts(table, columns.pair) if columns.pair else None
    return Examples(row_ids(table, split), row_texts(table, columns.text), pairs, labels)


def row_ids(table: Table, split: str) -> tuple[str, ...]:
    """The name of each row: its id, or its place in the split.

    Args:
        table: as read.
        split: its name.
    Raises:
        DataError: an id is missing or given twice.
    """
    if "id" not in table.columns:
        return tuple(f"{split}-{index}" for index in range(len(table.rows)))
    seen: dict[str, int] = {}
    for index, row in enumerate(table.rows):
        if is_missing(row.get("id")):
            raise DataError(f"{table.at(index)} has no id; fill the column 'id' or remove it.")
        first = seen.setdefault(str(row["id"]), index)
        if first != index:
            raise DataError(f"{table.at(index)} repeats the id {row['id']!r} of row {first + 1}; ids must be distinct.")
    return tuple(seen)


def row_texts(table: Table, column: str) -> tuple[str, ...]:
    """One text per row.

    Args:
        table: as read.
        column: to take.
    Raises:
        DataError: a text is missing, too long or broken.
    """
    values = tuple(row.get(column) for row in table.rows)
    for index, value in enumerate(values):
        if not isinstance(value, str):
            got = "nothing" if is_missing(value) else f"{value!r:.40}"
            raise DataError(f"{table.at(index)}: {column!r} must be a text; got {got}.")
        check_text(table, index, column, value)
    return values  # type: ignore[return-value]


def half_character(text: str) -> str:
    """The first lone surrogate of a text, which no tokenizer can read; empty without one.

    Args:
        text: any.
    """
    found = None if text.isascii() else re.search("[\ud800-\udfff]", text)
    return found[0] if found else ""


def check_text(table: Table, index: int, column: str, text: str) -> None:
    """Whether a tokenizer can read a text.

    Args:
        table: where it stands.
        index: of its row.
        column: in which it stands.
        text: all of the cell.
    Raises:
        DataError: it is too long or broken.
    """
    if len(text) > MAX_TEXT_CHARACTERS:
        size = f"{len(text):,} characters, over {MAX_TEXT_CHARACTERS:,}"
        raise DataError(f"{table.at(index)}: {column!r} has {size}; split or shorten this text.")
    if half_character(text):
        raise DataError(f"{table.at(index)}: {column!r} holds half a character (a lone surrogate); write it anew.")


def _named(table: Table, column: str) -> list[str]:
    """Label of each row, by name."""
    classes = table.class_names.get(column)
    names = []
    for index, row in enumerate(table.rows):
        value = row.get(column)
        if is_missing(value):
            raise DataError(f"{table.at(index)}: the label in {column!r} is missing; fill it or remove the row.")
        if classes is None and isinstance(value, (str, int, float)):
            whole = isinstance(value, float) and value.is_integer()
            names.append(str(int(value)) if whole else str(value).strip())
        elif classes is not None and type(value) is int and 0 <= value < len(classes):
            names.append(classes[value])
        else:
            allowed = "one string or number" if classes is None else f"an integer from 0 to {len(classes) - 1}"
            raise DataError(f"{table.at(index)}: the label in {column!r} must be {allowed}; got {value!r:.40}.")
    return names


def _classes(table: Table, column: str, names: tuple[str, ...]) -> tuple[int, ...]:
    index_of = {name: index for index, name in enumerate(names)}
    labels = _named(table, column)
    for index, name in enumerate(labels):
        if name not in index_of:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the classes are {listed(names)}."
            raise DataError(f"{table.at(index)}: unknown label {name!r}; {hint}")
    return tuple(index_of[name] for name in labels)


def _scores(table: Table, column: str) -> tuple[float, ...]:
    scores = []
    for index, label in enumerate(_named(replace(table, class_names={}), column)):
        score = _number(label)
        if score is None:
            raise DataError(f"{table.at(index)}: the score in {column!r} must be a finite number; got {label!r:.40}.")
        if score == -100:
            raise DataError(f"{table.at(index)}: a score of -100 means 'no label' in training; rescale the scores.")
        scores.append(score)
    return tuple(scores)


def label_names_of(base: Table, label: str | None, given: Sequence[str] | None) -> tuple[str, ...]:
    """Names of the classes: those given, else of the table, else the distinct labels, sorted (numbers as numbers)."""
    if label is None or given is not None:
        names = tuple(given or ())
    else:
        distinct = set() if label in base.class_names else set(_named(base, label))
        numbers = {name: _number(name) for name in distinct}
        numeric = None not in numbers.values()
        names = base.class_names.get(label) or tuple(sorted(distinct, key=lambda n: (numbers[n] if numeric else 0, n)))
    if len(set(names)) < len(names):
        raise DataError(f"{base.where}: label_names must be distinct; got {listed(names)}.")
    return names


def looks_like_scores(table: Table, column: str) -> bool:
    """Whether a column holds numbers of which some are fractional."""
    if column in table.class_names:
        return False
    numbers = [_number(name) for name in _named(table, column)]
    return None not in numbers and any(number is not None and not number.is_integer() for number in numbers)


def is_hidden(table: Table, column: str) -> bool:
    """Whether all labels are -1, as the hub hides those of some test sets."""
    return column in table.class_names and all(row.get(column) == -1 for row in table.rows)


def is_missing(value: object) -> bool:
    """Whether a cell holds nothing, white space or "nan"."""
    return value is None or str(value).strip().lower() in ("", "nan")


def _number(text: str) -> float | None:
    """The finite number that a text spells, or None."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None

"""Rows of tasks whose texts or labels have parts: several labels, tagged words, choices, answers in a text."""

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from steadytune.data import answers
from steadytune.data.examples import (
    LABEL_COLUMNS,
    PAIR_COLUMNS,
    TEXT_COLUMNS,
    Columns,
    Examples,
    check_text,
    choose_columns,
    row_ids,
    row_texts,
)
from steadytune.data.tables import DataError, Table, listed

_WORDS, _TAGS = ("tokens", "words"), ("tags", "ner_tags")
USUAL_COLUMNS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "multi_label": {"text": TEXT_COLUMNS, "pair": PAIR_COLUMNS, "label": LABEL_COLUMNS},
    "token_classification": {"text": (*_WORDS, "text", "sentence"), "label": (*_TAGS, "labels")},
    "multiple_choice": {
        "text": ("context", "article", "premise", "text", answers.QUESTION),
        "pair": ("choices", "options", "endings"),
        "label": ("label", "answer", "answerKey"),
    },
    "question_answering": {"text": ("context", "text"), "pair": ("question",), "label": ("answers",)},
}
"""By task, the names of the columns that are looked for."""

REASONS: Mapping[str, str] = {
    "token_classification": "words stand beside tags",
    "multiple_choice": "rows hold lists of choices",
    "question_answering": "rows hold answers and the characters at which they begin",
    "multi_label": "labels are lists",
}
"""By task, what in a table without a task speaks for it."""

_OUTSIDE = "O"  # the tag of a word of no entity


def structured_task(
    table: Table, given: tuple[str | None, str | None, str | None]
) -> Literal["token_classification", "multi_label", "multiple_choice", "question_answering"] | None:
    """The task that the parts of cells stand for: see `REASONS`; None if there are none.

    Args:
        table: as read.
        given: names of the columns of text, pair and label.
    """

    def lists(name: str | None, usual: Sequence[str]) -> bool:
        cells = [[row.get(one) for row in table.rows] for one in ((name,) if name else usual)]
        return any({list} <= {type(cell) for cell in column} <= {list, type(None)} for column in cells)

    if lists(given[0], _WORDS) and lists(given[2], _TAGS):
        return "token_classification"
    if lists(given[1], USUAL_COLUMNS["multiple_choice"]["pair"]):
        return "multiple_choice"
    found = [row.get(given[2] or "answers") for row in table.rows]
    if (given[1] or answers.QUESTION) in table.columns and all(map(answers.are_places, found)):
        return "question_answering"
    return "multi_label" if lists(given[2], LABEL_COLUMNS) else None


def structured_columns(
    task: str, table: Table, given: tuple[str | None, str | None, str | None], require_labels: bool
) -> Columns:
    """The columns of a task to read: those given, else the usual names.

    Args:
        task: one of `USUAL_COLUMNS`.
        table: says which columns there are.
        given: text, pair and label.
        require_labels: with False, the label is read only if it is given.
    Raises:
        DataError: a column is missing.
    """
    if task == "multi_label":
        return _tagged_columns(table, given, require_labels) or choose_columns(table, False, given, require_labels)
    usual = USUAL_COLUMNS[task]

    def find(role: str, name: str | None) -> str | None:
        candidates = (name,) if name else usual.get(role, ())
        found = next((one for one in candidates if one in table.columns), None)
        optional = role == "label" and not require_labels and not name
        if found is None and candidates and not optional:
            raise DataError(
                f"{table.where} has no column {listed(candidates)} for the {role} of a {task} task; its columns are "
                f"{listed(table.columns)}: name it with --{role}-column."
            )
        return found if require_labels or role != "label" or name else None

    text = find("text", given[0])
    assert text is not None
    return Columns(text, find("pair", given[1]), find("label", given[2]))


def _tagged_columns(
    table: Table, given: tuple[str | None, str | None, str | None], require_labels: bool
) -> Columns | None:
    """Tagged words, as texts whose labels are the kinds of entity that occur in them."""
    words, tags = (next((name for name in usual if name in table.columns), None) for usual in (_WORDS, _TAGS))
    beside = any(name.strip().lower() in TEXT_COLUMNS for name in table.columns)
    if given[0] or words is None or given[2] not in (None, *_TAGS) or (tags is None and beside):
        return None
    label = given[2] or (tags if require_labels else None)
    return Columns(words, None, label) if label or not require_labels else None


def of_kinds(columns: Columns) -> bool:
    """Whether the labels of a text, where it has several, are the kinds of entity that its words are tagged with.

    Args:
        columns: as chosen.
    """
    return columns.text in _WORDS and columns.label in _TAGS


def structured_names(task: str, table: Table, columns: Columns, given: Sequence[str] | None) -> tuple[str, ...]:
    """Names of the classes or tags: those given, else of the table, else those that occur, sorted.

    Args:
        task: one of `USUAL_COLUMNS`.
        table: the split that says so.
        columns: as chosen.
        given: of a trained model.
    Raises:
        DataError: no row has a label, or two names are equal.
    """
    if task in ("multiple_choice", "question_answering"):
        return ()
    if given is not None or columns.label is None:
        return tuple(given or ())
    reading = _TAG if task == "token_classification" or of_kinds(columns) else _LABEL
    named = table.class_names.get(columns.label, ())
    if not named:
        found = {name for index in range(len(table.rows)) for name in _strings(table, index, columns.label, reading)}
        whole = all(name.isdecimal() for name in found)
        named = tuple(sorted(found, key=lambda name: (name != _OUTSIDE, int(name) if whole else 0, name)))
    if task == "multi_label" and of_kinds(columns):
        named = tuple(dict.fromkeys(_kinds(named)))
    if not named:
        raise DataError(f"{table.where}: no row has a label in {columns.label!r}; training needs at least one.")
    if len(set(named)) < len(named):
        raise DataError(f"{table.where}: label_names must be distinct; got {listed(named)}.")
    return named


def _kinds(tags: Sequence[str]) -> list[str]:
    """The kinds of entity that tags like "B-person" name."""
    return [tag[2:] for tag in tags if tag[1:2] == "-"]


def structured_examples(task: str, table: Table, columns: Columns, names: tuple[str, ...], split: str) -> Examples:
    """Rows of one split.

    Args:
        task: one of `USUAL_COLUMNS`.
        table: as read.
        columns: which to take.
        names: of the classes or tags.
        split: its name, for rows without an id.
    Raises:
        DataError: a text or a label cannot be used.
    """
    for column in (columns.text, columns.pair, columns.label):
        if column is not None and column not in table.columns:
            raise DataError(f"{table.where} has no column {column!r}; its columns are {listed(table.columns)}.")
    return _READERS[task](table, columns, names, row_ids(table, split))


def _multi_label(table: Table, columns: Columns, names: tuple[str, ...], ids: tuple[str, ...]) -> Examples:
    if columns.text in _WORDS:
        texts = tuple(" ".join(_words(table, index, columns.text)) for index in range(len(ids)))
    else:
        texts = row_texts(table, columns.text)
    labels = None
    if columns.label is not None:
        kinds, index_of, found = of_kinds(columns), {name: place for place, name in enumerate(names)}, []
        for index in range(len(ids)):
            own = _strings(table, index, columns.label, _TAG if kinds else _LABEL)
            own = _kinds(own) if kinds else own
            found.append(tuple(sorted(set(_indices(table, index, own, index_of, "label", "classes")))))
        labels = tuple(found)
    return Examples(ids, texts, row_texts(table, columns.pair) if columns.pair else None, labels)


def _token_classification(table: Table, columns: Columns, names: tuple[str, ...], ids: tuple[str, ...]) -> Examples:
    words = tuple(_words(table, index, columns.text) for index in range(len(ids)))
    if columns.label is None:
        return Examples(ids, words)
    index_of, tags = {name: place for place, name in enumerate(names)}, []
    for index, own in enumerate(words):
        found = _strings(table, index, columns.label, _TAG)
        if len(found) != len(own):
            raise DataError(
                f"{table.at(index)} has {len(own)} words in {columns.text!r} and {len(found)} tags in "
                f"{columns.label!r}; give one tag per word."
            )
        tags.append(tuple(_indices(table, index, found, index_of, "tag", "tags")))
    return Examples(ids, words, None, tuple(tags))


def _indices(
    table: Table, index: int, found: Sequence[str], index_of: Mapping[str, int], one: str, several: str
) -> list[int]:
    """The places of the labels of one row in the list of names."""
    for name in found:
        if name not in index_of:
            near = difflib.get_close_matches(name, index_of, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the {several} are {listed(index_of)}."
            raise DataError(f"{table.at(index)}: unknown {one} {name!r}; {hint}")
    return [index_of[name] for name in found]


_READERS: Mapping[str, Callable[[Table, Columns, tuple[str, ...], tuple[str, ...]], Examples]] = {
    "multi_label": _multi_label,
    "token_classification": _token_classification,
    "multiple_choice": answers.multiple_choice,
    "question_answering": answers.question_answering,
}


@dataclass(frozen=True)
class _Reading:
    """How the parts of one cell of a CSV or TSV file are written, other than as a list in JSON."""

    separator: str | None
    words: str
    may_begin_with_bracket: bool = False


_LABEL = _Reading(";", "a list in JSON, or separated by semicolons")
_TAG = _Reading(None, "a list in JSON, or separated by white space")
_WORD = _Reading(None, "a list in JSON, or separated by white space", may_begin_with_bracket=True)


def _list(table: Table, index: int, column: str, reading: _Reading) -> list[Any]:
    """The list in one cell; in a table of strings it is JSON, or its parts stand one after the other."""
    value = table.rows[index].get(column)
    if isinstance(value, str):
        parts = [part.strip() for part in value.split(reading.separator) if part.strip()]
        try:
            value = json.loads(value) if value.lstrip().startswith("[") else parts
        except ValueError:
            if not reading.may_begin_with_bracket:
                raise DataError(
                    f"{table.at(index)}: {column!r} begins like a list and is none; write {reading.words}; got "
                    f"{value!r:.40}."
                ) from None
            value = parts
    if not isinstance(value, list):
        raise DataError(f"{table.at(index)}: {column!r} must be a list; got {value!r:.40}.")
    return value


def _words(table: Table, index: int, column: str) -> tuple[str, ...]:
    words = _list(table, index, column, _WORD)
    if not words or not all(isinstance(word, str) for word in words):
        raise DataError(f"{table.at(index)}: {column!r} must be a list of words, at least one.")
    check_text(table, index, column, " ".join(words))
    return tuple(words)


def _strings(table: Table, index: int, column: str, reading: _Reading) -> list[str]:
    """The labels of one row by name."""
    named = table.class_names.get(column)
    found = []
    for value in _list(table, index, column, reading):
        if named is None and (isinstance(value, str) or type(value) is int) and str(value).strip():
            found.append(str(value).strip())
        elif named is not None and type(value) is int and 0 <= value < len(named):
            found.append(named[value])
        elif named is not None and value in named:
            found.append(value)
        else:
            allowed = "names or numbers" if named is None else f"integers from 0 to {len(named) - 1}"
            raise DataError(f"{table.at(index)}: {column!r} must hold {allowed}; got {value!r:.40}.")
    return found

"""Rows whose label is an answer: one of several choices, or a part of the text."""

import json
from collections.abc import Mapping
from typing import Any

from steadytune.data.examples import Columns, Examples, check_text, row_texts
from steadytune.data.tables import DataError, Table, listed

QUESTION = "question"
"""The column whose text stands before each choice of a row, where it is not the row's own text."""

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def multiple_choice(table: Table, columns: Columns, names: tuple[str, ...], ids: tuple[str, ...]) -> Examples:
    """Rows with a list of choices, of which one is right.

    Args:
        table: as read.
        columns: which to take.
        names: unused; choices have no names that all rows share.
        ids: of the rows.
    Raises:
        DataError: a text, a choice or a label cannot be used.
    """
    assert columns.pair is not None
    pairs, choices, labels = [], [], []
    for index, row in enumerate(table.rows):
        given, called = _choices(table, index, columns.pair)
        asked = None if columns.text == QUESTION else row.get(QUESTION)
        if asked is not None and not isinstance(asked, str):
            raise DataError(f"{table.at(index)}: {QUESTION!r} must be a text; got {asked!r:.40}.")
        check_text(table, index, QUESTION, asked or "")
        for choice in given:
            check_text(table, index, columns.pair, choice)
        pairs.append(tuple(f"{asked or ''} {choice}".strip() for choice in given))
        choices.append(tuple(given))
        if columns.label is not None:
            labels.append(_place(table, index, columns.label, len(given), called))
    found = None if columns.label is None else tuple(labels)
    return Examples(ids, row_texts(table, columns.text), tuple(pairs), found, tuple(choices))


def _choices(table: Table, index: int, column: str) -> tuple[list[str], list[str]]:
    """The choices of a row, and what its label may call them beside their numbers."""
    value, names = _value(table, index, column), None
    if isinstance(value, Mapping):  # as some sets on the hub have them
        names = value.get("label")
        value = value.get("text")
    if isinstance(value, str):
        value = [part.strip() for part in value.split(";") if part.strip()]
    if not isinstance(value, list) or len(value) < 2 or not all(isinstance(one, str) and one.strip() for one in value):
        raise DataError(f"{table.at(index)}: {column!r} must be a list of two texts or more; got {value!r:.40}.")
    if not names:
        return value, list(_LETTERS[: len(value)])
    texts = isinstance(names, list) and all(isinstance(one, str) for one in names)
    if not texts or not len(set(names)) == len(names) == len(value):
        raise DataError(
            f"{table.at(index)}: 'label' in {column!r} must be a list of distinct texts, one for each choice; got "
            f"{names!r:.40}."
        )
    return value, names


def _place(table: Table, index: int, column: str, choices: int, names: list[str]) -> int:
    """Which choice is right, counted from 0."""
    label = table.rows[index].get(column)
    name = str(label).strip() if type(label) in (int, str) else ""
    if name in names:
        return names.index(name)
    if any(one.isdecimal() for one in names):
        raise DataError(
            f"{table.at(index)}: the label in {column!r} must be a name of a choice, {listed(names)}; got "
            f"{label!r:.40}."
        )
    if not name.isdecimal() or int(name) >= choices:
        raise DataError(
            f"{table.at(index)}: the label in {column!r} must be an integer from 0 to {choices - 1}, the index of a "
            f"choice, or a letter from {names[0]} to {names[-1]}; got {label!r:.40}."
        )
    return int(name)


def hides_choices(table: Table, column: str | None) -> bool:
    """Whether no row says which choice is right, as the hub leaves some test sets.

    Args:
        table: as read.
        column: of the label, if it is read.
    """
    return column is not None and all(row.get(column) in (-1, "") for row in table.rows)


def question_answering(table: Table, columns: Columns, names: tuple[str, ...], ids: tuple[str, ...]) -> Examples:
    """Rows with a question whose answers are parts of the text, if there are any.

    Args:
        table: as read.
        columns: which to take.
        names: unused; answers have no names.
        ids: of the rows.
    Raises:
        DataError: a text cannot be used, or an answer does not stand where it should.
    """
    assert columns.pair is not None
    texts, questions = row_texts(table, columns.text), row_texts(table, columns.pair)
    if columns.label is None:
        return Examples(ids, texts, questions)
    labels = []
    for index, text in enumerate(texts):
        answers = _answers(table, index, columns.label)
        for said, start in answers:
            if not said.strip():
                raise DataError(
                    f"{table.at(index)}: the answer {said!r:.40} is blank; write no answer as two empty lists."
                )
            if start < 0 or text[start : start + len(said)] != said:
                raise DataError(
                    f"{table.at(index)}: the answer {said!r:.40} does not stand at character {start} of the text; "
                    "write no answer as two empty lists."
                )
        labels.append(tuple(answers))
    return Examples(ids, texts, questions, tuple(labels))


def are_places(value: object) -> bool:
    """Whether a cell holds answers and the characters at which they begin.

    Args:
        value: of the cell.
    """
    return isinstance(value, Mapping) and {"text", "answer_start"} <= value.keys()


def _answers(table: Table, index: int, column: str) -> list[tuple[str, int]]:
    """All right answers of a row, each with the character at which it begins."""
    value = _value(table, index, column)
    if isinstance(value, list) and all(isinstance(one, Mapping) for one in value):  # as in the files of SQuAD
        value = {name: [one.get(name) for one in value] for name in ("text", "answer_start")}
    found: list[Any] = [value.get(name) for name in ("text", "answer_start")] if isinstance(value, Mapping) else []
    if not found or not all(isinstance(part, list) for part in found) or len(found[0]) != len(found[1]):
        raise DataError(
            f"{table.at(index)}: {column!r} must hold 'text' and 'answer_start', two lists of one length; got "
            f"{value!r:.60}."
        )
    for said, start in zip(*found, strict=True):
        if not isinstance(said, str) or type(start) is not int:
            raise DataError(
                f"{table.at(index)}: an answer in {column!r} must be a text and the number of its first character; "
                f"got {said!r:.40} and {start!r:.40}."
            )
    return list(zip(*found, strict=True))


def _value(table: Table, index: int, column: str) -> Any:
    """What a cell holds; in a table of strings that is written in JSON."""
    value = table.rows[index].get(column)
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except ValueError:
            raise DataError(f"{table.at(index)}: {column!r} is no valid JSON; got {value!r:.40}.") from None
    return value

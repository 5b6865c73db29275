"""Rows of tasks whose texts or labels have parts: several labels, tagged words, choices, answers in a text."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from steadytune.data.examples import Columns, Examples, row_ids, row_texts
from steadytune.data.tables import DataError, Table, listed

USUAL_COLUMNS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "multi_label": {"text": ("text", "sentence"), "pair": ("text_pair",), "label": ("labels", "label")},
    "token_classification": {"text": ("tokens", "words"), "label": ("tags", "ner_tags", "labels")},
    "multiple_choice": {"text": ("context",), "pair": ("choices",), "label": ("label", "answer")},
    "question_answering": {"text": ("context",), "pair": ("question",), "label": ("answers",)},
}
"""By task, the names of the columns that are looked for."""

_SEPARATOR = ";"


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
    usual = USUAL_COLUMNS[task]

    def find(role: str, name: str | None) -> str | None:
        candidates = (name,) if name else usual.get(role, ())
        found = next((one for one in candidates if one in table.columns), None)
        optional = (role == "label" and not require_labels and not name) or (task == "multi_label" and role == "pair")
        if found is None and candidates and not (optional and not name):
            raise DataError(
                f"{table.where} has no column {listed(candidates)} for the {role} of a {task} task; its columns are "
                f"{listed(table.columns)}: name it with --{role}-column."
            )
        return found if require_labels or role != "label" or name else None

    if task == "multi_label" and "tags" in table.columns and given[0] is None and "tokens" in table.columns:
        return Columns("tokens", None, "tags" if require_labels or given[2] else None)
    text = find("text", given[0])
    assert text is not None
    return Columns(text, find("pair", given[1]), find("label", given[2]))


def structured_names(task: str, table: Table, columns: Columns, given: Sequence[str] | None) -> tuple[str, ...]:
    """Names of the classes or tags: those given, else of the table, else those that occur, sorted.

    Args:
        task: one of `USUAL_COLUMNS`.
        table: the split that says so.
        columns: as chosen.
        given: of a trained model.
    """
    if task in ("multiple_choice", "question_answering"):
        return ()
    if given is not None:
        return tuple(given)
    named = table.class_names.get(columns.label or "", ())
    if columns.label is not None and not named:
        found = {name for index in range(len(table.rows)) for name in _strings(table, index, columns.label)}
        named = (*sorted(found & {"O"}), *sorted(found - {"O"}))
    if task == "multi_label" and columns.label == "tags":  # which kinds of entity occur
        return tuple(dict.fromkeys(name[2:] for name in named if name[1:2] == "-"))
    return named


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
    index_of = {name: index for index, name in enumerate(names)}
    of_tags = columns.text == "tokens" and columns.label in ("tags", None)
    texts: tuple[str, ...]
    if of_tags:
        texts = tuple(" ".join(_words(table, index, columns.text)) for index in range(len(ids)))
    else:
        texts = row_texts(table, columns.text)
    labels = None
    if columns.label is not None:
        found = []
        for index in range(len(ids)):
            own = _strings(table, index, columns.label)
            if of_tags:
                own = [name[2:] for name in own if name[1:2] == "-"]
            for name in own:
                if name not in index_of:
                    raise DataError(f"{table.at(index)}: unknown label {name!r}; the classes are {listed(names)}.")
            found.append(tuple(sorted({index_of[name] for name in own})))
        labels = tuple(found)
    return Examples(ids, texts, row_texts(table, columns.pair) if columns.pair else None, labels)


def _token_classification(table: Table, columns: Columns, names: tuple[str, ...], ids: tuple[str, ...]) -> Examples:
    index_of = {name: index for index, name in enumerate(names)}
    words = tuple(_words(table, index, columns.text) for index in range(len(ids)))
    if columns.label is None:
        return Examples(ids, words)
    tags = []
    for index, own in enumerate(words):
        found = _strings(table, index, columns.label)
        if len(found) != len(own):
            raise DataError(
                f"{table.at(index)} has {len(own)} words in {columns.text!r} and {len(found)} tags in "
                f"{columns.label!r}; give one tag per word."
            )
        for name in found:
            if name not in index_of:
                raise DataError(f"{table.at(index)}: unknown tag {name!r}; the tags are {listed(names)}.")
        tags.append(tuple(index_of[name] for name in found))
    return Examples(ids, words, None, tuple(tags))


def _multiple_choice(table: Table, columns: Columns, names: tuple[str, ...], ids: tuple[str, ...]) -> Examples:
    assert columns.pair is not None
    choices = []
    for index, row in enumerate(table.rows):
        given = _list(table, index, columns.pair)
        if len(given) < 2 or not all(isinstance(choice, str) for choice in given):
            raise DataError(f"{table.at(index)}: {columns.pair!r} must be a list of two texts or more.")
        question = row.get("question") or ""
        choices.append(tuple(f"{question} {choice}".strip() for choice in given))
    labels = None
    if columns.label is not None:
        for index, row in enumerate(table.rows):
            label = row.get(columns.label)
            if type(label) is not int or not 0 <= label < len(choices[index]):
                raise DataError(
                    f"{table.at(index)}: the label in {columns.label!r} must be an integer from 0 to "
                    f"{len(choices[index]) - 1}, the index of a choice; got {label!r:.40}."
                )
        labels = tuple(int(row[columns.label]) for row in table.rows)
    return Examples(ids, row_texts(table, columns.text), tuple(choices), labels)


def _question_answering(table: Table, columns: Columns, names: tuple[str, ...], ids: tuple[str, ...]) -> Examples:
    assert columns.pair is not None
    texts, questions = row_texts(table, columns.text), row_texts(table, columns.pair)
    if columns.label is None:
        return Examples(ids, texts, questions)
    labels = []
    for index, row in enumerate(table.rows):
        answers = row.get(columns.label)
        if not isinstance(answers, Mapping) or not {"text", "answer_start"} <= answers.keys():
            raise DataError(
                f"{table.at(index)}: {columns.label!r} must hold 'text' and 'answer_start', two lists of equal length."
            )
        own = list(zip(answers["text"], answers["answer_start"], strict=False))
        if len(own) != len(answers["text"]) or len(own) != len(answers["answer_start"]):
            raise DataError(f"{table.at(index)}: 'text' and 'answer_start' in {columns.label!r} differ in length.")
        for text, start in own:
            if not text or texts[index][start : start + len(text)] != text:
                raise DataError(
                    f"{table.at(index)}: the answer {text!r:.40} does not stand at character {start} of the text; "
                    "write no answer as two empty lists."
                )
        labels.append(tuple((str(text), int(start)) for text, start in own))
    return Examples(ids, texts, questions, tuple(labels))


_READERS: Mapping[str, Callable[[Table, Columns, tuple[str, ...], tuple[str, ...]], Examples]] = {
    "multi_label": _multi_label,
    "token_classification": _token_classification,
    "multiple_choice": _multiple_choice,
    "question_answering": _question_answering,
}


def _list(table: Table, index: int, column: str) -> list[Any]:
    """The list in one cell; in a table of strings it is JSON, or its parts are separated by semicolons."""
    value = table.rows[index].get(column)
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.lstrip().startswith("[") else None
        except ValueError:
            value = None
        if value is None:
            parts = str(table.rows[index][column]).split(_SEPARATOR)
            value = [part.strip() for part in parts if part.strip()]
    if not isinstance(value, list):
        raise DataError(f"{table.at(index)}: {column!r} must be a list; got {value!r:.40}.")
    return value


def _words(table: Table, index: int, column: str) -> tuple[str, ...]:
    words = _list(table, index, column)
    if not words or not all(isinstance(word, str) for word in words):
        raise DataError(f"{table.at(index)}: {column!r} must be a list of words, at least one.")
    return tuple(words)


def _strings(table: Table, index: int, column: str) -> list[str]:
    """The labels of one row by name."""
    named = table.class_names.get(column)
    found = []
    for value in _list(table, index, column):
        if named is None and isinstance(value, str | int):
            found.append(str(value))
        elif named is not None and type(value) is int and 0 <= value < len(named):
            found.append(named[value])
        else:
            allowed = "names or numbers" if named is None else f"integers from 0 to {len(named) - 1}"
            raise DataError(f"{table.at(index)}: {column!r} must hold {allowed}; got {value!r:.40}.")
    return found

"""Labelled texts from tables, data set folders and the hub, checked once, where they enter."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import datasets
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from steadytune.data.answers import QUESTION, hides_choices
from steadytune.data.examples import (
    Examples,
    choose_columns,
    examples_of,
    is_hidden,
    label_names_of,
    looks_like_scores,
)
from steadytune.data.structured import (
    REASONS,
    USUAL_COLUMNS,
    of_kinds,
    structured_columns,
    structured_examples,
    structured_names,
    structured_task,
)
from steadytune.data.tables import ENDINGS, DataError, Table, listed, near_files, not_found, read_table, split_ending

DEV_NAMES = ("dev", "validation")
TaskName = Literal[
    "classification",
    "regression",
    "multi_label",
    "token_classification",
    "multiple_choice",
    "question_answering",
]
_TASKS: dict[str, TaskName] = {
    "classification": "classification",
    "pair_classification": "classification",
    "regression": "regression",
    "pair_regression": "regression",
    "multi_label": "multi_label",
    "token_classification": "token_classification",
    "multiple_choice": "multiple_choice",
    "extractive_qa": "question_answering",
}
_DESCRIBED_LABELS = ("label", "tags")  # the columns that `label_names` of dataset.json speak of, where they are there
_SAMPLE = Path(__file__).parent / "sample"


@dataclass(frozen=True)
class Dataset:
    """The splits that were read, with the meaning of their labels.

    Args:
        name: short name, from the file, folder or hub.
        task: decides the head and the loss.
        label_names: name of each class or tag, the same in all splits; empty where there are none.
        splits: rows by the split's name.
        metric: what the data set's authors report, in their words, if they say so.
        source: path or hub name, as given.
        notes: what was inferred, left out or counted on the way.
    """

    name: str
    task: TaskName
    label_names: tuple[str, ...]
    splits: Mapping[str, Examples]
    metric: str | None
    source: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Source:
    """Something that has splits, none of them read yet."""

    name: str
    available: tuple[str, ...]
    read: Callable[[str], Table]
    task: TaskName | None = None
    metric: str | None = None
    fixed_columns: bool = False  # the format of dataset.json: text, text_pair, label
    notes: Mapping[str, str] = field(default_factory=dict)  # by split; "" for the whole set


class _Split(BaseModel):
    model_config = ConfigDict(strict=True)
    file: str
    rows: int | None = None
    sha256: str | None = None
    label_names: list[str] | None = None
    role: str | None = None


class _Description(BaseModel):
    model_config = ConfigDict(strict=True)
    task: str
    splits: dict[str, _Split] = Field(min_length=1)
    name: str | None = None
    metric: str | None = None
    label_names: list[str] | None = None
    warning: str | None = None


def load_dataset(
    data: str | Path,
    *,
    splits: Sequence[str] | None = None,
    text_column: str | None = None,
    pair_column: str | None = None,
    label_column: str | None = None,
    task: TaskName | None = None,
    label_names: Sequence[str] | None = None,
    require_labels: bool = True,
    require_classes: bool = True,
) -> Dataset:
    """The named splits of a data set, with labels as indices into one list of names.

    Args:
        data: "sample", a CSV, TSV, JSONL or Parquet file (it becomes the split `train`), a folder with `dataset.json`
            or with one such file per split, or the name of a set on the hub (`owner/name` or `owner/name:config`).
        splits: which to read; None reads train, dev (or validation) and test as far as present.
        text_column: None takes the first present of `TEXT_COLUMNS`.
        pair_column: None takes the first present of `PAIR_COLUMNS`; an empty string says there is none.
        label_column: None takes the first present of `LABEL_COLUMNS`.
        task: None takes what the source declares; in a table, fractional numbers as labels mean regression, and the
            parts of cells a task as in `structured_task`. Tagged words read as "multi_label" are labelled with the
            kinds of entity that occur.
        label_names: None takes those of the source, or the sorted distinct labels of the split `train` or else of the
            first split asked for; give those of a trained model to evaluate it.
        require_labels: with False, labels are read only from a `label_column` that is named.
        require_classes: with False, the rows of the split `train` may be of one class, as nothing is trained on them.
    Returns:
        The splits that were read, with notes on what was inferred or left out.
    Raises:
        DataError: something is missing, unreadable or contradictory.
    """
    source = _open(data)
    tables = {name: source.read(name) for name in _wanted(source, splits, str(data))}
    base = tables.get("train", next(iter(tables.values())))
    given = (text_column, pair_column, label_column)
    if (structured := task or source.task or structured_task(base, given)) is not None and structured in USUAL_COLUMNS:
        optional = [name for name in tables if splits is None and tables[name] is not base]
        found = _structured(structured, source, tables, base, given, label_names, require_labels, str(data), optional)
        if task or source.task:
            return found
        return replace(found, notes=(*found.notes, f"task: {structured}, because {REASONS[structured]}"))
    columns = choose_columns(base, source.fixed_columns, given, require_labels)
    notes = [note for split, note in source.notes.items() if split in ("", *tables)]
    if not source.fixed_columns:
        notes.append(f"columns read: text {columns.text!r}, pair {columns.pair!r}, label {columns.label!r}")
    if splits is None and columns.label is not None:  # the hub hides some labels behind -1
        for name in [n for n, table in tables.items() if table is not base and is_hidden(table, columns.label)]:
            notes.append(f"split {name!r} left out: its labels are hidden (all are -1)")
            del tables[name]
    if task is None and columns.label == "label":
        task = source.task
    if task is None and columns.label is not None and looks_like_scores(base, columns.label):
        task = "regression"
        notes.append("task: regression, because the labels are numbers and not all of them are integers")
    names = None if task == "regression" else label_names_of(base, columns.label, label_names)
    examples = {name: examples_of(table, columns, names, name) for name, table in tables.items()}
    for name, rows in examples.items():
        empty = sum(not text.strip() for text in rows.texts)
        notes += [f"split {name!r}: {empty} empty texts, kept"] if empty else []
    task = task or "classification"
    loaded = Dataset(source.name, task, names or (), examples, source.metric, str(data), tuple(notes))
    if require_classes and "train" in examples and columns.label is not None and label_names is None:
        check_trainable(loaded, "train")
    return loaded


def _structured(
    task: TaskName,
    source: _Source,
    tables: Mapping[str, Table],
    base: Table,
    given: tuple[str | None, str | None, str | None],
    label_names: Sequence[str] | None,
    require_labels: bool,
    data: str,
    optional: Sequence[str],
) -> Dataset:
    """The rows of a task whose texts or labels have parts; of optional splits those whose labels are not hidden."""
    columns = structured_columns(task, base, given, require_labels)
    beside = given[2] is not None and any(name in base.columns for name in _DESCRIBED_LABELS)  # whose names they are
    if source.fixed_columns and columns.label and not beside:
        tables = {name: _described(table, columns.label) for name, table in tables.items()}
        base = _described(base, columns.label)
    names = structured_names(task, base, columns, label_names)
    hidden = [name for name in optional if task == "multiple_choice" and hides_choices(tables[name], columns.label)]
    tables = {name: table for name, table in tables.items() if name not in hidden}
    examples = {name: structured_examples(task, table, columns, names, name) for name, table in tables.items()}
    notes = [note for split, note in source.notes.items() if split in ("", *tables)]
    notes.append(f"columns read: text {columns.text!r}, pair {columns.pair!r}, label {columns.label!r}")
    if task == "multi_label" and of_kinds(columns):
        notes.append(f"labels: the kinds of entity in {columns.label!r}")
    notes += [f"split {name!r} left out: its labels are hidden (all are -1 or empty)" for name in hidden]
    if task == "multiple_choice" and QUESTION in base.columns and columns.text != QUESTION:
        notes.append(f"the text of {QUESTION!r} is read before each choice")
    return Dataset(source.name, task, names, examples, source.metric, data, tuple(notes))


def _described(table: Table, label: str) -> Table:
    """A table of a folder with dataset.json whose `label_names` are those of this column."""
    names = table.class_names.get(_DESCRIBED_LABELS[0], ())
    return replace(table, class_names={label: names} if names else {})


def available_splits(data: str | Path) -> tuple[str, ...]:
    """Names of all splits of a source, without reading their rows.

    Args:
        data: as in `load_dataset`.
    Returns:
        Names in the order of the source; ("train",) for a single file.
    """
    return _open(data).available


def read_split(data: str | Path, split: str) -> Table:
    """One split as it stands, with all its columns.

    Args:
        data: as in `load_dataset`.
        split: its name.
    Raises:
        DataError: there is no such split, or it cannot be read.
    """
    source = _open(data)
    return source.read(*_wanted(source, [split], str(data)))


def check_trainable(dataset: Dataset, split: str) -> None:
    """Refuses a split without labels or with a single class.

    Raises:
        DataError: the split cannot be trained on.
    """
    labels = dataset.splits[split].labels
    if labels is None:
        raise DataError(f"{dataset.source}: split {split!r} was read without labels; training needs them.")
    if dataset.task == "classification" and len(set(labels)) < 2:
        only = dataset.label_names[int(labels[0])]
        raise DataError(
            f"{dataset.source}: all {len(labels)} labels of split {split!r} are {only!r}; training needs two classes."
        )


# From a name to a source ---------------------------------------------------------------------------------------------


def _open(data: str | Path) -> _Source:
    path = _SAMPLE if data == "sample" else Path(data).expanduser()
    if path.is_file():
        return _Source(split_ending(path)[0], ("train",), lambda _: read_table(path))
    if (path / "dataset.json").is_file():
        return _open_described(path)
    if path.is_dir():
        return _open_folder(path)
    if isinstance(data, str) and "/" not in data and not split_ending(path)[1]:
        raise DataError(f"{data} does not exist{near_files(path)}; a set on the hub is named owner/name.")
    hub_name = isinstance(data, str) and re.fullmatch(r"\w[\w.-]*/[\w.-]+(:[\w.-]+)?", data)
    if hub_name and not path.parent.is_dir() and not split_ending(path)[1]:
        return _open_hub(str(data))
    raise not_found(path)


def _open_folder(folder: Path) -> _Source:
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        name, kind = split_ending(path)
        if kind and name in files:
            both = f"{files[name].name} and {path.name}"
            raise DataError(f"{folder} holds two files for split {name!r}, {both}; keep one.")
        if kind:
            files[name] = path
    if not files:
        raise DataError(f"{folder} holds no data: no dataset.json and no file ending in {listed(ENDINGS)}.")
    return _Source(folder.resolve().name, tuple(files), lambda split: read_table(files[split]))


def _open_described(folder: Path) -> _Source:
    place = folder / "dataset.json"
    try:
        described = _Description.model_validate_json(place.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(f"{place} is malformed: {where}: {first['msg']}.") from error
    if described.task not in _TASKS:
        raise DataError(f"{place}: steadytune cannot train on task {described.task!r} yet, only on {listed(_TASKS)}.")
    for name, split in described.splits.items():
        if Path(split.file).name != split.file:
            raise DataError(f"{place}: splits.{name}.file must be a file name in the same folder; got {split.file!r}.")

    def read(name: str) -> Table:
        split = described.splits[name]
        table = read_table(folder / split.file, split.sha256)
        if split.rows not in (None, len(table.rows)):
            raise DataError(f"{table.where} has {len(table.rows)} rows where dataset.json states {split.rows}.")
        classes = split.label_names or described.label_names
        return replace(table, class_names=dict.fromkeys(_DESCRIBED_LABELS, tuple(classes)) if classes else {})

    notes = {name: f"split {name!r}: {split.role}" for name, split in described.splits.items() if split.role}
    notes |= {"": f"warning of the data set: {described.warning}"} if described.warning else {}
    title = described.name or folder.resolve().name
    return _Source(title, tuple(described.splits), read, _TASKS[described.task], described.metric, True, notes)


def _open_hub(data: str) -> _Source:
    name, _, config = data.partition(":")
    try:
        available = tuple(datasets.get_dataset_split_names(name, config or None))
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(_no_hub(data, error)) from error

    def read(split: str) -> Table:
        try:
            rows = datasets.load_dataset(name, config or None, split=split)
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            raise DataError(_no_hub(data, error)) from error
        plain = {n: f for n, f in rows.features.items() if _is_plain(f)}
        inner = {n: f.feature if isinstance(f, datasets.List) else f for n, f in plain.items()}
        classes = {n: tuple(f.names) for n, f in inner.items() if isinstance(f, datasets.ClassLabel)}
        content = rows.select_columns([n for n in plain if n != "id"]).to_list()  # row numbers are the ids here
        return Table(f"{data}[{split}]", tuple(n for n in plain if n != "id"), content, class_names=classes)

    return _Source(name, available, read)


def _is_plain(feature: object) -> bool:
    """Whether a feature of a hub set holds texts, numbers and classes, or lists and mappings of these."""
    if isinstance(feature, dict):
        return all(map(_is_plain, feature.values()))
    if isinstance(feature, datasets.List):
        return _is_plain(feature.feature)
    return isinstance(feature, (datasets.Value, datasets.ClassLabel))


def _no_hub(data: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200].rstrip(".")
    return f"{data!r} is neither a file or folder here nor readable from the hub: {reason}."


def _wanted(source: _Source, splits: Sequence[str] | None, data: str) -> list[str]:
    have = source.available
    dev = next((name for name in DEV_NAMES if name in have), "dev")
    wanted = [n for n in ("train", dev, "test") if n in have] if splits is None else list(dict.fromkeys(splits))
    unknown = [name for name in wanted if name not in have]
    if unknown or not wanted:
        fault = f"no split {unknown[0]!r}" if unknown else "no split named train, dev or test, so name one"
        raise DataError(f"{data} has {fault}; its splits are {listed(have)}.")
    return wanted

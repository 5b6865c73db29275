"""Data and origin: what went in, how the study was made, and what is missing from it."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from steadytune.records import RunRecord
from steadytune.reports.page import Block, Code, Group, Section, Words
from steadytune.reports.study import Study
from steadytune.reports.tables import Sheet, Value, columns

_QUARTILES = {"min": "min", "lower": "25 %", "median": "median", "upper": "75 %", "max": "max"}
_COUNTED = {
    "multi_label": ("Rows by class; a row counts for each of its classes", "class"),
    "token_classification": ("Words by tag", "tag"),
}


def data_section(study: Study) -> Section:
    """Checks of the rows.

    Args:
        study: what to read.
    """
    groups = []
    for found in study.data:
        notes = [str(note) for note in found.get("notes") or ()]
        notes += _run_notes(study, str(found.get("task")), str(found.get("protocol")))
        report = found.get("report") or {}
        blocks: list[Block] = [Words([f"{note}." for note in notes], "warning")] if notes else []
        counted = _COUNTED.get(_kind(study, str(found.get("task"))), ("Rows by class", "class"))
        blocks += _data_sheets(report.get("splits") or {}, report.get("repeats") or (), counted)
        groups.append(Group(f"{found.get('task')}, {found.get('protocol')}", blocks))
    if not groups:
        groups = [Group("", [Words(["The study's folder says nothing about its data."])])]
    return Section("data", "Data", "What is known of the rows that the runs used, without any text.", groups)


def origin_section(study: Study) -> Section:
    """Command, versions, hardware, fingerprints, plan, and failed and missing runs by name.

    Args:
        study: what to read.
    """
    records = [run.record for run in study.runs.values()]
    command = "\n".join(filter(None, [study.command, "steadytune report FOLDER"]))
    blocks: list[Block] = [
        Code("Run the study, and make this page again from its folder", command),
        _lost(study),
        _software(records),
    ]
    if not study.listed:
        blocks.insert(
            0, Words(["The folder does not list what was planned, so runs may be missing unseen."], "warning")
        )
    if study.stale:
        said = f"{study.stale} records belong to no planned run: settings were changed since. They are left out."
        blocks.insert(0, Words([said], "warning"))
    if study.trials:
        blocks.append(_trials(study.trials))
    blocks += [_fingerprints(study), *_notices(study)]
    if study.plan:
        blocks.append(Code("Plan, with every default", study.plan))
    return Section("origin", "Origin", "How it was made, and what is missing from it.", [Group("", blocks)])


def _run_notes(study: Study, task: str, protocol: str) -> list[str]:
    """What runs noticed of their data, such as rows that the model had met before."""
    own = (run.record for cell, run in study.runs.items() if (cell.place.task, cell.place.protocol) == (task, protocol))
    return list(dict.fromkeys(note for record in own for note in record.data_notes))


def _kind(study: Study, task: str) -> str:
    """What kind of task it is, as its runs say; "" where none is done."""
    own = (study.example(place) for place in study.places if place.task == task)
    return next((record.task for record in own if record is not None), "")


def _data_sheets(
    splits: Mapping[str, Any], repeats: Iterable[Mapping[str, Any]], counted: tuple[str, str]
) -> list[Block]:
    """What is known of the rows; `counted` is the title of the table of labels, and the heading of its labels."""
    sizes: list[list[Value]] = []
    labels: dict[str, dict[str, int]] = {}
    for name, split in splits.items():
        words, scores = split.get("words") or {}, split.get("scores") or {}
        lengths = [_number(words.get(part)) for part in _QUARTILES]
        range_ = [_number(scores.get(part)) for part in ("min", "median", "max")]
        sizes.append([name, split.get("rows"), split.get("empty_texts"), *lengths, *range_])
        for label, count in (split.get("labels") or {}).items():
            labels.setdefault(label, {})[name] = count
    heads = ["split", "rows", "blank texts", *(f"words, {part}" for part in _QUARTILES.values())]
    heads += [f"score, {part}" for part in ("min", "median", "max")]
    if not any(value is not None for row in sizes for value in row[-3:]):
        heads, sizes = heads[:-3], [row[:-3] for row in sizes]
    made: list[Block] = [Sheet("data", "Rows and their length", columns(*heads), sizes, filed=False)]
    if labels:
        rows: list[list[Value]] = [[label, *(counts.get(name) for name in splits)] for label, counts in labels.items()]
        made.append(Sheet("labels", counted[0], columns(counted[1], *splits), rows, filed=False))
    shared: list[list[Value]] = [
        [
            str(one.get("split")),
            str(one.get("other")),
            one.get("rows"),
            one.get("other_rows"),
            ", ".join(f"{here} = {there}" for here, there in one.get("ids") or ()),
        ]
        for one in repeats
    ]
    if shared:
        heads = ["split", "repeats rows of", "rows", "rows there", "first of them"]
        made.append(Sheet("repeats", "Content that stands in two splits", columns(*heads), shared, filed=False))
    return made


def _lost(study: Study) -> Block:
    """Failed and missing runs, each by its name."""
    rows: list[list[Value]] = []
    for cell in study.planned:
        run = study.runs.get(cell)
        if run is None:
            reason = "no record: not run yet, or interrupted"
            rows.append([*cell.place, cell.arm.title, cell.seed, "missing", reason])
        elif run.record.status == "failed":
            rows.append([*cell.place, cell.arm.title, cell.seed, "failed", run.record.failure or "no reason given"])
    if not rows:
        return Words([f"All {len(study.planned)} planned runs are on record, and none failed."])
    heads = columns("task", "protocol", "budget", "recipe", "seed", "status", "reason")
    return Sheet("lost", "Failed and missing runs", heads, rows)


def _software(records: Iterable[RunRecord]) -> Sheet:
    counts: Counter[tuple[str, str]] = Counter()
    for record in records:
        told = {"encoder": record.model_name, "encoder revision": record.model_revision, **record.versions}
        told |= {name: str(value) for name, value in record.hardware.items()}
        told |= {"commit": record.commit} if record.commit else {}
        counts.update((name, value) for name, value in told.items() if value)
    order = {name: index for index, name in enumerate(dict.fromkeys(name for name, _ in counts))}
    rows: list[list[Value]] = [
        [name, value, count]
        for (name, value), count in sorted(counts.items(), key=lambda one: (order[one[0][0]], one[0]))
    ]
    return Sheet("software", "Encoder, versions and hardware", columns("what", "value", "runs"), rows)


def _fingerprints(study: Study) -> Sheet:
    found: dict[tuple[str, str, str, int, str], set[int]] = {}
    for cell, run in study.runs.items():
        for split, digits in run.record.data_fingerprints.items():
            place = (cell.place.task, cell.place.protocol, split, run.record.data_rows.get(split, 0), digits[:16])
            found.setdefault(place, set()).add(cell.seed)
    rows: list[list[Value]] = [
        [*place, ", ".join(map(str, sorted(seeds)))]
        for place, seeds in sorted(found.items(), key=lambda one: (one[0][:3], min(one[1]), one[0]))
    ]
    title = "Fingerprints of the rows: first 16 digits of their SHA-256"
    return Sheet("fingerprints", title, columns("task", "protocol", "split", "rows", "fingerprint", "seeds"), rows)


def _trials(trials: Iterable[RunRecord]) -> Sheet:
    counts: Counter[tuple[str, ...]] = Counter()
    for record in trials:
        cell = record.cell or {}
        counts[tuple(str(cell.get(name, "")) for name in ("task", "protocol", "recipe"))] += 1
    rows: list[list[Value]] = [[*place, count] for place, count in sorted(counts.items())]
    title = "Runs of the search, scored on development rows alone"
    return Sheet("trials", title, columns("task", "protocol", "recipe", "runs"), rows)


def _notices(study: Study) -> list[Block]:
    said: dict[str, set[str]] = {}
    for cell, run in study.runs.items():
        for notice in run.record.notices:
            said.setdefault(notice, set()).add(cell.arm.recipe)
    rows: list[list[Value]] = [[notice, ", ".join(sorted(recipes))] for notice, recipes in said.items()]
    title = "What methods said about themselves"
    return [Sheet("notices", title, columns("notice", "recipes"), rows, filed=False)] if said else []


def _number(value: Any) -> Value:
    return None if value is None else float(value)

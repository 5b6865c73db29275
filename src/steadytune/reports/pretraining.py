"""The report of several pre-training runs: validation loss at equal steps, at equal time and at equal compute."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from steadytune.records import Point, PretrainRecord, read_pretraining
from steadytune.records.store import written_aside
from steadytune.reports.document import rendered
from steadytune.reports.figures import Curve, curve_figure
from steadytune.reports.page import Code, Drawing, Drawings, Group, Section, Words
from steadytune.reports.svg import GRAY, MARKERS, Look
from steadytune.reports.tables import Column, Sheet, columns

PAGE = "pretraining.html"
_AXES: tuple[tuple[str, Callable[[Point], float]], ...] = (
    ("steps", lambda point: point.step),
    ("seconds", lambda point: point.seconds),
    ("pass units", lambda point: point.pass_units),
)
_QUANTITIES: tuple[tuple[str, Callable[[Point], float | None]], ...] = (
    ("loss", lambda point: point.loss),
    ("accuracy", lambda point: point.accuracy),
)
_TELEMETRY = ("asa/keep_rate", "asa/divergence")


@dataclass(frozen=True)
class _Arm:
    """Runs that differ in their seed alone, by folder."""

    name: str
    runs: Mapping[Path, PretrainRecord]

    @property
    def records(self) -> list[PretrainRecord]:
        return list(self.runs.values())


def write_pretraining_report(folders: Sequence[Path], page: Path) -> Path:
    """One page about pre-training runs, from their records alone; the same records give the same bytes.

    Args:
        folders: of finished runs.
        page: where to.
    Returns:
        Where the page lies.
    Raises:
        StoreError: a folder holds no record of such a run.
    """
    records = {folder: read_pretraining(folder) for folder in folders}
    arms = _arms(records)
    sections = [_curves(arms), _runs(records, arms), _telemetry(arms), _origin(records)]
    about = f"{len(records)} pre-training {'run' if len(records) == 1 else 'runs'}, {_counted(arms)}"
    text = rendered("pretraining.html.j2", name="Pre-training", about=about, sections=sections)
    page.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(page) as aside:
        aside.write_text(text, encoding="utf-8", newline="\n")
    return page


def _arms(records: Mapping[Path, PretrainRecord]) -> list[_Arm]:
    """Runs by what they did, seed apart, in the order of their first run."""
    found: dict[str, dict[Path, PretrainRecord]] = {}
    for folder, record in records.items():
        found.setdefault(_what(record), {})[folder] = record
    names = _names([next(iter(group.items())) for group in found.values()])
    return [_Arm(name, group) for name, group in zip(names, found.values(), strict=True)]


def _names(firsts: Sequence[tuple[Path, PretrainRecord]]) -> list[str]:
    """Recipes; of one recipe, the settings in which its runs differ, or else their folders."""
    names = []
    for _, record in firsts:
        own = _told(record)
        alike = [_told(other) for _, other in firsts if _recipe(other) == _recipe(record)]
        settings = dict.fromkeys(name for told in alike for name in told)
        differing = [name for name in settings if len({told.get(name) for told in alike}) > 1]
        said = ", ".join(own.get(name, f"{name} default") for name in differing)
        names.append(f"{_recipe(record)} ({said})" if said else _recipe(record))
    return [
        name if names.count(name) == 1 else f"{name} ({folder.resolve().name})"
        for name, (folder, _) in zip(names, firsts, strict=True)
    ]


def _told(record: PretrainRecord) -> dict[str, str]:
    """What a run was told beside its seed and recipe, as a legend says it, by setting."""
    settings = _settings(record)
    recipe, texts = settings["recipe"], settings["texts"]
    told = {name: value for name, value in settings["run"].items() if name not in ("steps", "minutes")}
    told |= {"learning_rate": f"{record.learning_rate:g}", "model": settings["model"]}
    told |= {f"{key}.{name}": value for key, values in recipe["methods"].items() for name, value in values.items()}
    told |= {f"dropout.{name}": value for name, value in recipe["dropout"].items()}
    told |= {"texts": " ".join(texts["train"]), "dev": texts["dev"]}
    return {"budget": _budget(record), **{name: f"{name} {value}" for name, value in told.items()}}


def _settings(record: PretrainRecord) -> dict[str, Any]:
    """What a run was told, with names of files and folders in place of their paths."""
    texts, recipe = record.config["texts"], record.config["recipe"]
    dev = None if texts["dev"] is None else Path(texts["dev"]).name
    model = record.model_name
    return {
        **record.config,
        "texts": {**texts, "train": [Path(path).name for path in texts["train"]], "dev": dev},
        "model": model,
        "recipe": {**recipe, "model": model} if "model" in recipe else recipe,
    }


def _notes(record: PretrainRecord) -> list[str]:
    """What was inferred about the texts, with names of files and folders in place of their paths."""
    texts = record.config["texts"]
    notes = []
    for note in record.data_notes:
        given = next((path for path in (*texts["train"], texts["dev"]) if path and note.startswith(path)), "")
        notes.append(f"{Path(given).name or given}{note.removeprefix(given)}.")
    return notes


def _what(record: PretrainRecord) -> str:
    settings = {name: value for name, value in record.config.items() if name != "seed"}
    return yaml.safe_dump([settings, record.data_fingerprints, record.model_revision])


def _recipe(record: PretrainRecord) -> str:
    return str(record.config["recipe"]["name"]).removeprefix("pretrain/")


def _budget(record: PretrainRecord) -> str:
    run = record.config["run"]
    return f"{run['minutes']:g} min" if run["minutes"] else f"{record.cost.optimizer_steps} steps"


def _counted(arms: Sequence[_Arm]) -> str:
    return f"{len(arms)} {'recipe' if len(arms) == 1 else 'recipes'}"


def _look(index: int) -> Look:
    if index == 0:
        return Look(GRAY)
    return Look((index - 1) % GRAY, index % len(MARKERS), 2 * (index > GRAY))


def _legend(arms: Sequence[_Arm]) -> list[tuple[str, Look]]:
    return [(arm.name, _look(index)) for index, arm in enumerate(arms)]


def _mean(rows: Sequence[Sequence[float | None]]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sd over runs of values that come in the same order, as far as all runs go."""
    shortest = min(map(len, rows))
    values = np.array([[np.nan if value is None else value for value in row[:shortest]] for row in rows], dtype=float)
    spread = values.std(axis=0, ddof=1) if len(values) > 1 else np.full(shortest, np.nan)
    return values.mean(axis=0), spread


def _curves(arms: Sequence[_Arm]) -> Section:
    figures = []
    for quantity, read in _QUANTITIES:
        for place, (across, where) in enumerate(_AXES):
            drawn = [
                Curve(
                    _look(index),
                    _mean([[where(point) for point in record.curve] for record in arm.records])[0],
                    *_mean([[read(point) for point in record.curve] for record in arm.records]),
                )
                for index, arm in enumerate(arms)
            ]
            title = f"validation {quantity} by {across}"
            figures.append(Drawing(curve_figure(drawn, across, key=f"{quantity}-{place}", title=title)))
    lines = [
        "A run's learning rate falls to 0 at the end of its own budget, so only ends compare: those at the same step "
        "are equal steps, those at the same second are equal time."
    ]
    if any(record.config["recipe"]["longer"] != 1 for arm in arms for record in arm.records):
        lines.append("plain-equal-time takes the time of ASA only where run.plain_fraction is 0.2, the default.")
    lead = (
        "The clean model on a fixed masked set by steps, seconds of training and pass units (a batch that passes "
        "forward and backward plainly is 3): mean over seeds, with a band of one sd."
    )
    return Section("curves", "Curves", lead, [Group("", [Words(lines), Drawings(figures, _legend(arms))])])


def _runs(records: Mapping[Path, PretrainRecord], arms: Sequence[_Arm]) -> Section:
    names = {folder: arm.name for arm in arms for folder in arm.runs}
    heads = [
        *columns("run", "recipe", "seed", "steps"),
        Column("seconds", 0),
        Column("pass units", 0),
        Column("loss", 4),
        Column("perplexity", 2),
        Column("accuracy %", 2),
        Column("keep rate", 3),
        Column("divergence", 5),
    ]
    rows = []
    for folder, record in records.items():
        scores = record.scores.get("dev", {})
        accuracy = scores.get("accuracy")
        rows.append(
            [
                folder.resolve().name,
                names[folder],
                record.config["seed"],
                record.cost.optimizer_steps,
                record.cost.train_seconds,
                record.cost.pass_units,
                scores.get("loss"),
                scores.get("perplexity"),
                None if accuracy is None else 100 * accuracy,
                *(_last(record, name) for name in _TELEMETRY),
            ]
        )
    blocks: list[Any] = [Words([text], "warning") for text in _cautions(arms)]
    blocks.append(Sheet("runs", "Every run at its end", heads, rows))
    blocks += [Words([f"{folder.name}: {r.failure}."], "warning") for folder, r in records.items() if r.failure]
    lead = "Keep rate and divergence are those of the last logged steps; an adversary that keeps everything is none."
    return Section("runs", "Runs", lead, [Group("", blocks)])


def _last(record: PretrainRecord, name: str) -> float | None:
    return next((line[name] for line in reversed(record.history) if line.get(name) is not None), None)


def _cautions(arms: Sequence[_Arm]) -> list[str]:
    """What keeps the runs from being compared."""
    records = [record for arm in arms for record in arm.records]
    said = []
    measured = {(r.data["dev"].masked_places, r.data_fingerprints.get("dev"), _part(r)) for r in records}
    if len(measured) > 1:
        said.append("The runs were not measured on the same masked set, so their losses do not compare.")
    if len({record.model_revision for record in records}) > 1 or len({record.model_name for record in records}) > 1:
        said.append("The runs did not begin with the same weights.")
    elif records[0].model_revision.startswith("new") and len({_seeds(arm) for arm in arms}) > 1:
        said.append(
            "The runs did not begin with the same weights: those of a new model come from its seed, and the recipes "
            "have runs of different seeds."
        )
    if len({record.data_fingerprints["train"] for record in records}) > 1:
        said.append("The runs did not learn from the same texts.")
    if len({str(record.hardware) for record in records}) > 1:
        said.append("The runs did not have the same hardware, so their seconds do not compare.")
    return said


def _seeds(arm: _Arm) -> frozenset[int]:
    return frozenset(record.config["seed"] for record in arm.records)


def _part(record: PretrainRecord) -> str:
    """What decides about the masked set beside its file."""
    run, own = record.config["run"], "dev" not in record.data_fingerprints
    train = record.data_fingerprints["train"] if own else ""
    masking = [run["max_length"], run["mask_fraction"], run["fixed_count"], record.vocabulary, record.tokenizer]
    return str([*masking, record.data["dev"].sequences, train])


def _telemetry(arms: Sequence[_Arm]) -> Section:
    names = {name for arm in arms for record in arm.records for line in record.history for name in line}
    shown = sorted(name for name in names if "/" in name or name in ("loss", "task_loss", "learning_rate"))
    figures = []
    for number, name in enumerate(shown):
        drawn = []
        for index, arm in enumerate(arms):
            lines = [[line for line in record.history if line.get(name) is not None] for record in arm.records]
            if all(lines):
                at, _ = _mean([[line["step"] for line in own] for own in lines])
                drawn.append(Curve(_look(index), at, *_mean([[line[name] for line in own] for own in lines])))
        if drawn:
            figures.append(Drawing(curve_figure(drawn, "step", key=f"telemetry-{number}", title=name)))
    lead = "What was logged during training: mean over seeds, with a band of one sd."
    return Section("telemetry", "Telemetry", lead, [Group("", [Drawings(figures, _legend(arms))])])


def _origin(records: Mapping[Path, PretrainRecord]) -> Section:
    groups = []
    for folder, record in records.items():
        facts = {
            "data": {name: split.model_dump(exclude_none=True) for name, split in record.data.items()},
            "files": dict(record.data_fingerprints),
            "weights": record.model_revision,
            "tokenizer": {"tokens": record.vocabulary, "sha256": record.tokenizer},
            "versions": dict(record.versions),
            "hardware": dict(record.hardware),
        }
        blocks: list[Any] = [
            Code(title, yaml.safe_dump(values, sort_keys=False, allow_unicode=True).rstrip())
            for title, values in (("run", _settings(record)), ("what it ran on", facts))
        ]
        if notes := _notes(record):
            blocks.append(Words(notes))
        blocks += [Words([notice], "warning") for notice in record.notices]
        groups.append(Group(folder.resolve().name, blocks))
    return Section("origin", "Origin", "Settings, texts and software of every run.", groups)

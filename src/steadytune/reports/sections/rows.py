"""Errors and calibration: what the runs said about single rows."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from steadytune.reports.examples import Flip, calibrated, chosen_rows, confusion_counts, flips, right_shares
from steadytune.reports.figures import NUMBERED, agreement_figure, confusion_figure, reliability_figure
from steadytune.reports.page import Block, Drawing, Drawings, Section, Words, looks
from steadytune.reports.predictions import Answers, Predictions
from steadytune.reports.sections.places import POINTS, Row, by_place, figure_key
from steadytune.reports.statistics import mean_and_sd
from steadytune.reports.study import Arm, Place, Run, Study
from steadytune.reports.tables import Column, Sheet, Value, columns

_FLIPS = 25  # shown of each kind
_MIXED_UP = 15  # pairs of classes shown per recipe
_NOTHING_FINITE = "No run here left predictions that are finite."
_RIGHT = {
    "multi_label": "every class is right",
    "token_classification": "every word has its tag",
    "multiple_choice": "the right choice is the likeliest",
    "question_answering": "the answer is an exact match",
}
_UNCALIBRATED = {
    "regression": "There are no classes here, so nothing to calibrate.",
    "multi_label": "Not shown for texts of several labels: each class has a probability of its own, and the error is "
    "that of one choice.",
    "token_classification": "Not shown for tagged words: runs keep the tags of words and not their probabilities.",
    "question_answering": "Not shown for answers in a text: runs keep answers and not their probabilities.",
}


def errors_section(study: Study, *, publish: bool = False) -> Section:
    """Which classes are mixed up, how many rows are right, and which changed sides.

    Args:
        study: what to read.
        publish: without any text.
    """

    def blocks(place: Place, rows: list[Row]) -> list[Block]:
        record = study.example(place)
        task = record.task if record else ""
        if record is None or task not in (*_RIGHT, "classification", "regression"):
            return [Words([f"There is nothing to show for {task} here." if task else "Every run here failed."])]
        names = record.label_names
        texts = {} if publish else study.texts(place.task)
        if task in _RIGHT:
            answers = {row.arm: _answers(study, place, row.arm) for row in rows}
            if not any(answers.values()):
                return [Words([_NOTHING_FINITE])]
            return [_right_sheet(place, answers, task), *_flips(place, answers, _shown(task, names), texts)]
        found = {row.arm: _predictions(study, place, row.arm) for row in rows}
        if not any(found.values()):
            return [Words([_NOTHING_FINITE])]
        if task == "regression":
            return _agreement(study, place, found)
        answers = {arm: [run.answers for run in runs.values()] for arm, runs in found.items()}
        return [*_confusions(study, place, found, names), *_flips(place, answers, _shown(task, names), texts)]

    lead = (
        "Confusions are summed over seeds. A row changes sides if most seeds of one recipe get it right and most seeds "
        "of the other wrong."
    )
    return by_place(study, "errors", "Errors", lead, blocks)


def calibration_section(study: Study) -> Section:
    """Confidence beside accuracy, before and after temperature scaling.

    Args:
        study: what to read.
    """
    styles = looks(study.arms)

    def blocks(place: Place, rows: list[Row]) -> list[Block]:
        record = study.example(place)
        if record is None:
            return [Words(["Every run here failed."])]
        if record.task not in ("classification", "multiple_choice"):
            return [Words([_UNCALIBRATED.get(record.task, f"There is nothing to show for {record.task} here.")])]
        figures: list[Drawing] = []
        cells: list[list[Value]] = []
        for index, row in enumerate(rows):
            runs = _runs(study, place, row.arm)
            found = calibrated([(study.predictions(run, "dev"), test) for run, test in runs.values()])
            if found is None:
                continue
            key = figure_key("calibration", study, place, index)
            svg = reliability_figure(found.bins_before, found.bins_after, styles[row.arm], key=key, title=row.arm.title)
            before, after = mean_and_sd(found.before), mean_and_sd(found.after)
            caption = f"{row.arm.title}: error {_percent(before[0])} before, {_percent(after[0])} after"
            figures.append(Drawing(svg, caption))
            errors = [None if value is None else 100 * value for value in (*before, *after)]
            cells.append([row.arm.title, *errors, *mean_and_sd(found.temperatures), len(runs)])
        if not figures:
            return [Words([_NOTHING_FINITE])]
        heads = [
            *columns("recipe", "error before, %", "sd", "error after, %", "sd ", digits=1),
            *columns("temperature", "sd  ", digits=2),
            Column("seeds"),
        ]
        sheet = Sheet("calibration", "Expected calibration error in 15 bins, mean over seeds", heads, cells, place)
        return [Drawings(figures), sheet]

    lead = (
        "Solid: as the model gave them, over all seeds; dashed: after dividing the logits by the temperature that fits "
        "the development rows best. On the dotted line the model is right as often as it says."
    )
    return by_place(study, "calibration", "Calibration", lead, blocks)


def _runs(study: Study, place: Place, arm: Arm) -> dict[int, tuple[Run, Predictions]]:
    """Runs of which every test score is a number, by seed."""
    found = {seed: (run, study.predictions(run, "test")) for seed, run in study.done(place, arm).items()}
    return {seed: (run, test) for seed, (run, test) in found.items() if test is not None and test.finite}


def _predictions(study: Study, place: Place, arm: Arm) -> dict[int, Predictions]:
    return {seed: test for seed, (_, test) in _runs(study, place, arm).items()}


def _answers(study: Study, place: Place, arm: Arm) -> list[Answers]:
    found = (study.answers(run, "test") for run in study.done(place, arm).values())
    return [answers for answers in found if answers is not None]


def _right_sheet(place: Place, found: Mapping[Arm, list[Answers]], task: str) -> Sheet:
    cells: list[list[Value]] = []
    for arm, runs in found.items():
        if runs:
            mean, sd = mean_and_sd([POINTS * float(np.mean(run.right)) for run in runs])
            shares = list(right_shares(runs).values())
            always, never = shares.count(1), shares.count(0)
            cells.append([arm.title, mean, sd, always, len(shares) - always - never, never, len(runs)])
    heads = columns("recipe", "rows right, %", "sd", "right in every seed", "in some", "in none", "seeds")
    return Sheet("right", f"Rows that are right: {_RIGHT[task]}", heads, cells, place)


def _shown(task: str, names: list[str]) -> Callable[[Any], Value] | None:
    """How an answer is written in a cell; None where it is too long for one."""
    if task == "classification":
        return lambda answer: names[answer]
    if task == "multi_label":
        return lambda answer: ", ".join(names[one] for one in answer) or "none"
    return int if task == "multiple_choice" else None


def _confusions(
    study: Study, place: Place, found: Mapping[Arm, dict[int, Predictions]], names: list[str]
) -> list[Block]:
    figures, mixed = [], []
    for index, (arm, runs) in enumerate(found.items()):
        if runs:
            counts = confusion_counts(list(runs.values()), len(names))
            key, title = figure_key("errors", study, place, index), f"{arm.title}, {len(runs)} seeds"
            figures.append(Drawing(confusion_figure(counts, names, key=key, title=f"Confusions of {title}"), title))
            mixed += [[arm.title, *one] for one in _mixed_up(counts, names)]
    sheet = Sheet(
        "confusions",
        f"Classes that are mixed up most: up to {_MIXED_UP} pairs per recipe, summed over seeds",
        columns("recipe", "true", "predicted", "rows", "of the true class, %"),
        mixed,
        place,
        shown=len(names) > NUMBERED,  # a small matrix says the same with numbers
    )
    return [Drawings(figures), sheet]


def _agreement(study: Study, place: Place, found: dict[Arm, dict[int, Predictions]]) -> list[Block]:
    styles, figures = looks(study.arms), []
    for index, (arm, runs) in enumerate(found.items()):
        for seed, run in list(runs.items())[:1]:
            rows = chosen_rows(len(run.ids))
            key = figure_key("errors", study, place, index)
            svg = agreement_figure(run.labels[rows], run.logits[rows, 0], styles[arm], key=key, title=arm.title)
            figures.append(Drawing(svg, f"{arm.title}, seed {seed}: predicted against true"))
    return [Drawings(figures)]


def _mixed_up(counts: np.ndarray, names: list[str]) -> list[list[Value]]:
    wrong = [(int(counts[i, j]), i, j) for i, j in np.argwhere(counts) if i != j]
    wrong.sort(key=lambda one: (-one[0], one[1], one[2]))
    return [[names[i], names[j], n, 100 * n / float(counts[i].sum())] for n, i, j in wrong[:_MIXED_UP]]


def _flips(
    place: Place,
    found: Mapping[Arm, list[Answers]],
    shown: Callable[[Any], Value] | None,
    texts: dict[str, str],
) -> list[Block]:
    baseline = next((runs for arm, runs in found.items() if arm.role == "baseline"), [])
    if not baseline:
        return [Words(["The baseline has no predictions, so no row can change sides."])]
    totals: list[list[Value]] = []
    lists: list[Block] = []
    for arm, runs in found.items():
        if arm.role == "baseline" or not runs:
            continue
        won, lost = flips(baseline, runs)
        totals.append([arm.title, len(won), len(lost)])
        for title, kind in (("won", won), ("lost", lost)):
            if kind:
                lists.append(_flip_sheet(place, arm, title, kind, shown, texts))
    heads = columns("recipe", "rows won", "rows lost")
    return [Sheet("flips", "Rows that changed sides, against the baseline", heads, totals, place), *lists]


def _flip_sheet(
    place: Place,
    arm: Arm,
    title: str,
    flips: list[Flip],
    shown: Callable[[Any], Value] | None,
    texts: dict[str, str],
) -> Sheet:
    said = [] if shown is None else ["true", "baseline says", "recipe says"]
    heads = columns("row", *said, "baseline right, %", "recipe right, %", digits=0)
    cells: list[list[Value]] = []
    for one in flips[:_FLIPS]:
        answers = [] if shown is None else [shown(one.label), shown(one.baseline), shown(one.recipe)]
        cells.append([one.id, *answers, 100 * one.baseline_right, 100 * one.recipe_right])
    if texts:
        heads.append(Column("text"))
        cells = [[*cell, texts.get(one.id, "")] for cell, one in zip(cells, flips, strict=False)]
    rest = f", {_FLIPS} shown" if len(flips) > _FLIPS else ""
    return Sheet("flip-rows", f"{arm.title}: {len(flips)} rows {title}{rest}", heads, cells, place, filed=False)


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{100 * share:.1f} %"

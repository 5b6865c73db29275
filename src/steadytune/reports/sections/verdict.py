"""The verdict: what helped, what did not, and where the data cannot say."""

from collections import Counter
from itertools import chain

import numpy as np

from steadytune.reports.page import Block, Group, Section, Words
from steadytune.reports.sections.places import POINTS, Row, metric, standings
from steadytune.reports.statistics import PairedComparison, cannot_decide, chance_level, split_gain
from steadytune.reports.study import Place, Study
from steadytune.reports.tables import NOTHING, Column, Sheet, Value

_TEST = (
    "The test was fixed before any run: a two-sided paired t-test on the differences seed by seed, α = 0.05, with "
    "Holm's correction over the recipes of one table. A recipe is called better or worse only where this test says so "
    "and the 95 % interval of its mean difference leaves out 0; below 5 complete pairs there is never evidence. "
    "Controls are shown and not judged. Bootstrap interval, effect size (mean over sd of the differences) and "
    "permutation p (from 8 seeds on) stand beside the test and decide nothing. Scores and differences are in points, "
    "100 × the metric."
)
_SIGNED = Column("", signed=True)
_UNNAMED = "No control here isolates one method at the settings of its recipe, so gains are not taken apart."


def verdict_section(study: Study) -> Section:
    """The section.

    Args:
        study: what to read.
    """
    rows = standings(study)
    doubts = {place: doubt for place in study.places if (doubt := _doubt(study, place, rows[place]))}
    head: list[Block] = [Words(_summary(rows, doubts), "summary")]
    if study.failed or study.missing:
        lost = f"{len(study.failed)} failed, and {len(study.missing)} left no record"
        head.append(Words([f"Of {len(study.planned)} planned runs, {lost}; Origin names them."], "warning"))
    head.append(Words([_TEST]))
    if len(study.places) > 1:
        head.append(_overview(study, rows))
    groups = [Group("", head)]
    for place in study.places:
        blocks: list[Block] = [Words([doubts[place]], "warning")] if place in doubts else []
        blocks.append(_verdict_sheet(study, place, rows[place]))
        verdicts = [row.standing.verdict for row in rows[place] if row.standing and row.standing.verdict]
        few = dict.fromkeys(verdict.reason for verdict in verdicts if verdict.adjusted_p_value is None)
        blocks += [Words([reason]) for reason in few]
        groups.append(Group(place.title, [*blocks, *_gain(study, place, rows[place])]))
    return Section("verdict", "Verdict", "Did a recipe help, against the baseline, seed by seed?", groups)


def _summary(rows: dict[Place, list[Row]], doubts: dict[Place, str]) -> list[str]:
    """One sentence per recipe, then one per place where the data cannot decide."""
    said: dict[str, list[tuple[str, str]]] = {}
    for place, found in rows.items():
        for row in found:
            if row.arm.role == "recipe":
                outcome, words = _outcome(row)
                said.setdefault(row.arm.recipe, []).append((outcome, f"{place.title}: {words}"))
    sentences = []
    for recipe, outcomes in said.items():
        counts = Counter(outcome for outcome, _ in outcomes)
        for outcome, verb in (("better", "helped"), ("worse", "harmed")):
            if counts[outcome]:
                where = "; ".join(words for own, words in outcomes if own == outcome)
                sentences.append(f"{recipe} {verb} in {counts[outcome]} of {len(outcomes)} comparisons ({where}).")
        if not counts["better"] + counts["worse"]:
            alone = f" ({outcomes[0][1]})" if len(outcomes) == 1 else f" in any of {len(outcomes)} comparisons"
            sentences.append(f"{recipe}: no evidence that it helps or harms{alone}.")
    sentences += [f"{place.title}: {doubt}" for place, doubt in doubts.items()]
    return sentences or ["Nothing is compared here: the study holds a baseline alone."]


def _outcome(row: Row) -> tuple[str, str]:
    standing = row.standing
    if standing is None or standing.verdict is None or standing.comparison is None or standing.comparison.mean is None:
        return "no evidence", "no finished pair of runs"
    said = f"{_SIGNED.shown(_points(standing.comparison.mean))} points"
    if (ends := _ends(standing.comparison.interval)) is not None:
        said += f", 95 % interval {_SIGNED.shown(ends)}"
    return standing.verdict.outcome, said


def _doubt(study: Study, place: Place, rows: list[Row]) -> str | None:
    """Why the data of a place cannot decide; None where they can."""
    baseline = next((row for row in rows if row.arm.role == "baseline"), None)
    if baseline is None:
        return None
    return cannot_decide(baseline.scores, _points(_chance(study, place, rows)), POINTS)


def _chance(study: Study, place: Place, rows: list[Row]) -> float | None:
    """Score without learning; None where it is not known."""
    record = study.example(place)
    if record is not None and record.metric == "pearson_spearman":
        return chance_level(record.metric)
    if record is None or record.metric not in ("accuracy", "macro_f1", "matthews"):
        return None
    for run in (run for row in rows for run in study.done(place, row.arm).values()):
        found = study.predictions(run, "test")
        if found is not None and found.ids:
            if record.task == "multiple_choice":
                return float(np.mean(1 / found.choices))
            return chance_level(record.metric, Counter(found.labels.tolist()))
        if record.task == "token_classification" and (answers := study.answers(run, "test")):
            return chance_level(record.metric, Counter(chain(*answers.labels)))
    return None


def _overview(study: Study, rows: dict[Place, list[Row]]) -> Sheet:
    """Recipes down, places across."""
    recipes = [arm for arm in study.arms if arm.role == "recipe"]
    cells: list[list[Value]] = []
    for arm in recipes:
        line: list[Value] = [arm.recipe]
        for place in study.places:
            row = next((row for row in rows[place] if row.arm == arm), None)
            paired = row.standing.comparison if row and row.standing else None
            if row is None or paired is None or paired.mean is None:
                line.append(NOTHING)
            else:
                line.append(f"{_SIGNED.shown(_points(paired.mean))} {_outcome(row)[0]}")
        cells.append(line)
    heads = [Column("recipe"), *(Column(place.title) for place in study.places)]
    return Sheet("overview", "Mean difference in points, and the verdict", heads, cells)


def _verdict_sheet(study: Study, place: Place, rows: list[Row]) -> Sheet:
    heads = [
        Column("recipe"),
        Column("verdict"),
        Column(metric(study, place), joined="score"),
        Column("sd"),
        Column("difference", signed=True),
        Column("95 % t interval", signed=True),
        Column("p (Holm)", 4, probability=True),
        Column("bootstrap interval", signed=True),
        Column("effect size", 2, signed=True),
        Column("p (permutation)", 4, probability=True),
        Column("pairs"),
        Column("failed, %"),
        Column("missing"),
        Column("pass units", 0),
    ]
    cells = [_verdict_row(row) for row in rows]
    return Sheet("verdict", "Test scores and differences to the baseline", heads, cells, place)


def _verdict_row(row: Row) -> list[Value]:
    standing = row.standing
    paired = standing.comparison if standing else None
    verdict = standing.verdict if standing else None
    failed = POINTS * row.failed / row.planned
    return [
        row.arm.title,
        verdict.outcome if verdict else "",
        _points(standing.mean if standing else None),
        _points(standing.sd if standing else None),
        _points(paired.mean if paired else None),
        _ends(paired.interval if paired else None),
        verdict.adjusted_p_value if verdict else None,
        _ends(paired.bootstrap_interval if paired else None),
        paired.effect_size if paired else None,
        paired.permutation_p_value if paired else None,
        paired.n if paired else None,
        failed,
        row.missing,
        standing.pass_units if standing else None,
    ]


def _gain(study: Study, place: Place, rows: list[Row]) -> list[Block]:
    """What a control earned of a recipe's gain, and what the method added to it."""
    by_name = {row.arm.recipe: row for row in rows if row.standing}
    controls = [row for row in rows if row.arm.role == "control" or row.arm.recipe in study.isolates]
    baseline = next((row for row in rows if row.arm.role == "baseline"), None)
    if not controls or baseline is None:
        return []
    cells: list[list[Value]] = []
    for control in controls:
        for recipe in study.isolates.get(control.arm.recipe, ()):
            if recipe in by_name and control.standing and baseline.standing:
                parts = split_gain(baseline.scores, control.scores, by_name[recipe].scores)
                whole, earned, added = (_part(part) for part in (parts.total, parts.by_control, parts.by_method))
                cells.append([recipe, control.arm.recipe, *whole, *earned, *added, parts.total.n])
    if not cells:
        return [] if study.isolates else [Words([_UNNAMED])]
    titles = ("whole gain", "95 % interval", "earned by the control", "95 % interval ", "added by the method")
    heads = [Column("recipe"), Column("control"), *(Column(title, signed=True) for title in titles)]
    heads += [Column("95 % interval  ", signed=True), Column("seeds")]
    title = "Each gain in two parts: control minus baseline, and recipe minus control"
    return [Sheet("gain", title, heads, cells, place)]


def _part(part: PairedComparison) -> tuple[Value, Value]:
    return part.mean, None if part.interval is None else (part.interval.low, part.interval.high)


def _points(value: float | None) -> float | None:
    return None if value is None else POINTS * value


def _ends(interval: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if interval is None else (POINTS * interval[0], POINTS * interval[1])

"""Robustness sets: what the trained models make of rows that were written to mislead them."""

from collections.abc import Callable, Mapping

from steadytune.records import GroupScores, RobustnessScores
from steadytune.reports.page import Block, Group, Section, Words
from steadytune.reports.sections.places import POINTS
from steadytune.reports.statistics import mean_and_sd, paired_comparison
from steadytune.reports.study import Arm, Place, Study
from steadytune.reports.tables import Column, Sheet, Value, columns

SHOWN_GROUPS = 12
"""Of one column; more stand in the files alone."""
FAILURES = ("capability", "test")
"""Columns of CheckList, whose groups are shown with the share of wrong answers."""
_LEAD = (
    "Every trained model was also scored on these sets; nothing was chosen by them. Secondary: the test that was fixed "
    "in advance is on the task's own test rows, and the intervals here, paired by seed, are not corrected for their "
    "number."
)
_SCALE = (
    "Scores and differences are in points. Drop is the accuracy on the run's own test rows, with classes merged as for "
    "the set, minus that on the set. Majority is what a constant answer scores. Consistency is the share of contrast "
    "sets, such as an original with all its revisions, with every row answered rightly."
)

Found = Mapping[Arm, Mapping[int, RobustnessScores]]
"""Scores on one set by recipe and seed."""


def robustness_section(study: Study) -> Section | None:
    """The section; None where no run was scored on such sets.

    Args:
        study: what to read.
    """
    groups = []
    for place in study.places:
        blocks: list[Block] = []
        found = _found(study, place)
        if found:
            blocks.append(_sheet(place, found))
        for name, by_arm in found.items():
            blocks += _group_sheets(place, name, by_arm)
        notes = [f"{name}: {note}" for name, by_arm in found.items() for note in _notes(by_arm)]
        if notes:
            blocks.append(Words(notes))
        if blocks:
            groups.append(Group(place.title, blocks))
    if not groups:
        return None
    return Section("robustness", "Robustness", _LEAD, [Group("", [Words([_SCALE])]), *groups])


def _found(study: Study, place: Place) -> dict[str, Found]:
    """Scores at one place by set."""
    found: dict[str, dict[Arm, dict[int, RobustnessScores]]] = {}
    for arm in study.arms_at(place):
        for seed, run in study.done(place, arm).items():
            for name, scores in run.record.robustness.items():
                found.setdefault(name, {}).setdefault(arm, {})[seed] = scores
    return dict(found)


def _notes(by_arm: Found) -> list[str]:
    scores = [one for by_seed in by_arm.values() for one in by_seed.values()]
    several = "its rows changed between runs, so these are no pairs; remove the older records to run them again"
    changed = [several] if len({one.fingerprint for one in scores}) > 1 else []
    met = max(one.met or 0 for one in scores)
    known = [f"{met} of its rows stand among the training rows of a run, which is the most of all runs"] if met else []
    return [*dict.fromkeys(note for one in scores for note in one.notes), *known, *changed]


def _sheet(place: Place, found: Mapping[str, Found]) -> Sheet:
    cells: list[list[Value]] = []
    for name, by_arm in found.items():
        for arm, by_seed in by_arm.items():
            drop = {
                seed: one.own_accuracy - one.accuracy for seed, one in by_seed.items() if one.own_accuracy is not None
            }
            whole = {seed: one.consistency for seed, one in by_seed.items()}
            one = next(iter(by_seed.values()))
            cells.append(
                [
                    *(name, arm.title, one.rows),
                    *_compared(by_arm, arm, lambda scores: scores.accuracy),
                    *(_points(mean_and_sd(drop)[0]), _points(one.majority)),
                    *(_points(mean_and_sd(whole)[0]), one.sets, len(by_seed)),
                ]
            )
    heads = [*columns("set", "recipe", "rows", "accuracy", "sd"), *_differences()]
    heads += [Column("drop", signed=True), *columns("majority", "consistency", "contrast sets", "seeds")]
    return Sheet("robustness", "Scores on robustness sets, and differences to the baseline", heads, cells, place)


def _group_sheets(place: Place, name: str, by_arm: Found) -> list[Sheet]:
    """One table per column of groups."""
    scores = [one for by_seed in by_arm.values() for one in by_seed.values()]
    rows = {(group.column, group.name): group.rows for one in scores for group in one.groups}
    sheets = []
    for column in dict.fromkeys(column for column, _ in rows):
        failures = column in FAILURES
        names = [group for own, group in rows if own == column]
        cells: list[list[Value]] = [
            [name, column, group, arm.title, rows[column, group], *_compared(by_arm, arm, _of(column, group, failures))]
            for group in names
            for arm in by_arm
        ]
        what = "failure rate" if failures else "accuracy"
        heads = [*columns("set", "by", "group", "recipe", "rows", what, "sd"), *_differences()]
        title = f"{name} by {column}: {what}"
        shown = len(names) <= SHOWN_GROUPS
        sheets.append(Sheet("failures" if failures else "groups", title, heads, cells, place, shown=shown))
    return sheets


def _differences() -> list[Column]:
    return [Column("difference", signed=True), Column("95 % t interval", signed=True)]


def _of(column: str, name: str, failures: bool) -> Callable[[RobustnessScores], float | None]:
    """What a group scored."""

    def score(scores: RobustnessScores) -> float | None:
        found = next((one for one in scores.groups if _is(one, column, name)), None)
        return None if found is None else 1 - found.accuracy if failures else found.accuracy

    return score


def _is(group: GroupScores, column: str, name: str) -> bool:
    return (group.column, group.name) == (column, name)


def _compared(by_arm: Found, arm: Arm, score: Callable[[RobustnessScores], float | None]) -> list[Value]:
    """Mean and sd of a recipe, and its difference to the baseline with the interval."""
    values = {own: {seed: score(one) for seed, one in by_seed.items()} for own, by_seed in by_arm.items()}
    mean, sd = mean_and_sd(values[arm])
    baseline = next((own for own in by_arm if own.role == "baseline"), None)
    if baseline is None or arm == baseline:
        return [_points(mean), _points(sd), None, None]
    paired = paired_comparison(values[baseline], values[arm])
    ends = paired.interval
    interval = None if ends is None else (POINTS * ends.low, POINTS * ends.high)
    return [_points(mean), _points(sd), _points(paired.mean), interval]


def _points(value: float | None) -> float | None:
    return None if value is None else POINTS * value

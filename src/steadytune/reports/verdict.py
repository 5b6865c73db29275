"""From records to verdicts: every recipe of a study against its baseline, per task, protocol and budget."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from steadytune.records import RunRecord
from steadytune.reports.statistics import PairedComparison, Verdict, mean_and_sd, paired_comparison, verdicts

Place = tuple[str, str, str]
"""Task, protocol, budget."""
_ORDER = {"baseline": 0, "recipe": 1, "control": 2}


@dataclass(frozen=True)
class Arm:
    """One recipe at one place.

    Attributes:
        recipe: its name.
        role: "baseline", "recipe" or "control".
        scores: on the test split by seed, in the metric of the task; None where the run failed.
        mean: of the scores of runs that did not fail.
        sd: of them.
        failed: number of runs that failed.
        pass_units: mean over the runs.
        verdict: against the baseline; None for the baseline itself and for controls.
        comparison: paired with the baseline by seed; None for the baseline itself.
    """

    recipe: str
    role: str
    scores: Mapping[int, float | None]
    mean: float | None
    sd: float | None
    failed: int
    pass_units: float | None
    verdict: Verdict | None
    comparison: PairedComparison | None


@dataclass(frozen=True)
class Table:
    """All recipes at one place, baseline first.

    Attributes:
        task: its name in the plan.
        protocol: its name in the plan.
        budget: "steps" or "compute".
        metric: of the scores.
        arms: baseline, recipes, controls.
    """

    task: str
    protocol: str
    budget: str
    metric: str
    arms: tuple[Arm, ...]


def verdict_tables(records: Iterable[RunRecord], planned: Iterable[Mapping[str, Any]] = ()) -> list[Table]:
    """One table per task, protocol and budget.

    Args:
        records: of a study, in any order; those without a place in one, and trials of a search, are left out.
        planned: places like `RunRecord.cell`; a recipe of theirs without a record counts in the correction.
    Returns:
        Tables in order of task, protocol and budget; a place without a baseline has no verdicts.

    Source: paired t-tests with Holm's correction over the recipes that are no control.
    """
    places: dict[Place, dict[tuple[str, str], list[RunRecord]]] = defaultdict(lambda: defaultdict(list))
    for cell in planned:
        place, arm = _whose(cell)
        places[place].setdefault(arm, [])
    for record in records:
        if record.cell is not None and record.cell["role"] in _ORDER:
            place, arm = _whose(record.cell)
            places[place][arm].append(record)
    return [_table(place, arms) for place, arms in sorted(places.items())]


def _whose(cell: Mapping[str, Any]) -> tuple[Place, tuple[str, str]]:
    """Place and arm of a run."""
    return (str(cell["task"]), str(cell["protocol"]), str(cell["budget"])), (str(cell["role"]), str(cell["recipe"]))


def _table(place: Place, runs: Mapping[tuple[str, str], list[RunRecord]]) -> Table:
    metric = next((record.metric for records in runs.values() for record in records if record.metric), "")
    scores = {arm: {int(r.cell["seed"]): _score(r) for r in records if r.cell} for arm, records in runs.items()}
    base = next((found for (role, _), found in scores.items() if role == "baseline"), {})
    compared = {arm: paired_comparison(base, own) for arm, own in scores.items() if arm[0] != "baseline"}
    found = verdicts({recipe: compared[role, recipe] for role, recipe in compared if role == "recipe"})
    arms = []
    for role, recipe in sorted(runs, key=lambda arm: (_ORDER[arm[0]], arm[1])):
        own = scores[role, recipe]
        units = [record.cost.pass_units for record in runs[role, recipe] if record.cost is not None]
        mean, sd = mean_and_sd(own)
        arms.append(
            Arm(
                recipe=recipe,
                role=role,
                scores=dict(sorted(own.items())),
                mean=mean,
                sd=sd,
                failed=sum(record.status == "failed" for record in runs[role, recipe]),
                pass_units=sum(units) / len(units) if units else None,
                verdict=found.get(recipe) if role == "recipe" else None,
                comparison=compared.get((role, recipe)),
            )
        )
    return Table(*place, metric, tuple(arms))


def _score(record: RunRecord) -> float | None:
    return record.scores.get("test", {}).get(record.metric)

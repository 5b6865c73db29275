"""What `compare` and `study` say: before the first run, after each, and at the end."""

import time
from typing import TYPE_CHECKING

from steadytune.cli.output import err, out, table

if TYPE_CHECKING:
    from steadytune.reports.verdict import Arm, Table
    from steadytune.studies import Moment, Plan
    from steadytune.studies.execute import Watch
    from steadytune.studies.outlook import Outlook

_ASSUMED_SD = 0.02  # of paired differences, before any is measured


def final_seconds(plan: "Plan", outlook: "Outlook") -> float:
    """Estimated time of all final runs of a plan, one after the other.

    Args:
        plan: what will run.
        outlook: of the plan.
    """
    seconds = {"equal-steps": outlook.seconds, "equal-compute": outlook.equal_compute_seconds}
    kinds = [seconds[plan.budget]] if plan.budget != "both" else list(seconds.values())
    return len(plan.seed_list) * sum(sum(kind.values()) for kind in kinds)


def announce(plan: "Plan", outlook: "Outlook", runs: int, done: int, seconds: float) -> None:
    """Say what will run, how long it takes, and what it could find.

    Args:
        plan: what will run.
        outlook: of the plan.
        runs: their number.
        done: number of those that have a record.
        seconds: estimated time of all runs, one after the other.
    """
    from steadytune.reports.statistics import detectable_difference

    err.print(f"{runs} runs, {done} on record; about {seconds / 60:.0f} minutes for all of them.", markup=False)
    against = sum(role == "recipe" for _, role in plan.arms())
    smallest = detectable_difference(len(plan.seed_list), _ASSUMED_SD, max(against, 1))
    if smallest is None:
        err.print(f"too few seeds for any verdict ({len(plan.seed_list)}); use at least 5.", markup=False)
    else:
        err.print(
            f"smallest difference that {len(plan.seed_list)} seeds can be expected to find (power 0.8, if paired "
            f"differences spread by {100 * _ASSUMED_SD:g} points): {100 * smallest:.1f} points.",
            markup=False,
        )
    for (task, protocol), report in outlook.data.items():
        for note in report.notes():
            err.print(f"note: {task}, {protocol}: {note}", markup=False, soft_wrap=True)


def line_per_run(done: int) -> "Watch":
    """A watcher that prints a line when a run ends, with the time that is left.

    Args:
        done: number of runs that have a record at the start.
    """
    started = time.monotonic()

    def watch(moment: "Moment") -> None:
        if moment.cell is None:
            ran = max(moment.done - done, 1)
            left = (moment.total - moment.done) * (time.monotonic() - started) / ran / 60
            err.print(f"run {moment.done} of {moment.total} done, about {left:.0f} minutes left", markup=False)

    return watch


def print_verdicts(found: "Table") -> None:
    """Print every recipe at one place against its baseline.

    Args:
        found: the place.
    """
    columns = ["recipe", found.metric, "difference (95 %)", "p", "verdict", "failed", "units"]
    title = f"{found.task}, {found.protocol}, equal {found.budget}, test split"
    out.print(table(columns, [_row(arm) for arm in found.arms], title=title))
    for arm in found.arms:
        if arm.verdict is not None:
            out.print(f"{arm.recipe}: {arm.verdict.reason}", markup=False, soft_wrap=True)


def _row(arm: "Arm") -> list[str]:
    score = "-" if arm.mean is None else f"{100 * arm.mean:.1f}" + ("" if arm.sd is None else f" ± {100 * arm.sd:.1f}")
    paired = arm.comparison
    difference = "" if paired is None or paired.mean is None else f"{100 * paired.mean:+.1f}"
    if paired is not None and paired.interval is not None:
        difference += f" ({100 * paired.interval.low:+.1f} to {100 * paired.interval.high:+.1f})"
    corrected = None if arm.verdict is None else arm.verdict.adjusted_p_value
    adjusted = "" if corrected is None else f"{corrected:.3f}"
    outcome = "" if arm.verdict is None else arm.verdict.outcome
    units = "" if arm.pass_units is None else f"{arm.pass_units:.0f}"
    name = arm.recipe if arm.role == "recipe" else f"{arm.recipe} ({arm.role})"
    return [name, score, difference, adjusted, outcome, str(arm.failed), units]

"""What `evaluate --also` prints: scores on robustness sets, as a whole and by group."""

from collections.abc import Mapping
from itertools import groupby
from typing import TYPE_CHECKING

from steadytune.cli.output import err, out, table

if TYPE_CHECKING:
    from steadytune.records import RobustnessScores


def show_robustness(sets: "Mapping[str, RobustnessScores]") -> None:
    """Print one table of all sets, one per set and column of groups, and what was noticed.

    Args:
        sets: scores by the name of the set.
    """
    from steadytune.reports.sections.robustness import FAILURES

    rows, paired = [], any(found.sets for found in sets.values())
    for name, found in sets.items():
        drop = None if found.own_accuracy is None else found.own_accuracy - found.accuracy
        values = [found.accuracy, drop, found.majority, *((found.consistency, found.sets) if paired else ())]
        rows.append([name, found.rows, *("" if value is None else value for value in values)])
    out.print()
    heads = ["set", "rows", "accuracy", "drop", "majority", *(("consistency", "of sets") if paired else ())]
    out.print(table(heads, rows))
    for name, found in sets.items():
        for column, members in groupby(found.groups, key=lambda group: group.column):
            failures = column in FAILURES
            cells = [[one.name, one.rows, 1 - one.accuracy if failures else one.accuracy] for one in members]
            heads = [column, "rows", "failure rate" if failures else "accuracy"]
            out.print(f"\n{name} by {column}", markup=False, soft_wrap=True, style="italic")
            out.print(table(heads, cells))
    for name, found in sets.items():
        for note in found.notes:
            err.print(f"note: {name}: {note}", markup=False, soft_wrap=True)

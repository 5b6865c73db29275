"""What all sections that go place by place share: the standing of each recipe, units and names of figures."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from steadytune.reports.page import Block, Group, Section
from steadytune.reports.study import Arm, Cell, Place, Study
from steadytune.reports.verdict import Arm as Standing
from steadytune.reports.verdict import verdict_tables

POINTS = 100.0  # per unit of a metric


class Row(NamedTuple):
    """One recipe at one place.

    Attributes:
        arm: which.
        standing: its scores and verdict; None where none of its runs is on record.
        planned: runs.
        failed: runs.
        missing: planned runs without a record.
    """

    arm: Arm
    standing: Standing | None
    planned: int
    failed: int
    missing: int

    @property
    def scores(self) -> dict[int, float]:
        """Test scores in points, by seed, of the runs that have one."""
        found = self.standing.scores if self.standing else {}
        return {seed: POINTS * score for seed, score in found.items() if score is not None}


def standings(study: Study) -> dict[Place, list[Row]]:
    """Every planned recipe at every place, judged.

    Args:
        study: what to read.
    """
    judged: dict[tuple[Place, Arm], Standing] = {}
    planned = [_place(cell) for cell in study.planned]
    records = [run.record.model_copy(update={"cell": _place(cell)}) for cell, run in study.runs.items()]
    for table in verdict_tables(records, planned):
        place = Place(table.task, table.protocol, table.budget)
        judged |= {(place, Arm(standing.role, standing.recipe)): standing for standing in table.arms}
    found: dict[Place, list[Row]] = {}
    for place in study.places:
        found[place] = []
        for arm in study.arms_at(place):
            runs = list(study.seeds(place, arm).values())
            failed = sum(run is not None and run.record.status == "failed" for run in runs)
            found[place].append(Row(arm, judged.get((place, arm)), len(runs), failed, runs.count(None)))
    return found


def _place(cell: Cell) -> dict[str, str | int]:
    return {**cell.place._asdict(), "role": cell.arm.role, "recipe": cell.arm.recipe, "seed": cell.seed}


def metric(study: Study, place: Place) -> str:
    """The score that decides at a place; "score" where every run failed.

    Args:
        study: what to read.
        place: where.
    """
    record = study.example(place)
    return record.metric if record else "score"


def unit(study: Study, place: Place) -> str:
    """As the label of an axis.

    Args:
        study: what to read.
        place: where.
    """
    return f"{metric(study, place)}, points"


def figure_key(section: str, study: Study, place: Place, *more: object) -> str:
    """A name that no other figure of the page has.

    Args:
        section: its id.
        study: what to read.
        place: where.
        more: what else tells the figure from others; whole numbers.
    """
    return "-".join([section, str(study.places.index(place)), *(str(part) for part in more)])


def by_place(
    study: Study, id: str, title: str, lead: str, blocks: Callable[[Place, list[Row]], Sequence[Block]]
) -> Section:
    """A section with one group per place.

    Args:
        study: what to read.
        id: of the section.
        title: of the section.
        lead: of the section.
        blocks: of one place with its recipes.
    """
    rows = standings(study)
    return Section(id, title, lead, [Group(place.title, blocks(place, rows[place])) for place in study.places])

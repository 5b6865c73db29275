"""What a page of a report is made of."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from steadytune.reports.study import Arm
from steadytune.reports.svg import GRAY, MARKERS, Look
from steadytune.reports.tables import Sheet


@dataclass(frozen=True)
class Words:
    """A paragraph, or a list of them.

    Attributes:
        lines: one paragraph, or the points of a list.
        tone: "" or "warning".
    """

    lines: Sequence[str]
    tone: str = ""
    kind: str = field(default="words", init=False)


@dataclass(frozen=True)
class Code:
    """Text as it stands in a file.

    Attributes:
        title: above it.
        text: what.
    """

    title: str
    text: str
    kind: str = field(default="code", init=False)


@dataclass(frozen=True)
class Drawing:
    """A figure.

    Attributes:
        svg: made by `reports.figures`, which escapes all text in it.
        caption: below it; "" for none.
    """

    svg: str
    caption: str = ""


@dataclass(frozen=True)
class Drawings:
    """Figures side by side, as many as there is room for.

    Attributes:
        figures: in order.
        legend: names with the color and marker that stand for them.
        title: above them.
    """

    figures: Sequence[Drawing]
    legend: Sequence[tuple[str, Look]] = ()
    title: str = ""
    kind: str = field(default="drawings", init=False)


Block = Words | Code | Drawings | Sheet


@dataclass(frozen=True)
class Group:
    """What belongs to one place of a study, or to the whole of it.

    Attributes:
        title: "" for what stands before all others.
        blocks: in order.
    """

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Section:
    """One tab.

    Attributes:
        id: of its element.
        title: of the tab.
        lead: what it shows, in one or two sentences.
        groups: in order.
    """

    id: str
    title: str
    lead: str
    groups: Sequence[Group]

    def sheets(self) -> list[Sheet]:
        """All tables, in order."""
        return [block for group in self.groups for block in group.blocks if isinstance(block, Sheet)]


def looks(arms: Sequence[Arm]) -> dict[Arm, Look]:
    """The look of every recipe of a study: the baseline gray, controls dashed.

    Args:
        arms: of the whole study, so that a recipe looks the same at each place.
    """
    found = {}
    for index, arm in enumerate(arms):
        line = 1 if arm.role == "control" else 0
        others = index - 1
        found[arm] = (
            Look(GRAY) if index == 0 else Look(others % GRAY, index % len(MARKERS), line + 2 * (others >= GRAY))
        )
    return found

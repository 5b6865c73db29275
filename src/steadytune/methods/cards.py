"""Cards: one page of prose per method, with front matter that programs read. Never imports torch."""

from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml

from steadytune.methods import METHODS


class UnknownMethod(ValueError):
    """There is no card of that name."""


@dataclass(frozen=True)
class Card:
    """A method's page.

    Attributes:
        front: what programs read: name, title, source, place, sites, needs_labels, extra passes, cost, status.
        text: the page without front matter.
    """

    front: dict[str, Any]
    text: str


def read_card(key: str) -> Card:
    """The card of a built-in method.

    Args:
        key: its name.
    Raises:
        UnknownMethod: there is none.
    """
    if key not in METHODS:
        raise UnknownMethod(f"there is no method {key!r}; methods are {', '.join(METHODS)}.")
    page = (files("steadytune.methods") / f"{key}.md").read_text(encoding="utf-8")
    _, front, text = page.split("---\n", 2)
    return Card(yaml.safe_load(front), text.strip())


def read_cards() -> list[Card]:
    """All cards, in the order of the list of methods."""
    return [read_card(key) for key in METHODS]


def method_table() -> str:
    """The methods as a Markdown table, from the cards' front matter."""
    lines = [
        "| key | method | source | place | labels | forward | backward | cost | status |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for card in read_cards():
        front = card.front
        labels = "needed" if front["needs_labels"] else ""
        lines.append(
            f"| `{front['name']}` | {front['title']} | {front['source'].split(',')[0]} et al., {front['year']} "
            f"| {front['place']} | {labels} | +{front['extra_forward']:g} | +{front['extra_backward']:g} "
            f"| {front['measured_cost']:.2f} | {front['status']} |"
        )
    return "\n".join(lines)

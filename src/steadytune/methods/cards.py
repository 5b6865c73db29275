"""Cards: one page of prose per method, with front matter that programs read. Never imports torch."""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml

from steadytune.methods import METHODS
from steadytune.methods.compatibility import CORE, known_pairings, pairing


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


def method_table(keys: Iterable[str] = tuple(METHODS)) -> str:
    """Methods as a Markdown table, from the cards' front matter.

    Args:
        keys: which.
    """
    lines = [
        "| key | method | source | place | needs | forward | backward | floor | cost | status |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for key in keys:
        front = read_card(key).front
        lines.append(
            f"| `{front['name']}` | {front['title']} | {_authors(front['source'])}, {front['year']} "
            f"| {front['place']} | {needs(front)} | +{front['extra_forward']:g} | +{front['extra_backward']:g} "
            f"| {front['floor']:.2f} | {front['measured_cost']:.2f} | {front['status']} |"
        )
    return "\n".join(lines)


def _authors(source: str) -> str:
    """The first author, or both of two, of a source that begins with names."""
    first = source.split(",")[0]
    return first if " and " in first or first.endswith("et al.") else f"{first} et al."


def needs(front: dict[str, Any]) -> str:
    """What a method needs of model and data, in words.

    Args:
        front: of its card.
    """
    wanted = ["labels"] if front["needs_labels"] else []
    wanted += [site for site in front["sites"] if site in ("attention", "weights")]
    wanted += ["classes"] if front["tasks"] == ["classification"] else []
    return ", ".join(wanted)


_MARKS = {"allowed": "+", "rule": "r", "redundant": "=", "forbidden": "x"}


def compatibility_table() -> str:
    """Every method beside each of the five core methods, as a Markdown table of marks."""
    lines = ["| | " + " | ".join(CORE) + " |", "|---" * (len(CORE) + 1) + "|"]
    for key in METHODS:
        found = ["" if key == core else pairing(key, core) for core in CORE]
        marks = [p if isinstance(p, str) else _MARKS[p.verdict] + ("*" if p.claimed else "") for p in found]
        lines.append(f"| `{key}` | " + " | ".join(marks) + " |")
    return "\n".join(lines)


def compatibility_rules() -> str:
    """Every pair that has a rule, is redundant or refused, as a Markdown list."""
    said = {"rule": "", "redundant": "redundant: ", "forbidden": "refused: ", "allowed": ""}
    pairs = [(pair, known) for pair, known in known_pairings().items() if known.why]
    return "\n".join(f"- `{one}` and `{two}`: {said[known.verdict]}{known.why}." for (one, two), known in pairs)

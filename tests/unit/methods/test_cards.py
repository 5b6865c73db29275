"""Cards: front matter that programs read, and a page that says what the code does."""

import dataclasses
import re
from typing import Any

import pytest

from steadytune.methods import METHODS, method_class
from steadytune.methods.cards import UnknownMethod, read_card, read_cards
from steadytune.recipes import load_recipe

KEYS = sorted(METHODS)
FRONT = {
    "name",
    "title",
    "source",
    "year",
    "place",
    "sites",
    "needs_labels",
    "tasks",
    "extra_forward",
    "extra_backward",
    "floor",
    "measured_cost",
    "null_setting",
    "controls",
    "status",
}
SECTIONS = [
    "Equation",
    "Use it",
    "Settings",
    "Tasks",
    "Where we differ from the paper",
    "Measured cost",
    "Evidence",
    "Combines with, clashes with",
    "Fails when",
    "Reference",
]


def test_every_method_has_a_card() -> None:
    assert [card.front["name"] for card in read_cards()] == list(METHODS)


@pytest.mark.parametrize("key", KEYS)
def test_the_front_matter_is_complete(key: str) -> None:
    assert read_card(key).front.keys() == FRONT


@pytest.mark.parametrize("key", KEYS)
def test_every_control_is_a_bundled_recipe(key: str) -> None:
    assert {load_recipe(name).name for name in read_card(key).front["controls"]} == set(
        read_card(key).front["controls"]
    )


@pytest.mark.parametrize("key", KEYS)
def test_the_page_has_its_sections_in_order(key: str) -> None:
    assert re.findall(r"^## (.+)$", read_card(key).text, flags=re.MULTILINE) == SECTIONS


@pytest.mark.parametrize("key", KEYS)
def test_the_settings_table_names_every_setting_with_its_default(key: str) -> None:
    section = read_card(key).text.split("## Settings")[1].split("## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("| ")]
    shown = {row[0]: row[2] for row in rows[1:]}
    assert shown == {f.name: written(f.name, f.default) for f in dataclasses.fields(method_class(key))}


def written(name: str, value: Any) -> str:
    """A default as cards write it: as YAML does, but for the words "all" and "1e-5"."""
    if value is None:
        return "all" if name == "layers" else "null"
    return str(value).lower() if isinstance(value, bool) else str(value).replace("e-05", "e-5")


def test_an_unknown_card_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(UnknownMethod, match=r"^there is no method 'slc'.*scl"):
        read_card("slc")

"""The docs say what the program does: their plans are plans, their tables are those of the programs that made them."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from steadytune.methods.cards import compatibility_rules, compatibility_table, method_table
from steadytune.recipes.recipe import validated
from steadytune.studies import Plan

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def numbers(line: str) -> list[str]:
    return re.findall(r"\d+(?:\.\d+)?", line)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_plan_in_the_docs_can_be_read(page: Path) -> None:
    for block in blocks(page, "yaml"):
        plan = validated(Plan, yaml.safe_load(block), str(page))
        assert plan.cells()


def test_some_page_shows_a_plan() -> None:
    assert any(blocks(page, "yaml") for page in PAGES)


@pytest.mark.parametrize(
    ("name", "made"),
    [("methods", method_table), ("matrix", compatibility_table), ("rules", compatibility_rules)],
    ids=["methods", "matrix", "rules"],
)
def test_the_page_of_methods_shows_what_cards_and_pairs_say(name: str, made: Callable[[], str]) -> None:
    page = (ROOT / "docs/reference/methods.md").read_text(encoding="utf-8")
    shown = page.split(f"<!-- {name} -->\n")[1].split(f"\n<!-- /{name} -->")[0]
    assert shown == made(), f"paste what steadytune.methods.cards.{made.__name__}() gives"


def test_the_tables_of_simulated_studies_are_those_of_the_benchmark() -> None:
    made = (ROOT / "benchmarks/results/simulated_studies.md").read_text(encoding="utf-8").splitlines()
    shown = (ROOT / "docs/explanation/how-we-compare.md").read_text(encoding="utf-8").splitlines()
    rows = [line.split("|")[1:-1] for line in made if line.startswith("|") and numbers(line)]
    errors = [" | ".join(cell.strip() for cell in row[:5]) for row in rows if len(row) == 6]
    power = [" | ".join(cell.strip() for cell in row[:5]) for row in rows if len(row) == 7]
    tables = [line.strip("| ") for line in shown if line.startswith("|") and len(numbers(line)) >= 5]
    assert len(errors) == len(power) == 6
    assert tables == errors + power

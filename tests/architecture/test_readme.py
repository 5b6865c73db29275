"""The README stays short and names the two commands that work from a fresh clone."""

from pathlib import Path

import pytest

from steadytune.methods.cards import method_table
from steadytune.methods.compatibility import CORE

README = Path(__file__).parents[2] / "README.md"
MAXIMUM_LINES = 120
COMMANDS = ("make demo", "make test")


def readme_problems(text: str) -> list[str]:
    """What keeps `text` from being this project's README; a command counts where it starts a line of its own."""
    lines = text.splitlines()
    problems = [f"{len(lines)} lines, at most {MAXIMUM_LINES}"] if len(lines) > MAXIMUM_LINES else []
    starts = {" ".join(line.split()[:2]) for line in lines}
    return problems + [f"{command!r} is missing" for command in COMMANDS if command not in starts]


def test_readme_is_short_and_names_its_commands() -> None:
    assert readme_problems(README.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("make demo\n" * 60 + "    make test  # all\n" * 60, []),
        ("make demo\nmake test\n" + "\n" * 119, ["121 lines, at most 120"]),
        ("make demo\nRun make tests.\n", ["'make test' is missing"]),
        ("", ["'make demo' is missing", "'make test' is missing"]),
    ],
)
def test_each_problem_is_seen(text: str, problems: list[str]) -> None:
    assert readme_problems(text) == problems


def test_the_method_table_is_that_of_the_cards() -> None:
    shown = README.read_text(encoding="utf-8").split("<!-- methods -->\n")[1].split("<!-- /methods -->")[0]
    assert shown.strip() == method_table(sorted(CORE)), "paste what steadytune.methods.cards.method_table() gives"

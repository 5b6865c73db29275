"""The section on robustness sets: means, paired differences and groups, and no verdict."""

import json
from pathlib import Path

import pytest

from steadytune.records import GroupScores, RobustnessScores
from steadytune.reports.document import write_report
from steadytune.reports.page import Section, Words
from steadytune.reports.sections.robustness import SHOWN_GROUPS, robustness_section
from steadytune.reports.study import read_study
from steadytune.reports.tables import Sheet
from toystudy import make_study

ARMS = {"plain": "baseline", "hype": "recipe"}
RIGHT = {"plain": (0.5, 0.6, 0.4), "hype": (0.6, 0.8, 0.5)}  # by seed; differences 0.1, 0.2, 0.1


def scores(accuracy: float, **changes: object) -> RobustnessScores:
    groups = [
        GroupScores(column="capability", name="Negation", rows=5, accuracy=accuracy / 2),
        *(GroupScores(column="subcase", name=f"s{n}", rows=1, accuracy=1.0) for n in range(SHOWN_GROUPS + 1)),
    ]
    found = RobustnessScores(
        rows=10, accuracy=accuracy, own_accuracy=0.9, majority=0.5, groups=groups, sets=4, consistency=accuracy / 4,
        fingerprint="f", notes=["a <note>"],
    )  # fmt: skip
    return found.model_copy(update=changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two recipes with three seeds, scored on one robustness set."""
    made = make_study(tmp_path / "study", ["similarity"], ARMS, [0, 1, 2])
    for path in (made / "records").iterdir():
        record = json.loads(path.read_text())
        found = scores(RIGHT[record["cell"]["recipe"]][record["cell"]["seed"]])
        path.write_text(json.dumps({**record, "robustness": {"probe:test": found.model_dump()}}))
    return made


def section_of(folder: Path) -> Section:
    found = robustness_section(read_study(folder))
    assert found is not None
    return found


def sheets(folder: Path, name: str) -> list[Sheet]:
    return [sheet for sheet in section_of(folder).sheets() if sheet.name == name]


def test_each_recipe_has_its_mean_and_its_paired_difference_to_the_baseline(folder: Path) -> None:
    (sheet,) = sheets(folder, "robustness")
    titles = [column.title for column in sheet.columns]
    plain, hype = (dict(zip(titles, row, strict=True)) for row in sheet.rows)
    assert (plain["recipe"], plain["accuracy"], plain["difference"]) == ("plain (baseline)", pytest.approx(50), None)
    assert (hype["recipe"], hype["seeds"], hype["contrast sets"]) == ("hype", 3, 4)
    assert hype["accuracy"] == pytest.approx(100 * 1.9 / 3)
    assert hype["difference"] == pytest.approx(100 * 0.4 / 3)
    assert hype["drop"] == pytest.approx(90 - 100 * 1.9 / 3)
    assert hype["consistency"] == pytest.approx(100 * 1.9 / 12)
    low, high = hype["95 % t interval"]  # type: ignore[misc]
    assert low < hype["difference"] < high  # type: ignore[operator]


def test_a_capability_has_a_failure_rate(folder: Path) -> None:
    (sheet,) = sheets(folder, "failures")
    row = dict(zip([column.title for column in sheet.columns], sheet.rows[1], strict=True))
    assert (row["by"], row["group"], row["recipe"], row["rows"]) == ("capability", "Negation", "hype", 5)
    assert row["failure rate"] == pytest.approx(100 - 100 * 1.9 / 6)
    assert row["difference"] == pytest.approx(-100 * 0.4 / 6)


def test_many_groups_stand_in_the_files_alone(folder: Path) -> None:
    (sheet,) = sheets(folder, "groups")
    assert (len(sheet.rows), sheet.filed, sheet.shown) == (2 * (SHOWN_GROUPS + 1), True, False)


def test_no_word_of_the_section_is_a_verdict(folder: Path) -> None:
    section = section_of(folder)
    words = [
        line for group in section.groups for block in group.blocks if isinstance(block, Words) for line in block.lines
    ]
    said = [*words, section.lead, *(column.title for sheet in section.sheets() for column in sheet.columns)]
    said += [cell for sheet in section.sheets() for row in sheet.rows for cell in row if isinstance(cell, str)]
    assert not any(word in line for line in said for word in ("better", "worse", "no evidence", "helped", "harmed"))
    assert "Secondary" in section.lead


def test_the_page_and_the_files_hold_it(folder: Path) -> None:
    page = write_report(folder).read_text()
    assert '<section id="robustness"' in page
    assert "probe:test: a &lt;note&gt;" in page
    assert {path.name for path in (folder / "tables").glob("*.csv")} >= {"robustness.csv", "failures.csv", "groups.csv"}


def test_a_study_without_robustness_sets_has_no_such_section(tmp_path: Path) -> None:
    assert robustness_section(read_study(make_study(tmp_path / "study", ["similarity"], ARMS, [0]))) is None


def test_where_nobody_looked_for_rows_that_were_trained_on_nothing_is_said_of_them(folder: Path) -> None:
    assert scores(0.5).met is None
    section = section_of(folder)
    lines = [line for group in section.groups for block in group.blocks if isinstance(block, Words)
             for line in block.lines]  # fmt: skip
    assert "probe:test: a <note>" in lines
    assert not any("training rows" in line for line in lines)


def test_rows_that_changed_between_runs_and_rows_that_were_trained_on_are_named(folder: Path) -> None:
    path = next((folder / "records").iterdir())
    record = json.loads(path.read_text())
    record["robustness"]["probe:test"] |= {"fingerprint": "other", "met": 3}
    path.write_text(json.dumps(record))
    lines = [line for group in section_of(folder).groups for block in group.blocks if isinstance(block, Words)
             for line in block.lines]  # fmt: skip
    assert any("its rows changed between runs" in line for line in lines)
    assert any("3 of its rows stand among the training rows" in line for line in lines)

"""A report says what its folder holds, whatever is missing from it, and gives away no text when published."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steadytune.records import StoreError, config_hash, write_predictions
from steadytune.reports.document import write_report
from steadytune.reports.sections.places import standings
from steadytune.reports.sections.training import mean_history
from steadytune.reports.sections.verdict import verdict_section
from steadytune.reports.study import read_study
from steadytune.reports.tables import Sheet
from toystudy import ROWS, SCRIPT, make_study

Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with its report."""
    folder = make_study(tmp_path_factory.mktemp("reported") / "study", seeds=range(6))
    write_report(folder)
    return folder


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Two recipes with two seeds on one task."""
    return make_study(tmp_path / "small", ["shop"], {"plain": "baseline", "hype": "recipe"}, [0, 1])


def page(folder: Path) -> str:
    return (folder / "report.html").read_text()


def words(folder: Path) -> str:
    """The first paragraphs of the verdict."""
    return " ".join(verdict_section(read_study(folder)).groups[0].blocks[0].lines)  # type: ignore[union-attr]


def edit(folder: Path, **changes: object) -> None:
    for path in (folder / "records").iterdir():
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# -- what it says -----------------------------------------------------------------------------------------------------


def test_the_verdict_names_who_helped_and_who_did_not(reported: Path) -> None:
    said = words(reported)
    assert "scl helped in 2 of 2 comparisons" in said
    assert "hype: no evidence that it helps or harms in any of 2 comparisons" in said


def test_a_table_counts_failed_and_missing_runs_of_each_recipe(reported: Path) -> None:
    groups = verdict_section(read_study(reported)).groups
    sheet = next(block for block in groups[1].blocks if isinstance(block, Sheet))
    at = [column.title for column in sheet.columns].index
    lost = {row[0]: (row[at("failed, %")], row[at("missing")]) for row in sheet.rows}
    assert lost["hype"] == (pytest.approx(100 / 6), 0)
    assert lost["scl"] == (0.0, 1)


def test_a_gain_is_parted_by_the_control_that_the_plan_names(reported: Path) -> None:
    sheet = next(sheet for sheet in verdict_section(read_study(reported)).sheets() if sheet.name == "gain")
    recipe, control, whole, _, earned, _, added, _, seeds = sheet.rows[0]
    assert (recipe, control, seeds) == ("hype", "hype-control", 5)  # one of six hype runs failed
    assert whole == pytest.approx(float(earned) + float(added))  # type: ignore[arg-type]


def test_lost_runs_stand_in_the_page_with_their_reason(reported: Path) -> None:
    rows = (reported / "tables" / "lost.csv").read_text().splitlines()[1:]
    assert rows == [
        "shop,100 rows,steps,scl,5,missing,\"no record: not run yet, or interrupted\"",
        "shop,100 rows,steps,hype,3,failed,ValueError: loss is not finite (step.py)",
    ]  # fmt: skip
    assert "loss is not finite" in page(reported)


def test_data_at_chance_cannot_decide(small: Path) -> None:
    labels = np.arange(ROWS) % 3  # chance is a third
    for index, path in enumerate(sorted((small / "records").iterdir())):
        score = (0.32, 0.35)[index % 2]
        record = json.loads(path.read_text())
        path.write_text(json.dumps({**record, "scores": {"test": {"accuracy": score}}}))
        ids = [str(row) for row in range(ROWS)]
        columns = {"label": np.asarray(labels).tolist(), "logits": list(np.eye(3)[labels])}
        write_predictions(small / "artifacts" / path.stem / "predictions.parquet", ids, ["test"] * ROWS, columns)
    assert "These data cannot decide" in words(small)
    assert "of chance, 33.33" in words(small)


def test_with_few_seeds_the_page_says_how_many_it_needs(small: Path) -> None:
    write_report(small)
    assert "A verdict needs at least 5 seeds with both scores; there are 2" in page(small)


def test_curves_are_means_over_the_seeds_that_logged_a_step() -> None:
    histories: list[list[dict[str, float | None]]] = [
        [{"step": 1.0, "loss": 1.0}, {"step": 2.0, "loss": 5.0}],
        [{"step": 1.0, "loss": 3.0}, {"step": 2.0, "loss": None}],
    ]
    found = mean_history(histories, "loss")
    assert found is not None
    assert found[0].tolist() == [1.0, 2.0]
    assert found[1].tolist() == [2.0, 5.0]
    assert found[2][0] == pytest.approx(2**0.5)
    assert np.isnan(found[2][1])


# -- the page ---------------------------------------------------------------------------------------------------------


def test_the_same_folder_gives_the_same_bytes(reported: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(reported, copy, ignore=shutil.ignore_patterns("report.html", "tables"))
    write_report(copy)
    for path in [reported / "report.html", *(reported / "tables").iterdir()]:
        assert (copy / path.relative_to(reported)).read_bytes() == path.read_bytes()


def test_the_page_needs_nothing_from_elsewhere(reported: Path) -> None:
    text = page(reported)
    assert re.findall(r'(?:src|href)="(?!#)[^"]*"|@import|url\((?!#)', text) == []
    assert "default-src 'none'" in text


def test_no_name_of_the_data_becomes_markup(reported: Path) -> None:
    assert SCRIPT not in page(reported)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page(reported)


def test_every_id_of_the_page_is_unique(reported: Path) -> None:
    ids = re.findall(r' id="([^"]+)"', page(reported))
    assert len(ids) == len(set(ids))


def test_every_section_is_there_with_a_figure_where_it_has_one(reported: Path) -> None:
    sections = dict(re.findall(r'<section id="(\w+)"(.*?)</section>', page(reported), flags=re.DOTALL))
    assert list(sections) == [
        *("verdict", "seeds", "differences", "cost", "curves", "telemetry", "errors", "calibration", "vectors"),
        *("layers", "data", "origin"),
    ]
    drawn = {name for name, text in sections.items() if "<svg" in text}
    assert drawn == set(sections) - {"verdict", "data", "origin"}


def test_a_page_for_publishing_shows_ids_alone(reported: Path, small: Path) -> None:
    assert "secret text" in page(reported)
    assert ">secret</text>" in page(reported)  # a token of an attention map
    published = write_report(small, publish=True)
    assert published.name == "published.html"
    assert "secret" not in published.read_text()
    assert "row-" in published.read_text()


def test_a_page_for_publishing_shows_no_folders(small: Path) -> None:
    about = json.loads((small / "study.json").read_text())
    about["command"] = "steadytune study /home/somebody/plan.yaml --output ../runs/mine"
    (small / "study.json").write_text(json.dumps(about))
    (small / "plan.yaml").write_text("tasks: {shop: {source: /home/somebody/shop.csv}, hub: {source: owner/name}}")
    text = write_report(small, publish=True).read_text()
    assert "somebody" not in text
    assert "steadytune study plan.yaml --output mine" in text
    assert "source: shop.csv" in text and "source: owner/name" in text


# -- which record is whose --------------------------------------------------------------------------------------------


def name_records(folder: Path) -> dict[str, Any]:
    """Say in `study.json` which record is that of each planned run, as a study does; what it says then."""
    about: dict[str, Any] = json.loads((folder / "study.json").read_text())
    for cell in about["cells"]:
        cell["id"] = config_hash({name: value for name, value in cell.items() if name not in ("id", "isolates")})
    (folder / "study.json").write_text(json.dumps(about))
    return about


def test_a_record_of_settings_that_were_changed_since_is_left_out_and_counted(small: Path) -> None:
    about = name_records(small)
    one = next(cell for cell in about["cells"] if cell["recipe"] == "hype")
    record = small / "records" / f"{one['id']}.json"
    record.rename(record.with_name("0" * 16 + ".json"))
    study = read_study(small)
    assert (one["recipe"], one["seed"]) in {(cell.arm.recipe, cell.seed) for cell in study.missing}
    assert study.stale == 1
    write_report(small)
    assert "1 records belong to no planned run" in page(small)


def test_two_places_may_share_a_run(small: Path) -> None:
    about = name_records(small)
    about["cells"] += [{**cell, "protocol": "the same rows by another name"} for cell in about["cells"]]
    (small / "study.json").write_text(json.dumps(about))
    study = read_study(small)
    assert len(study.places) == 2
    assert {cell.place.protocol for cell in study.runs} == {cell.place.protocol for cell in study.planned}


def test_a_recipe_without_any_record_still_counts_in_the_correction(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study", ["shop"])
    for path in (folder / "records").glob("*.json"):
        if json.loads(path.read_text())["cell"]["recipe"] == "hype":
            path.unlink()
    (rows,) = standings(read_study(folder)).values()
    standing = next(row.standing for row in rows if row.arm.recipe == "scl")
    assert standing and standing.verdict and standing.comparison and standing.comparison.p_value is not None
    assert standing.verdict.adjusted_p_value == min(1.0, 2 * standing.comparison.p_value)  # of two, the smaller


def test_no_table_on_file_holds_a_text(reported: Path) -> None:
    assert not any("secret" in path.read_text() for path in (reported / "tables").iterdir())


def test_a_table_that_is_empty_now_leaves_no_file_of_before(small: Path) -> None:
    (small / "tables").mkdir()
    (small / "tables" / "trials.md").write_text("of an earlier report")
    write_report(small)
    assert not (small / "tables" / "trials.md").exists()


# -- what may be missing ----------------------------------------------------------------------------------------------


def all_failed(folder: Path) -> None:
    edit(folder, status="failed", failure="x", scores={}, cost=None, history=[], task="", metric="", label_names=[])
    shutil.rmtree(folder / "artifacts")


def nothing_run(folder: Path) -> None:
    shutil.rmtree(folder / "records")
    shutil.rmtree(folder / "artifacts")


def no_overview(folder: Path) -> None:
    (folder / "study.json").unlink()
    (folder / "plan.yaml").unlink()


def null_values(folder: Path) -> None:
    edit(folder, scores={"test": {"accuracy": None}}, history=[{"step": None, "loss": None}, {"loss": 1.0}], cost=None)


def nan_logits(folder: Path) -> None:
    for place in (folder / "artifacts").iterdir():
        write_predictions(place / "predictions.parquet", ["a"], ["test"], {"label": [0], "logits": [[np.nan] * 3]})


def unknown_task(folder: Path) -> None:
    edit(folder, task="spans", metric="exact_match", scores={"test": {"exact_match": 0.5}}, label_names=[])


CHANGES: list[Change] = [
    all_failed,
    nothing_run,
    no_overview,
    lambda folder: shutil.rmtree(folder / "artifacts"),
    null_values,
    nan_logits,
    unknown_task,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_report_is_made_whatever_is_missing(small: Path, change: Change) -> None:
    change(small)
    write_report(small)
    assert page(small).count("<section") >= 11


@pytest.mark.parametrize("arms", [{"plain": "baseline"}, {"scl": "recipe"}])
def test_a_report_is_made_of_one_recipe_and_one_seed(arms: dict[str, str], tmp_path: Path) -> None:
    folder = make_study(tmp_path / "one", ["similarity"], arms, [0])
    write_report(folder)
    assert page(folder).count("<section") == 11  # nobody looked at its layers


def test_a_folder_without_a_study_is_refused_and_left_alone(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no study"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []

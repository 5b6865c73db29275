"""The report of pre-training runs: curves by steps, time and compute, and what keeps runs from being compared."""

from pathlib import Path
from typing import Any

import pytest

from steadytune.records import Cost, Point, PretrainRecord, StoreError, Texts, read_pretraining, write_record
from steadytune.records.pretraining import is_pretraining
from steadytune.reports.pretraining import write_pretraining_report


def record_of(recipe: str = "plain", *, seed: int = 0, slower: float = 1.0, **changes: Any) -> PretrainRecord:
    points = [
        Point(step=10 * i, seconds=slower * i, pass_units=30 * slower * i, loss=5.0 - i, accuracy=0.1 * i)
        for i in range(4)
    ]
    run = {"steps": 30, "minutes": None, "max_length": 16, "mask_fraction": 0.15, "fixed_count": False}
    values: dict[str, Any] = {
        "run_id": "0" * 16,
        "config": {
            "texts": {"train": ["/secret/place/novels.txt"], "dev": "/secret/other/letters.txt"},
            "model": "new:/secret/shapes/config.json",
            "recipe": {"name": f"pretrain/{recipe}", "methods": {}, "dropout": {}, "model": None, "longer": 1.0},
            "run": run,
            "seed": seed,
        },
        "metric": "accuracy",
        "data_fingerprints": {"train": "a", "dev": "b"},
        "data": {"train": Texts(texts=9, tokens=90, sequences=6), "dev": Texts(sequences=2, masked_places=5)},
        "data_notes": [],
        "model_name": "new:config.json",
        "model_revision": "new 0123456789ab",
        "vocabulary": 100,
        "tokenizer": "c",
        "parameters": 10,
        "dropout": {"hidden": 0.1},
        "learning_rate": 1e-3,
        "coefficients": {"task": 1.0},
        "status": "done",
        "scores": {"dev": {"accuracy": 0.3, "loss": 2.0, "perplexity": 7.39}},
        "curve": points,
        "history": [{"step": float(s), "loss": 3.0, "asa/keep_rate": 0.875} for s in (10, 20, 30)],
        "notices": ["<b>said</b>"],
        "cost": Cost(
            optimizer_steps=30, forward_passes=30, pass_units=90, tokens=480, train_seconds=3, peak_memory_bytes=1
        ),
        "versions": {"python": "3"},
        "hardware": {"cores": 2},
    }
    return PretrainRecord(**{**values, **changes})


def report(folder: Path, *records: PretrainRecord) -> str:
    folders = []
    for number, record in enumerate(records):
        (folder / f"run-{number}").mkdir()
        write_record(folder / f"run-{number}" / "record.json", record)
        folders.append(folder / f"run-{number}")
    return write_pretraining_report(folders, folder / "page.html").read_text(encoding="utf-8")


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_record(tmp_path / "record.json", record_of("asa"))
    assert read_pretraining(tmp_path) == record_of("asa") and is_pretraining(tmp_path)


def test_the_page_shows_every_run_at_its_end_and_every_curve(tmp_path: Path) -> None:
    page = report(tmp_path, record_of(), record_of("asa", slower=2.1))
    for words in ("run-0", "run-1", "2.0000", "30.00", "0.875", "2 pre-training runs, 2 recipes"):
        assert words in page
    for title in ("validation loss by steps", "validation loss by seconds", "validation accuracy by pass units"):
        assert title in page
    assert "asa/keep_rate" in page and page.count("<svg") == 6 + 2


def test_seeds_of_one_recipe_are_one_curve(tmp_path: Path) -> None:
    page = report(tmp_path, record_of(), record_of(seed=1), record_of("asa"))
    assert "3 pre-training runs, 2 recipes" in page


def test_one_recipe_with_two_budgets_is_two_curves_that_say_so(tmp_path: Path) -> None:
    timed = record_of()
    timed.config["run"].update(steps=None, minutes=2.0)
    page = report(tmp_path, record_of(), timed)
    assert "plain (30 steps)" in page and "plain (2 min)" in page


def test_runs_of_one_recipe_are_named_by_the_settings_in_which_they_differ(tmp_path: Path) -> None:
    slow, fast, scheduled = record_of("asa"), record_of("asa", learning_rate=2e-3), record_of("asa")
    fast.config["run"]["learning_rate"] = 2e-3
    scheduled.config["recipe"]["methods"] = {"asa": {"weight": 2.0}}
    page = report(tmp_path, record_of(), slow, fast, scheduled)
    for name in ("plain", "asa (learning_rate 0.001, asa.weight default)", "asa (learning_rate 0.002, asa.weight def"):
        assert name in page
    assert "asa (learning_rate 0.001, asa.weight 2.0)" in page and "plain (" not in page


def test_runs_of_one_recipe_that_differ_in_no_setting_are_named_by_their_folders(tmp_path: Path) -> None:
    page = report(tmp_path, record_of(), record_of(data_fingerprints={"train": "z", "dev": "b"}))
    assert "plain (run-0)" in page and "plain (run-1)" in page


def test_a_recipe_that_trains_longer_is_said_to_fit_one_plain_share_only(tmp_path: Path) -> None:
    said = "takes the time of ASA only where run.plain_fraction is 0.2"
    longer = record_of("plain-equal-time")
    longer.config["recipe"]["longer"] = 1.9
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    assert said in report(tmp_path / "with", record_of(), longer)
    assert said not in report(tmp_path / "without", record_of(), record_of("asa"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": {"train": Texts(sequences=6), "dev": Texts(sequences=3, masked_places=5)}}, "the same masked set"),
        ({"data_fingerprints": {"train": "a", "dev": "c"}}, "the same masked set"),
        ({"data_fingerprints": {"train": "c", "dev": "b"}}, "did not learn from the same texts"),
        ({"model_revision": "other"}, "did not begin with the same weights"),
        ({"hardware": {"cores": 4}}, "did not have the same hardware"),
        ({"vocabulary": 64}, "the same masked set"),
        ({"tokenizer": "d"}, "the same masked set"),
        ({"seed": 1}, "did not begin with the same weights"),
    ],
)
def test_runs_that_do_not_compare_are_said_not_to(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    assert words in report(tmp_path, record_of(), record_of("asa", **changes))


def test_runs_that_compare_carry_no_warning(tmp_path: Path) -> None:
    records = [record_of(recipe, seed=seed, notices=[]) for recipe in ("plain", "asa") for seed in (0, 1)]
    page = report(tmp_path, *records)
    assert "did not" not in page and "not measured" not in page


def test_other_seeds_of_one_trained_model_begin_with_the_same_weights(tmp_path: Path) -> None:
    trained: dict[str, Any] = {"model_name": "mine", "model_revision": "e", "notices": []}
    assert "did not" not in report(tmp_path, record_of(**trained), record_of("asa", seed=1, **trained))


def test_places_of_files_stay_out_and_words_are_escaped(tmp_path: Path) -> None:
    noted = record_of(data_notes=["/secret/place/novels.txt: one text per line", "/secret/other/letters.txt: <cut>"])
    noted.config["recipe"]["model"] = noted.config["model"]
    page = report(tmp_path, noted)
    for name in ("novels.txt: one text per line.", "letters.txt: &lt;cut&gt;.", "new:config.json", "dev: letters.txt"):
        assert name in page
    assert "/secret" not in page
    assert "&lt;b&gt;said&lt;/b&gt;" in page and "<b>said" not in page


def test_a_failed_run_is_named_with_its_reason(tmp_path: Path) -> None:
    failed = record_of("asa", status="failed", failure="training diverged", scores={"dev": {"loss": None}})
    assert "run-1: training diverged." in report(tmp_path, record_of(), failed)


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    first = report(tmp_path, record_of(), record_of("asa"))
    again = write_pretraining_report([tmp_path / "run-0", tmp_path / "run-1"], tmp_path / "again.html")
    assert again.read_text(encoding="utf-8") == first


def test_a_folder_without_such_a_record_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no record of a finished pre-training run"):
        write_pretraining_report([tmp_path], tmp_path / "page.html")
    assert not is_pretraining(tmp_path)

"""`steadytune compare`: a verdict, the same one after any interruption, and refusals before the first step."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[[str], Any]

BARE = "compare reviews.csv -m encoder --max-length 32 --learning-rate 0.003 --epochs 1 --eval-rows 8"
SHORT = BARE + " --second-baseline none"


def scores(folder: Path) -> dict[str, dict[str, Any]]:
    """Test scores by cell id."""
    return {path.stem: json.loads(path.read_text())["scores"] for path in (folder / "records").glob("*.json")}


def test_every_recipe_meets_every_seed_and_is_judged(workplace: Path, run: Run) -> None:
    done = run(SHORT + " --recipes plain,scl,hype --seeds 2 --json -o out")
    assert done.code == 0
    (table,) = json.loads(done.out)["tables"]
    assert {arm["recipe"]: (arm["role"], sorted(arm["scores"])) for arm in table["arms"]} == {
        "plain": ("baseline", ["0", "1"]),
        "hype": ("recipe", ["0", "1"]),
        "scl": ("recipe", ["0", "1"]),
    }
    assert {arm["verdict"]["outcome"] for arm in table["arms"] if arm["verdict"]} == {"no evidence"}  # below 5 seeds
    assert len(scores(Path("out"))) == 6
    assert not any(Path("out/work").glob("*"))


def test_it_says_first_what_will_run_and_what_it_could_find(workplace: Path, run: Run) -> None:
    done = run(SHORT + " --recipes plain,scl --seeds 1 -o out")
    assert "2 runs, 0 on record" in done.err
    assert "too few seeds for any verdict (1); use at least 5." in done.err
    assert "run 2 of 2 done" in done.err
    assert "A verdict needs at least 5 seeds" in done.out


def test_a_repeated_command_repeats_no_run_and_a_removed_record_is_made_again(workplace: Path, run: Run) -> None:
    words = SHORT + " --recipes plain,scl --seeds 2 --json -o out"
    first = run(words)
    before = {path.name: path.stat().st_mtime_ns for path in Path("out/records").iterdir()}
    found = scores(Path("out"))
    removed = next(Path("out/records").iterdir())
    removed.unlink()
    again = run(words)
    after = {path.name: path.stat().st_mtime_ns for path in Path("out/records").iterdir()}
    assert [name for name in before if after[name] != before[name]] == [removed.name]
    assert scores(Path("out")) == found
    assert json.loads(again.out)["tables"] == json.loads(first.out)["tables"]


def test_controls_are_run_and_not_judged(workplace: Path, run: Run) -> None:
    done = run(SHORT + " --recipes plain,hype --seeds 1 --controls --json -o out")
    (table,) = json.loads(done.out)["tables"]
    control = next(arm for arm in table["arms"] if arm["role"] == "control")
    assert (control["recipe"], control["verdict"]) == ("hype-control", None)


def test_the_strong_baseline_joins_unless_it_is_left_out_and_trains_longer(workplace: Path, run: Run) -> None:
    done = run(BARE + " --recipes plain,hype --seeds 1 --json -o out")
    (table,) = json.loads(done.out)["tables"]
    arms = {arm["recipe"]: arm for arm in table["arms"]}
    assert (arms["strong"]["role"], arms["strong"]["verdict"]) == ("control", None)
    steps = {}
    for path in Path("out/records").iterdir():
        record = json.loads(path.read_text())
        steps[record["cell"]["recipe"]] = record["cost"]["optimizer_steps"]
    assert steps["strong"] == 3 * steps["plain"]
    assert "earned by the control" in Path("out/report.html").read_text()


def test_equal_compute_counts_a_look_at_the_rows_and_a_longer_training(workplace: Path, run: Run) -> None:
    run(SHORT + " --recipes plain,child_tuning,strong --seeds 1 --budget equal-compute -o out")
    units = {}
    for path in Path("out/records").iterdir():
        record = json.loads(path.read_text())
        units[record["cell"]["recipe"]] = record["cost"]["pass_units"]
    assert max(units.values()) - min(units.values()) <= 9  # a step of `strong` comes three times


def test_equal_compute_gives_the_cheaper_recipe_more_steps(workplace: Path, run: Run) -> None:
    run(SHORT + " --recipes plain,consistency --seeds 1 --budget both -o out")
    cost = {}
    for path in Path("out/records").iterdir():
        record = json.loads(path.read_text())
        cost[record["cell"]["recipe"], record["cell"]["budget"]] = record["cost"]
    steps = cost["plain", "steps"]["optimizer_steps"]
    assert cost["consistency", "steps"]["optimizer_steps"] == steps
    assert cost["plain", "compute"]["optimizer_steps"] == 2 * steps
    assert cost["plain", "compute"]["pass_units"] == cost["consistency", "compute"]["pass_units"]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("--recipes plain,slc", ("unknown recipe 'slc'", "did you mean 'scl'?")),
        ("--recipes plain,plain", ("recipes must differ",)),
        ("--recipes plain,scl --seeds 0", ("seeds must be",)),
        ("--recipes plain,scl --budget half", ("--budget must be", "'half'")),
        ("--recipes plain,scl --label-noise 2", ("label_noise", "2")),
        ("--recipes plain,scl --train-rows 4 --k-shot 2", ("train_rows", "k_shot")),
    ],
)
def test_a_bad_request_is_refused_before_anything_is_written(
    words: str, parts: tuple[str, ...], workplace: Path, run: Run
) -> None:
    done = run(f"{SHORT} {words} -o out")
    assert (done.code, done.out) == (2, "")
    assert all(part in done.err for part in parts), done.err
    assert "Traceback" not in done.err
    assert not Path("out").exists()


def test_another_plan_in_the_same_folder_is_refused(workplace: Path, run: Run) -> None:
    run(SHORT + " --recipes plain --seeds 1 -o out")
    done = run(SHORT + " --recipes plain,scl --seeds 2 -o out")
    assert (done.code, "holds another plan" in done.err) == (2, True)


def test_a_changed_recipe_file_gives_new_runs_and_the_old_ones_are_left_out(workplace: Path, run: Run) -> None:
    Path("mine.yaml").write_text("name: mine\nmethods: {scl: {weight: 0.1}}\n")
    words = SHORT + " --recipes plain,mine.yaml --seeds 1 --json -o out"
    run(words)
    before = scores(Path("out"))
    Path("mine.yaml").write_text("name: mine\nmethods: {scl: {weight: 0.6}}\n")
    (table,) = json.loads(run(words).out)["tables"]
    (new,) = scores(Path("out")).keys() - before.keys()
    (mine,) = (arm for arm in table["arms"] if arm["recipe"] == "mine")
    assert mine["scores"] == {"0": scores(Path("out"))[new]["test"]["accuracy"]}
    assert "1 records belong to no planned run" in Path("out/report.html").read_text()


def test_data_that_changed_since_are_refused(workplace: Path, run: Run) -> None:
    Path("own").mkdir()
    rows = Path("reviews.csv").read_text().splitlines(keepends=True)
    Path("own/train.csv").write_text("".join(rows[:40]))
    Path("own/test.csv").write_text("".join([rows[0], *rows[40:]]))
    words = "compare own" + SHORT.removeprefix("compare reviews.csv") + " --recipes plain,scl --seeds 1 -o out"
    assert run(words).code == 0
    Path("own/test.csv").write_text("".join([rows[0], *rows[44:]]))
    done = run(words)
    assert done.code == 2
    assert "the rows of 'own', 'eval_rows 8' are not those of the runs on record in out" in done.err


def test_two_recipes_of_one_name_are_refused(workplace: Path, run: Run) -> None:
    Path("mine.yaml").write_text("name: scl\nmethods: {scl: {weight: 0.6}}\n")
    done = run(SHORT + " --recipes plain,scl,mine.yaml --seeds 1 -o out")
    assert done.code == 2 and "have the name 'scl'; rename one." in done.err


def test_a_baseline_may_have_controls_of_its_own(workplace: Path, run: Run) -> None:
    assert run(SHORT + " --recipes hype,scl --seeds 1 --controls -o out").code == 0


def test_under_a_launcher_of_several_processes_it_refuses(
    workplace: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = run(SHORT + " --recipes plain,scl --seeds 1 -o out")
    assert done.code == 2 and "start it without a launcher" in done.err


@pytest.mark.slow  # the killed study in test_study.py is the same loop
def test_killed_at_any_moment_it_ends_with_the_same_records(workplace: Path, run: Run) -> None:
    words = SHORT + " --recipes plain,scl,hype --seeds 2"
    run(words + " -o unbroken")
    command = [sys.executable, "-m", "steadytune", *words.split(), "-o", "killed"]
    for finished in (1, 4):  # in the run after the first, and late, with a record that was there before the start
        with subprocess.Popen(command, stdout=-3, stderr=-3, start_new_session=True) as process:
            while len(scores(Path("killed"))) < finished and process.poll() is None:
                time.sleep(0.05)
            os.killpg(process.pid, signal.SIGKILL)
        assert len(scores(Path("killed"))) < 6
    assert run(words + " -o killed").code == 0
    assert scores(Path("killed")) == scores(Path("unbroken"))


@pytest.mark.slow
def test_two_processes_share_the_work(workplace: Path) -> None:
    words = SHORT + " --recipes plain,scl,hype --seeds 2 -o out"
    command = [sys.executable, "-m", "steadytune", *words.split()]
    both = [subprocess.Popen(command, stdout=-3, stderr=-3) for _ in range(2)]
    assert [process.wait(300) for process in both] == [0, 0]
    assert len(scores(Path("out"))) == 6
    assert not any(Path("out/work").glob("*"))

"""`steadytune study`: one set of records, whoever runs the plan and whatever interrupts it; refusals before a step."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from toyrun import write_data, write_model

Run = Callable[[str], Any]
PLAN: dict[str, Any] = {
    "model": "model",
    "tasks": {"toy": {"source": "data"}},
    "recipes": ["plain", "scl"],
    "seeds": 1,
    "run": {"epochs": 1, "min_steps": 6, "batch_size": 4, "max_length": 16, "logging_steps": 2},
    "search": {
        "trials": 2,
        "space": {"run.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}, "scl.weight": [0.1, 0.5]},
    },
}
TRIALS, FINALS = 4, 2


def write_plan(**changes: Any) -> None:
    Path("plan.yaml").write_text(yaml.safe_dump({**PLAN, **changes}))


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    write_data(folder / "data")
    write_model(folder / "model")
    return folder


@pytest.fixture(autouse=True)
def workplace(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workshop)
    write_plan()


@pytest.fixture
def unbroken(workshop: Path, workplace: None, run: Run) -> Path:
    """The plan, run once in this process."""
    folder = workshop / "unbroken"
    if not folder.exists():
        assert run("study plan.yaml -o unbroken").code == 0
    return folder


def raw(folder: Path) -> dict[str, dict[str, Any]]:
    """All records by cell id."""
    return {path.stem: json.loads(path.read_text()) for path in (folder / "records").glob("*.json")}


def outcomes(folder: Path) -> dict[str, Any]:
    """What each run was, and came to, by the hash of its settings."""
    return {
        cell: (record["cell"], record["status"], record["scores"], [line.get("loss") for line in record["history"]])
        for cell, record in raw(folder).items()
    }


def start(words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "steadytune", "study", "plan.yaml", *words.split()]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def wait_for_records(folder: Path, number: int) -> None:
    deadline = time.monotonic() + 240
    while len(list((folder / "records").glob("*.json"))) < number:
        assert time.monotonic() < deadline, "no records appear"
        time.sleep(0.05)


def test_every_recipe_has_its_trials_and_then_its_final_runs(unbroken: Path) -> None:
    roles = sorted((record["cell"]["recipe"], record["cell"]["role"]) for record in raw(unbroken).values())
    assert roles == [
        ("plain", "baseline"),
        ("plain", "trial"),
        ("plain", "trial"),
        ("scl", "recipe"),
        ("scl", "trial"),
        ("scl", "trial"),
    ]


def test_trials_leave_the_test_rows_closed(unbroken: Path) -> None:
    for cell, record in raw(unbroken).items():
        splits = pq.read_table(unbroken / "artifacts" / cell / "predictions.parquet")["split"].to_pylist()
        opened = {"dev"} if record["cell"]["role"] == "trial" else {"dev", "test"}
        assert (set(record["scores"]), set(splits)) == (opened, opened)
        assert (unbroken / "artifacts" / cell / "pooled.parquet").exists() == ("test" in opened)


def test_final_runs_hold_the_settings_of_the_trial_with_the_best_dev_score(unbroken: Path) -> None:
    records = list(raw(unbroken).values())
    for recipe in ("plain", "scl"):
        own = [record for record in records if record["cell"]["recipe"] == recipe]
        trials = sorted((r for r in own if r["cell"]["role"] == "trial"), key=lambda r: r["cell"]["trial"])
        best = max(trials, key=lambda record: record["scores"]["dev"]["accuracy"])  # the first of equals
        (final,) = (record for record in own if record["cell"]["role"] != "trial")
        assert [trial["config"]["seed"] for trial in trials] == [1000, 1000]
        assert final["config"]["seed"] == 0
        assert final["config"]["run"] == best["config"]["run"]
        assert final["config"]["recipe"] == best["config"]["recipe"]


def test_a_repeated_command_repeats_no_run(unbroken: Path, run: Run) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in (unbroken / "records").iterdir()}
    done = run("study plan.yaml -o unbroken --json")
    assert {path.name: path.stat().st_mtime_ns for path in (unbroken / "records").iterdir()} == before
    said = json.loads(done.out)
    assert (done.code, said["left"], len(said["tables"])) == (0, 0, 1)
    assert {choice["recipe"]: list(choice["settings"]) for choice in said["chosen"]} == {
        "plain": ["run.learning_rate"],
        "scl": ["run.learning_rate", "scl.weight"],
    }


def test_a_dry_run_names_every_run_with_its_cost_and_writes_nothing(run: Run) -> None:
    done = run("study plan.yaml -o nothing --dry-run --json")
    rows = json.loads(done.out)["runs"]
    assert [row["role"] for row in rows] == ["trial"] * TRIALS + ["baseline", "recipe"]
    steps = 12  # an epoch of 48 rows in batches of 4, more than the 6 at least
    assert {(row["state"], row["pass_units"]) for row in rows} == {("open", 3.0 * steps)}
    assert all(row["seconds"] > 0 for row in rows)
    assert not Path("nothing").exists()


def test_a_dry_run_says_what_is_done(unbroken: Path, run: Run) -> None:
    before = sorted(unbroken.rglob("*"))
    done = run("study plan.yaml -o unbroken --dry-run")
    assert f"{TRIALS + FINALS} runs, {TRIALS + FINALS} done, 0 failed; about 0 minutes for the rest." in done.out
    assert sorted(unbroken.rglob("*")) == before


def test_a_large_dry_run_is_a_table_by_place(run: Run) -> None:
    write_plan(seeds=30)
    done = run("study plan.yaml -o nothing --dry-run")
    assert len([line for line in done.out.splitlines() if line.startswith("toy ")]) == 4  # two recipes: trials, runs
    assert f"{TRIALS + 60} runs" in done.out


def test_killed_it_goes_on_with_the_same_suggestions(unbroken: Path, run: Run) -> None:
    with start("-o killed") as process:
        wait_for_records(Path("killed"), 1)  # in the middle of the first chain
        os.killpg(process.pid, signal.SIGKILL)
    assert run("study plan.yaml -o killed").code == 0
    assert outcomes(Path("killed")) == outcomes(unbroken)


def test_two_processes_share_the_work(unbroken: Path) -> None:
    both = [start("-o shared") for _ in range(2)]
    assert [process.wait(300) for process in both] == [0, 0]
    assert outcomes(Path("shared")) == outcomes(unbroken)
    assert not any(Path("shared/work").glob("*"))


@pytest.mark.slow
def test_a_worker_that_dies_is_reported_and_the_other_does_its_runs(unbroken: Path, run: Run) -> None:
    def kill_one() -> None:
        wait_for_records(Path("workers"), 1)
        victim = multiprocessing.active_children()[0].pid
        assert victim is not None
        os.kill(victim, signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    done = run("study plan.yaml -o workers --workers 2")
    killer.join()
    assert done.code == 0
    assert "was killed by signal SIGKILL; 1 go on." in done.err
    assert outcomes(Path("workers")) == outcomes(unbroken)


def test_if_all_workers_die_the_runs_that_are_left_are_counted(run: Run) -> None:
    def kill_all() -> None:
        deadline = time.monotonic() + 240
        while len(crew := multiprocessing.active_children()) < 2:
            assert time.monotonic() < deadline, "no workers appear"
            time.sleep(0.05)
        for process in crew:
            process.kill()

    killer = threading.Thread(target=kill_all)
    killer.start()
    done = run("study plan.yaml -o dead --workers 2")
    killer.join()
    assert done.code == 1
    assert f"{FINALS} of {FINALS} final runs have no record; repeat the command." in done.err


@pytest.mark.slow
def test_ray_leaves_the_same_records(unbroken: Path, run: Run) -> None:
    pytest.importorskip("ray")
    assert run("study plan.yaml -o ray --ray").code == 0
    assert outcomes(Path("ray")) == outcomes(unbroken)


def test_if_all_trials_fail_the_final_runs_fail_and_say_why(run: Run) -> None:
    write_plan(recipes=["plain"], search={"trials": 2, "space": {"run.learning_rate": [1e30, 2e30]}})
    done = run("study plan.yaml -o failing")
    final = [record for record in raw(Path("failing")).values() if record["cell"]["role"] == "baseline"]
    assert done.code == 1
    assert [(record["status"], record["failure"]) for record in final] == [
        ("failed", "no settings to run with: all 2 trials of the search failed")
    ]


def test_recipes_with_models_of_their_own_hold_checkpoints_against_each_other(workshop: Path, run: Run) -> None:
    for seed, name in enumerate(("one", "other"), start=1):
        write_model(workshop / f"encoder-{name}", seed)
        Path(f"{name}.yaml").write_text(f"name: {name}\nmodel: encoder-{name}\n")
    write_plan(recipes=["plain", "one.yaml", "other.yaml"], search=None)
    assert run("study plan.yaml -o checkpoints").code == 0
    records = {record["cell"]["recipe"]: record for record in raw(Path("checkpoints")).values()}
    assert {name: record["model_name"] for name, record in records.items()} == {
        "plain": workshop.name,  # a folder named "model" goes by that of the run around it
        "one": "encoder-one",
        "other": "encoder-other",
    }
    assert len({record["model_revision"] for record in records.values()}) == 3
    assert run("study plan.yaml -o checkpoints").code == 0  # their weights are those on record
    write_model(workshop / "encoder-other", seed=3)
    assert "the model's weights of" in run("study plan.yaml -o checkpoints").err


def test_without_a_search_a_plan_is_its_final_runs(run: Run) -> None:
    write_plan(search=None)
    assert run("study plan.yaml -o direct").code == 0
    assert sorted(record["cell"]["role"] for record in raw(Path("direct")).values()) == ["baseline", "recipe"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"recipes": ["plain", "slc"]}, "plan.yaml: recipes[1]: unknown recipe 'slc'; did you mean 'scl'?"),
        ({"tasks": {"toy": {"source": "nowhere.csv"}}}, "plan.yaml: nowhere.csv"),
        (
            {"tasks": {"toy": {"source": "data", "sorce": 1}}},
            "plan.yaml: task 'toy' with protocol 'as published': unknown entry sorce",
        ),
        ({"run": {"epochs": -1}}, "plan.yaml: run.epochs must be greater than 0; got -1."),
        (
            {"run": {"examples_per_class": 20}},
            "plan.yaml: run.examples_per_class must be at most run.batch_size, 16; got 20.",
        ),
        ({"seeds": [2**31]}, "plan.yaml: seed must be less than 2147483648; got 2147483648."),
        ({"recipe": ["plain"]}, "plan.yaml: unknown entry recipe; did you mean 'recipes'?"),
        (
            {"search": {"space": {"scl.wait": [1]}}},
            "plan.yaml: search.space.scl.wait, recipe 'scl': scl has no setting",
        ),
        ({"search": {"space": {"scl.weight": [0.1]}, "seeds": [0]}}, "plan.yaml: search.seeds must not be final seeds"),
        (
            {"search": {"space": {"scl.weight": [0.1]}}},
            "plan.yaml: search.space concerns no setting of recipe 'plain', which would get no trials",
        ),
        ({"recipes": ["plain", "own.yaml"]}, "plan.yaml: recipes[1]: the name 'plain' is that of recipes[0] too"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_with_its_file_and_place(
    changes: dict[str, Any], sentence: str, run: Run
) -> None:
    Path("own.yaml").write_text("name: plain\n")
    write_plan(**changes)
    done = run("study plan.yaml -o refused")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"steadytune: {sentence}"), done.err
    assert len(done.err.splitlines()) == 1
    assert not Path("refused").exists()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("study missing.yaml", "plan file missing.yaml does not exist"),
        ("study plan.yaml --workers 0", "--workers"),
        ("study plan.yaml --workers 2 --ray", "leave --workers out"),
    ],
)
def test_a_bad_request_is_refused(words: str, part: str, run: Run) -> None:
    done = run(words)
    assert (done.code, done.out) == (2, "")
    assert part in done.err


def test_without_ray_it_says_what_to_install(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    done = run("study plan.yaml -o refused --ray")
    assert (done.code, "install it with pip install 'steadytune[ray]'." in done.err) == (2, True)
    assert not Path("refused").exists()

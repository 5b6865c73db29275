"""A killed run ends like an unbroken one: resumed from its last whole checkpoint, to the bit."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.trainer_callback import TrainerState

from steadytune.recipes import RunConfig, save_run
from steadytune.records import RunRecord
from steadytune.training import fit as fit_module
from steadytune.training.fit import Progress, fit
from steadytune.training.loading import RunError
from steadytune.training.trainer import RegularizedTrainer
from toyrun import recipe_of, run_of, write_data, write_model

pytestmark = pytest.mark.usefixtures("imports_stay_out_of_garbage_collection")
ALL_BATCHES = {"scl__gather_across_accumulation": True}
RUNS: dict[str, Callable[..., RunConfig]] = {  # 20, 12 or 8 steps and a checkpoint every 4; an epoch has 12 batches
    "plain": lambda *where: run_of(*where, recipe_of("plain")),
    "stack, accumulated": lambda *where: run_of(*where, recipe_of("scl+hype"), accumulation_steps=2, min_steps=8),
    "contrast over the accumulated": lambda *where: run_of(
        *where, recipe_of("scl+hype", **ALL_BATCHES), accumulation_steps=2
    ),
    "uneven groups": lambda *where: run_of(*where, recipe_of("scl", **ALL_BATCHES), accumulation_steps=5, min_steps=8),
    "class-balanced batches": lambda *where: run_of(
        *where, recipe_of("scl+hype"), examples_per_class=2, min_steps=8, epochs=0.5
    ),
    "full stack": lambda *where: run_of(
        *where, recipe_of("scl+cat+hype+lnsr+asa", asa__target_mask_fraction=0.2), min_steps=12
    ),
}


class Killed(BaseException):
    """Stands for a signal: nothing that handles exceptions may catch it."""


class Runs:
    """Toy data and model, and the unbroken run of every configuration, trained when first asked for."""

    def __init__(self, folder: Path) -> None:
        self.where = (write_data(folder / "data"), write_model(folder / "encoder"))
        self.folder = folder
        self.unbroken = cache(self._unbroken)
        self.own: dict[str, dict[str, Tensor]] = {}
        """By configuration, what the methods owned when the unbroken run ended."""

    def config(self, name: str) -> RunConfig:
        return RUNS[name](*self.where)

    def _unbroken(self, name: str) -> tuple[RunRecord, dict[str, Tensor]]:
        output = self.folder / name
        with own_parameters() as self.own[name]:
            record = fit(self.config(name), output)
        return record, weights_of(output)


@contextmanager
def own_parameters() -> Iterator[dict[str, Tensor]]:
    """Parameters and buffers of the methods at the end of the training inside this block."""
    found: dict[str, Tensor] = {}
    train = RegularizedTrainer.train

    def spied(self: RegularizedTrainer, *args: Any, **kwargs: Any) -> Any:
        result = train(self, *args, **kwargs)
        found.update(self.regularized_model.method_modules.state_dict())
        return result

    with patch.object(RegularizedTrainer, "train", spied):
        yield found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


def weights_of(output: Path) -> dict[str, Tensor]:
    return load_file(output / "model" / "model.safetensors")


def checkpoints_of(output: Path) -> set[str]:
    return {path.name for path in (output / "checkpoints").iterdir()}


def stopped_at(config: RunConfig, output: Path, step: int) -> None:
    """Break off at the end of a step, before a checkpoint of this step would be written."""

    def watch(progress: Progress) -> None:
        if progress.phase == "train" and progress.step == step:
            raise Killed

    with pytest.raises(Killed):
        fit(config, output, watch=watch)


def repeated(config: RunConfig, output: Path) -> tuple[RunRecord, list[int]]:
    """The record of the same call again, and the steps that it ran."""
    ran: list[int] = []
    record = fit(config, output, watch=lambda now: ran.append(now.step) if now.phase == "train" else None)
    return record, ran


def assert_like_unbroken(record: RunRecord, output: Path, unbroken: tuple[RunRecord, dict[str, Tensor]]) -> None:
    expected, weights = unbroken
    ours = weights_of(output)
    assert ours.keys() == weights.keys()
    assert [name for name in ours if not torch.equal(ours[name], weights[name])] == []
    cost = {"train_seconds", "evaluate_seconds", "peak_memory_bytes"}
    may_differ = {
        "cost": cost,
        "history": True,
        "resumed_from_step": True,
        "commit": True,
    }  # someone may commit meanwhile
    assert record.model_dump(exclude=may_differ) == expected.model_dump(exclude=may_differ)
    lines = [[line for line in r.history if "loss" in line] for r in (record, expected)]
    assert lines[0] == lines[1]
    assert not (output / "checkpoints").exists()


# -- killed by a signal -----------------------------------------------------------------------------------------------

CHILD = """
import sys, time
from pathlib import Path
from transformers.trainer_callback import TrainerState
from steadytune.recipes import load_run
from steadytune.training.fit import fit

config, output, moment, number = sys.argv[1:]

def wait_for_the_signal():
    print("ready", flush=True)
    time.sleep(600)

def watch(progress):
    if moment == "step" and progress.phase == "train" and progress.step == int(number):
        wait_for_the_signal()

save = TrainerState.save_to_json
def save_to_json(self, path):
    if moment == "checkpoint" and self.global_step == int(number):
        wait_for_the_signal()
    save(self, path)
TrainerState.save_to_json = save_to_json

fit(load_run(config), Path(output), watch=watch)
"""


def killed(config: RunConfig, output: Path, moment: str, number: int) -> None:
    """Run in a process of its own and kill its group with SIGKILL at this moment."""
    file = output.with_suffix(".yaml")
    save_run(config, file)
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(file), str(output), moment, str(number)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},  # more threads add up in another order
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
        assert process.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_a_run_killed_inside_an_epoch_ends_with_the_weights_and_own_parameters_of_an_unbroken_one(
    runs: Runs, tmp_path: Path
) -> None:
    config, output = runs.config("full stack"), tmp_path / "run"
    killed(config, output, "step", 10)
    assert checkpoints_of(output) == {"checkpoint-4", "checkpoint-8"}
    with own_parameters() as own:
        record, ran = repeated(config, output)
    assert record.resumed_from_step == 8 and ran == list(range(9, 13))
    assert_like_unbroken(record, output, runs.unbroken("full stack"))
    expected = runs.own["full stack"]
    assert {name.split(".")[0] for name in expected} == {"cat", "asa"} and expected["asa.log_multiplier"] != 0
    assert own.keys() == expected.keys()
    assert [name for name in own if not torch.equal(own[name], expected[name])] == []


def test_a_run_killed_while_it_writes_a_checkpoint_goes_on_from_the_one_before(runs: Runs, tmp_path: Path) -> None:
    name = "contrast over the accumulated"
    config, output = runs.config(name), tmp_path / "run"
    killed(config, output, "checkpoint", 12)
    assert (output / "checkpoints" / "checkpoint-12" / "model.safetensors").exists()
    record, ran = repeated(config, output)
    assert record.resumed_from_step == 8 and ran == list(range(9, 21))
    assert_like_unbroken(record, output, runs.unbroken(name))


# -- stopped at any step ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "step", "resumed_from"),
    [
        pytest.param("plain", 3, None, id="before the first checkpoint"),
        pytest.param("plain", 8, 4, id="before the second checkpoint"),
        pytest.param("contrast over the accumulated", 11, 8, id="late in an interval"),
        pytest.param("contrast over the accumulated", 14, 12, id="checkpoint between two epochs"),
        pytest.param("plain", 15, 12, id="checkpoint between two plain epochs"),
        pytest.param("plain", 20, 16, id="after the last step"),
    ],
)
def test_a_run_stopped_at_any_step_repeats_at_most_one_interval_and_ends_the_same(
    name: str, step: int, resumed_from: int | None, runs: Runs, tmp_path: Path
) -> None:
    config = runs.config(name)
    stopped_at(config, tmp_path / "run", step)
    record, ran = repeated(config, tmp_path / "run")
    assert record.resumed_from_step == resumed_from
    assert ran == list(range((resumed_from or 0) + 1, 21))
    assert step - (resumed_from or 0) <= config.run.checkpoint_steps
    assert_like_unbroken(record, tmp_path / "run", runs.unbroken(name))


@pytest.mark.parametrize("name", ["stack, accumulated", "uneven groups", "class-balanced batches"])
def test_other_batches_and_methods_resume_too(name: str, runs: Runs, tmp_path: Path) -> None:
    stopped_at(runs.config(name), tmp_path / "run", 6)
    record, _ = repeated(runs.config(name), tmp_path / "run")
    assert record.resumed_from_step == 4
    assert_like_unbroken(record, tmp_path / "run", runs.unbroken(name))


def test_a_run_stopped_twice_ends_the_same(runs: Runs, tmp_path: Path) -> None:
    name = "contrast over the accumulated"
    for step in (7, 14):
        stopped_at(runs.config(name), tmp_path / "run", step)
    record, _ = repeated(runs.config(name), tmp_path / "run")
    assert record.resumed_from_step == 12
    assert_like_unbroken(record, tmp_path / "run", runs.unbroken(name))


def test_a_run_stopped_after_the_export_and_before_the_record_ends_the_same(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise Killed

    config, output = runs.config("plain"), tmp_path / "run"
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(fit_module, "write_record", stop)
        fit(config, output)
    assert (output / "model").exists() and not (output / "record.json").exists()
    record, _ = repeated(config, output)
    assert record.resumed_from_step == 16
    assert_like_unbroken(record, output, runs.unbroken("plain"))


def test_settings_that_yaml_writes_otherwise_are_still_the_same_run(runs: Runs, tmp_path: Path) -> None:
    config = run_of(*runs.where, recipe_of("hype", hype__layers=(0, 1)))
    stopped_at(config, tmp_path / "run", 6)
    assert fit(config, tmp_path / "run").resumed_from_step == 4


# -- what can be trusted ----------------------------------------------------------------------------------------------


def shortened(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def broken_off(runs: Runs) -> Callable[[Path], RunConfig]:
    """Makes a run that stopped with two checkpoints."""
    first = runs.folder / "broken off"
    stopped_at(runs.config("plain"), first, 10)

    def copy_to(output: Path) -> RunConfig:
        for name, content in contents(first).items():
            (output / name).parent.mkdir(parents=True, exist_ok=True)
            (output / name).write_bytes(content)
        return runs.config("plain")

    return copy_to


@pytest.mark.parametrize("harm", [Path.unlink, shortened], ids=["lacking", "cut short"])
def test_a_checkpoint_without_its_last_file_is_passed_over(
    harm: Callable[[Path], None], broken_off: Callable[[Path], RunConfig], runs: Runs, tmp_path: Path
) -> None:
    config = broken_off(tmp_path)
    harm(tmp_path / "checkpoints" / "checkpoint-8" / "trainer_state.json")
    shortened(tmp_path / "checkpoints" / "checkpoint-8" / "model.safetensors")
    record, _ = repeated(config, tmp_path)
    assert record.resumed_from_step == 4
    assert_like_unbroken(record, tmp_path, runs.unbroken("plain"))


def test_without_any_whole_checkpoint_the_run_starts_anew(
    broken_off: Callable[[Path], RunConfig], runs: Runs, tmp_path: Path
) -> None:
    config = broken_off(tmp_path)
    for number in (4, 8):
        (tmp_path / "checkpoints" / f"checkpoint-{number}" / "trainer_state.json").unlink()
    record, _ = repeated(config, tmp_path)
    assert record.resumed_from_step is None
    assert_like_unbroken(record, tmp_path, runs.unbroken("plain"))


@pytest.mark.parametrize(
    ("name", "harm", "words"),
    [
        ("model.safetensors", shortened, "is corrupt"),
        ("optimizer.pt", shortened, "is corrupt"),
        ("scheduler.pt", shortened, "is corrupt"),
        ("rng_state.pth", shortened, "is corrupt"),
        ("steadytune_state.json", shortened, "is corrupt"),
        ("model.safetensors", Path.unlink, "lacks"),
        ("optimizer.pt", Path.unlink, "lacks"),
        ("rng_state.pth", Path.unlink, "lacks"),
        ("steadytune_state.json", Path.unlink, "lacks"),
    ],
)
def test_a_damaged_checkpoint_is_named_in_one_sentence_and_nothing_is_deleted(
    name: str,
    harm: Callable[[Path], None],
    words: str,
    broken_off: Callable[[Path], RunConfig],
    tmp_path: Path,
) -> None:
    config = broken_off(tmp_path)
    newest = tmp_path / "checkpoints" / "checkpoint-8"
    harm(newest / name)
    before = contents(tmp_path)
    with pytest.raises(RunError) as raised:
        fit(config, tmp_path)
    text = str(raised.value)
    assert str(newest) in text and words in text and name in text
    assert text.endswith("remove that folder to go on from an earlier one.") and "\n" not in text
    assert contents(tmp_path) == before


def test_the_remedy_for_a_damaged_checkpoint_works(
    broken_off: Callable[[Path], RunConfig], runs: Runs, tmp_path: Path
) -> None:
    config = broken_off(tmp_path)
    for file in (tmp_path / "checkpoints" / "checkpoint-8").iterdir():
        file.unlink()
    (tmp_path / "checkpoints" / "checkpoint-8").rmdir()
    record, _ = repeated(config, tmp_path)
    assert record.resumed_from_step == 4
    assert_like_unbroken(record, tmp_path, runs.unbroken("plain"))


# -- another run in the same folder -----------------------------------------------------------------------------------


def refused(config: RunConfig, output: Path, words: str) -> None:
    before = contents(output)
    with pytest.raises(RunError, match=words):
        fit(config, output)
    assert contents(output) == before


@pytest.mark.parametrize("change", ["seed", "setting", "recipe"])
def test_another_run_in_an_unfinished_folder_is_refused(
    change: str, broken_off: Callable[[Path], RunConfig], runs: Runs, tmp_path: Path
) -> None:
    config = broken_off(tmp_path)
    others = {
        "seed": config.model_copy(update={"seed": 1}),
        "setting": config.with_run_setting("learning_rate", 1e-3),
        "recipe": run_of(*runs.where, recipe_of("scl")),
    }
    refused(others[change], tmp_path, "holds another run that is not finished")


@pytest.fixture
def own(tmp_path: Path) -> tuple[RunConfig, Path]:
    """A run with data and model of its own that stopped with a checkpoint, and its folder."""
    config = run_of(write_data(tmp_path / "data"), write_model(tmp_path / "encoder"), recipe_of("plain"))
    stopped_at(config, tmp_path / "run", 5)
    return config, tmp_path / "run"


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_a_run_whose_rows_changed_meanwhile_is_refused_in_one_sentence(split: str, own: tuple[RunConfig, Path]) -> None:
    config, output = own
    with (Path(config.data.source) / f"{split}.csv").open("a", encoding="utf-8") as file:
        file.write("one more,good\n")
    refused(
        config, output, r"^the data changed since the run in .* was interrupted; put back what it began with[^.]*\.$"
    )


def test_a_run_whose_weights_changed_meanwhile_is_refused(own: tuple[RunConfig, Path]) -> None:
    config, output = own
    file = Path(config.model) / "model.safetensors"
    save_file({name: 2 * value for name, value in load_file(file).items()}, file, metadata={"format": "pt"})
    refused(config, output, r"^the model changed since the run in ")


def test_a_run_whose_rows_were_put_back_goes_on(own: tuple[RunConfig, Path]) -> None:
    config, output = own
    table = Path(config.data.source) / "train.csv"
    before = table.read_bytes()
    table.write_bytes(before + b"one more,good\n")
    with pytest.raises(RunError, match=r"^the data changed"):
        fit(config, output)
    table.write_bytes(before)
    assert fit(config, output).resumed_from_step == 4


def test_a_finished_folder_is_refused(runs: Runs) -> None:
    runs.unbroken("plain")
    refused(runs.config("plain"), runs.folder / "plain", "already holds a finished run")


def test_a_folder_with_something_else_is_refused(runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    refused(runs.config("plain"), tmp_path, "is not empty and holds no run")


def test_a_file_in_place_of_the_folder_is_refused(runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(RunError, match="is a file; name a folder"):
        fit(runs.config("plain"), tmp_path / "out")


def test_a_run_file_that_cannot_be_written_whole_leaves_the_one_before(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_run(runs.config("plain"), tmp_path / "run.yaml")
    before = contents(tmp_path)

    def full_disk(path: Path, text: str, *_: Any) -> None:
        path.write_bytes(text[:20].encode())
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_run(runs.config("uneven groups"), tmp_path / "run.yaml")
    assert contents(tmp_path) == before


def test_the_last_file_of_a_checkpoint_is_the_one_that_says_it_is_whole(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[str]] = []
    save = TrainerState.save_to_json

    def watched(self: TrainerState, path: str) -> None:
        seen.append({item.name for item in Path(path).parent.iterdir()})
        save(self, path)

    monkeypatch.setattr(TrainerState, "save_to_json", watched)
    stopped_at(runs.config("plain"), tmp_path / "run", 6)
    last = {item.name for item in (tmp_path / "run" / "checkpoints" / "checkpoint-4").iterdir()}
    assert seen and last - seen[0] == {"trainer_state.json"}

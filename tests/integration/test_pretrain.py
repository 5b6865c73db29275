"""A pre-training run: a plain checkpoint, arms that share their beginning, budgets that end, kills that do no harm."""

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForMaskedLM, AutoTokenizer

from steadytune.data import DataError
from steadytune.data.corpus import Piece
from steadytune.data.packing import Masking, PackedSequences, frame_of, sequences_in, write_tokens
from steadytune.methods.contract import MethodError
from steadytune.recipes import PretrainConfig
from steadytune.records import PretrainRecord, read_pretraining
from steadytune.training import pretrain as pretrain_module
from steadytune.training import pretrain_inputs, pretrainer
from steadytune.training.fit import Progress, fit
from steadytune.training.loading import RunError
from steadytune.training.pretrain import pretrain
from steadytune.training.pretrainer import Clock, Phases, masked_scores
from tolerances import SAME
from toycorpus import pretraining_of, write_texts
from toyrun import recipe_of, run_of, write_data, write_model

pytestmark = pytest.mark.usefixtures("imports_stay_out_of_garbage_collection")
CLOSE: dict[str, float] = {"rel": SAME[torch.float32]}


class Killed(BaseException):
    """Stands for a signal: nothing that handles exceptions may catch it."""


class Place:
    """Texts and a model, and every run that a test asked for, done once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.texts = write_texts(folder / "texts.txt")
        self.dev = write_texts(folder / "dev.txt", 40, seed=9)
        self.encoder = write_model(folder / "encoder")
        self.done = cache(self._done)

    def config(self, recipe: str = "plain", **run: Any) -> PretrainConfig:
        return pretraining_of(self.texts, run.pop("model", self.encoder), recipe, dev=self.dev, **run)

    def _done(self, recipe: str, **run: Any) -> tuple[PretrainRecord, Path]:
        output = self.folder / f"run {recipe} {sorted(run.items())}".replace("/", "-")
        return pretrain(self.config(recipe, **run), output), output


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("pretraining"))


def weights_of(output: Path) -> dict[str, Tensor]:
    return load_file(output / "model" / "model.safetensors")


def changed(one: dict[str, Tensor], other: dict[str, Tensor]) -> set[str]:
    assert one.keys() == other.keys()
    return {name for name in one if not torch.equal(one[name], other[name])}


# -- what a run leaves ------------------------------------------------------------------------------------------------


def test_the_result_is_a_plain_checkpoint_with_its_tokenizer_and_nothing_else(place: Place) -> None:
    record, output = place.done("plain")
    model, info = AutoModelForMaskedLM.from_pretrained(output / "model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert len(AutoTokenizer.from_pretrained(output / "model")) == model.config.vocab_size
    assert {path.name for path in output.iterdir()} == {"model", "record.json", "run.yaml"}
    assert read_pretraining(output) == record and record.status == "done"


def test_the_record_names_the_tokenizer_by_what_it_does(place: Place, tmp_path: Path) -> None:
    first, output = place.done("plain")
    assert first.vocabulary == len(AutoTokenizer.from_pretrained(place.encoder))
    continued = pretrain(place.config(model=output, steps=1), tmp_path / "run")
    assert (continued.vocabulary, continued.tokenizer) == (first.vocabulary, first.tokenizer)
    small, large = (place.done("plain", model="new:1x32", steps=1, vocabulary=size)[0] for size in (80, 100))
    assert small.vocabulary < large.vocabulary <= 100
    assert len({first.tokenizer, small.tokenizer, large.tokenizer}) == 3


def test_record_and_card_name_a_shape_without_its_place(place: Place, tmp_path: Path) -> None:
    _, output = place.done("plain")
    record = pretrain(place.config(model=f"new:{output}/model/config.json", steps=1), tmp_path / "run")
    assert record.model_name == "new:config.json"
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "new:config.json" in card and str(place.folder) not in card


def test_the_scores_are_those_of_the_saved_model_on_the_fixed_masked_set(place: Place, tmp_path: Path) -> None:
    record, output = place.done("plain")
    tokenizer = AutoTokenizer.from_pretrained(output / "model")
    texts = place.dev.read_text().splitlines()
    pieces = [Piece(text, begins=True) for text in texts]
    tokens, frame = write_tokens(pieces, tokenizer, tmp_path / "dev.bin"), frame_of(tokenizer)
    there = sequences_in(tokens, frame, 16)
    rows = [i * there // 10 for i in range(10)]
    masking = Masking.of(tokenizer, 0.15, fixed_count=False)
    measured = PackedSequences(tokens, frame, 16, masking, rows, ("masks of the fixed set",))
    found = masked_scores(AutoModelForMaskedLM.from_pretrained(output / "model"), measured, 3)
    assert found == {name: pytest.approx(value, **CLOSE) for name, value in record.scores["dev"].items()}
    assert record.curve[-1].loss == record.scores["dev"]["loss"]


def test_the_record_says_what_the_texts_gave_and_what_training_took(place: Place) -> None:
    record, _ = place.done("plain")
    train, dev = record.data["train"], record.data["dev"]
    assert train.texts == 120 and train.tokens is not None
    assert train.sequences == train.tokens // 14  # of 16, two are special
    assert (dev.texts, dev.sequences) == (40, 10) and dev.masked_places
    assert (record.cost.optimizer_steps, record.cost.tokens, record.cost.pass_units) == (12, 12 * 4 * 16, 36)
    assert [point.step for point in record.curve] == [0, 3, 6, 9, 12]
    assert [point.pass_units for point in record.curve] == [0, 9, 18, 27, 36]
    assert [line["step"] for line in record.history] == [2, 4, 6, 8, 10, 12]
    assert set(record.data_fingerprints) == {"train", "dev"}


def test_training_lowers_the_loss_on_texts_that_can_be_guessed(tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("the film was very good and the book was dull today\n" * 200)
    settings = {"steps": 40, "batch_size": 8, "learning_rate": 1e-2, "fixed_count": True}
    record = pretrain(pretraining_of(texts, write_model(tmp_path / "encoder"), **settings), tmp_path / "run")
    first, last = record.curve[0].loss, record.curve[-1].loss
    assert first is not None and last is not None and last < 0.7 * first


def test_without_texts_to_be_measured_on_the_end_of_the_others_is_kept_apart(place: Place, tmp_path: Path) -> None:
    record = pretrain(pretraining_of(place.texts, place.encoder, steps=1), tmp_path / "run")
    train, dev = record.data["train"], record.data["dev"]
    assert train.tokens is not None and train.sequences + dev.sequences == train.tokens // 14
    assert dev.sequences == (train.tokens // 14) // 20 and dev.texts is None


def test_a_run_that_diverges_says_so_and_saves_no_model(place: Place, tmp_path: Path) -> None:
    config = place.config(learning_rate=1e30, max_grad_norm=0.0, head_fraction=0.0)
    record = pretrain(config, tmp_path / "run")
    assert record.status == "failed" and record.failure is not None and "diverged" in record.failure
    assert not (tmp_path / "run" / "model").exists()
    assert json.loads((tmp_path / "run" / "record.json").read_text())["curve"][-1]["loss"] is None


# -- what arms share --------------------------------------------------------------------------------------------------


def test_in_the_first_share_only_the_new_head_of_a_trained_encoder_learns(place: Place) -> None:
    begin = load_file(place.encoder / "model.safetensors")
    _, output = place.done("plain", head_fraction=0.95)
    ours = weights_of(output)
    encoder = {name: ours[f"bert.{name}"] for name in begin if f"bert.{name}" in ours}
    assert len(encoder) == len(begin) - 2  # without the pooler, which no masked-LM head reads
    assert changed(encoder, {name: begin[name] for name in encoder}) == set()
    again = AutoModelForMaskedLM.from_pretrained(output / "model").state_dict()
    assert float(again["cls.predictions.bias"].abs().sum()) > 0  # which begins at 0


def test_after_that_share_the_encoder_learns_too(place: Place) -> None:
    begin = load_file(place.encoder / "model.safetensors")
    ours = weights_of(place.done("plain")[1])
    encoder = {name: ours[f"bert.{name}"] for name in begin if f"bert.{name}" in ours}
    assert len(changed(encoder, {name: begin[name] for name in encoder})) > 0.9 * len(encoder)


@pytest.mark.parametrize("recipe", ["consistency", "asa-control-random", "asa"])
def test_an_arm_is_plain_to_the_bit_until_its_share_begins(recipe: str, place: Place) -> None:
    plain, _ = place.done("plain", plain_fraction=0.5)
    arm, _ = place.done(recipe, plain_fraction=0.5)
    assert [point.loss for point in arm.curve[:3]] == [point.loss for point in plain.curve[:3]]
    assert arm.curve[3].loss != plain.curve[3].loss
    assert [line["loss"] for line in arm.history[:3]] == [line["loss"] for line in plain.history[:3]]
    assert all(line["asa/term"] == 0 for line in arm.history[:3]) and arm.history[4]["asa/term"] > 0
    assert arm.cost.pass_units == plain.cost.pass_units + 3 * 6


def begun_by_step(record: PretrainRecord) -> dict[int, bool]:
    return {int(line["step"] or 0): (line["asa/term"] or 0) > 0 for line in record.history}


@pytest.mark.parametrize("plain", [0.0, 0.5, 0.8])
def test_the_plain_share_counts_optimizer_steps_whatever_the_size_of_their_groups(plain: float, place: Place) -> None:
    settings = {"steps": 10, "batch_size": 22, "accumulation_steps": 4, "logging_steps": 1}
    record, _ = place.done("asa", plain_fraction=plain, **settings)
    batches = -(-record.data["train"].sequences // 22)
    assert batches % 4  # the last group of an epoch is smaller
    assert begun_by_step(record) == {step: step > 10 * plain for step in range(1, 11)}


def test_a_plain_share_that_takes_every_step_is_said(place: Place) -> None:
    record, _ = place.done("asa", steps=3, plain_fraction=0.9)
    said = "asa never acted: the plain share of the budget took every step; lower run.plain_fraction"
    assert [notice for notice in record.notices if notice.startswith(said)]


@pytest.mark.parametrize(("recipe", "is_said"), [("rdrop", True), ("asa", False), ("plain", False)])
def test_a_plain_share_that_holds_a_method_not_back_is_said(recipe: str, is_said: bool, place: Place) -> None:
    record, _ = place.done(recipe, steps=3)
    said = "run.plain_fraction does not hold back rdrop, which acts from the first step on."
    assert (said in record.notices) == is_said


def test_the_fixed_masked_set_is_the_same_for_every_seed(place: Place, tmp_path: Path) -> None:
    first, start = place.done("plain")
    losses = [
        pretrain(place.config(model=start, seed=seed, steps=1), tmp_path / str(seed)).curve[0].loss for seed in (0, 5)
    ]
    assert losses[0] == losses[1] == pytest.approx(first.scores["dev"]["loss"], **CLOSE)


def test_a_model_that_has_a_head_goes_on_with_it_at_once(place: Place, tmp_path: Path) -> None:
    _, start = place.done("plain")
    pretrain(place.config(model=start, head_fraction=0.95, steps=4), tmp_path / "run")
    assert "bert.embeddings.word_embeddings.weight" in changed(weights_of(start), weights_of(tmp_path / "run"))


def test_another_seed_is_another_run(place: Place) -> None:
    assert changed(weights_of(place.done("plain")[1]), weights_of(place.done("plain", seed=1)[1]))


def test_a_recipe_that_trains_longer_does_so(place: Place) -> None:
    record, _ = place.done("plain-equal-time", steps=10)
    assert record.cost.optimizer_steps == 19


def test_dropout_of_a_recipe_is_that_of_the_run(place: Place, tmp_path: Path) -> None:
    config = place.config(model="new:1x32", steps=1, dropout__hidden=0.0, dropout__attention=0.25)
    record = pretrain(config, tmp_path / "run")
    assert (record.dropout["hidden"], record.dropout["attention"]) == (0.0, 0.25)
    assert record.model_revision.startswith("new")


# -- budgets ----------------------------------------------------------------------------------------------------------


def test_a_schedule_of_steps_rises_from_the_first_step_on_and_falls_to_0_at_the_end_of_its_budget() -> None:
    phases = Phases(steps=200, seconds=None, warmup=0.1, head=0.0, plain=0.0, points=10)
    expected = pytest.approx([0.05, 0.1, 0.55, 1, 1, 0.5, 0, 0])
    assert [phases.rate(step, 0.0) for step in (0, 1, 10, 19, 20, 110, 200, 300)] == expected


def test_a_schedule_of_time_rises_and_falls_to_0_at_the_end_of_its_budget() -> None:
    phases = Phases(steps=None, seconds=60.0, warmup=0.1, head=0.0, plain=0.0, points=10)
    expected = pytest.approx([0, 0.5, 1, 0.5, 0, 0])
    assert [phases.rate(7, seconds) for seconds in (0, 3, 6, 33, 60, 90)] == expected


def test_a_single_step_learns(place: Place, tmp_path: Path) -> None:
    record = pretrain(place.config(steps=1, head_fraction=0.0), tmp_path / "run")
    assert record.curve[0].loss != record.curve[1].loss


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every look at the clock finds it a hundredth of a second later."""
    ticks = iter(range(10**9))
    monkeypatch.setattr(pretrainer.time, "monotonic", lambda: next(ticks) / 100)
    yield


def test_a_clock_stands_still_between_stop_and_start(ticking: None) -> None:
    clock = Clock()
    clock.start()
    clock.start()
    clock.stop()
    assert clock.seconds == clock.seconds == pytest.approx(0.01)
    clock.set(5.0)
    clock.start()
    assert 5.0 < clock.seconds < clock.seconds


def test_a_budget_of_time_ends_with_it_at_a_learning_rate_of_0(place: Place, tmp_path: Path, ticking: None) -> None:
    config = place.config("asa", minutes=1 / 60, plain_fraction=0.4, logging_steps=1)
    record = pretrain(config, tmp_path / "run")
    assert 1.0 <= record.cost.train_seconds < 1.1
    steps, points = record.cost.optimizer_steps, record.curve
    assert steps > 8 and points[-1].step == steps
    assert [round(point.seconds, 1) for point in points[1:-1]] == [0.3, 0.5, 0.8]
    rates = [line["learning_rate"] for line in record.history]
    assert rates[-1] < 0.15 * max(rates)
    begun = [line["asa/term"] > 0 for line in record.history]
    assert begun == sorted(begun) and not begun[0] and begun[-1]


def test_a_budget_of_time_goes_on_with_what_is_left_of_it(place: Place, tmp_path: Path, ticking: None) -> None:
    config = place.config("asa", minutes=1 / 60, plain_fraction=0.2)
    stopped_at(config, tmp_path / "run", 6)
    state = json.loads((tmp_path / "run/checkpoints/checkpoint-4" / pretrainer.STATE_FILE).read_text())
    assert 0 < state["seconds"] < 1 and state["begun_at"] is not None
    record = pretrain(config, tmp_path / "run")
    assert record.resumed_from_step == 4 and 1.0 <= record.cost.train_seconds < 1.1
    assert record.history[-1]["asa/term"] > 0
    assert [point.step for point in record.curve] == sorted({point.step for point in record.curve})


def test_without_a_plain_share_a_budget_of_time_has_no_plain_step(place: Place, tmp_path: Path, ticking: None) -> None:
    record = pretrain(place.config("asa", minutes=1 / 60, plain_fraction=0.0, logging_steps=1), tmp_path / "run")
    assert len(record.history) > 2 and all(begun_by_step(record).values())


def test_with_a_budget_of_time_checkpoints_come_by_time_too(
    place: Place, tmp_path: Path, ticking: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrainer, "CHECKPOINT_SECONDS", 0.3)
    config = place.config(minutes=1 / 60, checkpoint_steps=1000, plain_fraction=0.0)
    seconds = 0.0

    def watch(progress: Progress) -> None:
        nonlocal seconds
        states = [json.loads(path.read_text()) for path in (tmp_path / "run").rglob(pretrainer.STATE_FILE)]
        if len(states) == 2:
            first, second = sorted(state["seconds"] for state in states)
            seconds = second
            assert first >= 0.3 and second - first >= 0.3
            raise Killed

    with pytest.raises(Killed):
        pretrain(config, tmp_path / "run", watch=watch)
    assert seconds < 1
    record = pretrain(config, tmp_path / "run")
    assert record.resumed_from_step is not None and 1.0 <= record.cost.train_seconds < 1.1


def test_the_clock_waits_for_the_device_where_a_line_a_checkpoint_or_the_end_does(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at, waited = [1], []
    monkeypatch.setattr(pretrainer, "finish_queued", lambda device: waited.append(at[0]))

    def watch(progress: Progress) -> None:
        at[0] = progress.step + 1

    config = place.config(steps=10, logging_steps=3, checkpoint_steps=4, eval_points=1)
    pretrain(config, tmp_path / "run", watch=watch)
    assert sorted(set(waited)) == [1, 3, 4, 6, 8, 9, 10, 11]  # measured before the first step and after the last


def test_a_method_that_must_know_the_steps_is_refused_a_budget_of_time(place: Place, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="averaging must know the number of steps beforehand; give --steps"):
        pretrain(place.config("swa", minutes=1), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# -- killed -----------------------------------------------------------------------------------------------------------


def stopped_at(config: PretrainConfig, output: Path, step: int) -> None:
    """Break off at the end of a step, before a checkpoint of this step would be written."""

    def watch(progress: Progress) -> None:
        if progress.phase == "train" and progress.step == step:
            raise Killed

    with pytest.raises(Killed):
        pretrain(config, output, watch=watch)


def assert_like_unbroken(output: Path, unbroken: Path) -> None:
    assert changed(weights_of(output), weights_of(unbroken)) == set()
    ours, expected = read_pretraining(output), read_pretraining(unbroken)
    may_differ = {"cost": {"train_seconds", "evaluate_seconds", "peak_memory_bytes"}}
    may_differ |= {"curve": {"__all__": {"seconds"}}, "resumed_from_step": True, "commit": True}
    assert ours.model_dump(exclude=may_differ) == expected.model_dump(exclude=may_differ)


@pytest.mark.parametrize(
    ("recipe", "settings", "step", "resumed_from"),
    [
        ("plain", {}, 3, None),
        ("asa", {"plain_fraction": 0.1}, 7, 4),
        ("asa", {"plain_fraction": 0.8}, 6, 4),
        ("asa-control-random", {"plain_fraction": 0.0, "accumulation_steps": 2, "fixed_count": True}, 10, 8),
        ("plain", {"steps": 40, "batch_size": 8, "checkpoint_steps": 12}, 30, 24),
        ("plain", {"model": "new:1x32"}, 11, 8),
        ("asa", {"plain_fraction": 0.1, "checkpoint_steps": 3, "logging_steps": 2}, 8, 6),
        ("asa", {"plain_fraction": 0.1, "checkpoint_steps": 3, "logging_steps": 2}, 5, 3),
        ("plain", {"precision": "bfloat16", "gradient_checkpointing": True}, 7, 4),
        ("asa", {"plain_fraction": 0.5, "batch_size": 22, "accumulation_steps": 4}, 7, 4),
    ],
    ids=[
        "early",
        "adversary at work",
        "adversary to come",
        "accumulated",
        "in a later epoch",
        "new model",
        "between lines, even",
        "between lines, odd",
        "mixed precision",
        "groups of several sizes",
    ],
)
def test_a_run_stopped_at_any_step_ends_like_an_unbroken_one_to_the_bit(
    recipe: str, settings: dict[str, Any], step: int, resumed_from: int | None, place: Place, tmp_path: Path
) -> None:
    _, unbroken = place.done(recipe, **settings)
    config = place.config(recipe, **settings)
    stopped_at(config, tmp_path / "run", step)
    assert pretrain(config, tmp_path / "run").resumed_from_step == resumed_from
    assert_like_unbroken(tmp_path / "run", unbroken)


@pytest.mark.parametrize(
    ("module", "moment"),
    [
        (pretrain_inputs, "learn_vocabulary"),
        (pretrain_inputs, "write_tokens"),
        (pretrain_module, "export_model"),
        (pretrain_module, "write_record"),
    ],
)
def test_a_run_stopped_before_or_after_training_ends_the_same(
    module: ModuleType, moment: str, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise Killed

    config = place.config(model="new:1x32")
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(module, moment, stop)
        pretrain(config, tmp_path / "run")
    pretrain(config, tmp_path / "run")
    assert_like_unbroken(tmp_path / "run", place.done("plain", model="new:1x32")[1])


def test_what_a_run_left_that_was_stopped_after_its_record_is_removed(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise Killed

    config = place.config(model="new:1x32", steps=5)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(pretrain_module, "discard_inputs", stop)
        pretrain(config, tmp_path / "run")
    assert (tmp_path / "run" / "tokens").is_dir() and (tmp_path / "run" / "record.json").is_file()
    with pytest.raises(RunError, match="already holds a finished run"):
        pretrain(config, tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"model", "record.json", "run.yaml"}


def test_texts_that_changed_before_the_first_checkpoint_are_read_anew(place: Place, tmp_path: Path) -> None:
    texts = write_texts(tmp_path / "texts.txt", 60)
    config = pretraining_of(texts, "new:1x32", steps=2)
    stopped_at(config, tmp_path / "run", 1)
    write_texts(texts, 90, seed=4)
    record = pretrain(config, tmp_path / "run")
    assert record.data["train"].texts == 90


# -- what is refused --------------------------------------------------------------------------------------------------


def refused(config: PretrainConfig, output: Path, words: str, error: type[ValueError] = RunError) -> None:
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} if output.exists() else None
    with pytest.raises(error, match=words) as caught:
        pretrain(config, output)
    assert "\n" not in str(caught.value)
    if before is None:
        assert not output.exists()
    else:
        assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before


def test_texts_that_changed_after_a_checkpoint_are_refused(tmp_path: Path) -> None:
    texts = write_texts(tmp_path / "texts.txt", 60)
    config = pretraining_of(texts, "new:1x32", steps=6)
    stopped_at(config, tmp_path / "run", 5)
    write_texts(texts, 90, seed=4)
    refused(config, tmp_path / "run", "^the texts changed since the run in ")


def test_a_finished_folder_and_one_of_another_run_are_refused(place: Place, tmp_path: Path) -> None:
    config = place.config()
    refused(config, place.done("plain")[1], "already holds a finished run")
    stopped_at(config, tmp_path / "run", 2)
    refused(place.config(seed=3), tmp_path / "run", "holds another run that is not finished")


def test_an_unfinished_run_of_another_command_is_refused(place: Place, tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.phase == "train":
            raise Killed

    with pytest.raises(Killed):
        fit(run_of(write_data(tmp_path / "data"), place.encoder, recipe_of("plain")), tmp_path / "run", watch=stop)
    refused(place.config(), tmp_path / "run", "holds another run that is not finished")


REFUSED: dict[str, tuple[Callable[[Path], None], dict[str, Any], str]] = {
    "empty texts": (lambda path: path.write_text(""), {}, "the texts give 0 tokens, which fill 0 sequences"),
    "too few": (
        lambda path: path.write_text("the film"),
        {},
        "the texts give 3 tokens, which fill 0 sequences of --max",
    ),
    "one sequence": (lambda path: path.write_text("the film " * 8), {}, r"or texts to be measured on \(--dev\)\.$"),
    "too long": (lambda path: None, {"max_length": 33}, "^run.max_length must be at most 32 with model"),
    "no word": (lambda path: path.write_text(" \n"), {"model": "new:1x32"}, "^the texts hold no word to learn"),
    "no shape": (lambda path: None, {"model": "new:many"}, r"^--model new:many names no shape; give new:LAYERSxWIDTH"),
    "no width": (lambda path: None, {"model": "new:2x33"}, "needs a layer and a width that 32 divides; got new:2x33"),
    "no model": (lambda path: None, {"model": "./nowhere"}, r"^model folder \./nowhere does not exist"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_run_is_refused_in_one_sentence_and_leaves_nothing(name: str, place: Place, tmp_path: Path) -> None:
    arrange, settings, words = REFUSED[name]
    texts = write_texts(tmp_path / "texts.txt")
    arrange(texts)
    refused(pretraining_of(texts, settings.pop("model", place.encoder), **settings), tmp_path / "run", words)


def test_texts_to_be_measured_on_that_are_too_short_are_refused(place: Place, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("the film")
    config = pretraining_of(place.texts, place.encoder, dev=short)
    refused(config, tmp_path / "run", "the texts to be measured on give 3 tokens, fewer than one sequence")


def test_texts_that_cannot_be_read_are_refused_and_leave_nothing(place: Place, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_bytes(b"one\ntw\xf6\n")
    refused(pretraining_of(tmp_path / "texts.txt", place.encoder), tmp_path / "run", "line 2 is not UTF-8", DataError)


def test_a_method_that_needs_classes_is_refused(place: Place, tmp_path: Path) -> None:
    refused(place.config("scl"), tmp_path / "run", "^scl .*class", MethodError)


@pytest.mark.parametrize("is_copied", [False, True])
def test_texts_that_are_learned_from_are_not_measured_on(is_copied: bool, place: Place, tmp_path: Path) -> None:
    dev = write_texts(tmp_path / "dev.txt") if is_copied else place.texts
    config = pretraining_of(place.texts, place.encoder, dev=dev)
    refused(config, tmp_path / "run", "is both measured on and learned from.*; leave it out of one", DataError)

"""`fit`: what a run leaves, what its record says, and that it can be repeated to the bit."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from torch import Tensor
from transformers import AutoTokenizer

from steadytune.methods.contract import MethodError
from steadytune.recipes import DataSettings, Recipe, RunConfig, load_run, protocol_hash
from steadytune.records import RunRecord
from steadytune.training.fit import fit
from steadytune.training.loading import RunError
from tolerances import SAME
from toyrun import LABELS, recipe_of, run_of, write_data, write_model

pytestmark = pytest.mark.usefixtures("imports_stay_out_of_garbage_collection")
CLOSE: dict[str, float] = {"rtol": SAME[torch.float32], "atol": SAME[torch.float32]}
SCORES: dict[str, Callable[[Any, Any], float]] = {
    "accuracy": accuracy_score,
    "macro_f1": lambda labels, predicted: f1_score(labels, predicted, average="macro", zero_division=0.0),
    "matthews": matthews_corrcoef,
}


@dataclass(frozen=True)
class Done:
    """A finished run."""

    config: RunConfig
    folder: Path
    record: RunRecord

    @property
    def weights(self) -> dict[str, Tensor]:
        return load_file(self.folder / "model" / "model.safetensors")

    @property
    def predictions(self) -> pd.DataFrame:
        return pd.read_parquet(self.folder / "predictions.parquet")


class Toy:
    """Data and model in one folder; runs go into folders beside them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = write_data(folder / "data")
        self.model = write_model(folder / "encoder")
        self.runs = 0

    def run(self, recipe: Recipe, **settings: Any) -> Done:
        return self.repeat(run_of(self.data, self.model, recipe, **settings))

    def repeat(self, config: RunConfig) -> Done:
        self.runs += 1
        output = self.folder / f"run {self.runs}"
        return Done(config, output, fit(config, output))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return Toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def plain(toy: Toy) -> Done:
    return toy.run(recipe_of("plain"))


@pytest.fixture(scope="module")
def again(plain: Done, toy: Toy) -> Done:
    torch.manual_seed(123)
    return toy.repeat(plain.config)


def same_weights(one: Done, other: Done) -> bool:
    first, second = one.weights, other.weights
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def texts_of(data: Path, split: str) -> list[str]:
    return list(pd.read_csv(data / f"{split}.csv")["text"])


# -- the record -------------------------------------------------------------------------------------------------------


def test_a_run_leaves_model_record_predictions_and_run_file_and_nothing_else(plain: Done) -> None:
    names = {path.name for path in plain.folder.iterdir()}
    assert names == {"model", "record.json", "predictions.parquet", "run.yaml"}


def test_the_record_on_disk_is_the_record_returned(plain: Done) -> None:
    assert RunRecord.model_validate_json((plain.folder / "record.json").read_text()) == plain.record
    assert plain.record.status == "done" and plain.record.failure is None and plain.record.resumed_from_step is None


def test_the_record_repeats_the_run_file(plain: Done) -> None:
    assert RunConfig.model_validate(plain.record.config) == load_run(plain.folder / "run.yaml") == plain.config


def test_the_training_loss_falls(toy: Toy) -> None:
    done = toy.run(recipe_of("plain"), epochs=8, learning_rate=1e-2, checkpoint_steps=100)
    losses = [line["task_loss"] for line in done.record.history if "task_loss" in line]
    assert np.mean(losses[-12:]) < 0.85 * np.mean(losses[:12])


def test_the_scores_are_those_of_the_predictions(plain: Done) -> None:
    for split, scores in plain.record.scores.items():
        rows = plain.predictions.query("split == @split")
        predicted = np.stack(rows["logits"]).argmax(axis=-1)
        assert len(rows) == plain.record.data_rows[split] == 12
        assert scores == {name: score(rows["label"], predicted) for name, score in SCORES.items()}


def test_the_predictions_hold_the_labels_of_the_data_in_its_order(plain: Done, toy: Toy) -> None:
    for split in ("dev", "test"):
        rows = plain.predictions.query("split == @split")
        assert [LABELS[i] for i in rows["label"]] == list(pd.read_csv(toy.data / f"{split}.csv")["label"])
        assert rows["id"].is_unique


def test_the_predictions_hold_no_text(plain: Done) -> None:
    assert list(plain.predictions.columns) == ["id", "split", "label", "logits"]


def test_fingerprints_and_run_id_are_the_same_in_a_second_run_of_any_folder(plain: Done, again: Done) -> None:
    assert again.record.run_id == plain.record.run_id
    assert again.record.data_fingerprints == plain.record.data_fingerprints
    assert len(set(again.record.data_fingerprints.values())) == 3


def test_the_record_holds_the_hash_of_its_protocol(plain: Done) -> None:
    data = DataSettings.model_validate(plain.record.config["data"])
    assert plain.record.protocol_hash == protocol_hash(data, plain.record.data_fingerprints)


def test_plain_training_costs_one_forward_pass_and_three_units_per_batch(plain: Done) -> None:
    cost = plain.record.cost
    assert cost is not None
    assert (cost.optimizer_steps, cost.forward_passes, cost.pass_units) == (20, 20, 60)
    assert cost.train_seconds > 0 and cost.peak_memory_bytes > 2**20


def test_a_contrast_over_accumulated_batches_costs_a_forward_pass_more_per_batch(toy: Toy) -> None:
    recipe = recipe_of("scl+hype", scl__gather_across_accumulation=True)
    cost = toy.run(recipe, accumulation_steps=2, min_steps=6).record.cost
    assert cost is not None
    assert (cost.optimizer_steps, cost.forward_passes, cost.pass_units) == (6, 24, 48)


def test_tokens_of_an_epoch_in_batches_of_one_are_the_tokens_of_its_texts(toy: Toy) -> None:
    done = toy.run(recipe_of("plain"), batch_size=1, min_steps=1)
    tokenizer = AutoTokenizer.from_pretrained(toy.model)
    expected = sum(len(tokenizer(text)["input_ids"]) for text in texts_of(toy.data, "train"))
    assert done.record.cost is not None
    assert (done.record.cost.optimizer_steps, done.record.cost.tokens) == (48, expected)


def test_the_number_of_steps_is_the_epochs_times_the_groups_of_batches_rounded_up(toy: Toy) -> None:
    done = toy.run(recipe_of("plain"), epochs=1.5, min_steps=1, accumulation_steps=5)  # 12 batches: 5 + 5 + 2
    assert done.record.cost is not None
    assert done.record.cost.optimizer_steps == 5
    assert done.record.cost.forward_passes == 5 + 5 + 2 + 5 + 5


def test_the_history_holds_loss_and_rate_of_every_logged_step(plain: Done) -> None:
    lines = [line for line in plain.record.history if "loss" in line]
    assert [line["step"] for line in lines] == list(range(2, 21, 2))
    assert lines[0]["learning_rate"] == pytest.approx(plain.config.learning_rate / 2)  # 2 of 20 steps warm up
    assert all(line["task_loss"] == pytest.approx(line["loss"], rel=1e-5) for line in lines)


def test_the_record_says_the_coefficients_and_the_dropout_in_force(toy: Toy) -> None:
    record = toy.run(recipe_of("scl+hype", scl__weight=0.25), min_steps=1, epochs=0.1).record
    assert record.coefficients == {"task": 0.75, "scl": 0.25}
    assert record.dropout == {"hidden": 0.0, "attention": 0.1, "head": 0.0}
    assert record.label_names == list(LABELS)


# -- repeating --------------------------------------------------------------------------------------------------------


def test_the_run_file_repeats_the_run_to_the_bit(toy: Toy) -> None:
    settings = {"scl__gather_across_accumulation": True, "hype__layers": (0, 1)}
    first = toy.run(recipe_of("scl+hype", **settings), accumulation_steps=2, examples_per_class=2, min_steps=6, seed=3)
    second = toy.repeat(load_run(first.folder / "run.yaml"))
    assert same_weights(first, second)
    pd.testing.assert_frame_equal(first.predictions, second.predictions, check_exact=True)
    differing = {"config", "cost", "history", "commit"}  # a tuple is a list in the file; the clock; the working tree
    assert first.record.model_dump(exclude=differing) == second.record.model_dump(exclude=differing)


def test_one_seed_gives_one_model_whatever_ran_before(plain: Done, again: Done) -> None:
    assert same_weights(again, plain)


def test_another_seed_gives_another_model_and_another_run_id(plain: Done, toy: Toy) -> None:
    other = toy.run(recipe_of("plain"), seed=1)
    assert not same_weights(other, plain)
    assert other.record.run_id != plain.record.run_id
    assert other.record.data_fingerprints == plain.record.data_fingerprints


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("scl", {"scl__weight": 0.0}),
        ("scl+hype", {"scl__weight": 0.0, "hype__noise_std": 0.0, "dropout__hidden": None}),
    ],
)
def test_a_recipe_at_its_null_setting_gives_the_weights_of_plain(
    name: str, settings: dict[str, Any], plain: Done, toy: Toy
) -> None:
    assert same_weights(toy.run(recipe_of(name, **settings)), plain)


@pytest.mark.parametrize("name", ["scl", "lnsr+asa"])
def test_two_recipes_meet_the_same_batches_and_the_same_dropout(name: str, toy: Toy) -> None:
    rate = 1e-12  # so that the weights stay and every step can be compared
    one = toy.run(recipe_of("plain"), logging_steps=1, learning_rate=rate, weight_decay=0.0)
    other = toy.run(recipe_of(name), logging_steps=1, learning_rate=rate, weight_decay=0.0)
    losses = [[line["task_loss"] for line in done.record.history if "task_loss" in line] for done in (one, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and len(set(losses[0])) == 20
    assert one.record.cost is not None and other.record.cost is not None
    assert one.record.cost.tokens == other.record.cost.tokens


def test_checkpointed_activations_give_the_same_model(plain: Done, toy: Toy) -> None:
    assert same_weights(toy.run(recipe_of("plain"), gradient_checkpointing=True), plain)


def test_a_run_in_bfloat16_ends_with_a_float32_model_near_that_of_float32(plain: Done, toy: Toy) -> None:
    low = toy.run(recipe_of("plain"), precision="bfloat16")
    assert {value.dtype for value in low.weights.values()} == {torch.float32}
    assert not same_weights(low, plain)
    lines = [next(line["loss"] for line in done.record.history if "loss" in line) for done in (low, plain)]
    assert lines[0] == pytest.approx(lines[1], rel=0.05)


# -- every bundled recipe ---------------------------------------------------------------------------------------------

METHODS_OF: dict[str, dict[str, str | None]] = {  # by method, something that its telemetry must hold
    "cat": {"cat": "loss_rise"},
    "lnsr": {"lnsr": "relative_distance_layer_2"},
    "asa": {"asa": "keep_rate"},
    "scl+cat+lnsr+hype": {
        "scl": "anchors_with_positive_fraction",
        "cat": "loss_rise",
        "lnsr": "relative_distance_layer_1",
        "hype": "realized_noise_std",
    },
    "scl+cat+hype+lnsr+asa": {"scl": None, "cat": None, "hype": None, "lnsr": None, "asa": "price"},
    "cat-control": {"cat": "cosine_of_views"},
    "hype-control": {},
    "lnsr-control-dropout": {"lnsr": "relative_distance_layer_1"},
    "lnsr-control-noise": {"hype": "realized_noise_std"},
    "asa-control-random": {"asa": "keep_rate"},
    "consistency": {"asa": "divergence"},
    "paper/cat": {"cat": "loss_rise"},
    "paper/asa": {"asa": "keep_rate"},
}
UNITS = {  # plain is 3; each further pass costs 3, CAT's early gradient 1
    "cat": 7,
    "lnsr": 6,
    "asa": 6,
    "scl+cat+lnsr+hype": 10,
    "scl+cat+hype+lnsr+asa": 13,
    "cat-control": 6,
    "hype-control": 3,
    "lnsr-control-dropout": 6,
    "lnsr-control-noise": 3,
    "asa-control-random": 6,
    "consistency": 6,
    "paper/cat": 7,
    "paper/asa": 6,
}
FEW: dict[str, Any] = {"min_steps": 2, "epochs": 0.1, "logging_steps": 1}


@pytest.mark.parametrize("name", METHODS_OF)
def test_a_bundled_recipe_trains_and_its_record_says_what_its_methods_did(name: str, toy: Toy) -> None:
    record = toy.run(recipe_of(name), **FEW).record
    assert record.status == "done" and record.cost is not None
    assert record.cost.pass_units == pytest.approx(2 * UNITS[name])
    terms = {key for key in METHODS_OF[name] if key != "hype"}
    assert record.coefficients.keys() == {"task", *terms}
    lines = [line for line in record.history if "loss" in line]
    assert len(lines) == 2
    for line in lines:
        assert {f"{key}/term" for key in terms} <= line.keys()
        assert {f"{key}/{value}" for key, value in METHODS_OF[name].items() if value} <= line.keys()
        weighted = sum(record.coefficients[key] * line[f"{key}/term"] for key in terms)
        assert line["loss"] == pytest.approx(record.coefficients["task"] * line["task_loss"] + weighted, rel=1e-5)


def test_the_control_of_hype_is_its_recipe_without_the_noise(toy: Toy) -> None:
    control = toy.run(recipe_of("hype-control"), **FEW)
    silent = toy.run(recipe_of("hype", hype__noise_std=0.0), **FEW)
    assert same_weights(control, silent) and control.record.dropout == silent.record.dropout


def test_checkpointed_activations_give_the_same_stack(toy: Toy) -> None:
    recipe = recipe_of("scl+cat+hype+lnsr+asa")
    assert same_weights(toy.run(recipe, **FEW, gradient_checkpointing=True), toy.run(recipe, **FEW))


@pytest.mark.parametrize("name", ["lnsr", "asa"])
def test_a_penalty_at_its_null_setting_gives_the_weights_of_plain(name: str, plain: Done, toy: Toy) -> None:
    assert same_weights(toy.run(recipe_of(name, **{f"{name}__weight": 0.0})), plain)


@pytest.mark.parametrize("name", ["cat", "asa", "scl+cat+hype+lnsr+asa"])
def test_no_parameter_of_a_method_is_exported(name: str, plain: Done, toy: Toy) -> None:
    assert toy.run(recipe_of(name), **FEW).weights.keys() == plain.weights.keys()


@pytest.fixture(scope="module")
def numbers(toy: Toy) -> Path:
    """A table whose labels are numbers."""
    table, texts = toy.folder / "numbers.csv", texts_of(toy.data, "train")
    pd.DataFrame({"text": texts, "label": [len(text) / 7 for text in texts]}).to_csv(table, index=False)
    return table


@pytest.mark.parametrize("name", ["cat", "lnsr", "asa", "cat+lnsr+hype+asa"])
def test_a_method_without_classes_trains_on_numbers(name: str, numbers: Path, toy: Toy, tmp_path: Path) -> None:
    record = fit(run_of(numbers, toy.model, recipe_of(name), **FEW), tmp_path / "out")
    assert (record.task, record.status) == ("regression", "done")
    assert set(record.coefficients) == {"task", *name.split("+")} - {"hype"}


def test_a_stack_with_a_contrast_of_classes_refuses_numbers(numbers: Path, toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(MethodError, match="scl cannot act on a regression task"):
        fit(run_of(numbers, toy.model, recipe_of("scl+cat+hype+lnsr+asa")), tmp_path / "out")


# -- failures ---------------------------------------------------------------------------------------------------------


def test_a_diverging_run_leaves_a_failed_record_and_no_model(toy: Toy) -> None:
    done = toy.run(recipe_of("plain"), learning_rate=1e38, max_grad_norm=0)
    record = RunRecord.model_validate_json((done.folder / "record.json").read_text())
    assert record.status == done.record.status == "failed"
    assert record.failure is not None and record.failure.startswith("training diverged")
    assert record.scores == {}
    assert {path.name for path in done.folder.iterdir()} == {"record.json", "predictions.parquet", "run.yaml"}


@pytest.mark.parametrize(
    ("name", "settings", "error"),
    [("scl", {}, MethodError), ("plain", {"examples_per_class": 2}, RunError)],
)
def test_a_refused_run_may_be_put_right_and_run_in_the_same_folder(
    name: str, settings: dict[str, Any], error: type[Exception], toy: Toy, tmp_path: Path
) -> None:
    table = tmp_path / "numbers.csv"
    texts = texts_of(toy.data, "train")
    pd.DataFrame({"text": texts, "label": [len(text) / 7 for text in texts]}).to_csv(table, index=False)
    with pytest.raises(error, match="regression"):
        fit(run_of(table, toy.model, recipe_of(name), **settings), tmp_path / "out")
    record = fit(run_of(table, toy.model, recipe_of("plain")), tmp_path / "out")
    assert record.task == "regression" and record.status == "done"
    assert set(record.scores["test"]) == {"pearson", "spearman", "pearson_spearman", "mse"}


@pytest.mark.parametrize("recipe", ["scl", "scl+hype"])
def test_a_weight_that_leaves_no_label_loss_is_refused(recipe: str, toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"^a weight of 1 leaves the classification head untrained; lower it, or use"):
        fit(run_of(toy.data, toy.model, recipe_of(recipe, scl__weight=1)), tmp_path / "out")


def test_more_tokens_than_the_encoder_has_positions_are_refused(toy: Toy, tmp_path: Path) -> None:
    expected = f"run.max_length must be at most 32 with model {toy.model}; got 33."  # of write_model
    with pytest.raises(RunError, match=f"^{re.escape(expected)}$"):
        fit(run_of(toy.data, toy.model, recipe_of("plain"), max_length=33), tmp_path / "out")


def test_as_many_tokens_as_the_encoder_has_positions_are_trained(toy: Toy) -> None:
    assert toy.run(recipe_of("plain"), max_length=32, epochs=0.1, min_steps=1).record.status == "done"


# -- what is exported -------------------------------------------------------------------------------------------------

WITHOUT_STEADYTUNE = """
import json, sys
sys.modules["steadytune"] = None
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
folder, texts = sys.argv[1], json.load(sys.stdin)
model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
try:
    import steadytune
except ImportError:
    with torch.no_grad():
        json.dump([model(**tokenizer(text, return_tensors="pt")).logits[0].tolist() for text in texts], sys.stdout)
"""


def test_the_exported_model_gives_the_recorded_logits_where_steadytune_is_absent(plain: Done, toy: Toy) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_STEADYTUNE, str(plain.folder / "model")],
        input=json.dumps(texts_of(toy.data, "test")),
        capture_output=True,
        text=True,
        check=True,
    )
    recorded = np.stack(plain.predictions.query("split == 'test'")["logits"])
    np.testing.assert_allclose(np.array(json.loads(done.stdout)), recorded, **CLOSE)


def test_the_exported_folder_holds_safetensors_json_and_text_alone(plain: Done) -> None:
    kinds = {path.suffix for path in (plain.folder / "model").rglob("*")}
    assert kinds == {".safetensors", ".json", ".md"}


def test_the_exported_configuration_names_the_labels(plain: Done) -> None:
    config = json.loads((plain.folder / "model" / "config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "fair", "2": "good"}
    assert config["label2id"] == {"bad": 0, "fair": 1, "good": 2}


def test_the_exported_weights_are_those_of_the_encoder_and_its_head_alone(toy: Toy, plain: Done) -> None:
    stacked = toy.run(recipe_of("scl+hype"))
    assert stacked.weights.keys() == plain.weights.keys()
    assert not [name for name in stacked.weights if "scl" in name or "hype" in name]


def test_no_path_of_the_machine_is_in_what_a_run_leaves(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(toy.folder)
    config = run_of("data", "encoder", recipe_of("scl+hype"))
    fit(config, Path("relative"))
    files = [path for path in (toy.folder / "relative").rglob("*") if path.is_file()]
    assert len(files) >= 7
    for path in files:
        content = path.read_bytes()
        for place in (toy.folder, Path.home(), Path(sys.prefix)):
            assert f"{place}/".encode() not in content, path.name


def test_no_path_is_in_the_exported_folder_even_if_the_user_gave_one(plain: Done, toy: Toy) -> None:
    for path in (plain.folder / "model").iterdir():
        assert str(toy.folder).encode() not in path.read_bytes(), path.name


def test_a_finished_run_can_be_the_model_of_another(plain: Done, toy: Toy) -> None:
    config = run_of(toy.data, plain.folder, recipe_of("plain"), learning_rate=1e-12)
    done = toy.repeat(config)
    assert done.record.scores == plain.record.scores

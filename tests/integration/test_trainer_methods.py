"""CAT, LNSR, ASA and the whole stack in `RegularizedTrainer`: parameters, clipping, logs, splits, traces, resuming."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from steadytune import ASA, CAT, LNSR, SCL, HyPe, RegularizedTrainer
from steadytune.encoders import SiteUnavailable
from steadytune.methods import lnsr as lnsr_module
from steadytune.methods.contract import Method, MethodError
from tiny import tiny_batch, tiny_model
from tinytrainer import (
    CLOSE,
    Rows,
    assert_close_gradients,
    assert_same_weights,
    differ,
    one_step,
    trained,
    trainer_of,
    weights_of,
)

pytestmark = pytest.mark.usefixtures("imports_stay_out_of_garbage_collection")

STACK = [
    SCL(weight=0.5),
    CAT(weight=0.3, epsilon=0.5, temperature=0.5, projection_dim=8),
    HyPe(noise_std=0.05),
    LNSR(weight=2.0),
    ASA(weight=0.5, learning_rate_scale=5.0, target_mask_fraction=0.2),
]
"""A method by itself is the one of this stack."""

EACH = {"cat": [STACK[1]], "lnsr": [STACK[3]], "asa": [STACK[4]], "stack": STACK}
each = pytest.mark.parametrize("name", EACH)


def prepared(folder: Path, methods: Sequence[Method], family: str = "bert", *, of: Any = None, **given: Any) -> Any:
    """A trainer that has not trained yet."""
    rows = tiny_batch(family, rows=16)
    own = {"methods": methods, **(of or {})}
    return trainer_of(RegularizedTrainer, folder, tiny_model(family, depth=2), rows, of=own, **given)


def lines_of(trainer: Trainer) -> list[dict[str, float]]:
    return [line for line in trainer.state.log_history if "loss" in line]


# -- null settings and splits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "methods",
    [[LNSR(weight=0.0)], [LNSR(noise_std=0.0)], [ASA(weight=0.0)]],
    ids=["lnsr, weight", "lnsr, noise", "asa, weight"],
)
def test_a_null_setting_leaves_the_stock_weights(methods: list[Method], tmp_path: Path) -> None:
    stock, _ = trained(tmp_path, kind=Trainer, max_steps=3)
    ours, _ = trained(tmp_path, methods, max_steps=3)
    assert_same_weights(weights_of(ours.model), weights_of(stock.model))


SPLIT: dict[str, list[Method]] = {
    "lnsr": [LNSR(weight=2.0)],
    "asa": [ASA()],
    "stack": [
        SCL(weight=0.5, gather_across_accumulation=True),
        CAT(weight=0.0, epsilon=0.0),
        LNSR(weight=2.0),
        ASA(weight=0.5),
    ],
}


class OwnGradients(TrainerCallback):
    """Gradients of the methods' own parameters at every step."""

    trainer: Any = None

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        named = self.trainer.regularized_model.method_modules.named_parameters()
        self.seen.append({name: parameter.grad.clone() for name, parameter in named})


@pytest.mark.parametrize("name", SPLIT)
def test_gradient_and_logged_loss_do_not_depend_on_how_a_batch_is_split(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def constant(states: Tensor, real: Tensor, **settings: Any) -> Tensor:
        return settings["scale"] * states.detach().roll(1, dims=-1) * real[..., None]

    monkeypatch.setattr(lnsr_module, "draw_perturbation", constant)
    model, rows = tiny_model("bert", dropout=0.0, depth=2, dtype=torch.float64), tiny_batch("bert", rows=16)
    whole, loss = one_step(RegularizedTrainer, tmp_path, model, rows, "16 x 1", methods=SPLIT[name])
    for split in ("4 x 4", "2 x 8"):
        parts, loss_of_parts = one_step(RegularizedTrainer, tmp_path, model, rows, split, methods=SPLIT[name])
        assert_close_gradients(parts, whole)
        assert loss_of_parts == pytest.approx(loss, **CLOSE)


def test_the_gradient_of_the_adversary_does_not_depend_on_how_a_batch_is_split(tmp_path: Path) -> None:
    model, rows = tiny_model("bert", dropout=0.0, depth=2, dtype=torch.float64), tiny_batch("bert", rows=16)
    found = []
    for batch, groups in ((16, 1), (2, 8)):
        own = OwnGradients()
        own.trainer = trainer_of(
            RegularizedTrainer,
            tmp_path,
            model,
            rows,
            of={"methods": [ASA()], "callbacks": [own]},
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=groups,
            max_steps=1,
            learning_rate=0.0,
        )
        own.trainer.train()
        found.append(own.seen[0])
    assert any(gradient.any() for gradient in found[0].values())
    assert_close_gradients(found[1], found[0])


def test_the_contrast_of_cat_over_small_batches_has_another_gradient(tmp_path: Path) -> None:
    model, rows = tiny_model("bert", dropout=0.0, depth=2, dtype=torch.float64), tiny_batch("bert", rows=16)
    cat = CAT(weight=0.5, epsilon=0.0, projection_dim=8)
    whole, _ = one_step(RegularizedTrainer, tmp_path, model, rows, "16 x 1", methods=[cat])
    parts, _ = one_step(RegularizedTrainer, tmp_path, model, rows, "4 x 4", methods=[cat])
    name = "bert.encoder.layer.1.output.dense.weight"
    assert float((parts[name] - whole[name]).norm() / whole[name].norm()) > 0.01


# -- parameters of the methods ----------------------------------------------------------------------------------------


def test_each_method_has_a_group_of_its_own_and_asa_decays_nothing(tmp_path: Path) -> None:
    trainer = prepared(tmp_path, STACK, weight_decay=0.1)
    trainer.create_optimizer()
    groups = {group.get("name"): group for group in trainer.optimizer.param_groups}
    assert {key: (groups[key]["lr"], groups[key]["weight_decay"]) for key in ("cat", "asa")} == {
        "cat": (1e-2, 0.1),
        "asa": (5e-2, 0.0),
    }
    for key in ("cat", "asa"):
        own = [id(p) for p in trainer.regularized_model.method_modules[key].parameters()]
        assert [id(p) for p in groups[key]["params"]] == own


def test_every_parameter_is_in_the_optimizer_once(tmp_path: Path) -> None:
    trainer = prepared(tmp_path, STACK)
    trainer.create_optimizer()
    known = [id(p) for group in trainer.optimizer.param_groups for p in group["params"]]
    assert sorted(known) == sorted(id(p) for p in trainer.regularized_model.parameters())


class Rates(TrainerCallback):
    """Learning rate of each group after every step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        self.seen.append({group.get("name", "encoder"): group["lr"] for group in optimizer.param_groups})


def test_the_schedule_moves_the_rate_of_the_adversary_with_that_of_the_encoder(tmp_path: Path) -> None:
    rates, methods = Rates(), [ASA(learning_rate_scale=5.0)]
    prepared(tmp_path, methods, of={"callbacks": [rates]}, max_steps=4, lr_scheduler_type="linear").train()
    expected = [7.5e-3, 5e-3, 2.5e-3, 0.0]  # from 1e-2 to 0 in four steps
    assert [rate["encoder"] for rate in rates.seen] == pytest.approx(expected)
    assert [rate["asa"] for rate in rates.seen] == pytest.approx([5 * rate for rate in expected])


@each
def test_own_parameters_and_encoder_are_trained(name: str, tmp_path: Path) -> None:
    trainer = prepared(tmp_path, EACH[name], max_steps=2)
    before = weights_of(trainer.regularized_model)
    trainer.train()
    after = weights_of(trainer.regularized_model)
    own = {key for key, _ in trainer.regularized_model.method_modules.named_parameters(prefix="method_modules")}
    assert bool(own) == (name != "lnsr")
    assert [key for key in own if torch.equal(before[key], after[key])] == []
    assert differ({k: v for k, v in before.items() if k.startswith("model.")}, after)


class Norms(TrainerCallback):
    """Norm of the gradient of the encoder and of each method, after clipping."""

    trainer: Any = None

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        parts = {"encoder": model, **self.trainer.regularized_model.method_modules}
        self.seen.append({key: total_norm(part) for key, part in parts.items()})


def total_norm(module: nn.Module) -> float:
    return float(nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None]))


def test_encoder_projection_and_adversary_are_clipped_each_by_its_own_norm(tmp_path: Path) -> None:
    norms = Norms()
    norms.trainer = prepared(tmp_path, STACK, of={"callbacks": [norms]}, max_steps=1, max_grad_norm=1e-3)
    norms.trainer.train()
    assert norms.seen[0] == pytest.approx({"encoder": 1e-3, "cat": 1e-3, "asa": 1e-3}, rel=1e-2)


def test_the_adversary_does_not_shrink_the_gradient_of_the_encoder(tmp_path: Path) -> None:
    """With a gain of 1e9 its norm is far beyond the bound, and that of the encoder is not."""
    norms = Norms()
    norms.trainer = prepared(tmp_path, [ASA(gain=1e9)], of={"callbacks": [norms]}, max_steps=1, max_grad_norm=50.0)
    norms.trainer.train()
    logged = norms.trainer.state.log_history[0]["grad_norm"]
    assert norms.seen[0]["asa"] == pytest.approx(50.0, rel=1e-3)
    assert norms.seen[0]["encoder"] == pytest.approx(logged, **CLOSE) and logged < 25


@pytest.mark.parametrize(("index", "lacking"), [(1, r"cat\.0\.weight of method cat"), (4, r"asa\.query\.0\.weight of")])
def test_an_optimizer_without_a_methods_parameters_is_refused(index: int, lacking: str, tmp_path: Path) -> None:
    model = tiny_model("bert", depth=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with pytest.raises(MethodError, match=f"^the optimizer lacks the parameter {lacking}"):
        trained(tmp_path, [STACK[index]], of={"model": model, "optimizers": (optimizer, None)})


# -- logs -------------------------------------------------------------------------------------------------------------

TELEMETRY = {
    "cat": {
        "term",
        "cosine_of_views",
        "loss_rise",
        "predicted_loss_rise",
        "special_gradient_fraction",
        "zero_perturbation_fraction",
    },
    "lnsr": {"term", "relative_distance_layer_1", "relative_distance_layer_2"},
    "asa": {"term", "divergence", "keep_rate", "keep_rate_layer_0", "keep_rate_layer_1", "price", "price_multiplier"},
}


@each
def test_every_log_line_says_what_each_method_did(name: str, tmp_path: Path) -> None:
    model = tiny_model("bert", depth=2)
    trainer, _ = trained(tmp_path, EACH[name], of={"model": model}, max_steps=2)
    assert len(lines_of(trainer)) == 2
    for line in lines_of(trainer):
        for key in TELEMETRY.keys() & {method.key for method in EACH[name]}:
            assert {item.removeprefix(f"{key}/") for item in line if item.startswith(f"{key}/")} == TELEMETRY[key]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_logged_loss_adds_up_without_the_price_of_the_adversary(accumulation: int, tmp_path: Path) -> None:
    """SCL of weight 1/2 has odds 1, CAT of weight 0.3 has 3/7; LNSR and ASA enter with 2 and 1/2."""
    trainer, _ = trained(tmp_path, STACK, max_steps=2, gradient_accumulation_steps=accumulation)
    for line in lines_of(trainer):
        parts = line["task_loss"] + line["scl/term"] + 3 / 7 * line["cat/term"] + 2 * line["lnsr/term"]
        assert line["loss"] == pytest.approx((parts + 0.5 * line["asa/divergence"]) / (2 + 3 / 7), **CLOSE)
        assert line["asa/term"] == line["asa/divergence"] and line["asa/price"] > 1


# -- what stays, what is saved, what resumes --------------------------------------------------------------------------


class Evaluates(TrainerCallback):
    """Evaluates after every step."""

    trainer: Any = None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.evaluate(Rows(tiny_batch("bert", rows=6, seed=3)))


def test_evaluation_during_training_does_not_change_the_trained_weights(tmp_path: Path) -> None:
    evaluates = Evaluates()
    quiet = prepared(tmp_path, STACK, max_steps=3)
    busy = evaluates.trainer = prepared(tmp_path, STACK, of={"callbacks": [evaluates]}, max_steps=3)
    for trainer in (quiet, busy):
        torch.manual_seed(0)
        trainer.train()
    assert_same_weights(weights_of(busy.regularized_model), weights_of(quiet.regularized_model))


@each
def test_the_saved_model_loads_plainly_and_holds_no_parameter_of_a_method(name: str, tmp_path: Path) -> None:
    trainer, _ = trained(tmp_path, EACH[name], max_steps=1)
    trainer.save_model(str(tmp_path / "saved"))
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {"config.json", "model.safetensors"}
    loaded, info = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "saved", output_loading_info=True
    )
    assert not any(info.values())
    assert_same_weights(weights_of(loaded), weights_of(trainer.model))


@pytest.mark.parametrize(
    ("name", "accumulation"), [("cat", 1), ("lnsr", 1), ("asa", 1), ("stack", 1), ("stack", 2)], ids=str
)
def test_a_resumed_training_ends_with_the_weights_parameters_and_price_of_an_unbroken_one(
    name: str, accumulation: int, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "max_steps": 5,
        "gradient_accumulation_steps": accumulation,
        "train_sampling_strategy": "random",
        "save_strategy": "steps",
        "save_steps": 3,
    }
    unbroken, resumed = (prepared(tmp_path, EACH[name], **settings) for _ in range(2))
    unbroken.train()
    torch.nn.init.zeros_(next(resumed.model.parameters()))  # what was saved counts, not what is there
    for own in resumed.regularized_model.method_modules.parameters():
        torch.nn.init.zeros_(own)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert_same_weights(weights_of(resumed.regularized_model), weights_of(unbroken.regularized_model))
    assert ("method_modules.asa.log_multiplier" in weights_of(resumed.regularized_model)) == (name in ("asa", "stack"))
    assert lines_of(resumed)[-1] == lines_of(unbroken)[-1]


# -- gradient checkpointing -------------------------------------------------------------------------------------------


@each
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")  # the name changes between versions
def test_checkpointed_activations_give_the_same_weights(name: str, tmp_path: Path) -> None:
    usual, _ = trained(tmp_path, EACH[name], max_steps=2)
    saving, _ = trained(tmp_path, EACH[name], max_steps=2, gradient_checkpointing=True)
    assert_same_weights(weights_of(saving.regularized_model), weights_of(usual.regularized_model))


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("key", ["cat", "asa"])
def test_a_reentrant_checkpointing_asked_for_is_refused_at_the_first_step(key: str, tmp_path: Path) -> None:
    expected = f"{key} cannot act under re-entrant gradient checkpointing, which cuts its gradients; enable it with "
    with pytest.raises(MethodError, match=f"^{re.escape(expected)}"):
        trained(
            tmp_path,
            EACH[key],
            max_steps=1,
            gradient_checkpointing=True,
            gradient_checkpointing_kwargs={"use_reentrant": True},
        )


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
def test_asa_on_a_checkpointed_deberta_is_refused(tmp_path: Path) -> None:
    trainer = prepared(tmp_path, [ASA()], "deberta-v2", max_steps=1, gradient_checkpointing=True)
    with pytest.raises(SiteUnavailable, match="gradient checkpointing would compute its layers again without the bias"):
        trainer.train()


# -- precision --------------------------------------------------------------------------------------------------------


@each
def test_bfloat16_autocast_trains_finite_float32_weights(name: str, tmp_path: Path) -> None:
    trainer, _ = trained(tmp_path, EACH[name], max_steps=2, bf16=True)
    assert {value.dtype for value in trainer.regularized_model.parameters()} == {torch.float32}
    assert all(torch.isfinite(value).all() for value in trainer.regularized_model.parameters())


def test_lnsr_refuses_noise_that_bfloat16_would_round_away(tmp_path: Path) -> None:
    with pytest.raises(MethodError, match=r"^lnsr\.noise_std gives noise of 1\.0e-02 times the norm .* in bfloat16"):
        trained(tmp_path, [LNSR(noise_std=0.01)], max_steps=1, bf16=True)

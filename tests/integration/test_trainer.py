"""`RegularizedTrainer` against the stock `Trainer` and against plain torch: gradients, features, traces."""

import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback

from dummies import Consistency, Fails, LogitPenalty, Owner, Watch
from steadytune import SCL, Averaging, HyPe, NoisyTune, RegularizedTrainer, ReInit
from steadytune.methods.contract import Method, MethodError
from steadytune.tasks import Classification
from tiny import FAMILIES, gradients, inputs_of, tiny_batch, tiny_model
from tinytrainer import (
    CLOSE,
    SPLITS,
    Rows,
    Spy,
    arguments,
    assert_close_gradients,
    assert_same_weights,
    differ,
    one_step,
    trained,
    trainer_of,
    weights_of,
)
from tolerances import SAME

TASKS = [pytest.param(False, id="classification"), pytest.param(True, id="regression")]
STACK = [SCL(weight=0.5), HyPe(noise_std=1e-2), Consistency()]


pytestmark = pytest.mark.usefixtures("imports_stay_out_of_garbage_collection")


# -- gradient accumulation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("regression", TASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_and_logged_loss_do_not_depend_on_how_a_batch_is_split(
    family: str, regression: bool, tmp_path: Path
) -> None:
    model = tiny_model(family, num_labels=1 if regression else 3, dropout=0.0, dtype=torch.float64)
    rows = tiny_batch(family, rows=16, regression=regression)
    whole, loss = one_step(RegularizedTrainer, tmp_path, model, rows, "16 x 1")
    by_hand = model(**inputs_of(rows)).logits
    labels = rows["labels"].double() if regression else rows["labels"]
    expected = mse_loss(by_hand.squeeze(-1), labels) if regression else cross_entropy(by_hand, labels)
    assert loss == pytest.approx(expected.item(), **CLOSE)
    for split in ("4 x 4", "2 x 8"):
        parts, loss_of_parts = one_step(RegularizedTrainer, tmp_path, model, rows, split)
        assert_close_gradients(parts, whole)
        assert loss_of_parts == pytest.approx(loss, **CLOSE)


def test_the_gradient_of_a_term_that_is_a_mean_over_rows_does_not_depend_on_the_split(tmp_path: Path) -> None:
    model, rows = tiny_model("bert", dropout=0.0, dtype=torch.float64), tiny_batch("bert", rows=16)
    methods = [LogitPenalty(weight=2.0)]
    whole, loss = one_step(RegularizedTrainer, tmp_path, model, rows, "16 x 1", methods=methods)
    without, _ = one_step(RegularizedTrainer, tmp_path, model, rows, "16 x 1")
    parts, loss_of_parts = one_step(RegularizedTrainer, tmp_path, model, rows, "2 x 8", methods=methods)
    assert differ(whole, without)
    assert_close_gradients(parts, whole)
    assert loss_of_parts == pytest.approx(loss, **CLOSE)


@pytest.mark.parametrize(
    ("batch", "accumulation", "groups"),
    [
        pytest.param(4, 3, [range(10)], id="4 + 4 + 2 rows in one step"),
        pytest.param(2, 3, [range(6), range(6, 10)], id="a last step of two batches in place of three"),
        pytest.param(3, 2, [range(6), range(6, 10)], id="a last step of 3 + 1 rows"),
    ],
)
def test_an_uneven_group_gives_the_mean_over_its_rows(
    batch: int, accumulation: int, groups: list[range], tmp_path: Path
) -> None:
    model, rows = tiny_model("bert", dropout=0.0, dtype=torch.float64), tiny_batch("bert", rows=10)
    trainer, spy = trained(
        tmp_path,
        of={"model": model, "rows": rows},
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        max_steps=len(groups),
        learning_rate=0.0,
    )
    for ours, log, group in zip(spy.gradients, trainer.state.log_history, groups, strict=False):
        model.zero_grad()
        chosen = {name: value[list(group)] for name, value in rows.items()}
        loss = cross_entropy(model(**inputs_of(chosen)).logits, chosen["labels"])
        loss.backward()
        assert_close_gradients(ours, gradients(model))
        assert log["loss"] == pytest.approx(loss.item(), **CLOSE)


def test_rows_without_a_label_do_not_count_in_the_mean(tmp_path: Path) -> None:
    model, rows = tiny_model("bert", dropout=0.0, dtype=torch.float64), tiny_batch("bert", rows=16)
    rows["labels"][[0, 1, 2, 9]] = -100
    parts, _ = one_step(RegularizedTrainer, tmp_path, model, rows, "4 x 4")
    model.zero_grad()
    cross_entropy(model(**inputs_of(rows)).logits, rows["labels"]).backward()
    assert_close_gradients(parts, gradients(model))


def test_the_stock_trainer_multiplies_the_gradient_by_the_accumulation_steps_and_ours_does_not(tmp_path: Path) -> None:
    model, rows = tiny_model("bert", dropout=0.0, dtype=torch.float64), tiny_batch("bert", rows=16)
    weight = "classifier.weight"
    ratios = {}
    for kind in (Trainer, RegularizedTrainer):
        whole, loss = one_step(kind, tmp_path, model, rows, "16 x 1")
        parts, loss_of_parts = one_step(kind, tmp_path, model, rows, "4 x 4")
        ratios[kind] = (float(parts[weight].norm() / whole[weight].norm()), loss_of_parts / loss)
    assert ratios[RegularizedTrainer] == pytest.approx((1.0, 1.0), **CLOSE)
    assert ratios[Trainer] == pytest.approx((4.0, 4.0), **CLOSE), (
        f"the stock Trainer of transformers {transformers.__version__} gives {ratios[Trainer]} times the gradient and "
        "the logged loss of one batch, no longer 4 times each: if that is 1, the defect is mended upstream, so drop "
        "this test and what the documents say about it."
    )


def test_scl_over_accumulated_batches_has_the_gradient_of_one_large_batch(tmp_path: Path) -> None:
    model, rows = tiny_model("bert", dropout=0.0, dtype=torch.float64), tiny_batch("bert", rows=16)
    whole, loss = one_step(RegularizedTrainer, tmp_path, model, rows, "16 x 1", methods=[SCL(weight=0.7)])
    gathered, gathered_loss = one_step(
        RegularizedTrainer, tmp_path, model, rows, "4 x 4", methods=[SCL(weight=0.7, gather_across_accumulation=True)]
    )
    assert_close_gradients(gathered, whole)
    assert gathered_loss == pytest.approx(loss, **CLOSE)


def test_scl_over_each_batch_alone_has_another_gradient_than_one_large_batch(tmp_path: Path) -> None:
    model, rows = tiny_model("bert", dropout=0.0, dtype=torch.float64), tiny_batch("bert", rows=16)
    whole, _ = one_step(RegularizedTrainer, tmp_path, model, rows, "16 x 1", methods=[SCL(weight=0.7)])
    alone, _ = one_step(RegularizedTrainer, tmp_path, model, rows, "4 x 4", methods=[SCL(weight=0.7)])
    name = "bert.encoder.layer.1.output.dense.weight"
    assert float((alone[name] - whole[name]).norm() / whole[name].norm()) > 0.01


# -- without methods it is Trainer ------------------------------------------------------------------------------------


@pytest.mark.parametrize("regression", TASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_without_methods_training_is_that_of_the_stock_trainer_bit_for_bit(
    family: str, regression: bool, tmp_path: Path
) -> None:
    rows = tiny_batch(family, rows=16, regression=regression)
    found = []
    for kind in (Trainer, RegularizedTrainer):
        model = tiny_model(family, num_labels=1 if regression else 3)
        trainer, _ = trained(
            tmp_path, kind=kind, of={"model": model, "rows": rows}, max_steps=5, train_sampling_strategy="random"
        )
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        evaluated = trainer.evaluate(Rows(rows))["eval_loss"]
        found.append((weights_of(model), losses, evaluated))
    assert_same_weights(found[1][0], found[0][0])
    assert found[1][1:] == found[0][1:]


@pytest.mark.parametrize("methods", [[], [SCL(weight=0.0), HyPe(noise_std=0.0)]], ids=["none", "of weight 0"])
def test_methods_that_do_nothing_leave_the_stock_weights(methods: list[Method], tmp_path: Path) -> None:
    stock, _ = trained(tmp_path, kind=Trainer)
    ours, _ = trained(tmp_path, methods)
    assert_same_weights(weights_of(ours.model), weights_of(stock.model))


# -- features of Trainer ----------------------------------------------------------------------------------------------


class Evaluates(TrainerCallback):
    """Evaluates and predicts after every step."""

    trainer: Any = None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        rows = Rows(tiny_batch("bert", rows=6, seed=3))
        self.trainer.evaluate(rows)
        self.trainer.predict(rows)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_evaluation_during_training_does_not_change_the_trained_weights(accumulation: int, tmp_path: Path) -> None:
    methods = [*STACK[1:], SCL(weight=0.5, gather_across_accumulation=True)]
    settings = {"gradient_accumulation_steps": accumulation, "train_sampling_strategy": "random"}
    quiet, _ = trained(tmp_path, methods, **settings)
    evaluates = Evaluates()
    busy = trainer_of(
        RegularizedTrainer,
        tmp_path,
        tiny_model("bert"),
        tiny_batch("bert", rows=16),
        of={"methods": methods, "callbacks": [evaluates], "eval_dataset": Rows(tiny_batch("bert", rows=6, seed=3))},
        max_steps=6,
        eval_strategy="steps",
        eval_steps=2,
        **settings,
    )
    evaluates.trainer = busy
    busy.train()
    assert_same_weights(weights_of(busy.model), weights_of(quiet.model))


def test_evaluation_gives_the_plain_loss(tmp_path: Path) -> None:
    rows = tiny_batch("bert", rows=6, seed=3)
    trainer, _ = trained(tmp_path, STACK, label_smoothing_factor=0.2)
    loss = trainer.evaluate(Rows(rows))["eval_loss"]
    trainer.model.eval()
    with torch.no_grad():
        expected = cross_entropy(trainer.model(**inputs_of(rows)).logits, rows["labels"]).item()
    assert loss == pytest.approx(expected, **CLOSE)


def test_the_best_model_is_loaded_at_the_end(tmp_path: Path) -> None:
    scores = iter([0.1, 0.9, 0.2])
    trainer, spy = trained(
        tmp_path,
        STACK,
        of={"eval_dataset": Rows(tiny_batch("bert", rows=6)), "compute_metrics": lambda _: {"score": next(scores)}},
        max_steps=6,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=2,
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="score",
        greater_is_better=True,
    )
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-4")
    assert_same_weights(weights_of(trainer.model), spy.weights[3])
    assert differ(spy.weights[3], spy.weights[5])


def test_callbacks_are_given_the_plain_model(tmp_path: Path) -> None:
    model = tiny_model("bert")
    trainer, spy = trained(tmp_path, STACK, of={"model": model})
    assert len(spy.models) > 6
    assert {id(seen) for seen in spy.models} == {id(model)} and trainer.model is model


def test_compute_metrics_is_given_the_logits_and_labels_of_the_plain_model(tmp_path: Path) -> None:
    rows, seen = tiny_batch("bert", rows=6, seed=3), []

    def metrics(prediction: Any) -> dict[str, float]:
        seen.append(prediction)
        return {"share": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    trainer, _ = trained(tmp_path, STACK, of={"compute_metrics": metrics})
    scores = trainer.evaluate(Rows(rows))
    trainer.model.eval()
    with torch.no_grad():
        logits = trainer.model(**inputs_of(rows)).logits
    torch.testing.assert_close(torch.as_tensor(seen[0].predictions), logits)
    assert scores["eval_share"] == (logits.argmax(-1) == rows["labels"]).double().mean().item()


@pytest.mark.parametrize("split", SPLITS)
def test_label_smoothing_is_that_of_torch_however_the_batch_is_split(split: str, tmp_path: Path) -> None:
    model, rows = tiny_model("bert", dropout=0.0), tiny_batch("bert", rows=16)
    batch, groups = SPLITS[split]
    trainer, _ = trained(
        tmp_path,
        of={"model": model, "rows": rows},
        label_smoothing_factor=0.2,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=groups,
        max_steps=1,
        learning_rate=0.0,
    )
    with torch.no_grad():
        logits = model(**inputs_of(rows)).logits
    expected = cross_entropy(logits, rows["labels"], label_smoothing=0.2).item()
    assert expected != pytest.approx(cross_entropy(logits, rows["labels"]).item(), rel=1e-3)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, **CLOSE)


def test_label_smoothing_keeps_what_else_a_given_task_does(tmp_path: Path) -> None:
    class Doubled(Classification):
        def loss(self, logits: Any, labels: Any) -> Any:
            return 2 * super().loss(logits, labels)

    model, rows = tiny_model("bert", dropout=0.0), tiny_batch("bert", rows=16)
    trainer, _ = trained(
        tmp_path,
        of={"model": model, "rows": rows, "task": Doubled(("a", "b", "c"))},
        label_smoothing_factor=0.2,
        per_device_train_batch_size=16,
        max_steps=1,
        learning_rate=0.0,
    )
    with torch.no_grad():
        expected = 2 * cross_entropy(model(**inputs_of(rows)).logits, rows["labels"], label_smoothing=0.2).item()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, **CLOSE)


def test_label_smoothing_refuses_regression(tmp_path: Path) -> None:
    rows = tiny_batch("bert", rows=16, regression=True)
    with pytest.raises(MethodError, match="label_smoothing_factor has no meaning for a regression task"):
        trained(tmp_path, of={"model": tiny_model("bert", num_labels=1), "rows": rows}, label_smoothing_factor=0.1)


def test_a_loss_of_the_user_trains_in_place_of_the_tasks_however_the_batch_is_split(tmp_path: Path) -> None:
    model, rows = tiny_model("bert", dropout=0.0, dtype=torch.float64), tiny_batch("bert", rows=16)

    def squares(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        targets = nn.functional.one_hot(labels, 3).to(outputs.logits.dtype)
        return (outputs.logits - targets).square().sum() / num_items_in_batch

    whole, loss = one_step(RegularizedTrainer, tmp_path, model, rows, "16 x 1", compute_loss_func=squares)
    parts, loss_of_parts = one_step(RegularizedTrainer, tmp_path, model, rows, "4 x 4", compute_loss_func=squares)
    model.zero_grad()
    expected = (model(**inputs_of(rows)).logits - nn.functional.one_hot(rows["labels"], 3)).square().sum() / 16
    expected.backward()
    assert loss == pytest.approx(expected.item(), **CLOSE)
    assert loss_of_parts == pytest.approx(expected.item(), **CLOSE)
    assert_close_gradients(whole, gradients(model))
    assert_close_gradients(parts, gradients(model))


def test_model_init_makes_the_model_that_is_trained_with_the_methods(tmp_path: Path) -> None:
    given, _ = trained(tmp_path, STACK)
    made, spy = trained(tmp_path, STACK, of={"model_init": lambda: tiny_model("bert")})
    assert_same_weights(weights_of(made.model), weights_of(given.model))
    assert spy.models[-1] is made.model
    first = weights_of(made.model)
    made.train()
    assert_same_weights(weights_of(made.model), first)


def test_what_a_method_does_to_a_model_comes_before_the_weights_of_a_checkpoint(tmp_path: Path) -> None:
    settings = {"max_steps": 5, "train_sampling_strategy": "random", "save_strategy": "steps", "save_steps": 3}
    methods, rows = [ReInit(), NoisyTune()], tiny_batch("bert", rows=16)
    of = {"model_init": lambda: tiny_model("bert"), "methods": methods}
    unbroken, resumed = (trainer_of(RegularizedTrainer, tmp_path, None, rows, of=of, **settings) for _ in range(2))
    unbroken.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert_same_weights(weights_of(resumed.model), weights_of(unbroken.model))


def test_choosing_among_checkpoints_is_refused_where_a_method_puts_other_weights_in_place(tmp_path: Path) -> None:
    with pytest.raises(MethodError, match="averaging puts other weights in place in the end, so load_best_model"):
        trained(
            tmp_path,
            [Averaging()],
            of={"eval_dataset": Rows(tiny_batch("bert"))},
            load_best_model_at_end=True,
            eval_strategy="steps",
            save_strategy="steps",
        )


def test_the_noise_of_the_stock_trainer_is_refused_beside_methods(tmp_path: Path) -> None:
    with pytest.raises(MethodError, match=r"give the method NEFTune\(alpha=\.\.\.\)"):
        trained(tmp_path, STACK, neftune_noise_alpha=1.0)


def test_after_training_the_model_holds_the_average_of_its_weights(tmp_path: Path) -> None:
    last, _ = trained(tmp_path / "last")
    averaged, spy = trained(tmp_path / "averaged", [Averaging(decay=0.5)])
    assert_same_weights(spy.weights[-1], weights_of(last.model))
    mean = spy.weights[0]
    for number, weights in enumerate(spy.weights[1:], start=1):
        decay = min(0.5, (1 + number) / (10 + number))
        mean = {name: decay * mean[name] + (1 - decay) * weights[name] for name in mean}
    torch.testing.assert_close(weights_of(averaged.model), mean, rtol=SAME[torch.float32], atol=SAME[torch.float32])


def test_clipping_at_0_is_no_clipping_and_still_logs_the_norm(tmp_path: Path) -> None:
    without, spy = trained(tmp_path, STACK, max_grad_norm=0.0)
    huge, _ = trained(tmp_path, STACK, max_grad_norm=1e9)
    assert_same_weights(weights_of(without.model), weights_of(huge.model))
    norm = torch.stack([gradient.norm() for gradient in spy.gradients[0].values()]).norm().item()
    assert without.state.log_history[0]["grad_norm"] == pytest.approx(norm, **CLOSE)


def test_clipping_bounds_the_gradient(tmp_path: Path) -> None:
    _, spy = trained(tmp_path, STACK, max_grad_norm=1e-3)
    norm = torch.stack([gradient.norm() for gradient in spy.gradients[0].values()]).norm().item()
    assert norm == pytest.approx(1e-3, rel=1e-2)


def test_checkpointed_activations_give_the_same_weights(tmp_path: Path) -> None:
    usual, _ = trained(tmp_path, STACK)
    saving, _ = trained(tmp_path, STACK, activation_checkpointing=True)
    assert saving.model.is_activation_checkpointing
    assert_same_weights(weights_of(saving.model), weights_of(usual.model))


def test_bfloat16_autocast_trains_float32_weights_near_those_of_float32(tmp_path: Path) -> None:
    settings = {"learning_rate": 1e-4, "max_steps": 3}
    usual, _ = trained(tmp_path, STACK, **settings)
    low, _ = trained(tmp_path, STACK, bf16=True, **settings)
    losses = [[line["loss"] for line in t.state.log_history if "loss" in line] for t in (usual, low)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert {value.dtype for value in low.model.parameters()} == {torch.float32}
    assert all(torch.isfinite(value).all() for value in low.model.parameters())


def test_evaluation_runs_in_bfloat16_too(tmp_path: Path) -> None:
    trainer, _ = trained(tmp_path, STACK, bf16=True)
    rows = tiny_batch("bert", rows=6, seed=3)
    predicted = torch.as_tensor(trainer.predict(Rows(rows)).predictions)
    trainer.model.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = trainer.model(**inputs_of(rows)).logits.float()
    torch.testing.assert_close(predicted, expected, rtol=0, atol=0)


def test_a_second_call_of_train_goes_on_like_the_stock_trainers(tmp_path: Path) -> None:
    after = []
    for kind in (Trainer, RegularizedTrainer):
        trainer, _ = trained(tmp_path, kind=kind)
        once = weights_of(trainer.model)
        trainer.train()
        after.append(weights_of(trainer.model))
        assert differ(once, after[-1])
    assert_same_weights(after[1], after[0])


def test_a_second_call_of_train_still_uses_the_methods(tmp_path: Path) -> None:
    trainer, _ = trained(tmp_path, STACK)
    trainer.train()
    assert {"scl/term", "consistency/term", "hype/realized_noise_std"} <= trainer.state.log_history[0].keys()


def test_two_trainers_one_after_the_other_may_train_one_model(tmp_path: Path) -> None:
    model = tiny_model("bert")
    trained(tmp_path, [SCL(weight=0.5)], of={"model": model})
    before = weights_of(model)
    second, _ = trained(tmp_path, [HyPe(noise_std=1e-2)], of={"model": model})
    assert differ(before, weights_of(model))
    assert "hype/realized_noise_std" in second.state.log_history[0] and "scl/term" not in second.state.log_history[0]


# -- traces on the model ----------------------------------------------------------------------------------------------


def hooks_of(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def own_attributes(model: nn.Module) -> set[str]:
    return {f"{name}.{key}" for name, module in model.named_modules() for key in vars(module)}


@pytest.mark.parametrize("bf16", [False, True])
def test_nothing_is_left_on_the_model_after_training(bf16: bool, tmp_path: Path) -> None:
    model, untouched = tiny_model("bert"), tiny_model("bert")
    rows = Rows(tiny_batch("bert", rows=6))
    trainer, _ = trained(tmp_path, STACK, of={"model": model, "eval_dataset": rows}, bf16=bf16, eval_strategy="epoch")
    trainer.train()
    assert hooks_of(model) == hooks_of(untouched)
    assert own_attributes(model) == own_attributes(untouched)


@pytest.mark.parametrize("bf16", [False, True])
def test_nothing_is_left_on_the_model_after_evaluation_without_training(bf16: bool, tmp_path: Path) -> None:
    model, untouched, rows = tiny_model("bert"), tiny_model("bert"), tiny_batch("bert", rows=6)
    trainer = trainer_of(RegularizedTrainer, tmp_path, model, rows, of={"methods": STACK}, bf16=bf16)
    trainer.evaluate(Rows(rows))
    assert hooks_of(model) == hooks_of(untouched)
    assert own_attributes(model) == own_attributes(untouched)


def test_nothing_is_left_on_the_model_after_an_exception(tmp_path: Path) -> None:
    model, fails = tiny_model("bert"), Fails(switch={"on": True})
    before = hooks_of(model)
    with pytest.raises(ArithmeticError, match="inside a pass"):
        trained(tmp_path, [fails], of={"model": model})
    assert hooks_of(model) == before
    trained(tmp_path, STACK, of={"model": model})


def test_a_copy_of_the_trained_model_is_the_plain_model(tmp_path: Path) -> None:
    trainer, _ = trained(tmp_path, STACK)
    batch = tiny_batch("bert")
    trainer.model.eval()
    for twin in (copy.deepcopy(trainer.model), pickle.loads(pickle.dumps(trainer.model))):
        assert hooks_of(twin) == hooks_of(tiny_model("bert"))
        assert torch.equal(twin(**batch).logits, trainer.model(**batch).logits)


# -- parameters of a method -------------------------------------------------------------------------------------------


def test_an_optimizer_without_a_methods_parameters_is_refused(tmp_path: Path) -> None:
    model = tiny_model("bert")
    before = hooks_of(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with pytest.raises(MethodError, match=r"the optimizer lacks the parameter owner\.weight of method owner"):
        trained(tmp_path, [Owner()], of={"model": model, "optimizers": (optimizer, None)})
    assert hooks_of(model) == before


def test_an_optimizer_with_a_methods_parameters_is_used(tmp_path: Path) -> None:
    trainer = trainer_of(
        RegularizedTrainer, tmp_path, tiny_model("bert"), tiny_batch("bert", rows=16), of={"methods": [Owner()]}
    )
    trainer.optimizer = torch.optim.SGD(trainer.regularized_model.parameter_groups(lr=0.1))
    before = weights_of(trainer.regularized_model.method_modules)
    trainer.train()
    assert isinstance(trainer.optimizer.optimizer, torch.optim.SGD)
    assert differ(before, weights_of(trainer.regularized_model.method_modules))


def test_a_methods_parameters_are_trained_once_each(tmp_path: Path) -> None:
    trainer = trainer_of(
        RegularizedTrainer, tmp_path, tiny_model("bert"), tiny_batch("bert", rows=16), of={"methods": [Owner()]}
    )
    own = trainer.regularized_model.method_modules
    before = weights_of(own)
    trainer.train()
    after = weights_of(trainer.regularized_model.method_modules)
    assert all(not torch.equal(before[name], after[name]) for name in before)
    trainer.train()
    known = [id(p) for group in trainer.optimizer.param_groups for p in group["params"]]
    assert [known.count(id(p)) for p in trainer.regularized_model.parameters()] == [1] * len(known)


class OwnGradient(TrainerCallback):
    """Norm of the gradient of the methods' parameters at every step."""

    trainer: Any = None

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        own = self.trainer.regularized_model.method_modules.parameters()
        self.norms.append(float(torch.stack([parameter.grad.norm() for parameter in own]).norm()))


def test_a_methods_parameters_are_clipped_apart_from_the_model(tmp_path: Path) -> None:
    spy, own = Spy(), OwnGradient()
    trainer = trainer_of(
        RegularizedTrainer,
        tmp_path,
        tiny_model("bert"),
        tiny_batch("bert", rows=16),
        of={"methods": [Owner()], "callbacks": [spy, own]},
        max_steps=1,
        max_grad_norm=1e-3,
    )
    own.trainer = trainer
    trainer.train()
    norm = torch.stack([gradient.norm() for gradient in spy.gradients[0].values()]).norm().item()
    assert norm == pytest.approx(1e-3, rel=1e-2)
    assert own.norms[0] == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("max_grad_norm", [0.0, 1e9])
def test_the_logged_norm_is_that_of_the_model_alone(max_grad_norm: float, tmp_path: Path) -> None:
    trainer, spy = trained(tmp_path, [Owner(weight=5.0)], max_grad_norm=max_grad_norm, max_steps=1)
    norm = torch.stack([gradient.norm() for gradient in spy.gradients[0].values()]).norm().item()
    assert trainer.state.log_history[0]["grad_norm"] == pytest.approx(norm, **CLOSE)


GATHERING = [SCL(weight=0.5, gather_across_accumulation=True), HyPe(noise_std=1e-2)]


@pytest.mark.parametrize(
    ("methods", "accumulation", "step"),
    [
        pytest.param([], 1, 5, id="plain, inside an epoch"),
        pytest.param([*STACK, Owner()], 1, 5, id="stack, inside an epoch"),
        pytest.param([*STACK, Owner()], 1, 4, id="stack, between epochs"),
        pytest.param([*STACK, Owner()], 2, 3, id="stack, accumulated"),
        pytest.param(GATHERING, 2, 3, id="contrast over accumulated batches, inside an epoch"),
        pytest.param(GATHERING, 2, 4, id="contrast over accumulated batches, between epochs"),
    ],
)
def test_a_resumed_training_ends_with_the_weights_of_an_unbroken_one(
    methods: list[Method], accumulation: int, step: int, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "max_steps": 8,
        "gradient_accumulation_steps": accumulation,
        "train_sampling_strategy": "random",
        "save_strategy": "steps",
        "save_steps": step,
    }
    unbroken, _ = trained(tmp_path, methods, **settings)
    resumed = trainer_of(
        RegularizedTrainer,
        tmp_path,
        tiny_model("bert", seed=9),
        tiny_batch("bert", rows=16),
        of={"methods": methods},
        **settings,
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert_same_weights(
        weights_of(resumed.regularized_model),
        weights_of(unbroken.regularized_model),  # with the methods' own
    )
    assert resumed.regularized_model.micro_steps == unbroken.regularized_model.micro_steps == 8 * accumulation


def test_what_is_saved_is_the_plain_model_without_training_arguments(tmp_path: Path) -> None:
    trainer, _ = trained(tmp_path, [*STACK, Owner()], save_strategy="steps", save_steps=3)
    trainer.save_model(str(tmp_path / "saved"))
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {"config.json", "model.safetensors"}
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert_same_weights(weights_of(loaded), weights_of(trainer.model))
    everything = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert "trainer_state.json" in everything and "steadytune_methods.safetensors" in everything
    assert "training_args.bin" not in everything


def test_the_save_strategy_of_weights_alone_holds_no_method_state(tmp_path: Path) -> None:
    trained(tmp_path, [*STACK, Owner()], save_strategy="steps", save_steps=3, save_only_model=True)
    names = {path.name for path in (tmp_path / "checkpoint-3").iterdir()}
    assert names == {"config.json", "model.safetensors", "trainer_state.json"}


# -- logs and batches -------------------------------------------------------------------------------------------------


def test_the_log_holds_label_loss_terms_and_telemetry_that_add_up(tmp_path: Path) -> None:
    trainer, _ = trained(tmp_path, [SCL(weight=0.25), HyPe(noise_std=1e-2), LogitPenalty(weight=3.0)], logging_steps=2)
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert len(lines) == 3
    for line in lines:  # one convex method of weight 1/4 has odds 1/3: (L + S/3 + 3 P) / (4/3)
        parts = line["task_loss"] + line["scl/term"] / 3 + 3 * line["logit_penalty/term"]
        assert line["loss"] == pytest.approx(parts * 3 / 4, **CLOSE)
        assert {"scl/anchors_with_positive_fraction", "scl/above_floor", "hype/realized_noise_std"} <= line.keys()


class Backwards(Sampler[list[int]]):
    """Pairs of rows from the last to the first, shifted by the epoch."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.epoch = -1
        self.given: list[list[int]] = []
        self.epochs: list[int] = []

    @property
    def sampler(self) -> "Backwards":
        return self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.rows // 2

    def __iter__(self) -> Iterator[list[int]]:
        self.epochs.append(self.epoch)
        for first in range(self.rows - 1, 0, -2):
            batch = [(first + self.epoch) % self.rows, (first - 1 + self.epoch) % self.rows]
            self.given.append(batch)
            yield batch


def test_the_given_batch_sampler_gives_the_batches_and_is_told_each_epoch(tmp_path: Path) -> None:
    rows, sampler, seen = tiny_batch("bert", rows=8), Backwards(8), []

    def look(step: Any) -> dict[str, Any]:
        seen.append(step.inputs["input_ids"].tolist())
        return {}

    trained(
        tmp_path,
        [Watch(look=look)],
        of={"rows": rows, "train_batch_sampler": sampler},
        max_steps=-1,
        num_train_epochs=3,
        per_device_train_batch_size=5,
    )
    assert sampler.epochs == [0, 1, 2]
    assert seen == [rows["input_ids"][batch].tolist() for batch in sampler.given] and len(seen) == 12


def test_a_run_on_several_devices_of_one_process_is_refused(tmp_path: Path) -> None:
    given = arguments(tmp_path)
    given._n_gpu = 2
    with pytest.raises(MethodError, match="one device per process"):
        RegularizedTrainer(model=tiny_model("bert"), args=given, train_dataset=Rows(tiny_batch("bert")))


@pytest.mark.parametrize("build", [lambda: [SCL()], lambda: [Owner(weight=0.0), SCL()]], ids=["alone", "in a stack"])
def test_a_method_that_cannot_act_is_refused_before_training_and_leaves_no_hooks(
    build: Callable[[], list[Method]], tmp_path: Path
) -> None:
    model = tiny_model("bert", num_labels=1)
    before = hooks_of(model)
    with pytest.raises(MethodError, match="scl cannot act on a regression task"):
        trained(tmp_path, build(), of={"model": model, "rows": tiny_batch("bert", rows=16, regression=True)})
    assert hooks_of(model) == before

"""RecAdam beside an optimizer that is written out from its equations, moments and all."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from equivalence.straight_line import CLOSE, SEED, batch, cross_entropy, forward, tiny_bert
from steadytune import RegularizedModel
from steadytune.methods import MethodError
from steadytune.methods.llrd import LLRD
from steadytune.methods.noisytune import NoisyTune
from steadytune.methods.recadam import RecAdam, annealed_share
from steadytune.methods.reinit import ReInit
from tiny import rows_of
from tolerances import SAME

RATE, DECAY, STEPS = 0.05, 0.1, 6
BETAS, EPSILON, MOMENTUM = (0.8, 0.95), 1e-3, 0.9
SOME = RecAdam(gamma=4.0, k=0.7, t0=0.4)
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "AdamW": lambda groups: torch.optim.AdamW(groups, lr=RATE, betas=BETAS, eps=EPSILON),
    "SGD": lambda groups: torch.optim.SGD(groups, lr=RATE, momentum=MOMENTUM),
}
EITHER = pytest.mark.parametrize("kind", OPTIMIZERS)
SPLIT = pytest.mark.parametrize("sizes", [[6], [4, 2]], ids=str)


def schedule(step: int) -> float:
    """Factor of the learning rate in a step, from 0 on: it rises, then falls."""
    return [0.5, 1.0, 0.8, 0.6, 0.4, 0.2][step]


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def is_new(name: str) -> bool:
    return name.startswith("classifier")


def sigmoid(value: float) -> float:
    return float(1 / (1 + torch.exp(-torch.tensor(value, dtype=torch.float64))))


class ByHand:
    """The weights and the moments of one run; `step` is one optimizer step."""

    def __init__(self, recadam: RecAdam, kind: str) -> None:
        self.model, self.recadam, self.kind = tiny_bert(0.1), recadam, kind
        self.start, zeros = values(self.model), {n: torch.zeros_like(p) for n, p in self.model.named_parameters()}
        self.first, self.second = copy.deepcopy(zeros), copy.deepcopy(zeros)

    def direction(self, name: str, gradient: Tensor, t: int) -> Tensor:
        """m̂ / (√v̂ + ε), or the momentum."""
        if self.kind == "SGD":
            self.first[name] = MOMENTUM * self.first[name] + gradient
            return self.first[name]
        one, two = BETAS
        self.first[name] = one * self.first[name] + (1 - one) * gradient
        self.second[name] = two * self.second[name] + (1 - two) * gradient**2
        return self.first[name] / (1 - one**t) / ((self.second[name] / (1 - two**t)) ** 0.5 + EPSILON)

    def step(self, t: int, sizes: list[int]) -> None:
        torch.manual_seed(t - 1)
        for part in rows_of(batch(t - 1), sizes):
            loss = cross_entropy(forward(self.model, part).logits, part["labels"])
            (loss * len(part["labels"]) / 6).backward()
        rate, share = RATE * schedule(t - 1), sigmoid(self.recadam.k * (t - self.recadam.t0 * STEPS))
        with torch.no_grad():
            for name, w in self.model.named_parameters():
                assert w.grad is not None
                move = self.direction(name, w.grad, t)
                if is_new(name):
                    decayed = DECAY * w if w.ndim > 1 and self.kind == "AdamW" else 0 * w
                    w -= rate * move + rate * decayed
                else:
                    w -= rate * share * move
                    w -= rate * (1 - share) * self.recadam.gamma * (w - self.start[name])
        self.model.zero_grad()

    def run(self, sizes: list[int], steps: int = STEPS) -> dict[str, Tensor]:
        for t in range(1, steps + 1):
            self.step(t, sizes)
        return values(self.model)


class Run:
    """The same with the library, in parts if need be."""

    def __init__(self, *methods: Any, kind: str = "AdamW", total: int = STEPS, model: Any = None) -> None:
        self.wrapper = RegularizedModel(tiny_bert(0.1) if model is None else model, methods, seed=SEED)
        groups = self.wrapper.parameter_groups(RATE, DECAY if kind == "AdamW" else 0.0)
        self.optimizer = OPTIMIZERS[kind](groups)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, schedule)
        self.wrapper.attach(self.optimizer, total_updates=total)

    def steps(self, first: int = 0, last: int = STEPS, sizes: list[int] | None = None) -> dict[str, Tensor]:
        for step in range(first, last):
            torch.manual_seed(step)
            for out in self.wrapper.accumulate(rows_of(batch(step), sizes or [6])):
                out.loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            if step + 1 < STEPS:
                self.schedule.step()
        return values(self.wrapper.model)


@EITHER
@SPLIT
@pytest.mark.parametrize(
    "recadam",
    [SOME, RecAdam(gamma=0.0, k=0.7, t0=0.4), RecAdam(gamma=2.0, k=0.2, t0=0.0), RecAdam(gamma=9.0, k=3.0, t0=0.9)],
    ids=["some", "without the pull", "from the middle on", "late and steep"],
)
def test_weights_after_some_steps_are_those_of_the_equations(recadam: RecAdam, sizes: list[int], kind: str) -> None:
    found = Run(recadam, kind=kind).steps(sizes=sizes)
    torch.testing.assert_close(found, ByHand(recadam, kind).run(sizes), **CLOSE)


def test_the_encoder_as_a_whole_is_held_and_the_head_trains_as_usual() -> None:
    run = Run(RecAdam(t0=0.9, k=50.0))  # λ is 0 but for the last steps
    start = values(run.wrapper.model)
    plain, held = Run().steps(last=1), run.steps(last=1)
    assert {name for name in held if torch.equal(held[name], start[name])} == {n for n in held if not is_new(n)}
    assert all(torch.equal(held[name], plain[name]) for name in held if is_new(name))


def test_each_weight_is_pulled_with_its_own_learning_rate() -> None:
    run = Run(SOME, LLRD(decay=0.5), kind="SGD")
    start, name = values(run.wrapper.model), "bert.encoder.layer.1.attention.output.dense.bias"
    found = run.steps(last=2)[name]
    model, w, momentum = tiny_bert(0.1), start[name], torch.zeros_like(start[name])
    plain = Run(SOME, LLRD(decay=0.5), kind="SGD")
    for step in range(2):
        model.load_state_dict(plain.wrapper.model.state_dict())
        torch.manual_seed(step)
        cross_entropy(forward(model, batch(step)).logits, batch(step)["labels"]).backward()
        momentum = MOMENTUM * momentum + model.get_parameter(name).grad
        rate, share = RATE * 0.5**2 * schedule(step), sigmoid(0.7 * (step + 1 - 0.4 * STEPS))
        w = w - rate * share * momentum
        w = w - rate * (1 - share) * 4.0 * (w - start[name])
        model.zero_grad()
        plain.steps(step, step + 1)
    torch.testing.assert_close(found, w, **CLOSE)


def test_the_share_is_a_half_in_the_middle_and_rises_from_0_to_1() -> None:
    shares = [annealed_share(step, 0.3, 40.0) for step in (1, 20, 40, 60, 1000)]
    assert shares[2] == 0.5
    assert shares == pytest.approx(
        [sigmoid(0.3 * (step - 40)) for step in (1, 20, 40, 60, 1000)], abs=SAME[torch.float64]
    )
    assert [annealed_share(step, 1e6, 500.0) for step in (1, 1000)] == [0.0, 1.0]


def test_where_the_share_is_1_from_the_first_step_on_it_is_training_without_weight_decay_bit_for_bit() -> None:
    run, plain = Run(RecAdam(k=1000.0, t0=0.0)), Run()
    for group in plain.optimizer.param_groups:
        group["params"] = [p for p in group["params"] if p is not plain.wrapper.model.classifier.weight]
        group["weight_decay"] = 0.0
    head = {"params": [plain.wrapper.model.classifier.weight], "weight_decay": DECAY, "lr": RATE * schedule(0)}
    plain.optimizer.add_param_group({**head, "initial_lr": RATE})
    plain.schedule = torch.optim.lr_scheduler.LambdaLR(plain.optimizer, schedule)
    found, expected = run.steps(), plain.steps()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
    assert any("recadam anneals next to nothing: λ is 1.000 in the first of 6" in text for text in run.wrapper.notices)


def test_the_encoder_has_no_other_weight_decay_and_the_head_keeps_its_own() -> None:
    wrapper = Run(SOME).wrapper
    names = {id(parameter): name for name, parameter in wrapper.model.named_parameters()}
    groups = wrapper.parameter_groups(RATE, DECAY)
    assert {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]} == {"classifier.weight"}
    with pytest.raises(MethodError, match=r"^the optimizer does not give .* build it from parameter_groups\(\)\.$"):
        wrapper.attach(torch.optim.AdamW(wrapper.model.parameters(), lr=RATE), total_updates=STEPS)


def test_it_must_know_the_length_of_training() -> None:
    wrapper = RegularizedModel(tiny_bert(0.1), [SOME], seed=SEED)
    with pytest.raises(
        MethodError, match=r"^recadam must know the length of training; give attach\(\) total_updates\.$"
    ):
        wrapper.attach(torch.optim.AdamW(wrapper.parameter_groups(RATE), lr=RATE))


def test_it_reports_the_share_and_the_distance_from_the_pre_trained_weights() -> None:
    run = Run(SOME)
    start = values(run.wrapper.model)
    run.steps(last=1)
    run.wrapper.drain_telemetry()
    now = run.steps(first=1, last=2)
    told = run.wrapper.drain_telemetry()
    squares = [((now[n] - start[n]) ** 2).sum() for n in now if not is_new(n)]
    assert told["recadam/distance"] == pytest.approx(float(sum(squares)) ** 0.5)
    assert told["recadam/lambda"] == pytest.approx(sigmoid(0.7 * (2 - 0.4 * STEPS)))


# -- what is kept -----------------------------------------------------------------------------------------------------


def test_a_killed_run_that_is_resumed_ends_with_the_weights_of_an_unbroken_one(tmp_path: Path) -> None:
    whole, killed = Run(SOME), Run(SOME)
    start = values(whole.wrapper.model)
    expected = whole.steps()
    killed.steps(last=3)
    killed.wrapper.save_state(tmp_path)
    model = tiny_bert(0.1)
    model.load_state_dict(killed.wrapper.model.state_dict())
    again = Run(SOME, model=model)
    again.wrapper.load_state(tmp_path)
    again.optimizer.load_state_dict(killed.optimizer.state_dict())
    again.schedule.load_state_dict(killed.schedule.state_dict())
    for name, anchor in again.wrapper.method_modules["recadam"].named_buffers():
        assert torch.equal(anchor, start[name.replace("/", ".")])
    found = again.steps(first=3)
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def test_a_checkpoint_holds_the_anchors_and_no_weights_of_before_a_step() -> None:
    run = Run(SOME)
    run.steps(last=1)
    state: Any = run.wrapper.method_modules["recadam"]
    assert {name.replace("/", ".") for name in state.state_dict()} == {
        n for n in values(run.wrapper.model) if not is_new(n)
    }
    assert state.before == {} and not list(state.parameters())


def test_anchors_are_taken_after_layers_are_drawn_anew_and_after_noise() -> None:
    wrapper = Run(SOME, ReInit(), NoisyTune()).wrapper
    now = values(wrapper.model)
    anchors = dict(wrapper.method_modules["recadam"].named_buffers())
    assert all(torch.equal(anchor, now[name.replace("/", ".")]) for name, anchor in anchors.items())


# -- what does not fit ------------------------------------------------------------------------------------------------


def test_a_pull_that_would_pass_the_pre_trained_weights_ends_there_and_says_so() -> None:
    run = Run(RecAdam(gamma=1000.0, k=0.01, t0=0.9))
    start, now = values(run.wrapper.model), run.steps()
    assert all(torch.equal(now[name], start[name]) for name in now if not is_new(name))
    said = [text for text in run.wrapper.notices if text.startswith("recadam: learning rate")]
    assert len(said) == 1 and "1 − λ is 12.8 in step 1; from 1 on" in said[0]
    assert said[0].endswith("Lower recadam.gamma or the learning rate.")


def test_a_pull_that_ends_before_them_says_nothing_of_it() -> None:
    run = Run(SOME)
    run.steps()
    assert not any(text.startswith("recadam: learning rate") for text in run.wrapper.notices)


@pytest.mark.parametrize(("total", "said"), [(8, ["λ is 0.673 in the last of 8 optimizer steps"]), (150, [])])
def test_a_run_that_ends_before_the_annealing_does_says_so(total: int, said: list[str]) -> None:
    run = Run(RecAdam(gamma=0.0), total=total)
    run.steps(last=2)
    assert len(run.wrapper.notices) == len(said)
    assert all(part in text for part, text in zip(said, run.wrapper.notices, strict=True))


def test_by_default_a_run_of_150_steps_trains_most_of_the_time_with_nearly_the_whole_step() -> None:
    shares = [annealed_share(step, RecAdam().k, RecAdam().t0 * 150) for step in range(1, 151)]
    assert shares[0] < 0.25
    assert sum(share > 0.9 for share in shares) > 100


def test_an_optimizer_without_the_encoder_is_noticed() -> None:
    wrapper = RegularizedModel(tiny_bert(0.1), [SOME], seed=SEED)
    optimizer = torch.optim.SGD(wrapper.model.classifier.parameters(), lr=RATE)
    wrapper.attach(optimizer, total_updates=STEPS)
    wrapper(**batch()).loss.backward()
    optimizer.step()
    assert "recadam anneals nothing: the optimizer trains none of the encoder's weights." in wrapper.notices


def test_16_bit_weights_are_refused() -> None:
    with pytest.raises(MethodError, match=r"^recadam is rounded away by 16-bit weights"):
        RegularizedModel(tiny_bert(0.1, torch.bfloat16), [SOME])


def test_a_frozen_encoder_is_refused() -> None:
    model = tiny_bert(0.1)
    model.bert.requires_grad_(False)
    with pytest.raises(MethodError, match=r"^recadam cannot act on a frozen encoder"):
        RegularizedModel(model, [SOME])


def test_adapters_are_refused() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny_bert(0.1), peft.LoraConfig(task_type="SEQ_CLS"))
    with pytest.raises(MethodError, match=r"^recadam cannot act on a model with adapters"):
        RegularizedModel(model, [SOME])


def test_it_costs_no_pass() -> None:
    run = Run(SOME)
    passes = run.wrapper(**batch()).passes
    assert (passes.forward, passes.activation_gradient, passes.weight_gradient) == (1, 1, 1)

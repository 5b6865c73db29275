"""Averages of the weights against torch's own averaged model and against the definition written out."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from equivalence.straight_line import CLOSE, batch, tiny_bert
from steadytune import RegularizedModel
from steadytune.methods import MethodError
from steadytune.methods.averaging import Averaging
from tiny import rows_of
from tolerances import SAME

STEPS = 9
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "AdamW": lambda groups: torch.optim.AdamW(groups, lr=1e-3),
    "SGD": lambda groups: torch.optim.SGD(groups, lr=1e-2, momentum=0.9),
}
by_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS)


def train(
    method: Averaging, optimizer: str = "AdamW", *, steps: int = STEPS, accumulate: bool = False, dropout: float = 0.0
) -> tuple[RegularizedModel, list[nn.Module]]:
    """The wrapper after some steps, and a plain copy of the model after each of them."""
    wrapper = RegularizedModel(tiny_bert(dropout), [method])
    made = OPTIMIZERS[optimizer](wrapper.parameter_groups(lr=1e-3))
    wrapper.attach(made, total_updates=steps)
    return wrapper, list(iterates(wrapper, made, range(steps), accumulate))


def iterates(
    wrapper: RegularizedModel, optimizer: torch.optim.Optimizer, steps: range, accumulate: bool = False
) -> Iterator[nn.Module]:
    for step in steps:
        torch.manual_seed(step)
        if accumulate:
            for output in wrapper.accumulate(rows_of(batch(step), [4, 2])):
                output.loss.backward()
        else:
            wrapper(**batch(step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        plain = tiny_bert(0.0)
        plain.load_state_dict(wrapper.model.state_dict())
        yield plain


def average_of(wrapper: RegularizedModel) -> dict[str, Tensor]:
    (method,) = wrapper.methods
    found = method.averages(wrapper.method_modules[method.key])
    return {name: tensor.clone() for name, tensor in found.items()}


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def warmed_ema(decay: float) -> Any:
    """torch's update with the decay that the number of averaged models allows."""

    def update(kept: Any, last: Any, count: Any) -> None:
        get_ema_multi_avg_fn(min(decay, (1 + int(count)) / (10 + int(count))))(kept, last, count)

    return update


def torch_average(models: list[nn.Module], update: Any) -> dict[str, Tensor]:
    reference = AveragedModel(copy.deepcopy(models[0]), multi_avg_fn=update)
    for model in models:
        reference.update_parameters(model)
    return weights(reference.module)


# -- against torch ----------------------------------------------------------------------------------------------------


@by_optimizer
@pytest.mark.parametrize("accumulate", [False, True], ids=["whole batches", "accumulated"])
@pytest.mark.parametrize("decay", [0.3, 0.99])
def test_ema_is_that_of_the_averaged_model_of_torch(decay: float, accumulate: bool, optimizer: str) -> None:
    wrapper, models = train(Averaging(decay=decay), optimizer, accumulate=accumulate)
    torch.testing.assert_close(average_of(wrapper), torch_average(models, warmed_ema(decay)), **CLOSE)


@by_optimizer
@pytest.mark.parametrize("accumulate", [False, True], ids=["whole batches", "accumulated"])
@pytest.mark.parametrize(
    ("start", "every", "chosen"),
    [
        (0.0, 1, range(9)),
        (0.5, 1, range(4, 9)),  # the first 4 of 9 steps are skipped
        (0.5, 2, range(4, 9, 2)),
        (0.3, 3, range(2, 9, 3)),
    ],
)
def test_swa_is_that_of_the_averaged_model_of_torch(
    start: float, every: int, chosen: range, accumulate: bool, optimizer: str
) -> None:
    wrapper, models = train(Averaging(kind="swa", start=start, every=every), optimizer, accumulate=accumulate)
    expected = torch_average([models[step] for step in chosen], get_swa_multi_avg_fn())
    torch.testing.assert_close(average_of(wrapper), expected, **CLOSE)


# -- against the definition -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 2, 4])
def test_ema_is_the_definition_over_every_so_many_iterates(every: int) -> None:
    wrapper, models = train(Averaging(decay=0.25, every=every))
    chosen = [weights(model) for model in models[::every]]
    expected = chosen[0]
    for count, found in enumerate(chosen[1:], start=1):
        kept = min(0.25, (1 + count) / (10 + count))
        expected = {name: kept * expected[name] + (1 - kept) * found[name] for name in expected}
    torch.testing.assert_close(average_of(wrapper), expected, **CLOSE)


def test_swa_is_the_mean_of_the_iterates() -> None:
    wrapper, models = train(Averaging(kind="swa"))
    chosen = [weights(model) for model in models[4:]]
    expected = {name: torch.stack([one[name] for one in chosen]).mean(dim=0) for name in chosen[0]}
    torch.testing.assert_close(average_of(wrapper), expected, **CLOSE)


def test_the_trained_weights_are_those_without_averaging() -> None:
    _, models = train(Averaging(), dropout=0.1)
    plain = RegularizedModel(tiny_bert(0.1))
    optimizer = torch.optim.AdamW(plain.parameter_groups(lr=1e-3), lr=1e-3)
    *_, last = iterates(plain, optimizer, range(STEPS))
    assert all(torch.equal(value, weights(last)[name]) for name, value in weights(models[-1]).items())


def test_a_step_has_no_pass_but_its_own() -> None:
    wrapper, _ = train(Averaging(), steps=1)
    passes = wrapper(**batch()).passes
    assert (passes.forward, passes.activation_gradient, passes.weight_gradient) == (1, 1, 1)


# -- what is averaged, and what becomes of it -------------------------------------------------------------------------


def test_there_is_no_average_before_the_second_averaged_step() -> None:
    wrapper, _ = train(Averaging(kind="swa"), steps=0)
    assert average_of(wrapper) == {}
    optimizer = torch.optim.SGD(wrapper.parameter_groups(lr=1e-3))
    wrapper.attach(optimizer, total_updates=STEPS)
    list(iterates(wrapper, optimizer, range(5)))
    first = weights(wrapper.model)
    assert average_of(wrapper) == {}
    assert not wrapper.swap_averages()
    list(iterates(wrapper, optimizer, range(5, 6)))
    mean = {name: (first[name] + second) / 2 for name, second in weights(wrapper.model).items()}
    torch.testing.assert_close(average_of(wrapper), mean, **CLOSE)


def test_without_an_average_the_last_weights_stay_and_it_says_so() -> None:
    wrapper, _ = train(Averaging(every=100))
    last = weights(wrapper.model)
    wrapper.finish()
    torch.testing.assert_close(weights(wrapper.model), last, rtol=0, atol=0)
    assert "averaging has no average at the end of training, so the last weights stay." in wrapper.notices


def test_swapping_puts_the_average_in_place_and_swapping_twice_changes_nothing() -> None:
    wrapper, _ = train(Averaging())
    last, average = weights(wrapper.model), average_of(wrapper)
    assert wrapper.swap_averages()
    torch.testing.assert_close(weights(wrapper.model), average, rtol=0, atol=0)
    torch.testing.assert_close(average_of(wrapper), last, rtol=0, atol=0)
    assert wrapper.swap_averages()
    torch.testing.assert_close(weights(wrapper.model), last, rtol=0, atol=0)
    torch.testing.assert_close(average_of(wrapper), average, rtol=0, atol=0)


def test_finishing_leaves_the_average_in_the_model() -> None:
    wrapper, _ = train(Averaging())
    average = average_of(wrapper)
    wrapper.finish()
    torch.testing.assert_close(weights(wrapper.model), average, rtol=0, atol=0)


def test_frozen_parameters_are_left_out() -> None:
    model = tiny_bert(0.0)
    for parameter in model.bert.embeddings.parameters():
        parameter.requires_grad_(False)
    wrapper = RegularizedModel(model, [Averaging()])
    optimizer = torch.optim.SGD(wrapper.parameter_groups(lr=1e-3))
    wrapper.attach(optimizer)
    list(iterates(wrapper, optimizer, range(2)))
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert average_of(wrapper).keys() == trainable


def test_the_average_of_bfloat16_weights_is_kept_in_float32() -> None:
    wrapper = RegularizedModel(tiny_bert(0.0, torch.bfloat16), [Averaging(decay=0.5)])
    optimizer = torch.optim.SGD(wrapper.parameter_groups(lr=1e-1))
    wrapper.attach(optimizer)
    models = []
    for step in range(3):
        wrapper(**batch(step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        models.append({name: value.float() for name, value in weights(wrapper.model).items()})
    expected = models[0]
    for kept, found in ((2 / 11, models[1]), (3 / 12, models[2])):
        expected = {name: torch.lerp(expected[name], found[name], 1 - kept) for name in expected}
    assert {value.dtype for value in average_of(wrapper).values()} == {torch.float32}
    close = SAME[torch.float32]
    torch.testing.assert_close(average_of(wrapper), expected, rtol=close, atol=close)


@pytest.mark.parametrize("method", [Averaging(), Averaging(kind="swa", every=2)], ids=["ema", "swa"])
def test_a_resumed_run_ends_with_the_same_average_bit_for_bit(method: Averaging, tmp_path: Path) -> None:
    whole, _ = train(method, dropout=0.1)
    stopped = RegularizedModel(tiny_bert(0.1), [method])
    optimizer = torch.optim.AdamW(stopped.parameter_groups(lr=1e-3), lr=1e-3)
    stopped.attach(optimizer, total_updates=STEPS)
    list(iterates(stopped, optimizer, range(6)))
    stopped.save_state(tmp_path)
    resumed = RegularizedModel(copy.deepcopy(stopped.model), [method])
    resumed.load_state(tmp_path)
    again = torch.optim.AdamW(resumed.parameter_groups(lr=1e-3), lr=1e-3)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    resumed.attach(again, total_updates=STEPS)
    list(iterates(resumed, again, range(6, STEPS)))
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in resumed.state_dict().items())


# -- telemetry and refusals -------------------------------------------------------------------------------------------


def test_telemetry_is_the_number_of_iterates_and_the_relative_distance_of_the_average() -> None:
    wrapper, _ = train(Averaging(decay=0.5), steps=2)
    wrapper.drain_telemetry()
    optimizer = torch.optim.SGD(wrapper.parameter_groups(lr=1e-3))
    wrapper.attach(optimizer)
    (last,) = iterates(wrapper, optimizer, range(2, 3))
    found = wrapper.drain_telemetry()
    one, other = (torch.cat([v.flatten() for v in part.values()]) for part in (average_of(wrapper), weights(last)))
    assert found["averaging/averaged"] == 3
    assert found["averaging/distance"] == pytest.approx(float((one - other).norm() / other.norm()), rel=CLOSE["rtol"])


def test_swa_must_know_the_length_of_training_and_ema_need_not() -> None:
    for kind in ("ema", "swa"):
        wrapper = RegularizedModel(tiny_bert(0.0), [Averaging(kind=kind)])
        optimizer = torch.optim.SGD(wrapper.parameter_groups(lr=1e-3))
        if kind == "ema":
            wrapper.attach(optimizer)
            continue
        with pytest.raises(MethodError, match="averaging must know the length of training"):
            wrapper.attach(optimizer)


@pytest.mark.parametrize(
    ("method", "name", "kind"),
    [(Averaging(start=0.2), "start", "ema"), (Averaging(kind="swa", decay=0.9), "decay", "swa")],
)
def test_a_setting_of_the_other_kind_is_refused(method: Averaging, name: str, kind: str) -> None:
    with pytest.raises(MethodError) as caught:
        RegularizedModel(tiny_bert(0.0), [method])
    assert str(caught.value) == (
        f"averaging.{name} does nothing with kind {kind!r}; leave it out, or choose the other kind."
    )


@pytest.mark.parametrize(("every", "said"), [(5, True), (4, False)])
def test_an_average_of_one_iterate_is_said(every: int, said: bool) -> None:
    wrapper, _ = train(Averaging(kind="swa", every=every))  # 5 of 9 steps are left
    assert any("one iterate only" in text for text in wrapper.notices) is said

"""What the contract gives every method: settings that check themselves, own parameters, a look at the step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn

from dummies import Watch
from steadytune import ASA, CAT, LNSR, SCL, HyPe, RegularizedModel
from steadytune.methods import Method, MethodError, OwnOptimizer, Step, setting
from tiny import tiny_batch, tiny_model
from tolerances import SAME

FLOAT32: dict[str, float] = {"rtol": SAME[torch.float32], "atol": SAME[torch.float32]}


# -- settings ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Sample(Method):
    """One setting of every kind that may be null."""

    key: ClassVar[str] = "sample"

    count: int | None = setting(None, "a number of things", low=1, source="this test")
    share: float | None = setting(None, "a share", low=0, high=1, source="this test")
    size: float | None = setting(0.5, "a size", low=0, open_low=True, source="this test")
    layers: tuple[int, ...] | None = setting(None, "some layers", source="this test")
    law: Literal["one", "two"] | None = setting(None, "a choice", source="this test")


@pytest.mark.parametrize("name", ["count", "share", "size", "layers", "law"])
def test_an_optional_setting_may_be_null(name: str) -> None:
    assert getattr(Sample(**{name: None}), name) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [("count", 1), ("count", 7), ("share", 0), ("share", 0.25), ("share", 1.0), ("size", 3), ("law", "two")],
)
def test_an_optional_setting_keeps_a_value_in_its_range(name: str, value: Any) -> None:
    found = getattr(Sample(**{name: value}), name)
    assert (found, type(found)) == (value, type(value))


COUNT, SHARE = "an integer >= 1 or null", "a number >= 0 and <= 1 or null"
REFUSED = [
    ("count", 0, COUNT),
    ("count", 1.5, COUNT),
    ("count", 2.0, COUNT),
    ("count", True, COUNT),
    ("count", "2", COUNT),
    ("share", -0.1, SHARE),
    ("share", 1.1, SHARE),
    ("share", math.nan, SHARE),
    ("share", math.inf, SHARE),
    ("share", False, SHARE),
    ("share", "null", SHARE),
    ("size", 0, "a number > 0 or null"),
    ("layers", 3, "a list of integers or null"),
    ("layers", (1, None), "a list of integers or null"),
    ("law", "three", "one of 'one', 'two' or null"),
]


@pytest.mark.parametrize(("name", "value", "allowed"), REFUSED)
def test_an_optional_setting_out_of_range_is_refused_and_the_message_says_that_null_is_allowed(
    name: str, value: Any, allowed: str
) -> None:
    with pytest.raises(MethodError) as caught:
        Sample(**{name: value})
    assert str(caught.value) == f"sample.{name} must be {allowed}; got {value!r}."


def test_a_list_from_a_file_becomes_a_tuple_and_is_written_as_a_list() -> None:
    found = Sample.from_settings({"layers": [0, 2]})
    assert (found.layers, found.settings()["layers"]) == ((0, 2), [0, 2])


def test_settings_that_are_null_are_written_as_null() -> None:
    assert Sample().settings() == {"count": None, "share": None, "size": 0.5, "layers": None, "law": None}


# -- own parameters ---------------------------------------------------------------------------------------------------


def test_own_parameters_follow_the_encoder_unless_a_method_says_otherwise() -> None:
    assert SCL().own_optimizer() == CAT().own_optimizer() == OwnOptimizer(learning_rate_scale=1.0, weight_decay=None)
    assert ASA(learning_rate_scale=3.0).own_optimizer() == OwnOptimizer(learning_rate_scale=3.0, weight_decay=0.0)


@pytest.fixture
def stack() -> RegularizedModel:
    return RegularizedModel(tiny_model("bert"), [SCL(), CAT(), HyPe(), LNSR(), ASA(learning_rate_scale=3.0)])


def test_each_method_with_own_parameters_has_a_group_after_those_of_the_encoder(stack: RegularizedModel) -> None:
    names = [group["name"] for group in stack.parameter_groups(lr=0.1)]
    assert names == ["encoder", "encoder, no decay", "cat", "asa"]


def test_learning_rates_are_those_that_the_methods_ask_for(stack: RegularizedModel) -> None:
    rates = [group["lr"] for group in stack.parameter_groups(lr=0.1)]
    assert rates == pytest.approx([0.1, 0.1, 0.1, 0.3])


def test_weight_decay_is_the_encoders_for_cat_and_none_for_asa(stack: RegularizedModel) -> None:
    decays = [group["weight_decay"] for group in stack.parameter_groups(lr=0.1, weight_decay=0.01)]
    assert decays == [0.01, 0.0, 0.01, 0.0]


def test_every_parameter_is_in_exactly_one_group(stack: RegularizedModel) -> None:
    grouped = [id(p) for group in stack.parameter_groups(lr=0.1) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in stack.parameters())


def test_own_groups_are_the_last_of_all_groups(stack: RegularizedModel) -> None:
    groups, own = stack.parameter_groups(0.1, 0.01), stack.own_parameter_groups(0.1, 0.01)
    assert [group["name"] for group in own] == ["cat", "asa"]
    for one, other in zip(groups[2:], own, strict=True):
        assert {**one, "params": None} == {**other, "params": None}
        assert [id(p) for p in one["params"]] == [id(p) for p in other["params"]]


@pytest.mark.parametrize(
    "methods",
    [[], [SCL(), HyPe(), LNSR()], [CAT(weight=0)], [ASA(weight=0)], [ASA(adversary="random", mask_fraction=0.1)]],
    ids=["no method", "none owns any", "cat without contrast", "asa off", "asa at random"],
)
def test_methods_that_train_nothing_of_their_own_have_no_group(methods: Sequence[Method]) -> None:
    assert RegularizedModel(tiny_model("bert"), methods).own_parameter_groups(0.1, 0.01) == []


def test_own_groups_complete_an_optimizer_of_the_encoder(stack: RegularizedModel) -> None:
    optimizer = torch.optim.AdamW(stack.model.parameters(), lr=0.1)
    for group in stack.own_parameter_groups(0.1, 0.0):
        optimizer.add_param_group(group)
    stack.attach(optimizer)


@pytest.mark.parametrize(("left_out", "first"), [("cat", "cat.0.weight"), ("asa", "asa.query.0.weight")])
def test_an_optimizer_without_the_parameters_of_a_method_is_refused_with_their_name(
    stack: RegularizedModel, left_out: str, first: str
) -> None:
    groups = [group for group in stack.parameter_groups(0.1) if group["name"] != left_out]
    with pytest.raises(MethodError) as caught:
        stack.attach(torch.optim.AdamW(groups))
    assert str(caught.value) == (
        f"the optimizer lacks the parameter {first} of method {left_out}; build it from parameter_groups()."
    )


def norm_of(module: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None]).norm()


def give_gradients(module: nn.Module, norm: float) -> None:
    """All entries equal, of this norm in all."""
    entry = norm / math.sqrt(sum(p.numel() for p in module.parameters()))
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, entry)


def test_encoder_and_each_method_are_clipped_by_their_own_norm(stack: RegularizedModel) -> None:
    parts = [stack.model, stack.method_modules["cat"], stack.method_modules["asa"]]
    for part, norm in zip(parts, (10.0, 0.5, 1e4), strict=True):
        give_gradients(part, norm)
    before = stack.clip_grad_norm_(1.0)
    torch.testing.assert_close(before, torch.tensor(10.0), **FLOAT32)
    torch.testing.assert_close(torch.stack([norm_of(part) for part in parts]), torch.tensor([1.0, 0.5, 1.0]), **FLOAT32)


def test_the_gradient_of_an_adversary_does_not_shrink_that_of_the_encoder() -> None:
    clipped = []
    for gain in (1.0, 1e8):
        model = RegularizedModel(tiny_model("bert"), [ASA(gain=gain)])
        torch.manual_seed(0)
        model(**tiny_batch("bert")).loss.backward()
        model.clip_grad_norm_(0.1)
        clipped.append([p.grad for p in model.model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*clipped, strict=True))


# -- what a method sees of the step -----------------------------------------------------------------------------------


def seen(model: RegularizedModel) -> dict[str, Any]:
    model(**tiny_batch("bert"))
    watch = model.methods[0]
    assert isinstance(watch, Watch)
    return watch.seen


def watching(*names: str) -> RegularizedModel:
    look = Watch(look=lambda step: {name: getattr(step, name) for name in names} | {"step": step})
    return RegularizedModel(tiny_model("bert"), [look])


def test_the_step_of_the_engine_is_a_step_of_the_contract() -> None:
    assert isinstance(seen(watching())["step"], Step)


def test_steps_are_counted_and_only_the_first_is_the_first() -> None:
    model = watching("number", "first")
    found = [dict(seen(model)) for _ in range(3)]
    assert [(one["number"], one["first"]) for one in found] == [(0, True), (1, False), (2, False)]


@pytest.mark.parametrize(("enabled", "dtype"), [(True, torch.bfloat16), (False, None)])
def test_the_compute_dtype_is_that_of_autocast(enabled: bool, dtype: torch.dtype | None) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
        assert seen(watching("compute_dtype"))["compute_dtype"] == dtype


def test_anatomy_and_task_are_those_of_the_model() -> None:
    model = watching("anatomy", "task")
    found = seen(model)
    assert found["anatomy"].base is model.model.base_model
    assert found["task"] is model.task

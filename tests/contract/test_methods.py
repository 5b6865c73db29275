"""Every method in the list against every promise of style.md, section 3, that can be asked of any method."""

import copy
import dataclasses
import importlib
import json
import math
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
import yaml
from torch import Tensor, nn

from steadytune import RegularizedModel
from steadytune.methods import METHODS, Method, MethodError, method_class
from tiny import PAD, gradients, inputs_of, tiny_batch, tiny_model
from tolerances import ENCODER_ROUNDED, REPLAYED, SAME

CLOSE: dict[str, float] = {"rtol": SAME[torch.float64], "atol": SAME[torch.float64]}
TERM_KEYS = [key for key in METHODS if method_class(key).mix != "none"]

every_method = pytest.mark.parametrize("key", METHODS)
every_term = pytest.mark.parametrize("key", TERM_KEYS)


# -- settings ---------------------------------------------------------------------------------------------------------


def fields(key: str) -> Iterator[tuple[str, Any, dict[str, Any], Any]]:
    """Name, type, limits and default of each setting."""
    hints = get_type_hints(method_class(key))
    for field in dataclasses.fields(method_class(key)):
        yield field.name, hints[field.name], dict(field.metadata), field.default


def is_layers(hint: Any) -> bool:
    return tuple[int, ...] in (hint, *get_args(hint))


def other_value(hint: Any, limits: dict[str, Any], default: Any) -> Any:
    """An allowed value that is not the default."""
    if get_origin(hint) is Literal:
        return next(choice for choice in get_args(hint) if choice != default)
    if hint is bool:
        return not default
    if is_layers(hint):
        return (0, 1)
    if hint is int:
        return default + 1 if limits["high"] is None or default < limits["high"] else default - 1
    assert hint is float, "teach this test the new kind of setting"
    return default / 2 if default else 0.25


def method(key: str) -> Method:
    """With its defaults, but an effect that can be seen in float32."""
    names = {name for name, *_ in fields(key)}
    return method_class(key)(**({"noise_std": 0.05} if "noise_std" in names else {}))


def changed(key: str) -> Method:
    """With no setting at its default."""
    return method_class(key)(**{name: other_value(*rest) for name, *rest in fields(key)})


@every_method
def test_key_is_the_name_in_the_list_and_of_the_module(key: str) -> None:
    found = method_class(key)
    assert (found.key, found.__module__, found.__name__) == (key, f"steadytune.methods.{key}", METHODS[key])


@every_method
def test_every_default_has_a_description_and_an_origin(key: str) -> None:
    assert [name for name, _, limits, _ in fields(key) if not (limits["description"] and limits["source"])] == []


@every_method
@pytest.mark.parametrize("write", ["defaults", "changed"])
def test_settings_survive_yaml(key: str, write: str) -> None:
    before = method_class(key)() if write == "defaults" else changed(key)
    text = yaml.safe_dump(before.settings())
    assert method_class(key).from_settings(yaml.safe_load(text)) == before


@every_method
@pytest.mark.parametrize("write", ["defaults", "changed"])
def test_settings_survive_json(key: str, write: str) -> None:
    before = method_class(key)() if write == "defaults" else changed(key)
    assert method_class(key).from_settings(json.loads(json.dumps(before.settings()))) == before


@every_method
def test_settings_name_every_field(key: str) -> None:
    assert list(method_class(key)().settings()) == [name for name, *_ in fields(key)]


@every_method
def test_settings_cannot_be_changed_afterwards(key: str) -> None:
    name = next(fields(key))[0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(method_class(key)(), name, None)


def refused_values(hint: Any, limits: dict[str, Any]) -> Iterator[tuple[Any, str]]:
    """Values out of range, each with what the message must say is allowed."""
    if get_origin(hint) is Literal:
        yield from ((bad, f"one of {', '.join(map(repr, get_args(hint)))}") for bad in ("nonsense", 1, None))
    elif hint is bool:
        yield from ((bad, "true or false") for bad in ("yes", 1, None))
    elif is_layers(hint):
        allowed = "a list of integers or null" if type(None) in get_args(hint) else "a list of integers"
        yield from ((bad, allowed) for bad in ("0", 3, ("a",), (0.5,), (True,), {0}))
    else:
        low, high, kind = limits["low"], limits["high"], "an integer" if hint is int else "a number"
        below = [] if low is None else [f"{'>' if limits['open_low'] else '>='} {low:g}"]
        allowed = " ".join([kind, " and ".join(below + ([] if high is None else [f"<= {high:g}"]))]).strip()
        yield from ((bad, allowed) for bad in ("1", None, True, math.nan, math.inf, [0.5]))
        if low is not None:
            yield low - 1, allowed
            if limits["open_low"]:
                yield low, allowed
        if high is not None:
            yield high + 1, allowed


REFUSED = [
    (key, name, value, allowed)
    for key in METHODS
    for name, hint, limits, _ in fields(key)
    for value, allowed in refused_values(hint, limits)
]


@pytest.mark.parametrize(("key", "name", "value", "allowed"), REFUSED)
def test_a_setting_out_of_range_is_refused_with_its_path_what_is_allowed_and_what_came(
    key: str, name: str, value: Any, allowed: str
) -> None:
    with pytest.raises(MethodError) as caught:
        method_class(key)(**{name: value})
    assert str(caught.value) == f"{key}.{name} must be {allowed}; got {value!r}."


EDGES = [
    (key, name, limits[edge])
    for key in METHODS
    for name, _, limits, _ in fields(key)
    for edge in ("low", "high")
    if limits[edge] is not None and not (edge == "low" and limits["open_low"])
]


@pytest.mark.parametrize(("key", "name", "value"), EDGES)
def test_the_edge_of_a_closed_range_is_allowed(key: str, name: str, value: float) -> None:
    assert getattr(method_class(key)(**{name: value}), name) == value


@every_method
def test_an_unknown_setting_is_refused_and_the_known_ones_are_named(key: str) -> None:
    with pytest.raises(MethodError) as caught:
        method_class(key).from_settings({"nonsense": 1})
    known = ", ".join(name for name, *_ in fields(key))
    assert str(caught.value) == f"{key} has no setting 'nonsense'; settings are {known}."


# -- one step ---------------------------------------------------------------------------------------------------------


def wrapped(key: str, model: nn.Module | None = None, seed: int = 0) -> RegularizedModel:
    return RegularizedModel(tiny_model("bert") if model is None else model, [method(key)], seed=seed)


def loss_of(model: RegularizedModel, batch: dict[str, Tensor], dropout_seed: int = 0) -> Tensor:
    torch.manual_seed(dropout_seed)
    loss = model(**batch).loss
    assert isinstance(loss, Tensor)
    return loss


@every_method
def test_forward_leaves_parameter_gradients_alone(key: str) -> None:
    model = tiny_model("bert")
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    loss_of(wrapped(key, model), tiny_batch("bert"))
    assert all(torch.equal(p.grad, torch.full_like(p, 7.0)) for p in model.parameters())


@every_method
def test_forward_leaves_the_batch_alone(key: str) -> None:
    batch = tiny_batch("bert")
    before = copy.deepcopy(batch)
    loss_of(wrapped(key), batch).backward()
    assert batch.keys() == before.keys()
    assert all(torch.equal(batch[name], before[name]) for name in before)


@every_method
def test_forward_and_backward_leave_the_parameters_alone(key: str) -> None:
    model = tiny_model("bert")
    before = copy.deepcopy(model.state_dict())
    loss_of(wrapped(key, model), tiny_batch("bert")).backward()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@every_method
def test_the_main_random_stream_ends_where_that_of_a_plain_step_ends(key: str) -> None:
    ends = []
    for model in (RegularizedModel(tiny_model("bert"), []), wrapped(key)):
        loss_of(model, tiny_batch("bert"))
        ends.append(torch.get_rng_state())
    assert torch.equal(*ends)


@every_method
@pytest.mark.parametrize("family", ["bert", "modernbert", "xlnet"])
def test_evaluation_is_the_plain_model_bit_for_bit(key: str, family: str) -> None:
    model, inputs = tiny_model(family), inputs_of(tiny_batch(family))
    expected = copy.deepcopy(model).eval()(**inputs).logits
    wrapper = wrapped(key, model)
    loss_of(wrapper, tiny_batch(family))
    assert torch.equal(wrapper.eval()(**inputs).logits, expected)


@every_method
def test_it_acts_in_training(key: str) -> None:
    plain, regularized = RegularizedModel(tiny_model("bert"), []), wrapped(key)
    for model in (plain, regularized):
        loss_of(model, tiny_batch("bert")).backward()
    one, two = gradients(plain), gradients(regularized)
    assert any(not torch.equal(one[name], two[name]) for name in one)


@every_method
def test_two_wrappers_with_one_seed_give_one_loss(key: str) -> None:
    one, two = (loss_of(wrapped(key, seed=4), tiny_batch("bert")) for _ in range(2))
    assert torch.equal(one, two)


def with_labels(labels: list[int]) -> dict[str, Tensor]:
    return {**tiny_batch("bert", rows=len(labels)), "labels": torch.tensor(labels)}


def all_padding_but_one() -> dict[str, Tensor]:
    batch = with_labels([0, 0, 1, 2])
    batch["attention_mask"][:, 1:], batch["input_ids"][:, 1:] = 0, PAD
    return batch


AWKWARD = {
    "one example": with_labels([1]),
    "two examples": with_labels([1, 1]),
    "one class": with_labels([1, 1, 1, 1]),
    "every class once": with_labels([0, 1, 2]),
    "one token": {**tiny_batch("bert", tokens=1, padded=False)},
    "all padding but one": all_padding_but_one(),
    "one example without a label": with_labels([0, 0, -100, 1]),
    "no label at all": with_labels([-100, -100, -100]),
}


@every_method
@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_batches_have_a_finite_loss_and_gradient(key: str, name: str) -> None:
    model = tiny_model("bert")
    loss = loss_of(wrapped(key, model), AWKWARD[name])
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(gradient).all() for gradient in gradients(model).values())


@every_method
@pytest.mark.parametrize("name", AWKWARD)
def test_every_trainable_parameter_gets_a_gradient_on_awkward_batches(key: str, name: str) -> None:
    model = tiny_model("bert")  # else data-parallel training hangs or raises
    loss_of(wrapped(key, model), AWKWARD[name]).backward()
    assert gradients(model).keys() == dict(model.named_parameters()).keys()


@every_term
@pytest.mark.parametrize("name", AWKWARD)
def test_the_term_is_finite_on_awkward_batches(key: str, name: str) -> None:
    assert torch.isfinite(wrapped(key)(**AWKWARD[name]).terms[key])


@every_method
def test_loss_is_float32_under_bfloat16_autocast(key: str) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = wrapped(key)(**tiny_batch("bert"))
    assert {value.dtype for value in (out.loss, out.task_loss, *out.terms.values())} == {torch.float32}


@every_term
def test_the_term_is_that_of_float32_vectors_under_bfloat16_autocast(key: str) -> None:
    terms = []
    for enabled in (False, True):  # what the encoder rounds moves the term a little; a rounded term would move more
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            terms.append(float(wrapped(key, tiny_model("bert", dropout=0.0))(**tiny_batch("bert")).terms[key]))
    assert terms[1] == pytest.approx(terms[0], rel=ENCODER_ROUNDED[torch.bfloat16])


@every_method
def test_the_loss_is_as_wide_as_a_float64_model(key: str) -> None:
    assert loss_of(wrapped(key, tiny_model("bert", dtype=torch.float64)), tiny_batch("bert")).dtype == torch.float64


@every_method
def test_terms_and_telemetry_carry_no_graph(key: str) -> None:
    out = wrapped(key)(**tiny_batch("bert"))
    values = [out.task_loss, *out.terms.values(), *out.telemetry.values()]
    assert [value.requires_grad for value in values] == [False] * len(values)


@every_method
def test_it_says_what_it_did(key: str) -> None:
    telemetry = wrapped(key)(**tiny_batch("bert")).telemetry
    assert [name for name in telemetry if name.startswith(f"{key}/")]
    assert all(math.isfinite(float(value)) for value in telemetry.values())


# -- invariances ------------------------------------------------------------------------------------------------------


@pytest.fixture
def constant_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every draw gives its scale, so that what is left is a function of the examples alone."""

    def constant(like: Tensor, scale: float, *_: Any) -> Tensor:
        return torch.full(like.shape, scale, dtype=like.dtype)

    for key in METHODS:
        module = importlib.import_module(f"steadytune.methods.{key}")
        if hasattr(module, "draw_noise"):
            monkeypatch.setattr(module, "draw_noise", constant)


def deterministic_loss(key: str, batch: dict[str, Tensor]) -> Tensor:
    model = tiny_model("bert", dropout=0.0, dtype=torch.float64)
    return loss_of(wrapped(key, model), batch)


@every_method
@pytest.mark.usefixtures("constant_draws")
def test_more_padding_gives_the_same_loss(key: str) -> None:
    batch = tiny_batch("bert")
    longer = {
        "input_ids": nn.functional.pad(batch["input_ids"], (0, 4), value=PAD),
        "attention_mask": nn.functional.pad(batch["attention_mask"], (0, 4)),
        "labels": batch["labels"],
    }
    torch.testing.assert_close(deterministic_loss(key, longer), deterministic_loss(key, batch), **CLOSE)


@every_method
@pytest.mark.usefixtures("constant_draws")
def test_a_permuted_batch_gives_the_same_loss(key: str) -> None:
    batch, order = tiny_batch("bert"), [2, 0, 3, 1]
    permuted = {name: value[order] for name, value in batch.items()}
    torch.testing.assert_close(deterministic_loss(key, permuted), deterministic_loss(key, batch), **CLOSE)


@every_method
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")  # its new name is newer than 5.5
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradient(key: str, reentrant: bool) -> None:
    found = []
    for checkpointed in (False, True):
        model: Any = tiny_model("bert", dtype=torch.float64)
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        loss_of(wrapped(key, model), tiny_batch("bert")).backward()
        found.append(gradients(model))
    torch.testing.assert_close(found[1], found[0], rtol=REPLAYED, atol=REPLAYED)


# -- nothing is left behind -------------------------------------------------------------------------------------------


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())


@every_method
def test_a_closed_wrapper_leaves_the_plain_model(key: str) -> None:
    model, batch = tiny_model("bert"), tiny_batch("bert")
    before = hooks(model)
    torch.manual_seed(0)
    expected = copy.deepcopy(model)(**batch).logits
    wrapper = wrapped(key, model)
    loss_of(wrapper, batch)
    wrapper.close()
    torch.manual_seed(0)
    assert torch.equal(model(**batch).logits, expected)
    assert hooks(model) == before


@every_method
def test_an_exception_in_a_step_leaves_the_next_step_as_it_was(key: str) -> None:
    batch = tiny_batch("bert")
    impossible = {**batch, "input_ids": batch["input_ids"] + 10_000}
    interrupted, smooth = wrapped(key), wrapped(key)
    with pytest.raises(IndexError):
        interrupted(**impossible)
    assert torch.equal(loss_of(interrupted, batch), loss_of(smooth, batch))

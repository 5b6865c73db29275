"""Every method in the list against every promise of style.md, section 3, that can be asked of any method."""

import copy
import dataclasses
import functools
import importlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

from steadytune import RegularizedModel
from steadytune.encoders import SiteUnavailable
from steadytune.methods import METHODS, Method, MethodError, method_class
from steadytune.methods.cards import read_card
from tiny import (
    FAMILIES,
    PAD,
    TASKS,
    gradients,
    inputs_of,
    rows_of,
    tiny_batch,
    tiny_model,
    tiny_task_batch,
    tiny_task_model,
)
from tolerances import ENCODER_ROUNDED, REPLAYED, SAME

CLOSE: dict[str, float] = {"rtol": SAME[torch.float64], "atol": SAME[torch.float64]}
TERM_KEYS = [key for key in METHODS if method_class(key).mix != "none" and key != "l2sp"]  # by default it pulls
OWNER_KEYS = ["cat", "asa"]

every_method = pytest.mark.parametrize("key", METHODS)
every_term = pytest.mark.parametrize("key", TERM_KEYS)
every_owner = pytest.mark.parametrize("key", OWNER_KEYS)

REFUSED_FAMILIES = {
    ("asa", "mpnet"): "asa needs the site 'attention', which mpnet lacks: its attention takes no additional bias.",
    ("asa", "xlnet"): "asa needs the site 'attention', which xlnet lacks: its attention takes no additional bias.",
    ("lnsr", "deberta-v2-conv"): (
        "lnsr cannot resume a deberta-v2 with convolution at layer 0: something outside its layers reads the "
        "embeddings later; set lnsr.injection_layer to 1 or more."
    ),
    ("reinit", "albert"): "reinit cannot draw the top layers of albert anew: its layers share weights.",
    ("tmix", "xlnet"): "tmix needs the site 'mask', which xlnet lacks: its layers take a mask of another form.",
    ("topk", "albert"): "topk cannot freeze the lower layers of albert alone: its layers share weights.",
} | {
    ("lora", family): (
        f"lora adapts the query and value projections that peft knows by name, and it knows none of {family}; it knows "
        "those of bert, roberta, xlm-roberta, electra, deberta-v2."
    )
    for family in ("distilbert", "albert", "modernbert", "mpnet", "xlnet")
}
"""Where a method with its defaults cannot act, and what it says; everywhere else it trains."""

WEIGHT_KEYS = ["mixout", "sam", "smart"]
"""Methods that give a pass other weights, which a recomputed pass would not have."""

REFUSED_CHECKPOINTED = {
    (key, family): (
        f"{key} needs the site 'weights', which {family} lacks: gradient checkpointing would compute its layers again "
        "with other weights; switch it off."
    )
    for key in WEIGHT_KEYS
    for family in ("bert", "modernbert", "deberta-v2")
} | {
    ("asa", "deberta-v2"): (
        "asa needs the site 'attention', which deberta-v2 lacks: gradient checkpointing would compute its layers again "
        "without the bias; switch it off."
    ),
}
"""The same, while gradient checkpointing is on."""

OF_DROPOUT = {"rdrop"}
"""Methods that are nothing without dropout and say so; where nothing is random they are refused."""

DRAWN_PER_PASS = {"mixout"}
"""Methods that draw, like dropout, once for all rows of a pass; a split batch has several draws."""

OF_THE_BATCH = {"scl", "cat", "sam", "tmix"}
"""Methods whose term or direction belongs to a batch as a whole, so that it is another one if the batch is split."""


MIXES_ROWS = {"tmix"}
"""Methods that pair the rows of a batch by chance, and by place where nothing is random."""


def supported(families: Sequence[str]) -> Any:
    """Every method on each of these families that it can act on."""
    pairs = [(key, family) for key in METHODS for family in families if (key, family) not in REFUSED_FAMILIES]
    return pytest.mark.parametrize(("key", "family"), pairs)


# -- settings ---------------------------------------------------------------------------------------------------------


def fields(key: str) -> Iterator[tuple[str, Any, dict[str, Any], Any]]:
    """Name, type, limits and default of each setting."""
    hints = get_type_hints(method_class(key))
    for field in dataclasses.fields(method_class(key)):
        yield field.name, hints[field.name], dict(field.metadata), field.default


def is_layers(hint: Any) -> bool:
    return tuple[int, ...] in (hint, *get_args(hint))


def required(hint: Any) -> Any:
    """The kind of an optional setting, of others as it is."""
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    return kinds[0] if type(None) in get_args(hint) else hint


def other_value(hint: Any, limits: dict[str, Any], default: Any) -> Any:
    """An allowed value that is not the default."""
    if default is None and not is_layers(hint):
        return {int: 2, float: 0.25}[required(hint)]
    hint = hint if is_layers(hint) else required(hint)
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
    """With no setting at its default; some settings belong together, so it can be written down but not trained."""
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
    kind, or_null = required(hint), type(None) in get_args(hint)
    low, high = limits["low"], limits["high"]
    bad: list[Any]
    if get_origin(kind) is Literal:
        allowed, bad = f"one of {', '.join(map(repr, get_args(kind)))}", ["nonsense", 1]
    elif kind is bool:
        allowed, bad = "true or false", ["yes", 1]
    elif is_layers(kind):
        allowed, bad = "a list of integers", ["0", 3, ("a",), (0.5,), (True,), {0}]
    else:
        below = [] if low is None else [f"{'>' if limits['open_low'] else '>='} {low:g}"]
        above = [] if high is None else [f"<= {high:g}"]
        allowed = " ".join(["an integer" if kind is int else "a number", " and ".join(below + above)]).strip()
        bad = ["1", True, math.nan, math.inf, [0.5]] + ([1.5] if kind is int else [])
        bad += [] if low is None else [low - 1, low] if limits["open_low"] else [low - 1]
        bad += [] if high is None else [high + 1]
    for value in bad if or_null else [*bad, None]:
        yield value, allowed + (" or null" if or_null else "")


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


OPTIONAL = [(key, name) for key in METHODS for name, hint, *_ in fields(key) if type(None) in get_args(hint)]


@pytest.mark.parametrize(("key", "name"), OPTIONAL)
def test_an_optional_setting_may_be_null(key: str, name: str) -> None:
    assert getattr(method_class(key).from_settings({name: None}), name) is None


@every_method
def test_an_unknown_setting_is_refused_and_the_known_ones_are_named(key: str) -> None:
    with pytest.raises(MethodError) as caught:
        method_class(key).from_settings({"nonsense": 1})
    known = ", ".join(name for name, *_ in fields(key))
    assert str(caught.value) == f"{key} has no setting 'nonsense'; settings are {known}."


# -- one step ---------------------------------------------------------------------------------------------------------


@functools.cache
def _template(family: str, dropout: float, dtype: torch.dtype, regression: bool) -> nn.Module:
    return tiny_model(family, dropout=dropout, dtype=dtype, num_labels=1 if regression else 3)


def fresh(
    family: str = "bert", *, dropout: float = 0.1, dtype: torch.dtype = torch.float32, regression: bool = False
) -> nn.Module:
    """A model of its own; the same weights for the same arguments."""
    return copy.deepcopy(_template(family, dropout, dtype, regression))


def wrapped(key: str, model: nn.Module | None = None, seed: int = 0) -> RegularizedModel:
    return ready(RegularizedModel(fresh() if model is None else model, [method(key)], seed=seed))


def ready(wrapper: RegularizedModel) -> RegularizedModel:
    """With all that a method asks for before the first step."""
    wrapper.attach(torch.optim.SGD(wrapper.parameter_groups(lr=0.0)), total_updates=10)
    if wrapper.wants_survey:
        regression = wrapper.task.name == "regression"
        wrapper.survey([tiny_batch("bert", rows=2, regression=regression)])
    return wrapper


def loss_of(model: RegularizedModel, batch: dict[str, Tensor], dropout_seed: int = 0) -> Tensor:
    torch.manual_seed(dropout_seed)
    loss = model(**batch).loss
    assert isinstance(loss, Tensor)
    return loss


def trained(model: RegularizedModel, steps: int = 2) -> torch.optim.Optimizer:
    """Some steps of AdamW on everything there is to train."""
    optimizer = torch.optim.AdamW(model.parameter_groups(lr=1e-2))
    model.attach(optimizer, total_updates=10)
    for step in range(steps):
        loss_of(model, tiny_batch("bert", seed=step), step).backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


@supported(FAMILIES)
def test_one_step_of_every_family_has_a_finite_loss_and_gradient(key: str, family: str) -> None:
    plain, wrapper, batch = RegularizedModel(fresh(family)), wrapped(key, fresh(family)), tiny_batch(family)
    loss_of(plain, batch).backward()
    trainable = {name for name, parameter in wrapper.named_parameters() if parameter.requires_grad}
    loss = loss_of(wrapper, batch)
    loss.backward()
    assert torch.isfinite(loss)
    found = gradients(wrapper)
    assert all(torch.isfinite(gradient).all() for gradient in found.values())
    expected = gradients(plain).keys() | {f"method_modules.{n}" for n in dict(own_parameters(wrapper))}
    assert found.keys() >= expected & trainable


def own_parameters(model: RegularizedModel) -> Iterator[tuple[str, nn.Parameter]]:
    return model.method_modules.named_parameters()


@pytest.mark.parametrize(("key", "family"), REFUSED_FAMILIES)
def test_a_family_on_which_it_cannot_act_is_refused_with_method_site_and_family(key: str, family: str) -> None:
    with pytest.raises(SiteUnavailable) as caught:
        wrapped(key, fresh(family))
    assert str(caught.value) == REFUSED_FAMILIES[key, family]


@every_method
def test_forward_leaves_parameter_gradients_alone(key: str) -> None:
    wrapper = wrapped(key)
    for parameter in wrapper.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    loss_of(wrapper, tiny_batch("bert"))
    assert all(torch.equal(p.grad, torch.full_like(p, 7.0)) for p in wrapper.parameters())


@every_method
def test_forward_leaves_the_batch_alone(key: str) -> None:
    batch = tiny_batch("bert")
    before = copy.deepcopy(batch)
    loss_of(wrapped(key), batch).backward()
    assert batch.keys() == before.keys()
    assert all(torch.equal(batch[name], before[name]) for name in before)


@every_method
def test_forward_and_backward_leave_the_parameters_alone(key: str) -> None:
    wrapper = wrapped(key)
    before = copy.deepcopy(wrapper.state_dict())
    loss_of(wrapper, tiny_batch("bert")).backward()
    assert all(torch.equal(value, before[name]) for name, value in wrapper.state_dict().items())


@every_method
def test_the_main_random_stream_ends_where_that_of_a_plain_step_ends(key: str) -> None:
    ends = []
    for model in (RegularizedModel(fresh(), []), wrapped(key)):
        loss_of(model, tiny_batch("bert"))
        ends.append(torch.get_rng_state())
    assert torch.equal(*ends)


@every_method
def test_making_it_leaves_the_main_random_stream_alone(key: str) -> None:
    model, before = fresh(), torch.get_rng_state()
    wrapped(key, model)
    assert torch.equal(torch.get_rng_state(), before)


@supported(["bert", "modernbert", "xlnet"])
def test_evaluation_is_the_plain_model_bit_for_bit(key: str, family: str) -> None:
    wrapper, inputs = wrapped(key, fresh(family)), inputs_of(tiny_batch(family))
    expected = copy.deepcopy(wrapper.model).eval()(**inputs).logits
    loss_of(wrapper, tiny_batch(family))
    assert torch.equal(wrapper.eval()(**inputs).logits, expected)


@every_method
def test_it_acts_in_training(key: str) -> None:
    plain, regularized = RegularizedModel(fresh(), []), wrapped(key)
    for model in (plain, regularized):
        trained(model)
        model.finish()
    one, two = plain.model.state_dict(), regularized.model.state_dict()
    assert any(not torch.equal(one[name], two[name]) for name in one)


@every_method
def test_without_a_graph_the_loss_is_the_same_and_no_gradient_is_counted(key: str) -> None:
    expected = loss_of(wrapped(key), tiny_batch("bert"))
    with torch.no_grad():
        if method_class(key).probes_embedding or method(key).moves_weights:
            with pytest.raises(MethodError) as caught:
                wrapped(key)(**tiny_batch("bert"))
            assert str(caught.value) == f"{key} needs a gradient inside the step; train outside torch.no_grad()."
            return
        torch.manual_seed(0)
        out = wrapped(key)(**tiny_batch("bert"))
    assert torch.equal(out.loss, expected)
    assert (out.passes.activation_gradient, out.passes.weight_gradient) == (0, 0)


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
def test_awkward_batches_have_a_finite_loss_finite_terms_and_a_finite_gradient_everywhere(key: str, name: str) -> None:
    wrapper = wrapped(key)  # a parameter without a gradient would hang data-parallel training; one of 0 will do
    torch.manual_seed(0)
    out = wrapper(**AWKWARD[name])
    out.loss.backward()
    assert all(torch.isfinite(value) for value in (out.loss, *out.terms.values()))
    found = gradients(wrapper)
    assert found.keys() == {name for name, p in wrapper.named_parameters() if p.requires_grad}
    assert all(torch.isfinite(gradient).all() for gradient in found.values())


@every_method
def test_loss_is_float32_under_bfloat16_autocast(key: str) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = wrapped(key)(**tiny_batch("bert"))
    assert {value.dtype for value in (out.loss, out.task_loss, *out.terms.values())} == {torch.float32}


@every_term
def test_the_term_is_that_of_float32_vectors_under_bfloat16_autocast(key: str) -> None:
    if key in OF_DROPOUT:
        pytest.skip("two passes without dropout are one")
    terms = []
    for enabled in (False, True):  # what the encoder rounds moves the term a little; a rounded term would move more
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            terms.append(float(wrapped(key, fresh(dropout=0.0))(**tiny_batch("bert")).terms[key]))
    assert terms[1] == pytest.approx(terms[0], rel=ENCODER_ROUNDED[torch.bfloat16])


@every_method
def test_the_loss_is_as_wide_as_a_float64_model(key: str) -> None:
    assert loss_of(wrapped(key, fresh(dtype=torch.float64)), tiny_batch("bert")).dtype == torch.float64


@every_method
def test_terms_and_telemetry_carry_no_graph(key: str) -> None:
    out = wrapped(key)(**tiny_batch("bert"))
    values = [out.task_loss, *out.terms.values(), *out.telemetry.values()]
    assert [value.requires_grad for value in values] == [False] * len(values)


@every_method
def test_it_says_what_it_did(key: str) -> None:
    wrapper = wrapped(key)
    trained(wrapper, steps=1)
    telemetry = wrapper.drain_telemetry()
    assert [name for name in telemetry if name.startswith(f"{key}/") and name != f"{key}/term"]
    assert all(math.isfinite(value) for value in telemetry.values())


# -- invariances ------------------------------------------------------------------------------------------------------


@pytest.fixture
def constant_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every draw gives one vector of its scale, so that what is left is a function of the examples alone."""

    def constant(like: Tensor, scale: float, *_: Any) -> Tensor:
        wave = torch.arange(like.shape[-1], dtype=like.dtype).cos()  # equal entries would vanish in a layer norm
        return (scale * wave).expand(like.shape).clone()

    for key in METHODS:
        module = importlib.import_module(f"steadytune.methods.{key}")
        if hasattr(module, "draw_noise"):
            monkeypatch.setattr(module, "draw_noise", constant)


def without_chance(key: str, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Loss and every gradient where nothing is random."""
    if key in OF_DROPOUT:
        pytest.skip("two passes without dropout are one")
    wrapper = wrapped(key, fresh(dropout=0.0, dtype=torch.float64))
    loss = loss_of(wrapper, batch)
    loss.backward()
    return {"loss": loss.detach(), **gradients(wrapper)}


@every_method
@pytest.mark.usefixtures("constant_draws")
def test_more_padding_gives_the_same_loss_and_gradient(key: str) -> None:
    batch = tiny_batch("bert")
    longer = {
        "input_ids": nn.functional.pad(batch["input_ids"], (0, 4), value=PAD),
        "attention_mask": nn.functional.pad(batch["attention_mask"], (0, 4)),
        "labels": batch["labels"],
    }
    torch.testing.assert_close(without_chance(key, longer), without_chance(key, batch), **CLOSE)


@every_method
@pytest.mark.usefixtures("constant_draws")
def test_a_permuted_batch_gives_the_same_loss_and_gradient(key: str) -> None:
    if key in MIXES_ROWS:
        pytest.skip("rows have other partners in another order")
    batch, order = tiny_batch("bert"), [2, 0, 3, 1]
    permuted = {name: value[order] for name, value in batch.items()}
    torch.testing.assert_close(without_chance(key, permuted), without_chance(key, batch), **CLOSE)


def in_parts(key: str, batch: dict[str, Tensor], sizes: list[int]) -> dict[str, Tensor]:
    """Loss and every gradient of one optimizer step over several batches."""
    wrapper, total = wrapped(key, fresh(dropout=0.0, dtype=torch.float64)), torch.zeros((), dtype=torch.float64)
    for output in wrapper.accumulate(rows_of(batch, sizes)):
        output.loss.backward()
        total += output.loss.detach()
    return {"loss": total, **gradients(wrapper)}


@pytest.mark.parametrize("key", [key for key in METHODS if key not in OF_THE_BATCH | DRAWN_PER_PASS | OF_DROPOUT])
@pytest.mark.parametrize("sizes", [[4, 4], [5, 2, 1]], ids=str)
@pytest.mark.usefixtures("constant_draws")
def test_a_split_batch_has_the_loss_and_gradient_of_the_whole(key: str, sizes: list[int]) -> None:
    batch = tiny_batch("bert", rows=8)
    torch.testing.assert_close(in_parts(key, batch, sizes), without_chance(key, batch), **CLOSE)


@pytest.mark.parametrize("key", sorted(OF_THE_BATCH))
def test_a_method_of_the_batch_as_a_whole_says_so_on_its_card(key: str) -> None:
    batch = tiny_batch("bert", rows=8)
    assert not torch.isclose(in_parts(key, batch, [4, 4])["loss"], without_chance(key, batch)["loss"], **CLOSE)
    assert "accumulat" in read_card(key).text


def checkpointed(family: str, *, reentrant: bool) -> nn.Module:
    model: Any = fresh(family, dtype=torch.float64)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    return model


def gradient_of_a_step(key: str, model: nn.Module, family: str) -> dict[str, Tensor]:
    wrapper = wrapped(key, model)
    loss_of(wrapper, tiny_batch(family)).backward()
    return gradients(wrapper)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")  # also under its old name
@supported(["bert", "modernbert", "deberta-v2"])
def test_gradient_checkpointing_gives_the_same_gradient(key: str, family: str) -> None:
    model = checkpointed(family, reentrant=False)
    if (key, family) in REFUSED_CHECKPOINTED:
        with pytest.raises(SiteUnavailable) as caught:
            wrapped(key, model)
        assert str(caught.value) == REFUSED_CHECKPOINTED[key, family]
        return
    expected = gradient_of_a_step(key, fresh(family, dtype=torch.float64), family)
    torch.testing.assert_close(gradient_of_a_step(key, model, family), expected, rtol=REPLAYED, atol=REPLAYED)


@every_method
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
def test_reentrant_checkpointing_gives_the_same_gradient_or_is_refused(key: str) -> None:
    model = checkpointed("bert", reentrant=True)
    if (key, "bert") in REFUSED_CHECKPOINTED:
        with pytest.raises(SiteUnavailable):
            wrapped(key, model)
        return
    if method_class(key).early_gradient:
        with pytest.raises(MethodError) as caught:
            wrapped(key, model)(**tiny_batch("bert"))
        assert str(caught.value) == (
            f"{key} cannot act under re-entrant gradient checkpointing, which cuts its gradients; "
            "enable it with use_reentrant=False."
        )
        return
    expected = gradient_of_a_step(key, fresh(dtype=torch.float64), "bert")
    torch.testing.assert_close(gradient_of_a_step(key, model, "bert"), expected, rtol=REPLAYED, atol=REPLAYED)


# -- own parameters ---------------------------------------------------------------------------------------------------


@every_method
def test_the_methods_with_own_parameters_are_known(key: str) -> None:
    assert (key in OWNER_KEYS) is bool(list(own_parameters(wrapped(key))))


@every_owner
def test_own_parameters_are_the_same_for_the_same_seed_only(key: str) -> None:
    one, same, other = (dict(own_parameters(wrapped(key, seed=seed))) for seed in (4, 4, 5))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@every_owner
def test_own_parameters_train(key: str) -> None:
    wrapper = wrapped(key)
    before = {name: parameter.detach().clone() for name, parameter in own_parameters(wrapper)}
    trained(wrapper, steps=1)
    assert [name for name, parameter in own_parameters(wrapper) if torch.equal(parameter, before[name])] == []


@every_owner
def test_own_parameters_are_no_part_of_the_wrapped_model(key: str) -> None:
    wrapper = wrapped(key)
    assert {id(p) for p in wrapper.model.parameters()}.isdisjoint(id(p) for _, p in own_parameters(wrapper))
    assert wrapper.model.state_dict().keys() == fresh().state_dict().keys()


@every_owner
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_own_parameters_are_float32_or_as_wide_as_the_model(key: str, dtype: torch.dtype) -> None:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert {parameter.dtype for _, parameter in own_parameters(wrapped(key, fresh(dtype=dtype)))} == {wide}


@every_method
def test_a_saved_model_holds_the_plain_weights_only(key: str, tmp_path: Path) -> None:
    plain: Any = fresh()
    plain.save_pretrained(tmp_path / "plain")
    wrapper = wrapped(key)
    trained(wrapper, steps=1)
    wrapper.finish()
    wrapper.save_pretrained(tmp_path / "trained")
    files = {path.name for path in (tmp_path / "plain").iterdir()}
    assert {path.name for path in (tmp_path / "trained").iterdir()} == files
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("plain", "trained")]
    assert weights[0].keys() == weights[1].keys()


CARRIED: dict[str, dict[str, Any]] = {"asa": {"target_mask_fraction": 0.2}}
"""Settings under which a method carries more from step to step than parameters."""


@every_method
def test_a_resumed_method_goes_on_where_it_stopped(key: str, tmp_path: Path) -> None:
    with_state = dataclasses.replace(method(key), **CARRIED.get(key, {}))
    stopped = ready(RegularizedModel(fresh(), [with_state]))
    optimizer = trained(stopped)
    stopped.save_state(tmp_path)
    resumed = RegularizedModel(fresh(), [with_state])
    resumed.model.load_state_dict(stopped.model.state_dict())
    resumed.load_state(tmp_path)
    again = torch.optim.AdamW(resumed.parameter_groups(lr=1e-2))
    resumed.attach(again, total_updates=10)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    losses = []
    for model, last in ((stopped, optimizer), (resumed, again)):
        losses.append(loss_of(model, tiny_batch("bert", seed=9), 9))
        losses[-1].backward()
        last.step()
    assert torch.equal(*losses)
    assert all(torch.equal(value, stopped.state_dict()[name]) for name, value in resumed.state_dict().items())


# -- nothing is left behind -------------------------------------------------------------------------------------------


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())


@every_method
def test_a_closed_wrapper_leaves_the_plain_model(key: str) -> None:
    model, batch = fresh(), tiny_batch("bert")
    before = hooks(model)
    wrapper = wrapped(key, model)
    as_set_up = copy.deepcopy(model)
    loss_of(wrapper, batch)
    wrapper.close()
    logits = []
    for one in (as_set_up, model):
        torch.manual_seed(0)
        logits.append(one(**batch).logits)
    assert torch.equal(*logits)
    assert hooks(model) == before


@every_method
def test_an_exception_in_a_step_leaves_the_next_step_as_it_was(key: str) -> None:
    batch = tiny_batch("bert")
    impossible = {**batch, "input_ids": batch["input_ids"] + 10_000}
    interrupted, smooth = wrapped(key), wrapped(key)
    with pytest.raises(IndexError):
        interrupted(**impossible)
    assert torch.equal(loss_of(interrupted, batch), loss_of(smooth, batch))


@every_method
def test_a_copy_refuses_to_train_and_shares_nothing_with_the_original(key: str) -> None:
    batch, original, alone = tiny_batch("bert"), wrapped(key), wrapped(key)
    loss_of(original, batch)
    loss_of(alone, batch)
    copied = copy.deepcopy(original)
    with pytest.raises(RuntimeError, match="closed or a copy"):
        copied(**batch)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert torch.equal(loss_of(original, batch), loss_of(alone, batch))


@every_method
def test_a_copy_holds_the_plain_model(key: str) -> None:
    batch, wrapper = tiny_batch("bert"), wrapped(key)
    loss_of(wrapper, batch)
    copied = copy.deepcopy(wrapper)
    wrapper.close()
    logits = []
    for one in (wrapper, copied):
        torch.manual_seed(0)
        logits.append(one.model(**batch).logits)
    assert torch.equal(*logits)


# -- the card tells the truth -----------------------------------------------------------------------------------------


def passes_of(key: str) -> Any:
    return ready(RegularizedModel(fresh(), [method_class(key)()]))(**tiny_batch("bert")).passes


@every_method
def test_the_card_states_the_number_of_passes(key: str) -> None:
    front, passes = read_card(key).front, passes_of(key)
    assert front["extra_forward"] == pytest.approx(passes.forward - 1)
    backward = (passes.activation_gradient + passes.weight_gradient) / 2  # a whole backward pass is one of each
    assert front["extra_backward"] == pytest.approx(backward - 1)


@every_method
def test_the_card_states_the_null_setting(key: str) -> None:
    text = read_card(key).front["null_setting"]
    named = re.findall(r"\b([a-z_]+) 0\b", text)
    assert bool(named) is not text.startswith("none")
    assert [name for name in named if method_class(key)(**{name: 0}).active] == []


@every_method
def test_no_other_setting_of_0_than_those_of_the_card_switches_it_off(key: str) -> None:
    text = read_card(key).front["null_setting"]
    silent = [name for name in ("weight", "noise_std", "epsilon") if name in {field for field, *_ in fields(key)}]
    silent = [name for name in silent if not method_class(key)(**{name: 0}).active]
    assert [name for name in silent if f"{name} 0" not in text] == []


@every_method
def test_the_card_does_not_understate_the_floor(key: str) -> None:
    passes = passes_of(key)
    assert read_card(key).front["floor"] >= round(passes.units / 3, 2)  # a plain step is 3 units


@every_method
@pytest.mark.parametrize("task", TASKS)
def test_the_card_states_the_tasks_on_which_it_acts(key: str, task: str) -> None:
    model, batch = tiny_task_model(task), tiny_task_batch(task)
    made = method_class(key)(**{"pooler": False} if key == "reinit" else {})
    if task not in read_card(key).front["tasks"]:
        with pytest.raises(MethodError, match=f"^{key} cannot act on a {task} task: "):
            RegularizedModel(model, [made])
        return
    wrapper = RegularizedModel(model, [made])
    wrapper.attach(torch.optim.SGD(wrapper.parameter_groups(lr=0.1)), total_updates=10)
    if wrapper.wants_survey:
        wrapper.survey([batch])
    loss = loss_of(wrapper, batch)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(gradient).all() for gradient in gradients(wrapper).values())


@every_term
def test_the_card_states_whether_the_term_needs_labels(key: str) -> None:
    batch = tiny_batch("bert")
    terms = []
    for labels in (batch["labels"], batch["labels"].flip(0)):
        torch.manual_seed(0)
        terms.append(wrapped(key)(**{**batch, "labels": labels}).terms[key])
    assert torch.equal(*terms) is not read_card(key).front["needs_labels"]

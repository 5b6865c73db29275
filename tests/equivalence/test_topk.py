"""Top-k tuning against training in which every weight below is put back after each step."""

from typing import Any

import pytest
import torch
from torch import Tensor

from equivalence.straight_line import CLOSE, DEPTH, SEED, batch, tiny_bert
from steadytune import CAT, RegularizedModel
from steadytune.encoders import SiteUnavailable
from steadytune.methods import MethodError
from steadytune.methods.reinit import ReInit
from steadytune.methods.topk import TopK
from tiny import FAMILIES, rows_of, tiny_batch, tiny_model


def frozen_names(model: Any, layers: int) -> set[str]:
    below = ("bert.embeddings.", *(f"bert.encoder.layer.{layer}." for layer in range(DEPTH - layers)))
    return {name for name, _ in model.named_parameters() if name.startswith(below)}


def trained_by_hand(layers: int, accumulate: bool) -> dict[str, Tensor]:
    """Gradients of the whole model by plain back-propagation; only the top moves."""
    model = tiny_bert(0.0)
    frozen = frozen_names(model, layers)
    moving = [parameter for name, parameter in model.named_parameters() if name not in frozen]
    optimizer = torch.optim.AdamW(moving, lr=1e-3, weight_decay=0)
    for step in range(4):
        parts = rows_of(batch(step), [4, 2]) if accumulate else [batch(step)]
        for part in parts:
            (model(**part).loss * len(part["labels"]) / 6).backward()
        optimizer.step()
        model.zero_grad()
    return dict(model.state_dict())


@pytest.mark.parametrize("layers", range(DEPTH))
@pytest.mark.parametrize("accumulate", [False, True], ids=["whole batches", "accumulated"])
def test_only_the_top_layers_and_the_head_move_and_they_move_as_in_plain_training(
    layers: int, accumulate: bool
) -> None:
    wrapper = RegularizedModel(tiny_bert(0.0), [TopK(layers=layers)], seed=SEED)
    optimizer = torch.optim.AdamW(wrapper.parameter_groups(lr=1e-3))
    for step in range(4):
        if accumulate:
            for output in wrapper.accumulate(rows_of(batch(step), [4, 2])):
                output.loss.backward()
        else:
            wrapper(**batch(step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(dict(wrapper.model.state_dict()), trained_by_hand(layers, accumulate), **CLOSE)
    names = frozen_names(wrapper.model, layers)
    before = tiny_bert(0.0).state_dict()
    assert all(torch.equal(wrapper.model.state_dict()[name], before[name]) for name in names)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "albert"])
def test_the_top_layer_and_what_lies_above_train_and_nothing_else(family: str) -> None:
    model: Any = tiny_model(family)
    wrapper = RegularizedModel(model, [TopK()])
    assert wrapper._sites is not None
    anatomy = wrapper._sites.anatomy
    loss = wrapper(**tiny_batch(family)).loss
    loss.backward()
    encoder, own = {id(p) for p in anatomy.base.parameters()}, {id(p) for p in anatomy.layers[-1].parameters()}
    for name, parameter in model.named_parameters():
        expected = id(parameter) not in encoder or id(parameter) in own or "pooler" in name or "final_norm" in name
        assert parameter.requires_grad is expected, name
        assert (parameter.grad is not None) <= expected, name
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {
        name for name, p in plain_gradients(family).items() if model.get_parameter(name).requires_grad
    }


def plain_gradients(family: str) -> dict[str, Tensor]:
    wrapper = RegularizedModel(tiny_model(family))
    wrapper(**tiny_batch(family)).loss.backward()
    return {name: p.grad for name, p in wrapper.model.named_parameters() if p.grad is not None}


def test_the_optimizer_holds_what_trains_only() -> None:
    wrapper = RegularizedModel(tiny_model("bert"), [TopK()])
    held = {id(p) for group in wrapper.parameter_groups(lr=1e-3) for p in group["params"]}
    assert held == {id(p) for p in wrapper.model.parameters() if p.requires_grad}


def test_a_step_has_no_pass_but_its_own_and_says_how_many_layers_train() -> None:
    out = RegularizedModel(tiny_model("bert"), [TopK(layers=2)])(**tiny_batch("bert"))
    assert (out.passes.forward, out.passes.activation_gradient, out.passes.weight_gradient) == (1, 1, 1)
    assert float(out.telemetry["topk/trained_layers"]) == 2


def test_a_direction_at_the_embeddings_is_found_under_the_frozen_layers() -> None:
    out = RegularizedModel(tiny_model("bert"), [TopK(), CAT(weight=0.5, epsilon=0.5)])(**tiny_batch("bert"))
    out.loss.backward()
    assert torch.isfinite(out.loss) and float(out.terms["cat"]) > 0


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [3, 4])
def test_as_many_layers_as_there_are_are_refused(layers: int) -> None:
    with pytest.raises(MethodError, match=f"topk.layers must be below 3, the layers of this model; got {layers}"):
        RegularizedModel(tiny_model("bert"), [TopK(layers=layers)])


def test_shared_layers_are_refused() -> None:
    with pytest.raises(SiteUnavailable, match="topk cannot freeze the lower layers of albert alone"):
        RegularizedModel(tiny_model("albert"), [TopK()])


def test_new_layers_that_would_be_frozen_are_refused() -> None:
    RegularizedModel(tiny_model("bert"), [TopK(layers=2), ReInit(layers=2)])
    with pytest.raises(MethodError, match=r"reinit would leave .* random, because it is frozen"):
        RegularizedModel(tiny_model("bert"), [TopK(layers=1), ReInit(layers=2)])


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
def test_reentrant_checkpointing_is_refused() -> None:
    model: Any = tiny_model("bert")
    model.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(MethodError, match="topk cannot act under re-entrant gradient checkpointing"):
        RegularizedModel(model, [TopK()])(**tiny_batch("bert"))

"""New top layers against draws written out, on models that were loaded from a file as a user's are."""

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from equivalence.straight_line import CLOSE, DEPTH, SEED, batch, tiny_bert
from steadytune import RegularizedModel
from steadytune.encoders import SiteUnavailable
from steadytune.functional import keyed_seed
from steadytune.methods import MethodError
from steadytune.methods.reinit import ReInit
from tiny import FAMILIES, tiny_batch, tiny_model

OWN_LAYERS = [family for family in FAMILIES if family != "albert"]
MATRICES = [  # of a layer of BERT, from the input on
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
]
ABOVE = {  # what lies between the layers and the label linear
    "bert": {"bert.pooler.dense"},
    "roberta": {"classifier.dense"},
    "xlm-roberta": {"classifier.dense"},
    "distilbert": {"pre_classifier"},
    "electra": {"classifier.dense"},
    "albert": {"albert.pooler"},
    "deberta-v2": {"pooler.dense"},
    "deberta-v2-conv": {"pooler.dense"},
    "modernbert": {"head.dense", "head.norm"},
    "mpnet": {"classifier.dense"},
    "xlnet": {"sequence_summary.summary"},
}


def loaded(family: str, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """A model whose tensors are marked as loaded."""
    model: Any = tiny_bert(0.1, dtype) if family == "straight" else tiny_model(family, dtype=dtype)
    model.save_pretrained(folder)
    found: Any = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype)
    assert all(getattr(parameter, "_is_hf_initialized", False) for parameter in found.parameters())
    return found.train()


def changed(before: dict[str, Tensor], model: Any) -> set[str]:
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def expected_weights(model: Any, layers: int, pooler: bool, seed: int) -> dict[str, Tensor]:
    """Drawn matrix by matrix from the stream of the set-up; biases 0, norms 1 and 0."""
    found = {name: value.clone() for name, value in model.state_dict().items()}
    names = [f"bert.encoder.layer.{layer}.{name}" for layer in range(DEPTH - layers, DEPTH) for name in MATRICES] + [
        "bert.pooler.dense"
    ] * pooler
    generator = torch.Generator().manual_seed(keyed_seed(seed, "setup", "reinit"))
    for name in names:
        weight = found[f"{name}.weight"]
        found[f"{name}.weight"] = torch.empty_like(weight).normal_(0, 0.02, generator=generator)
        found[f"{name}.bias"] = torch.zeros_like(found[f"{name}.bias"])
    for layer in range(DEPTH - layers, DEPTH):
        for part in ("attention.output.LayerNorm", "output.LayerNorm"):
            name = f"bert.encoder.layer.{layer}.{part}"
            found[f"{name}.weight"] = torch.ones_like(found[f"{name}.weight"])
            found[f"{name}.bias"] = torch.zeros_like(found[f"{name}.bias"])
    return found


@pytest.mark.parametrize("layers", range(DEPTH + 1))
@pytest.mark.parametrize("pooler", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_top_layers_and_the_pooler_are_drawn_and_nothing_else_changes(
    layers: int, pooler: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = loaded("straight", tmp_path, dtype)
    expected = expected_weights(model, layers, pooler, SEED)
    RegularizedModel(model, [ReInit(layers=layers, pooler=pooler)], seed=SEED)
    torch.testing.assert_close(model.state_dict(), expected, rtol=0, atol=0)


def test_without_layers_and_pooler_it_is_off(tmp_path: Path) -> None:
    model = loaded("straight", tmp_path)
    before = copy.deepcopy(model.state_dict())
    wrapper = RegularizedModel(model, [ReInit(layers=0, pooler=False)])
    assert wrapper.methods == ()
    assert changed(before, model) == set()


def test_another_seed_draws_other_layers_and_the_global_stream_stays(tmp_path: Path) -> None:
    found, before = [], torch.get_rng_state()
    for seed in (1, 1, 2):
        model = loaded("straight", tmp_path)
        before = torch.get_rng_state()
        RegularizedModel(model, [ReInit()], seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        found.append(model.state_dict())
    one, same, other = found
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    assert any(not torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("family", OWN_LAYERS)
def test_every_tensor_of_the_top_layer_of_every_family_changes(family: str, tmp_path: Path) -> None:
    model = loaded(family, tmp_path)
    before = copy.deepcopy(model.state_dict())
    wrapper = RegularizedModel(model, [ReInit(pooler=False)])
    assert wrapper._sites is not None
    top = wrapper._sites.anatomy.layers[-1]
    own = {id(parameter) for parameter in top.parameters()}
    assert changed(before, model) == {name for name, parameter in model.named_parameters() if id(parameter) in own}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_pooler_is_what_lies_between_the_layers_and_the_label_linear(family: str, tmp_path: Path) -> None:
    model = loaded(family, tmp_path)
    before = copy.deepcopy(model.state_dict())
    RegularizedModel(model, [ReInit(layers=0)])
    assert {name.rpartition(".")[0] for name in changed(before, model)} == ABOVE[family]


def test_tensors_stay_marked_as_loaded(tmp_path: Path) -> None:
    model = loaded("straight", tmp_path)
    RegularizedModel(model, [ReInit()])
    assert all(getattr(parameter, "_is_hf_initialized", False) for parameter in model.parameters())


def test_the_depth_dependent_scale_of_a_family_is_kept(tmp_path: Path) -> None:
    model = loaded("modernbert", tmp_path)
    RegularizedModel(model, [ReInit()])
    top, std = model.model.layers[-1], model.config.initializer_range / (2 * model.config.num_hidden_layers) ** 0.5
    cut = model.config.initializer_cutoff_factor * std
    assert float(top.mlp.Wo.weight.detach().abs().max()) <= cut < float(top.mlp.Wi.weight.detach().abs().max())


def test_steps_are_those_of_the_model_that_was_drawn(tmp_path: Path) -> None:
    model = loaded("straight", tmp_path, torch.float64)
    plain = copy.deepcopy(model)
    plain.load_state_dict(expected_weights(model, 2, True, SEED))
    wrapper = RegularizedModel(model, [ReInit(layers=2)], seed=SEED)
    plain_wrapper = RegularizedModel(plain)
    for one in (wrapper, plain_wrapper):
        optimizer = torch.optim.AdamW(one.parameter_groups(lr=1e-3))
        for step in range(3):
            torch.manual_seed(step)
            out = one(**batch(step))
            assert (out.passes.forward, out.passes.activation_gradient, out.passes.weight_gradient) == (1, 1, 1)
            out.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), **CLOSE)


def test_telemetry_is_the_number_of_new_layers() -> None:
    out = RegularizedModel(tiny_model("bert"), [ReInit(layers=2)])(**tiny_batch("bert"))
    assert float(out.telemetry["reinit/reinitialized_layers"]) == 2


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_shared_layers_are_refused() -> None:
    with pytest.raises(SiteUnavailable) as caught:
        RegularizedModel(tiny_model("albert"), [ReInit()])
    assert str(caught.value) == "reinit cannot draw the top layers of albert anew: its layers share weights."


def test_more_layers_than_there_are_are_refused() -> None:
    with pytest.raises(MethodError, match=r"reinit.layers must be at most 3, the layers of this model; got 4"):
        RegularizedModel(tiny_model("bert"), [ReInit(layers=4)])


def test_a_frozen_part_is_refused() -> None:
    model: Any = tiny_model("bert")
    model.bert.pooler.dense.weight.requires_grad_(False)
    with pytest.raises(MethodError, match=r"would leave dense.weight of a BertPooler random, because it is frozen"):
        RegularizedModel(model, [ReInit()])


def test_an_initialiser_that_changes_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = tiny_model("bert")
    monkeypatch.setattr(model.bert, "_init_weights", lambda module: None)
    with pytest.raises(MethodError, match=r"the initialiser of bert left .*weight of BertLayer as it was"):
        RegularizedModel(model, [ReInit()])


def test_a_model_that_is_all_new_above_its_embeddings_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="steadytune"):
        RegularizedModel(tiny_model("bert"), [ReInit(layers=3)])
    assert "above the embeddings nothing is pre-trained" in caplog.text

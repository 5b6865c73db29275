"""Adapters against W x + (α/r) B A x written out, step by step, and what is left when they have been merged."""

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

from equivalence.straight_line import CLOSE, SEED, batch, tiny_bert
from steadytune import CAT, RegularizedModel
from steadytune.encoders import FAMILIES, SiteUnavailable
from steadytune.methods import MethodError
from steadytune.methods.averaging import Averaging
from steadytune.methods.lora import LoRA
from steadytune.methods.reinit import ReInit
from tiny import inputs_of, rows_of, tiny_batch, tiny_model

pytest.importorskip("peft")

ADAPTED = ["bert", "roberta", "xlm-roberta", "electra", "deberta-v2"]
METHODS = [LoRA(), LoRA(rank=2, alpha=3.0), LoRA(rank=3, dropout=0.3)]
by_settings = pytest.mark.parametrize("method", METHODS, ids=["defaults", "rank and alpha", "dropout"])


class Adapted(nn.Module):
    """W x + b + (α/r) B A dropout(x), from the definition."""

    def __init__(self, linear: nn.Linear, first: Tensor, second: Tensor, method: LoRA) -> None:
        super().__init__()
        self.linear, self.method = linear.requires_grad_(False), method
        self.first, self.second = (nn.Parameter(tensor.detach().clone()) for tensor in (first, second))

    def forward(self, states: Tensor) -> Tensor:
        seen = nn.functional.dropout(states, self.method.dropout) if self.method.dropout else states
        added = self.method.alpha / self.method.rank * (seen @ self.first.T @ self.second.T)
        return self.linear(states) + added


def projections(model: Any) -> dict[str, nn.Module]:
    return {
        f"{layer}.{name}": getattr(block.attention.self, name)
        for layer, block in enumerate(model.bert.encoder.layer)
        for name in ("query", "value")
    }


def adapters(model: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of every adapter."""
    return {
        name: (module.lora_A["default"].weight, module.lora_B["default"].weight)  # type: ignore[index,union-attr]
        for name, module in projections(model).items()
    }


def by_hand(wrapper: RegularizedModel, dropout: float, method: LoRA) -> Any:
    """A plain model with adapters of the same values; only they, the pooler and the head train."""
    model = tiny_bert(dropout).requires_grad_(False)
    for name, (first, second) in adapters(wrapper.model).items():
        layer, _, place = name.partition(".")
        block = model.bert.encoder.layer[int(layer)].attention.self
        setattr(block, place, Adapted(getattr(block, place), first, second, method))
    model.bert.pooler.requires_grad_(True)
    model.classifier.requires_grad_(True)
    return model


def lora(method: LoRA, dropout: float = 0.1) -> RegularizedModel:
    """With adapters that are off 0, so that both matrices have a gradient."""
    wrapper = RegularizedModel(tiny_bert(dropout), [method], seed=SEED)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, second in adapters(wrapper.model).values():
            second.add_(torch.empty_like(second).normal_(0, 0.3, generator=generator))
    return wrapper


def train(model: Any, optimizer: torch.optim.Optimizer, accumulate: bool, steps: range = range(3)) -> None:
    for step in steps:
        torch.manual_seed(step)
        parts = rows_of(batch(step), [4, 2]) if accumulate else [batch(step)]
        if isinstance(model, RegularizedModel):
            for output in model.accumulate(parts) if accumulate else [model(**parts[0])]:
                output.loss.backward()
        else:
            for part in parts:
                (model(**part).loss * len(part["labels"]) / 6).backward()
        optimizer.step()
        optimizer.zero_grad()


@by_settings
@pytest.mark.parametrize("accumulate", [False, True], ids=["whole batches", "accumulated"])
def test_steps_are_those_of_the_definition(method: LoRA, accumulate: bool) -> None:
    wrapper = lora(method)
    model = by_hand(wrapper, 0.1, method)
    train(wrapper, torch.optim.AdamW(wrapper.parameter_groups(lr=1e-2)), accumulate)
    moving = [parameter for parameter in model.parameters() if parameter.requires_grad]
    train(model, torch.optim.AdamW(moving, lr=1e-2, weight_decay=0), accumulate)
    expected = {name: (adapted.first, adapted.second) for name, adapted in projections(model).items()}
    torch.testing.assert_close(adapters(wrapper.model), expected, **CLOSE)
    for name in ("bert.pooler.dense", "classifier"):
        found, other = wrapper.model.get_submodule(name), model.get_submodule(name)
        torch.testing.assert_close(found.state_dict(), other.state_dict(), **CLOSE)


@by_settings
def test_merged_weights_are_the_sum_and_all_others_those_from_before(method: LoRA) -> None:
    wrapper = lora(method)
    train(wrapper, torch.optim.AdamW(wrapper.parameter_groups(lr=1e-2)), False)
    expected = tiny_bert(0.1).state_dict()
    for name in ("bert.pooler.dense", "classifier"):
        for part, value in wrapper.model.get_submodule(name).state_dict().items():
            expected[f"{name}.{part}"] = value.clone()
    for name, (first, second) in adapters(wrapper.model).items():
        layer, _, place = name.partition(".")
        expected[f"bert.encoder.layer.{layer}.attention.self.{place}.weight"] += (
            method.alpha / method.rank * (second @ first).detach()
        )
    wrapper.finish()
    torch.testing.assert_close(dict(wrapper.model.state_dict()), dict(expected), **CLOSE)


def test_a_step_of_new_adapters_is_the_plain_step() -> None:
    plain, wrapper = RegularizedModel(tiny_bert(0.1)), RegularizedModel(tiny_bert(0.1), [LoRA()])
    losses = []
    for one in (plain, wrapper):
        torch.manual_seed(0)
        out = one(**batch())
        assert (out.passes.forward, out.passes.activation_gradient, out.passes.weight_gradient) == (1, 1, 1)
        losses.append(out.loss.detach())
    assert torch.equal(*losses)


def test_adapters_head_and_pooler_train_and_nothing_else() -> None:
    model = RegularizedModel(tiny_bert(0.1), [LoRA()]).model
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    expected = {"bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"}
    assert trained == expected | {name for name, _ in model.named_parameters() if ".lora_" in name}


@pytest.mark.parametrize("family", ADAPTED)
def test_finishing_leaves_a_plain_model_that_gives_the_same_scores(family: str, tmp_path: Path) -> None:
    model: Any = tiny_model(family, dtype=torch.float64)
    keys, attributes = model.state_dict().keys(), set(vars(model.base_model))
    wrapper = RegularizedModel(model, [LoRA()])
    optimizer = torch.optim.AdamW(wrapper.parameter_groups(lr=1e-1))
    for _ in range(2):
        wrapper(**tiny_batch(family)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    inputs = inputs_of(tiny_batch(family))
    expected = wrapper.eval()(**inputs).logits
    with pytest.raises(MethodError, match="lora has not finished"):
        wrapper.save_pretrained(tmp_path)
    wrapper.finish()
    torch.testing.assert_close(model(**inputs).logits, expected, **CLOSE)
    assert model.state_dict().keys() == keys
    assert set(vars(model.base_model)) == attributes
    wrapper.save_pretrained(tmp_path)
    assert not [name for name in load_file(tmp_path / "model.safetensors") if "lora" in name or "base_layer" in name]
    loaded: Any = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float64)
    torch.testing.assert_close(loaded.eval()(**inputs).logits, expected, **CLOSE)


def test_a_resumed_run_ends_with_the_same_weights_bit_for_bit(tmp_path: Path) -> None:
    method = LoRA(dropout=0.2)
    whole = lora(method)
    train(whole, torch.optim.AdamW(whole.parameter_groups(lr=1e-2)), False, range(6))
    stopped = lora(method)
    optimizer = torch.optim.AdamW(stopped.parameter_groups(lr=1e-2))
    train(stopped, optimizer, False, range(3))
    stopped.save_state(tmp_path)
    resumed = RegularizedModel(tiny_bert(0.1), [method], seed=SEED)
    resumed.load_state(tmp_path)
    resumed.model.load_state_dict(copy.deepcopy(stopped.model.state_dict()))
    again = torch.optim.AdamW(resumed.parameter_groups(lr=1e-2))
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(resumed, again, False, range(3, 6))
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in resumed.state_dict().items())


def test_averages_of_adapters_are_merged() -> None:
    wrapper = RegularizedModel(tiny_bert(0.1), [LoRA(), Averaging()], seed=SEED)
    optimizer = torch.optim.AdamW(wrapper.parameter_groups(lr=1e-2))
    wrapper.attach(optimizer)
    train(wrapper, optimizer, False)
    means = wrapper.methods[1].averages(wrapper.method_modules["averaging"])
    first, second = (
        means[f"bert.encoder.layer.0.attention.self.query.lora_{name}.default.weight"].clone() for name in "AB"
    )
    expected = tiny_bert(0.1).bert.encoder.layer[0].attention.self.query.weight + 2 * second @ first
    wrapper.finish()
    model: Any = wrapper.model
    torch.testing.assert_close(model.bert.encoder.layer[0].attention.self.query.weight, expected, **CLOSE)


def test_a_direction_at_the_frozen_embeddings_is_found() -> None:
    out = RegularizedModel(tiny_bert(0.1), [LoRA(), CAT(weight=0.5, epsilon=0.5)])(**batch())
    out.loss.backward()
    assert torch.isfinite(out.loss) and float(out.terms["cat"]) > 0


def test_the_global_stream_stays_and_the_seed_names_the_adapters() -> None:
    found = []
    for seed in (1, 1, 2):
        model, before = tiny_bert(0.1), torch.get_rng_state()
        RegularizedModel(model, [LoRA()], seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        found.append(adapters(model)["0.query"][0])
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_telemetry_is_the_scale_of_the_additions() -> None:
    assert float(RegularizedModel(tiny_bert(0.1), [LoRA()])(**batch()).telemetry["lora/scaling"]) == 2


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - set(ADAPTED)))
def test_a_family_whose_projections_peft_does_not_know_is_refused(family: str) -> None:
    with pytest.raises(SiteUnavailable) as caught:
        RegularizedModel(tiny_model(family), [LoRA()])
    assert str(caught.value) == (
        f"lora adapts the query and value projections that peft knows by name, and it knows none of {family}; "
        f"it knows those of {', '.join(ADAPTED)}."
    )


def test_a_model_with_adapters_is_refused() -> None:
    model = tiny_bert(0.1)
    RegularizedModel(model, [LoRA()]).close()
    with pytest.raises(MethodError, match="lora finds adapters in this model already"):
        RegularizedModel(model, [LoRA()])


def test_without_peft_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "peft"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MethodError) as caught:
        RegularizedModel(tiny_bert(0.1), [LoRA()])
    assert str(caught.value) == "lora needs the package peft: pip install steadytune[peft]."


def test_new_layers_that_would_stay_random_are_refused() -> None:
    with pytest.raises(MethodError, match="under LoRA the new layers would stay random"):
        RegularizedModel(tiny_bert(0.1), [ReInit(), LoRA()])


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
def test_reentrant_checkpointing_is_refused() -> None:
    model: Any = tiny_bert(0.1)
    model.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(MethodError, match="lora cannot act under re-entrant gradient checkpointing"):
        RegularizedModel(model, [LoRA()])(**batch())

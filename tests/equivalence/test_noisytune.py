"""Noise on the weights against draws written out."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from equivalence.straight_line import CLOSE, PADDING, SEED, batch, tiny_bert
from steadytune import RegularizedModel
from steadytune.functional import keyed_seed
from steadytune.methods.noisytune import NoisyTune
from tiny import FAMILIES, PAD, tiny_batch, tiny_model
from tolerances import SAME

EMBEDDING = "bert.embeddings.word_embeddings.weight"


def expected_weights(model: Any, noise: float, head: bool) -> dict[str, Tensor]:
    """W + U(−λ/2, λ/2) · std(W), matrix by matrix from the stream of the set-up."""
    generator = torch.Generator().manual_seed(keyed_seed(SEED, "setup", "noisytune"))
    found = {name: value.detach().clone() for name, value in model.named_parameters()}
    for name, value in found.items():
        if value.ndim < 2 or not (head or name.startswith("bert.")):
            continue
        drawn = torch.empty(value.shape, dtype=value.dtype).uniform_(-noise / 2, noise / 2, generator=generator)
        centered = value - value.mean()
        drawn *= (centered.square().sum() / (value.numel() - 1)).sqrt()
        if name == EMBEDDING:
            drawn[PADDING] = 0
        found[name] = value + drawn
    return found


@pytest.mark.parametrize("noise", [0.15, 1.0])
@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_matrix_gets_noise_in_proportion_to_its_spread(noise: float, head: bool, dtype: torch.dtype) -> None:
    model = tiny_bert(0.1, dtype)
    expected = expected_weights(model, noise, head)
    RegularizedModel(model, [NoisyTune(noise=noise, head=head)], seed=SEED)
    close = SAME[dtype]
    torch.testing.assert_close(dict(model.named_parameters()), expected, rtol=close, atol=close, check_layout=False)


def test_without_noise_it_is_off() -> None:
    model = tiny_bert(0.1)
    before = copy.deepcopy(model.state_dict())
    assert RegularizedModel(model, [NoisyTune(noise=0)]).methods == ()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_steps_are_those_of_the_noised_model() -> None:
    model, plain = tiny_bert(0.1), tiny_bert(0.1)
    with torch.no_grad():
        for name, value in expected_weights(plain, 0.15, False).items():
            plain.get_parameter(name).copy_(value)
    for wrapper in (RegularizedModel(model, [NoisyTune()], seed=SEED), RegularizedModel(plain)):
        optimizer = torch.optim.AdamW(wrapper.parameter_groups(lr=1e-3))
        for step in range(3):
            torch.manual_seed(step)
            out = wrapper(**batch(step))
            assert (out.passes.forward, out.passes.activation_gradient, out.passes.weight_gradient) == (1, 1, 1)
            out.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_matrices_of_every_family_move_and_nothing_else(family: str) -> None:
    model: Any = tiny_model(family)
    before = copy.deepcopy(dict(model.named_parameters()))
    encoder = {id(parameter) for parameter in model.base_model.parameters()}
    RegularizedModel(model, [NoisyTune()])
    for name, parameter in model.named_parameters():
        moved = not torch.equal(parameter, before[name])
        assert moved is (parameter.ndim > 1 and id(parameter) in encoder), name
        assert torch.isfinite(parameter).all()


def test_the_row_for_padding_stays_as_it_was() -> None:
    model: Any = tiny_model("roberta")
    table = model.roberta.embeddings.word_embeddings
    assert table.padding_idx == PAD
    with torch.no_grad():
        table.weight[PAD] = 0
    RegularizedModel(model, [NoisyTune()])
    assert not table.weight[PAD].any()


def test_a_tied_matrix_gets_noise_once() -> None:
    tied, alone = tiny_bert(0.1), tiny_bert(0.1)
    for model in (tied, alone):
        layers = model.bert.encoder.layer
        layers[1].output.dense.weight = nn.Parameter(layers[0].output.dense.weight.detach().clone())
    tied.bert.encoder.layer[1].output.dense.weight = tied.bert.encoder.layer[0].output.dense.weight
    for model in (tied, alone):
        RegularizedModel(model, [NoisyTune()], seed=SEED)
    first = "bert.encoder.layer.0.output.dense.weight"
    assert torch.equal(tied.get_parameter(first), alone.get_parameter(first))


def test_a_matrix_of_one_entry_stays_finite() -> None:
    model = tiny_bert(0.1)
    model.bert.one = nn.Parameter(torch.ones(1, 1).double())
    RegularizedModel(model, [NoisyTune()])
    assert float(model.bert.one.detach()) == 1.0


def test_the_global_stream_stays_and_the_seed_names_the_noise() -> None:
    found = []
    for seed in (1, 1, 2):
        model, before = tiny_bert(0.1), torch.get_rng_state()
        RegularizedModel(model, [NoisyTune()], seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        found.append(model.get_parameter(EMBEDDING))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_telemetry_is_the_deviation_of_the_noise_in_units_of_that_of_the_weights() -> None:
    out = RegularizedModel(tiny_model("bert"), [NoisyTune(noise=0.6)])(**tiny_batch("bert"))
    assert float(out.telemetry["noisytune/relative_noise"]) == pytest.approx(0.6 / 12**0.5)

"""ASA by other roads: plain softmax for fused attention, autograd's own rules for the reversed gradient of the scores.

Numbers come from section 12 of the specification; laws from its section 3.4.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from steadytune import ASA, SCL, RegularizedModel
from steadytune.encoders import Edits, PassRunner, Sites
from steadytune.functional import keyed_seed, reversed_mask
from steadytune.methods import Method
from tiny import HEADS, gradients, inputs_of, rows_of, tiny_batch, tiny_model
from tolerances import PRINTED, REPLAYED, SAME

DEPTH, SEED = 3, 5
CLOSE: dict[str, float] = {"rtol": SAME[torch.float64], "atol": SAME[torch.float64]}
WITH_BIAS = ["bert", "roberta", "xlm-roberta", "electra", "distilbert", "albert", "modernbert", "deberta-v2"]
ALL_KEPT = 6.0  # a keep_bias that small scores cannot outweigh


# -- fused attention with our bias ------------------------------------------------------------------------------------

KEYS = torch.tensor([0.0, math.log(2), math.log(3)], dtype=torch.float64)[:, None]  # one head of size 1
VALUES = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)[:, None]
QUERIES = torch.ones(3, 1, dtype=torch.float64)


def attended(bias: Tensor) -> Tensor:
    """What each of the three equal queries reads."""
    return scaled_dot_product_attention(
        QUERIES[None, None], KEYS[None, None], VALUES[None, None], attn_mask=bias, scale=1.0
    ).squeeze()


@pytest.mark.parametrize(
    ("masked", "shares"), [((), (1 / 6, 1 / 3, 1 / 2)), ((2,), (1 / 3, 2 / 3, 0)), ((0,), (0, 2 / 5, 3 / 5))]
)
def test_masking_a_unit_shares_its_attention_among_the_others(
    masked: tuple[int, ...], shares: tuple[float, ...]
) -> None:
    scores = torch.ones(1, 3, 3, dtype=torch.float64)
    scores[..., list(masked)] = -1
    bias, _ = reversed_mask(scores, torch.ones_like(scores).bool(), gain=1e4)
    expected = 1 * shares[0] + 2 * shares[1] + 4 * shares[2]
    assert attended(bias).tolist() == pytest.approx([expected] * 3, abs=REPLAYED)


def test_attention_before_masking_reads_17_sixths() -> None:
    assert attended(torch.zeros(1, 1, 3, 3, dtype=torch.float64)).tolist() == pytest.approx([17 / 6] * 3, abs=REPLAYED)


def test_gradient_of_the_bias_is_share_times_distance_from_the_mean() -> None:
    bias = torch.zeros(1, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    attended(bias)[0].backward()
    assert bias.grad is not None
    assert bias.grad[0, 0, 0].tolist() == pytest.approx([-0.305556, -0.277778, 0.583333], abs=PRINTED[torch.float64])


@pytest.mark.parametrize("family", WITH_BIAS)
def test_the_gradients_of_the_biases_of_a_query_sum_to_0(family: str) -> None:
    model, batch = tiny_model(family, dtype=torch.float64), tiny_batch(family)
    generator = torch.Generator().manual_seed(2)
    biases = [torch.empty(4, HEADS, 9, 9, dtype=torch.float64).normal_(generator=generator) for _ in range(DEPTH)]
    for bias in biases:
        bias.masked_fill_(bias > 1, -1e4).requires_grad_()
    sites = Sites(model)
    runner = PassRunner(model, sites)
    clean = runner.run(inputs_of(batch)).logits
    masked = runner.run(inputs_of(batch), [Edits(attention=lambda layer, states, mask: biases[layer])]).logits
    assert clean is not None and masked is not None
    found = torch.autograd.grad(divergence(clean, masked), biases)
    for gradient in found:
        assert float(gradient.abs().max()) > 1e-6
        assert float(gradient.sum(dim=-1).abs().max()) < REPLAYED


# -- the straight line ------------------------------------------------------------------------------------------------


def divergence(one: Tensor, other: Tensor) -> Tensor:
    p, q = one.softmax(dim=-1), other.softmax(dim=-1)
    return (0.5 * (p * (p / q).log()).sum(dim=-1) + 0.5 * (q * (q / p).log()).sum(dim=-1)).mean()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    rows = [logits[i].logsumexp(dim=0) - logits[i, label] for i, label in enumerate(labels.tolist())]
    return torch.stack(rows).mean()


@dataclass
class Line:
    """One pass of BERT by hand; of a masked one also scores, biases, and free and kept units of every layer."""

    logits: Tensor
    scores: list[Tensor] = field(default_factory=list)
    biases: list[Tensor] = field(default_factory=list)
    free: list[Tensor] = field(default_factory=list)
    kept: list[Tensor] = field(default_factory=list)


def choose(line: Line, own: Any, layer: int, states: Tensor, real: Tensor, asa: ASA) -> Tensor:
    """Bias of a layer: a hard choice whose gradient is that of −σ(s), times the gain."""
    query, key = (part[0 if asa.shared else layer] for part in (own.query, own.key))
    states = states.detach()
    scores = (states @ query.weight.T + query.bias) @ (states @ key.weight.T + key.bias).mT / len(query.weight) ** 0.5
    scores = scores + asa.keep_bias
    free = real[:, :, None] & real[:, None, :]
    if asa.protect == "self":
        free = free & ~torch.eye(real.shape[1], dtype=torch.bool)
    else:  # a row that would lose all its units keeps them
        free = free & (free & (scores > 0)).any(dim=-1, keepdim=True)
    hard = torch.where(free, scores > 0, True).to(scores.dtype)
    keep = torch.where(free, hard - (scores.sigmoid() - scores.sigmoid().detach()), hard)
    bias = -10_000 * (1 - hard) + asa.gain * (keep - keep.detach())
    for tensor in (scores, bias):
        tensor.retain_grad()
    line.scores.append(scores)
    line.biases.append(bias)
    line.free.append(free)
    line.kept.append(torch.where(free, keep, 0.0))
    return bias


def one_pass(model: Any, data: dict[str, Tensor], own: Any = None, asa: ASA | None = None) -> Line:
    """Module by module, with attention as softmax(Q Kᵀ/√d + bias) V; no dropout."""
    line, real = Line(torch.empty(0)), data["attention_mask"].bool()
    states = model.bert.embeddings(input_ids=data["input_ids"])
    for index, layer in enumerate(model.bert.encoder.layer):
        maps = layer.attention.self
        query, key, value = (
            module(states).unflatten(-1, (HEADS, -1)).transpose(1, 2) for module in (maps.query, maps.key, maps.value)
        )
        logits = query @ key.mT / query.shape[-1] ** 0.5
        if asa is not None:
            logits = logits + choose(line, own, index, states, real, asa)[:, None]
        shares = logits.masked_fill(~real[:, None, None, :], -torch.inf).softmax(dim=-1)
        mixed = layer.attention.output((shares @ value).transpose(1, 2).flatten(-2), states)
        states = layer.output(layer.intermediate(mixed), mixed)
    line.logits = model.classifier(torch.tanh(model.bert.pooler.dense(states[:, 0])))
    return line


def straight_line(model: Any, own: Any, data: dict[str, Tensor], asa: ASA) -> tuple[Tensor, Line]:
    """J, whose value is without the price, and the masked pass."""
    clean, masked = one_pass(model, data), one_pass(model, data, own, asa)
    units = torch.stack(masked.free).double().sum(dim=(0, 2, 3))
    each = asa.temperature**2 / len(units) / (units if asa.parameterization == "normalized" else 1)
    price = (each * torch.stack(masked.kept).sum(dim=(0, 2, 3))).sum()
    term = divergence(clean.logits, masked.logits) + price - price.detach()
    return cross_entropy(clean.logits, data["labels"]) + asa.weight * term, masked


def wrapped(methods: Sequence[Method], dtype: torch.dtype = torch.float64, dropout: float = 0.0) -> RegularizedModel:
    """With adversaries whose scores are far from 0."""
    wrapper = RegularizedModel(tiny_model("bert", dropout=dropout, dtype=dtype), methods, seed=SEED)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in wrapper.method_modules.parameters():
            parameter.add_(torch.empty_like(parameter).normal_(0, 0.3, generator=generator))
    return wrapper


def distance(one: Any, other: Any) -> float:
    """Of two modules' gradients, in units of the second."""
    assert gradients(one).keys() == gradients(other).keys() == dict(other.named_parameters()).keys()
    found, expected = (torch.cat([part.flatten() for part in gradients(module).values()]) for module in (one, other))
    return float((found - expected).norm() / expected.norm())


SETTINGS = {
    "defaults": ASA(),
    "another price": ASA(weight=0.3, temperature=2.0),
    "gain 1": ASA(gain=1.0),
    "normalized": ASA(parameterization="normalized"),
    "one adversary": ASA(shared=True),
    "nothing protected": ASA(protect="none"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_loss_and_all_gradients_equal_those_of_plain_attention_and_an_explicit_estimator(name: str) -> None:
    asa, data = SETTINGS[name], tiny_batch("bert")
    wrapper = wrapped([asa])
    model, own = copy.deepcopy(wrapper.model), copy.deepcopy(wrapper.method_modules["asa"])
    found = wrapper(**data).loss
    found.backward()
    expected, masked = straight_line(model, own, data, asa)
    expected.backward()
    assert all(0 < int(kept.sum()) < int(free.sum()) for kept, free in zip(masked.kept, masked.free, strict=True))
    torch.testing.assert_close(found, expected, **CLOSE)
    assert distance(wrapper.model, model) < SAME[torch.float64]
    assert distance(wrapper.method_modules["asa"], own) < SAME[torch.float64]


def test_fused_and_plain_attention_agree_in_float32() -> None:
    asa, data = ASA(), tiny_batch("bert")
    wrapper = wrapped([asa], torch.float32)
    model, own = copy.deepcopy(wrapper.model), copy.deepcopy(wrapper.method_modules["asa"])
    wrapper(**data).loss.backward()
    straight_line(model, own, data, asa)[0].backward()
    assert distance(wrapper.model, model) < SAME[torch.float32]
    assert distance(wrapper.method_modules["asa"], own) < SAME[torch.float32]


# -- what follows for a unit ------------------------------------------------------------------------------------------


def score_gradients(wrapper: RegularizedModel, data: dict[str, Tensor]) -> list[Tensor]:
    """By layer, what one step sends to the scores."""
    scores: list[Tensor] = []

    def keep(module: Any, args: Any, output: Tensor) -> None:
        output.retain_grad()
        scores.append(output)

    wrapper.method_modules["asa"].register_forward_hook(keep)
    wrapper(**data).loss.backward()
    return [score.grad for score in scores if score.grad is not None]


def slope(scores: Tensor) -> Tensor:
    return scores.exp() / (1 + scores.exp()) ** 2


def test_a_masked_unit_feels_nothing_but_the_price() -> None:
    asa, data = ASA(), tiny_batch("bert")
    wrapper = wrapped([asa])
    _, line = straight_line(wrapper.model, wrapper.method_modules["asa"], data, asa)
    for found, scores, free in zip(score_gradients(wrapper, data), line.scores, line.free, strict=True):
        masked = free & (scores <= 0)
        torch.testing.assert_close(found[masked], -slope(scores[masked]) * 0.5**2 / 4, **CLOSE)


def test_a_kept_unit_is_pushed_to_the_mask_if_its_worth_exceeds_price_over_gain() -> None:
    asa, data = ASA(), tiny_batch("bert")
    wrapper = wrapped([asa])
    loss, line = straight_line(wrapper.model, wrapper.method_modules["asa"], data, asa)
    loss.backward()
    pushed: list[Tensor] = []
    wrapper.zero_grad()
    for found, scores, bias, free in zip(
        score_gradients(wrapper, data), line.scores, line.biases, line.free, strict=True
    ):
        assert bias.grad is not None
        kept = free & (scores > 0)
        worth = -4 * bias.grad[kept]  # of one example's divergence: the loss is the mean over 4
        assert torch.equal(found[kept] > 0, worth > 2.5e-5)
        pushed.append(found[kept] > 0)
    assert 0 < int(torch.cat(pushed).sum()) < torch.cat(pushed).numel()


def test_an_adversary_that_keeps_everything_feels_nothing_but_the_price() -> None:
    data = tiny_batch("bert")
    asa = ASA(keep_bias=ALL_KEPT)
    wrapper = RegularizedModel(tiny_model("bert", dropout=0.0, dtype=torch.float64), [asa], seed=SEED)
    _, line = straight_line(wrapper.model, wrapper.method_modules["asa"], data, asa)
    for found, scores, free in zip(score_gradients(wrapper, data), line.scores, line.free, strict=True):
        expected = torch.where(free, -slope(scores) * 0.5**2 / 4, 0.0)
        torch.testing.assert_close(found, expected, **CLOSE)


# -- what reaches the encoder -----------------------------------------------------------------------------------------


def step(methods: Sequence[Method], factor: float = 1.0) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
    """Output, gradients of the model and of the adversaries."""
    wrapper = wrapped(methods)
    out = wrapper(**tiny_batch("bert"))
    (factor * out.loss).backward()
    return out, gradients(wrapper.model), gradients(wrapper.method_modules)


def test_with_everything_kept_and_no_dropout_it_is_plain_training_for_the_encoder() -> None:
    found, plain = (
        RegularizedModel(tiny_model("bert", dropout=0.0, dtype=torch.float64), methods)
        for methods in ([ASA(keep_bias=ALL_KEPT)], [])
    )
    out = found(**tiny_batch("bert"))
    out.loss.backward()
    plain(**tiny_batch("bert")).loss.backward()
    assert float(out.telemetry["asa/keep_rate"]) == 1
    assert float(out.telemetry["asa/divergence"]) < REPLAYED
    torch.testing.assert_close(gradients(found.model), gradients(plain.model), **CLOSE)


def test_the_price_is_the_adversarys_alone() -> None:
    _, model, own = step([ASA(temperature=0.5)])
    _, other_model, other_own = step([ASA(temperature=50.0)])
    assert all(torch.equal(model[name], other_model[name]) for name in model)
    assert all(not torch.equal(own[name], other_own[name]) for name in own)


def test_the_price_is_not_in_the_loss() -> None:
    cheap, dear = step([ASA(temperature=0.5)])[0], step([ASA(temperature=50.0)])[0]
    assert torch.equal(cheap.loss, dear.loss) and torch.equal(cheap.terms["asa"], dear.terms["asa"])
    assert float(dear.telemetry["asa/price"]) == pytest.approx(1e4 * float(cheap.telemetry["asa/price"]))


def test_the_logged_loss_is_label_loss_plus_weighted_divergence() -> None:
    out = step([ASA(weight=0.3)])[0]
    expected = out.task_loss + 0.3 * out.telemetry["asa/divergence"]
    torch.testing.assert_close(out.loss.float(), expected.float())


# -- the price has the scale of the loss ------------------------------------------------------------------------------

GAINS = [1e4, 1e-6]  # with the smaller one nearly all of the gradient is price


@pytest.mark.parametrize("gain", GAINS)
def test_the_adversarys_gradient_scales_with_the_loss(gain: float) -> None:
    _, _, own = step([ASA(gain=gain)])
    _, _, scaled = step([ASA(gain=gain)], 1024.0)  # as a gradient scaler would
    assert all(torch.equal(1024 * own[name], scaled[name]) for name in own)


@pytest.mark.parametrize("gain", GAINS)
def test_the_adversarys_gradient_scales_with_the_coefficient_in_a_stack(gain: float) -> None:
    _, _, own = step([ASA(gain=gain)])
    _, _, stacked = step([SCL(weight=0.5), ASA(weight=0.3, gain=gain)])
    factor = 0.3 / (1 + 0.5 / 0.5)
    torch.testing.assert_close(stacked, {name: factor * gradient for name, gradient in own.items()}, **CLOSE)


@pytest.mark.parametrize("gain", GAINS)
def test_accumulated_batches_teach_the_adversary_what_one_batch_does(gain: float) -> None:
    found = []
    for sizes in ([4], [1, 3]):
        wrapper = wrapped([ASA(gain=gain)])
        for out in wrapper.accumulate(rows_of(tiny_batch("bert"), sizes)):
            out.loss.backward()
        found.append(gradients(wrapper.method_modules))
    torch.testing.assert_close(found[1], found[0], **CLOSE)


# -- an inert adversary -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{"keep_bias": ALL_KEPT}, {"adversary": "none"}])
def test_without_masks_the_loss_is_cross_entropy_and_divergence_of_two_dropout_draws(settings: dict[str, Any]) -> None:
    data = tiny_batch("bert")
    model: Any = tiny_model("bert", dropout=0.1, dtype=torch.float64)
    torch.manual_seed(3)
    clean = model(**inputs_of(data)).logits
    torch.manual_seed(keyed_seed(SEED, "dropout", "asa", 0, 0))
    other = model(**inputs_of(data)).logits
    wrapper = RegularizedModel(model, [ASA(**settings)], seed=SEED)
    torch.manual_seed(3)
    out = wrapper(**data)
    expected = divergence(clean, other)
    assert float(expected.detach()) > 1e-3
    torch.testing.assert_close(out.terms["asa"], expected.detach(), **CLOSE)
    torch.testing.assert_close(out.loss, cross_entropy(clean, data["labels"]) + expected, **CLOSE)

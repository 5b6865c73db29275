"""What holds for noise, distance and penalty of every batch and encoder: lnsr.md, section 11, properties."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import steadytune.methods.lnsr
from steadytune import LNSR, RegularizedModel
from steadytune.encoders import Edits
from steadytune.encoders.sites import first_tensor
from steadytune.functional import keyed_generator
from steadytune.methods import Method
from steadytune.methods.contract import Mix, Step
from steadytune.methods.lnsr import Sampler, draw_perturbation, squared_distance
from tiny import FAMILIES, PAD, WIDTH, gradients, tiny_batch, tiny_model
from tolerances import LINEAR, SAME, STANDARD_ERRORS

DEPTH = 3
CLOSE: dict[str, float] = {"rtol": SAME[torch.float64], "atol": SAME[torch.float64]}
seeds = st.integers(0, 2**32 - 1)
samplers = st.sampled_from(["gaussian", "interpolate", "covariance", "subspace"])
either = st.booleans()


# -- distance and noise -----------------------------------------------------------------------------------------------


@st.composite
def pairs(draw: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy states, clean states away from zero, and which tokens count: at least one of each example."""
    shape = [draw(st.integers(1, limit)) for limit in (4, 5, 6)]
    generator = keyed_generator("cpu", draw(seeds))
    clean, noise = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    counted = torch.rand(shape[:2], generator=generator) < 0.6
    counted[:, 0] = True
    return clean + 0.1 * clean.sign() + noise, clean + 0.1 * clean.sign(), counted


def value(noisy: Tensor, clean: Tensor, counted: Tensor, relative: bool) -> Tensor:
    return squared_distance(noisy, clean, counted, relative=relative)


@given(pairs(), either)
def test_distance_of_equal_states_is_exactly_zero(pair: tuple[Tensor, Tensor, Tensor], relative: bool) -> None:
    _, clean, counted = pair
    assert float(value(clean, clean.clone(), counted, relative)) == 0.0


@given(pairs())
def test_absolute_distance_is_the_same_both_ways(pair: tuple[Tensor, Tensor, Tensor]) -> None:
    noisy, clean, counted = pair
    torch.testing.assert_close(value(noisy, clean, counted, False), value(clean, noisy, counted, False), **CLOSE)


@given(pairs(), either, st.floats(0.1, 10))
def test_distance_grows_with_the_square_of_the_noise(
    pair: tuple[Tensor, Tensor, Tensor], relative: bool, factor: float
) -> None:
    noisy, clean, counted = pair
    grown = value(clean + factor * (noisy - clean), clean, counted, relative)
    torch.testing.assert_close(grown, factor**2 * value(noisy, clean, counted, relative), **CLOSE)


@given(pairs(), st.floats(1e-3, 1e3))
def test_a_common_scale_leaves_the_relative_distance_and_enters_the_absolute_one_squared(
    pair: tuple[Tensor, Tensor, Tensor], scale: float
) -> None:
    noisy, clean, counted = pair
    for relative, expected in ((True, 1.0), (False, scale**2)):
        scaled = value(scale * noisy, scale * clean, counted, relative)
        torch.testing.assert_close(scaled, expected * value(noisy, clean, counted, relative), **CLOSE)


@given(pairs(), either, st.integers(1, 5))
def test_more_tokens_that_do_not_count_change_nothing(
    pair: tuple[Tensor, Tensor, Tensor], relative: bool, more: int
) -> None:
    noisy, clean, counted = pair
    wider = [nn.functional.pad(states, (0, 0, 0, more), value=fill) for states, fill in ((noisy, 50.0), (clean, -9.0))]
    longer = value(*wider, nn.functional.pad(counted, (0, more)), relative)
    torch.testing.assert_close(longer, value(noisy, clean, counted, relative), **CLOSE)


@given(pairs(), either, st.randoms(use_true_random=False))
def test_the_order_of_the_batch_does_not_count(
    pair: tuple[Tensor, Tensor, Tensor], relative: bool, random: Any
) -> None:
    order = list(range(len(pair[0])))
    random.shuffle(order)
    moved = value(*(part[order] for part in pair), relative)
    torch.testing.assert_close(moved, value(*pair, relative), **CLOSE)


@given(pairs())
def test_gradient_of_the_absolute_distance_agrees_with_finite_differences(pair: tuple[Tensor, Tensor, Tensor]) -> None:
    noisy, clean, counted = pair
    leaves = noisy.requires_grad_(), clean.requires_grad_()
    assert torch.autograd.gradcheck(lambda one, two: value(one, two, counted, False), leaves)


@given(pairs())
def test_gradient_of_the_relative_distance_treats_the_norm_as_given(pair: tuple[Tensor, Tensor, Tensor]) -> None:
    noisy, clean, counted = pair
    size = clean.square().sum(dim=-1, keepdim=True).sqrt()
    found, expected = [], []
    for gradient, relative, parts in ((found, True, (noisy, clean)), (expected, False, (noisy / size, clean / size))):
        leaves = [part.clone().requires_grad_() for part in parts]
        gradient.extend(torch.autograd.grad(value(*leaves, counted, relative), leaves))
    torch.testing.assert_close(found, [one / size for one in expected], **CLOSE)


@given(pairs(), samplers, st.floats(0.01, 2), seeds)
def test_relative_noise_has_its_share_of_the_norm_of_each_state_or_none(
    pair: tuple[Tensor, Tensor, Tensor], sampler: Sampler, scale: float, seed: int
) -> None:
    _, states, real = pair
    noise = draw_perturbation(
        states, real, sampler=sampler, scale=scale, relative=True, generator=keyed_generator("cpu", seed)
    )
    share = noise.norm(dim=-1) / states.norm(dim=-1)
    alone = int(real.sum()) == 1  # a single state has no other to move to, and no spread
    none = sampler in ("interpolate", "covariance") and alone
    torch.testing.assert_close(share[real], torch.full_like(share[real], 0.0 if none else scale), **CLOSE)
    assert (noise[~real] == 0).all()


@given(pairs(), samplers, either, seeds)
def test_one_stream_gives_one_noise_in_units_of_its_scale(
    pair: tuple[Tensor, Tensor, Tensor], sampler: Sampler, relative: bool, seed: int
) -> None:
    _, states, real = pair
    one, half = (
        draw_perturbation(
            states, real, sampler=sampler, scale=scale, relative=relative, generator=keyed_generator("cpu", seed)
        )
        for scale in (1.0, 0.5)
    )
    torch.testing.assert_close(half, one / 2, **CLOSE)


# -- the penalty in a step --------------------------------------------------------------------------------------------


def calm(family: str = "bert", **options: Any) -> Any:
    return tiny_model(family, dropout=0.0, **{"dtype": torch.float64, **options})


def step(lnsr: LNSR, model: nn.Module | None = None, batch: dict[str, Tensor] | None = None, seed: int = 0) -> Any:
    torch.manual_seed(0)
    wrapper = RegularizedModel(calm() if model is None else model, [lnsr], seed=seed)
    return wrapper(**(tiny_batch("bert") if batch is None else batch))


@pytest.fixture
def constant_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every real token gets noise along one direction, 5 % of its norm."""

    def constant(states: Tensor, real: Tensor, **_: Any) -> Tensor:
        direction = torch.linspace(-1.0, 2.0, states.shape[-1], dtype=states.dtype)
        size = 0.05 * states.detach().norm(dim=-1, keepdim=True) / direction.norm()
        return torch.where(real[..., None], size * direction, 0.0)

    monkeypatch.setattr(steadytune.methods.lnsr, "draw_perturbation", constant)


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_without_weight_a_step_is_a_plain_one_bit_for_bit(family: str) -> None:
    found = []
    for methods in ([], [LNSR(weight=0.0)]):
        model = tiny_model(family)
        torch.manual_seed(0)
        loss = RegularizedModel(model, methods)(**tiny_batch(family)).loss
        loss.backward()
        found.append([loss.detach(), *gradients(model).values()])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


@pytest.mark.parametrize(
    "settings", [{"draws": 3}, {"dropout": "fresh"}, {"noise": "covariance"}, {"noise": "interpolate"}]
)
def test_the_main_random_stream_ends_where_that_of_a_plain_step_ends(settings: dict[str, Any]) -> None:
    ends = []
    for methods in ([], [LNSR(**settings)]):
        torch.manual_seed(0)
        RegularizedModel(tiny_model("bert"), methods)(**tiny_batch("bert"))
        ends.append(torch.get_rng_state())
    assert torch.equal(*ends)


@dataclass(frozen=True, kw_only=True)
class WholePass(Method):
    """The default penalty by a second pass from the token ids, in plain loops; draws from the stream of LNSR."""

    key: ClassVar[str] = "lnsr"
    mix: ClassVar[Mix] = "additive"
    weight: float = 1.0
    layer: int = 0
    clean_branch: bool = True

    def loss(self, step: Step, state: nn.Module | None) -> Tensor:
        clean, real = step.clean, step.inputs["attention_mask"].bool()
        noise = draw_perturbation(
            clean.hidden[self.layer],
            real,
            sampler="gaussian",
            scale=0.05,
            relative=True,
            generator=step.generator("noise", 0),
        )
        edits = Edits(hidden=lambda index, states: states + noise if index == self.layer else states)
        noisy = step.run("whole", edits=edits, dropout="as clean")
        layers = []
        for r in range(self.layer + 1, DEPTH + 1):
            two = clean.hidden[r] if self.clean_branch else clean.hidden[r].detach()
            ratio = (noisy.hidden[r] - two).square().sum(dim=-1) / clean.hidden[r].detach().square().sum(dim=-1)
            layers.append(torch.stack([row[mask].mean() for row, mask in zip(ratio, real, strict=True)]).mean())
        return torch.stack(layers).mean()


def value_and_gradients(method: Method, family: str, dropout: float) -> tuple[Tensor, dict[str, Tensor]]:
    model = tiny_model(family, dropout=dropout, dtype=torch.float64)
    torch.manual_seed(0)
    out = RegularizedModel(model, [method])(**tiny_batch(family))
    out.loss.backward()
    return out.terms["lnsr"], gradients(model)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize(
    ("family", "layer"), [(f, b) for f in FAMILIES for b in (0, 1, 2) if (f, b) != ("deberta-v2-conv", 0)]
)
def test_the_upper_part_of_a_pass_is_as_good_as_a_whole_second_pass(family: str, layer: int, dropout: float) -> None:
    found = value_and_gradients(LNSR(injection_layer=layer), family, dropout)
    expected = value_and_gradients(WholePass(layer=layer), family, dropout)
    assert float(found[0]) > 0
    tolerance = SAME[torch.float32 if family == "modernbert" else torch.float64]  # its rotation is rounded to float32
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_gradient_through_the_clean_branch_is_not_cut() -> None:
    _, found = value_and_gradients(LNSR(), "bert", 0.0)
    _, cut = value_and_gradients(WholePass(clean_branch=False), "bert", 0.0)
    name = "bert.encoder.layer.0.output.dense.weight"
    assert not torch.isclose(found[name], cut[name]).any()


def jacobian_of(model: Any, row: Tensor, top: int) -> Tensor:
    """Of the states after `top` layers with respect to the embedding output (tokens · dim, tokens · dim)."""
    embedded = model.bert.embeddings(input_ids=row[None]).detach()

    def upward(states: Tensor) -> Tensor:
        for layer in model.bert.encoder.layer[:top]:
            states = first_tensor(layer(states))
        return states

    expected = model.bert(input_ids=row[None], output_hidden_states=True).hidden_states[top]
    torch.testing.assert_close(upward(embedded), expected, **CLOSE)
    square = torch.autograd.functional.jacobian(upward, embedded)
    return square.reshape(row.numel() * WIDTH, row.numel() * WIDTH)


@pytest.mark.parametrize("top", [1, 2])
def test_mean_penalty_of_small_noise_is_its_variance_times_the_squared_norm_of_the_jacobian(top: int) -> None:
    model, sigma, rows = calm(depth=2), 1e-4, 4000
    row = torch.tensor([2, 17, 8])
    jacobian = jacobian_of(model, row, top)
    batch = {"input_ids": row.repeat(rows, 1), "labels": torch.zeros(rows, dtype=torch.long)}  # a draw in every row
    lnsr = LNSR(noise_std=sigma, relative=False, normalize=False, layers=(top,))
    found = float(step(lnsr, model, batch).terms["lnsr"]) * row.numel() * WIDTH / sigma**2
    expected = float(jacobian.square().sum())
    error = STANDARD_ERRORS * math.sqrt(2 / rows) * float((jacobian.T @ jacobian).norm())
    assert found == pytest.approx(expected, rel=0, abs=error)
    assert error < expected / 4


@pytest.mark.parametrize("settings", [{}, {"normalize": False}, {"relative": False}, {"noise": "covariance"}])
def test_doubling_a_small_noise_multiplies_the_penalty_by_four(settings: dict[str, Any]) -> None:
    one, two = (float(step(LNSR(noise_std=size, **settings)).terms["lnsr"]) for size in (1e-5, 2e-5))
    assert two / one == pytest.approx(4, rel=LINEAR)


def test_doubling_the_weight_doubles_what_the_penalty_adds_to_the_gradient() -> None:
    found = []
    for weight in (0.0, 1.0, 2.0):
        model = calm()
        step(LNSR(weight=weight), model).loss.backward()
        found.append(gradients(model))
    for name, plain in found[0].items():
        torch.testing.assert_close(found[2][name] - plain, 2 * (found[1][name] - plain), **CLOSE)


@pytest.mark.usefixtures("constant_draws")
@pytest.mark.parametrize("tokens", ["all", "sentence"])
@pytest.mark.parametrize("pads", [1, 7])
def test_one_real_token_with_any_padding_is_one_real_token_alone(pads: int, tokens: Any) -> None:
    alone = {"input_ids": torch.tensor([[2]]), "attention_mask": torch.tensor([[1]]), "labels": torch.tensor([0])}
    padded = {
        "input_ids": nn.functional.pad(alone["input_ids"], (0, pads), value=PAD),
        "attention_mask": nn.functional.pad(alone["attention_mask"], (0, pads)),
        "labels": alone["labels"],
    }
    one, other = (step(LNSR(tokens=tokens), None, batch).terms["lnsr"] for batch in (alone, padded))
    assert float(one) > 0
    torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.usefixtures("constant_draws")
@pytest.mark.parametrize("normalize", [True, False])
def test_more_padding_gives_the_same_penalty(normalize: bool) -> None:
    batch = tiny_batch("bert")
    longer = {
        "input_ids": nn.functional.pad(batch["input_ids"], (0, 4), value=PAD),
        "attention_mask": nn.functional.pad(batch["attention_mask"], (0, 4)),
        "labels": batch["labels"],
    }
    one, other = (step(LNSR(normalize=normalize), None, data).terms["lnsr"] for data in (batch, longer))
    torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.parametrize("noise", ["gaussian", "interpolate"])
def test_mean_over_many_draws_is_that_of_the_permuted_batch(noise: Sampler) -> None:
    batch, order, draws = tiny_batch("bert"), [2, 0, 3, 1], 32
    means, errors = [], []
    for data in (batch, {name: part[order] for name, part in batch.items()}):
        wrapper = RegularizedModel(calm(depth=1), [LNSR(noise=noise, noise_std=0.2)], seed=len(means))
        with torch.no_grad():
            found = torch.stack([wrapper(**data).terms["lnsr"] for _ in range(draws)])
        means.append(float(found.mean()))
        errors.append(float(found.var()) / draws)
    assert means[0] != means[1]
    assert means[0] == pytest.approx(means[1], rel=0, abs=STANDARD_ERRORS * math.sqrt(sum(errors)))
    assert STANDARD_ERRORS * math.sqrt(sum(errors)) < means[0] / 10


def identity() -> Any:
    """A ModernBERT whose layers add nothing to what enters them; there is a norm only above the last."""
    model = calm("modernbert")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.attn.Wo.weight.zero_()
            layer.mlp.Wo.weight.zero_()
    return model


def test_layers_that_do_nothing_pass_all_noise_on() -> None:
    batch = tiny_batch("modernbert")
    one, two = (step(LNSR(layers=(r,)), identity(), batch).terms["lnsr"] for r in (1, 2))
    torch.testing.assert_close(one, torch.tensor(0.05**2, dtype=torch.float64), **CLOSE)
    torch.testing.assert_close(two, one, **CLOSE)


def test_layers_that_do_nothing_leave_no_gradient_to_what_enters_them() -> None:
    added = []
    for weight in (0.0, 1.0):
        model = identity()
        step(LNSR(weight=weight, layers=(1, 2), normalize=False), model, tiny_batch("modernbert")).loss.backward()
        added.append(model.model.embeddings.tok_embeddings.weight.grad)
    torch.testing.assert_close(added[1], added[0], **CLOSE)

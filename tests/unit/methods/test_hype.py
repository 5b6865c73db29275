"""HyPe inside the step: where its noise goes, where it does not, and what low precision does to it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import steadytune.methods.hype
from steadytune import HyPe, RegularizedModel
from steadytune.encoders import PassOutput, SiteUnavailable
from steadytune.functional import draw_noise
from steadytune.methods import Method, MethodError, Step
from tiny import FAMILIES, gradients, inputs_of, tiny_batch, tiny_model
from tolerances import LINEAR, REPLAYED, SAME, STANDARD_ERRORS

DEPTH = 3
EXACT = SAME[torch.float64]
CLOSE: dict[str, float] = {"rtol": EXACT, "atol": EXACT}

Draw = Callable[[Tensor, float, Any, torch.Generator], Tensor]


def replace_draws(monkeypatch: pytest.MonkeyPatch, draw: Draw) -> None:
    monkeypatch.setattr(steadytune.methods.hype, "draw_noise", draw)


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """A copy of every noise that is drawn."""
    kept: list[Tensor] = []

    def keep(like: Tensor, scale: float, distribution: Any, generator: torch.Generator) -> Tensor:
        noise = draw_noise(like, scale, distribution, generator)
        kept.append(noise.clone())
        return noise

    replace_draws(monkeypatch, keep)
    return kept


def calm(family: str = "bert", **options: Any) -> Any:
    """A model whose only randomness is that of the method."""
    return tiny_model(family, dropout=0.0, **{"dtype": torch.float64, **options})


def logits(hype: HyPe | None, batch: dict[str, Tensor] | None = None, **options: Any) -> Tensor:
    wrapper = RegularizedModel(calm(**options), [] if hype is None else [hype])
    found = wrapper(**(tiny_batch("bert") if batch is None else batch)).logits
    assert isinstance(found, Tensor)
    return found.detach()


def layer_outputs(hype: HyPe | None) -> list[Tensor]:
    """What each layer returns."""
    model, kept = calm(), []
    for layer in model.bert.encoder.layer:
        layer.register_forward_hook(lambda module, args, output: kept.append(output.detach().clone()))
    RegularizedModel(model, [] if hype is None else [hype])(**tiny_batch("bert"))
    return kept


# -- where it cannot act ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [(0, DEPTH), (-1,), (99,)])
def test_an_unknown_layer_is_refused_and_the_known_ones_are_named(layers: tuple[int, ...]) -> None:
    with pytest.raises(MethodError) as caught:
        RegularizedModel(calm(), [HyPe(layers=layers)])
    assert str(caught.value) == (
        f"hype.layers must name layers from 0 to {DEPTH - 1}, or be null for all; got {list(layers)}."
    )


def test_an_empty_list_of_layers_is_refused() -> None:
    with pytest.raises(
        MethodError, match=r"^hype\.layers must name layers from 0 to 2, or be null for all; got \[\]\.$"
    ):
        RegularizedModel(calm(), [HyPe(layers=())])


def test_a_list_of_layers_is_the_same_as_a_tuple() -> None:
    assert HyPe(layers=[0, 1]) == HyPe(layers=(0, 1))  # type: ignore[arg-type]


@pytest.mark.parametrize("place", ["inside", "both"])
@pytest.mark.parametrize("family", ["mpnet", "xlnet", "deberta-v2"])
def test_noise_inside_a_layer_is_refused_where_nothing_reaches_it(family: str, place: Any) -> None:
    with pytest.raises(SiteUnavailable, match=rf"^hype needs the site 'inside', which {family} lacks: "):
        RegularizedModel(calm(family), [HyPe(place=place)])


@pytest.mark.parametrize("family", FAMILIES)
def test_noise_between_layers_acts_in_every_family(family: str) -> None:
    data = tiny_batch(family)
    clean, noised = (RegularizedModel(calm(family), methods)(**data).logits for methods in ([], [HyPe(noise_std=0.1)]))
    assert not torch.allclose(clean, noised)


def test_regression_is_accepted() -> None:
    model = calm(num_labels=1)
    assert torch.isfinite(RegularizedModel(model, [HyPe(noise_std=0.1)])(**tiny_batch("bert", regression=True)).loss)


# -- where the noise goes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_input_gets_a_draw_of_its_own(family: str, draws: list[Tensor]) -> None:
    RegularizedModel(calm(family), [HyPe(noise_std=0.1)])(**tiny_batch(family))
    assert len(draws) == DEPTH
    assert len({noise.flatten()[0].item() for noise in draws}) == DEPTH


def test_every_example_and_token_gets_a_draw_of_its_own(draws: list[Tensor]) -> None:
    RegularizedModel(calm(), [HyPe(noise_std=0.1)])(**tiny_batch("bert"))
    assert draws[0].unique().numel() == draws[0].numel() == 4 * 9 * 16


@pytest.mark.parametrize(("place", "count"), [("between", DEPTH), ("inside", DEPTH), ("both", 2 * DEPTH)])
def test_places_draw_apart(place: Any, count: int, draws: list[Tensor]) -> None:
    RegularizedModel(calm(), [HyPe(noise_std=0.1, place=place)])(**tiny_batch("bert"))
    assert len({noise.flatten()[0].item() for noise in draws}) == len(draws) == count


def test_successive_steps_draw_anew(draws: list[Tensor]) -> None:
    wrapper = RegularizedModel(calm(), [HyPe(noise_std=0.1, layers=(0,))])
    for _ in range(3):
        wrapper(**tiny_batch("bert"))
    assert len({noise.flatten()[0].item() for noise in draws}) == 3


def test_wrappers_with_other_seeds_draw_otherwise(draws: list[Tensor]) -> None:
    for seed in (0, 1):
        RegularizedModel(calm(), [HyPe(noise_std=0.1, layers=(0,))], seed=seed)(**tiny_batch("bert"))
    assert not (draws[0] == draws[1]).any()


@pytest.mark.parametrize("place", ["between", "inside"])
def test_output_of_the_last_layer_is_untouched(place: Any) -> None:
    model, kept = calm(), []
    model.bert.encoder.layer[-1].register_forward_hook(lambda module, args, output: kept.append(output))
    model.bert.pooler.register_forward_pre_hook(lambda module, args: kept.append(args[0]))
    RegularizedModel(model, [HyPe(noise_std=0.1, place=place)])(**tiny_batch("bert"))
    assert torch.equal(kept[0], kept[1])


@pytest.mark.parametrize("place", ["between", "inside", "both"])
@pytest.mark.parametrize("layer", range(DEPTH))
def test_noise_in_one_layer_changes_only_what_that_layer_and_those_above_return(layer: int, place: Any) -> None:
    clean, noised = layer_outputs(None), layer_outputs(HyPe(noise_std=0.1, layers=(layer,), place=place))
    assert [torch.equal(a, b) for a, b in zip(clean, noised, strict=True)] == [i < layer for i in range(DEPTH)]


def test_noise_reaches_the_residual_branch_too(draws: list[Tensor]) -> None:
    model, kept = calm(), []
    for layer in model.bert.encoder.layer:
        layer.attention.output.register_forward_pre_hook(lambda module, args: kept.append(args[1].detach()))
    RegularizedModel(model, [HyPe(noise_std=0.1, layers=(0,))])(**tiny_batch("bert"))
    with torch.no_grad():
        embedded = model.bert.embeddings(input_ids=tiny_batch("bert")["input_ids"])
    torch.testing.assert_close(kept[0], embedded + draws[0], **CLOSE)


def test_relative_noise_is_in_units_of_the_root_mean_square_of_each_token(draws: list[Tensor]) -> None:
    model, kept = calm(), []
    model.bert.encoder.layer[0].attention.register_forward_pre_hook(lambda module, args: kept.append(args[0].detach()))
    with torch.no_grad():
        model.bert.embeddings.LayerNorm.weight.mul_(40)  # far from 1
        embedded = model.bert.embeddings(input_ids=tiny_batch("bert")["input_ids"])
    RegularizedModel(model, [HyPe(noise_std=0.1, relative=True)])(**tiny_batch("bert"))
    size = torch.stack([torch.stack([(token**2).mean() ** 0.5 for token in row]) for row in embedded])
    torch.testing.assert_close(kept[0], embedded + size[..., None] * draws[0], **CLOSE)


def test_noise_on_padding_alone_leaves_the_logits_of_real_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny_batch("bert")
    padding = (1 - data["attention_mask"])[..., None].double()
    replace_draws(monkeypatch, lambda like, *_: 5.0 * padding.expand(like.shape).clone())
    torch.testing.assert_close(logits(HyPe(noise_std=5.0)), logits(None), **CLOSE)


@pytest.mark.parametrize("place", ["between", "inside"])
def test_doubling_a_small_scale_doubles_the_change_of_the_logits(place: Any) -> None:
    clean = logits(None)
    one, two = (logits(HyPe(noise_std=scale, place=place)) - clean for scale in (1e-6, 2e-6))
    assert float(one.abs().min()) > 0
    torch.testing.assert_close(two, 2 * one, rtol=LINEAR, atol=0)


def test_noise_makes_no_difference_in_evaluation() -> None:
    model = calm()
    wrapper = RegularizedModel(model, [HyPe(noise_std=0.5)])
    inputs = inputs_of(tiny_batch("bert"))
    assert torch.equal(wrapper.eval()(**inputs).logits, calm().eval()(**inputs).logits)


def test_no_scale_draws_nothing(draws: list[Tensor]) -> None:
    assert torch.equal(logits(HyPe(noise_std=0)), logits(None))
    assert draws == []


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("place", ["between", "inside", "both"])
def test_checkpointing_repeats_the_noise_of_every_place(place: Any, reentrant: bool) -> None:
    found = []
    for checkpointed in (False, True):
        model = tiny_model("bert", dtype=torch.float64)
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})  # type: ignore[operator]
        torch.manual_seed(0)
        RegularizedModel(model, [HyPe(noise_std=0.1, place=place)])(**tiny_batch("bert")).loss.backward()
        found.append(gradients(model))
    torch.testing.assert_close(found[1], found[0], rtol=REPLAYED, atol=REPLAYED)


# -- passes -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Second(Method):
    """Runs one more pass of a kind and keeps what it recorded."""

    key: ClassVar[str] = "second"
    kind: Any = "auxiliary"
    dropout: str = "fresh"

    def loss(self, step: Step, state: nn.Module | None) -> None:
        SEEN.append((step.clean, step.run("second", kind=self.kind, dropout=self.dropout)))


SEEN: list[tuple[PassOutput, PassOutput]] = []


def both_passes(hype: HyPe, **options: Any) -> tuple[PassOutput, PassOutput]:
    SEEN.clear()
    RegularizedModel(calm(), [hype, Second(**options)])(**tiny_batch("bert"))
    return SEEN.pop()


def test_a_pass_that_only_finds_a_direction_gets_no_noise() -> None:
    _, probe = both_passes(HyPe(noise_std=0.1), kind="probe")
    assert probe.logits is not None
    assert torch.equal(probe.logits, logits(None))


def test_two_passes_of_one_step_get_different_noise() -> None:
    clean, second = both_passes(HyPe(noise_std=0.1))
    assert not torch.allclose(clean.hidden[0], second.hidden[0])


def test_a_replayed_pass_gets_the_same_noise() -> None:
    clean, second = both_passes(HyPe(noise_std=0.1), dropout="as clean")
    assert all(torch.equal(clean.hidden[i], second.hidden[i]) for i in clean.hidden)


# -- telemetry --------------------------------------------------------------------------------------------------------


def test_realized_noise_is_the_deviation_of_the_change_of_the_first_example(draws: list[Tensor]) -> None:
    out = RegularizedModel(calm(), [HyPe(noise_std=0.1)])(**tiny_batch("bert"))
    assert float(out.telemetry["hype/realized_noise_std"]) == pytest.approx(
        float(draws[0][:1].std()), rel=SAME[torch.float32]
    )


def test_relative_noise_is_the_norm_of_the_change_over_that_of_the_states(draws: list[Tensor]) -> None:
    model = calm()
    with torch.no_grad():
        states = model.bert.embeddings(input_ids=tiny_batch("bert")["input_ids"])[:1]
    out = RegularizedModel(model, [HyPe(noise_std=0.1)])(**tiny_batch("bert"))
    expected = float(draws[0][:1].norm() / states.norm())
    assert float(out.telemetry["hype/relative_noise"]) == pytest.approx(expected, rel=SAME[torch.float32])


@pytest.mark.parametrize("layers", [None, (2,), (1, 2)])
def test_noise_is_reported_once_a_pass_from_the_lowest_noised_layer(layers: tuple[int, ...] | None) -> None:
    out = RegularizedModel(calm(), [HyPe(noise_std=0.1, layers=layers)])(**tiny_batch("bert"))
    sampling = STANDARD_ERRORS / (2 * 9 * 16) ** 0.5  # of a deviation, from the 9 tokens of width 16 of one example
    assert float(out.telemetry["hype/realized_noise_std"]) == pytest.approx(0.1, rel=sampling)
    assert set(out.telemetry) == {"hype/realized_noise_std", "hype/relative_noise"}


# -- low precision ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "name", "usable"), [(torch.bfloat16, "bfloat16", "0.01"), (torch.float16, "float16", "0.001")]
)
def test_noise_that_half_precision_states_round_away_is_refused_with_the_smallest_usable_scale(
    dtype: torch.dtype, name: str, usable: str
) -> None:
    wrapper = RegularizedModel(calm(dtype=dtype), [HyPe(noise_std=1e-5)])
    with pytest.raises(MethodError) as caught:
        wrapper(**tiny_batch("bert"))
    text = str(caught.value)
    assert text.startswith(f"hype.noise_std 1e-05 is rounded away by the {name} hidden states (correlation of ")
    assert text.endswith(f"or noise of at least {usable} times the root mean square of the hidden states.")


def test_noise_that_float32_states_round_away_is_refused() -> None:
    wrapper = RegularizedModel(calm(dtype=torch.float32), [HyPe(noise_std=1e-12)])
    with pytest.raises(MethodError, match=r"^hype\.noise_std 1e-12 is rounded away by the float32 hidden states"):
        wrapper(**tiny_batch("bert"))


def test_the_papers_noise_is_kept_by_float32_states() -> None:
    wrapper = RegularizedModel(calm(dtype=torch.float32), [HyPe(noise_std=1e-5)])
    assert torch.isfinite(wrapper(**tiny_batch("bert")).loss) and wrapper.notices == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_noise_that_half_precision_states_keep_is_accepted(dtype: torch.dtype) -> None:
    model = calm(dtype=dtype)
    wrapper = RegularizedModel(model, [HyPe(noise_std=0.1)])
    out = wrapper(**tiny_batch("bert"))
    out.loss.backward()
    assert torch.isfinite(out.loss)
    assert all(torch.isfinite(gradient).all() for gradient in gradients(model).values())
    assert wrapper.notices == []


def test_half_precision_states_stay_in_their_dtype() -> None:
    model, kept = calm(dtype=torch.bfloat16), []
    model.bert.encoder.layer[0].attention.register_forward_pre_hook(lambda module, args: kept.append(args[0].dtype))
    RegularizedModel(model, [HyPe(noise_std=0.1)])(**tiny_batch("bert"))
    assert kept == [torch.bfloat16]


def under_autocast(scale: float, steps: int = 2) -> tuple[RegularizedModel, Tensor]:
    wrapper = RegularizedModel(calm(dtype=torch.float32), [HyPe(noise_std=scale)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = [wrapper(**tiny_batch("bert")).loss for _ in range(steps)]
    return wrapper, torch.stack(losses).detach()


def test_noise_that_autocast_rounds_away_is_said_once_with_the_share_that_is_left() -> None:
    wrapper, _ = under_autocast(1e-5)
    (text,) = wrapper.notices
    start = "hype: autocast to bfloat16 rounds noise of this size away (correlation of intended and effective noise "
    assert text.startswith(start)
    assert 0 <= float(text.removeprefix(start).split(",")[0]) < 0.3  # 0.05 of many entries; there are 576 here
    assert text.endswith("use at least 0.01 times the root mean square of the hidden states.")


def test_noise_that_autocast_rounds_away_keeps_the_loss_finite() -> None:
    _, losses = under_autocast(1e-5)
    assert torch.isfinite(losses).all()


def test_noise_that_survives_autocast_is_not_spoken_about() -> None:
    wrapper, _ = under_autocast(0.1)
    assert wrapper.notices == []


def test_published_scale_in_float32_is_not_spoken_about() -> None:
    wrapper = RegularizedModel(calm(dtype=torch.float32), [HyPe()])
    wrapper(**tiny_batch("bert"))
    assert wrapper.notices == []

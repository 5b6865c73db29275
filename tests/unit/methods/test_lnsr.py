"""LNSR inside the step: where it acts, what it compares, what it costs, and where it refuses."""

import math
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import steadytune.methods.lnsr
from steadytune import LNSR, HyPe, RegularizedModel
from steadytune.encoders import SiteUnavailable
from steadytune.functional import keyed_generator
from steadytune.methods import MethodError
from steadytune.methods.lnsr import Sampler, draw_perturbation, squared_distance
from tiny import FAMILIES, WIDTH, gradients, inputs_of, tiny_batch, tiny_model
from tolerances import REPLAYED, ROUNDED, SAME

DEPTH = 3
CLOSE: dict[str, float] = {"rtol": SAME[torch.float64], "atol": SAME[torch.float64]}
SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)
RESUMABLE = [(f, b) for f in FAMILIES for b in (0, 1) if (f, b) != ("deberta-v2-conv", 0)]

Compared = tuple[Tensor, Tensor, Tensor]


def calm(family: str = "bert", **options: Any) -> Any:
    """A model whose only randomness is that of the method."""
    return tiny_model(family, dropout=0.0, **{"dtype": torch.float64, **options})


def step(lnsr: LNSR, model: Any = None, batch: dict[str, Tensor] | None = None, *others: Any) -> Any:
    wrapper = RegularizedModel(calm() if model is None else model, [*others, lnsr])
    return wrapper(**(tiny_batch("bert") if batch is None else batch))


def term(*args: Any, **options: Any) -> float:
    return float(step(*args, **options).terms["lnsr"])


@pytest.fixture
def no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every draw is 0, which a setting cannot ask for: then there is no second pass."""
    monkeypatch.setattr(
        steadytune.methods.lnsr, "draw_perturbation", lambda states, real, **_: torch.zeros_like(states.detach())
    )


@pytest.fixture
def noises(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """A copy of every noise that is drawn."""
    kept: list[Tensor] = []

    def keep(*args: Any, **options: Any) -> Tensor:
        kept.append(draw_perturbation(*args, **options))
        return kept[-1]

    monkeypatch.setattr(steadytune.methods.lnsr, "draw_perturbation", keep)
    return kept


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[Compared]:
    """Noisy states, clean states and which tokens count, each time that two layers are compared."""
    kept: list[Compared] = []

    def keep(noisy: Tensor, clean: Tensor, counted: Tensor, **options: Any) -> Tensor:
        kept.append((noisy.detach(), clean.detach(), counted))
        return squared_distance(noisy, clean, counted, **options)

    monkeypatch.setattr(steadytune.methods.lnsr, "squared_distance", keep)
    return kept


def plain_penalty(compared: list[Compared], *, relative: bool = True) -> float:
    """The penalty in plain loops over layers, examples and tokens; over dimensions it is a mean if not relative."""
    layers = []
    for noisy, clean, counted in compared:
        examples = []
        for i in range(len(noisy)):
            tokens = []
            for t in range(noisy.shape[1]):
                if counted[i, t]:
                    squares = float((noisy[i, t] - clean[i, t]).square().sum())
                    tokens.append(squares / (float(clean[i, t].square().sum()) if relative else WIDTH))
            examples.append(sum(tokens) / len(tokens))
        layers.append(sum(examples) / len(examples))
    return sum(layers) / len(layers)


# -- where it cannot act ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [DEPTH, 99])
def test_an_injection_layer_with_none_above_it_is_refused(layer: int) -> None:
    with pytest.raises(MethodError) as caught:
        step(LNSR(injection_layer=layer))
    assert str(caught.value) == f"lnsr.injection_layer must be from 0 to 2: no layer is above it; got {layer}."


@pytest.mark.parametrize("layers", [(), (1,), (2, 4), (-1,)])
def test_layers_that_are_not_above_the_noise_are_refused(layers: tuple[int, ...]) -> None:
    with pytest.raises(MethodError) as caught:
        step(LNSR(injection_layer=1, layers=layers))
    assert str(caught.value) == f"lnsr.layers must name layers from 2 to 3, or be null for all; got {list(layers)}."


def test_embeddings_of_a_deberta_with_convolution_are_refused() -> None:
    with pytest.raises(SiteUnavailable, match=r"^lnsr cannot resume a deberta-v2 with convolution at layer 0: .*") as e:
        step(LNSR(), calm("deberta-v2-conv"))
    assert str(e.value).endswith("; set lnsr.injection_layer to 1 or more.")


@pytest.mark.parametrize(
    "settings", [{"noise": "subspace"}, {"directions": 2}, {"noise": "covariance", "directions": 2}]
)
def test_directions_and_subspace_noise_go_together(settings: dict[str, Any]) -> None:
    with pytest.raises(MethodError, match=r"^lnsr\.directions must be given with noise: subspace, and only with it\.$"):
        step(LNSR(**settings))


def test_a_frozen_encoder_is_refused() -> None:
    model = calm()
    model.bert.requires_grad_(False)
    with pytest.raises(MethodError, match=r"^lnsr cannot act on a frozen encoder"):
        step(LNSR(), model)


# -- where it acts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "layer"), RESUMABLE)
def test_without_noise_the_penalty_is_exactly_zero_under_replayed_dropout(
    family: str, layer: int, no_noise: None
) -> None:
    assert term(LNSR(injection_layer=layer), tiny_model(family), tiny_batch(family)) == 0.0


@pytest.mark.parametrize(("family", "layer"), RESUMABLE)
def test_noise_moves_every_layer_above_it(family: str, layer: int) -> None:
    telemetry = step(LNSR(injection_layer=layer), tiny_model(family), tiny_batch(family)).telemetry
    assert list(telemetry) == [f"lnsr/relative_distance_layer_{r}" for r in range(layer + 1, DEPTH + 1)]
    assert all(float(value) > 0 for value in telemetry.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_penalty_is_that_of_plain_loops(family: str, compared: list[Compared]) -> None:
    batch = tiny_batch(family)
    found = term(LNSR(injection_layer=1), calm(family), batch)
    assert [len(clean) for _, clean, _ in compared] == [4, 4]  # examples first, as in the mask, whatever the family
    assert all(torch.equal(counted, batch["attention_mask"].bool()) for *_, counted in compared)
    assert found == pytest.approx(plain_penalty(compared), rel=SAME[torch.float64])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_call_is_compared_once(family: str, compared: list[Compared]) -> None:
    step(LNSR(injection_layer=1), calm(family), tiny_batch(family))
    clean = [two for _, two, _ in compared]
    expected = calm(family).eval()(**inputs_of(tiny_batch(family)), output_hidden_states=True).hidden_states
    assert len(clean) == DEPTH - 1  # of albert too, whose layers are one module
    torch.testing.assert_close(clean, [states.detach() for states in expected[2:]], **CLOSE)


def test_the_top_of_modernbert_is_compared_after_its_final_norm(compared: list[Compared]) -> None:
    model = calm("modernbert")
    kept: list[Tensor] = []
    model.model.final_norm.register_forward_hook(lambda module, args, output: kept.append(output.detach()))
    step(LNSR(layers=(DEPTH,)), model, tiny_batch("modernbert"))
    ((noisy, clean, _),) = compared
    assert torch.equal(clean, kept[0]) and torch.equal(noisy, kept[1])


def test_absolute_penalty_is_a_mean_over_dimensions(compared: list[Compared]) -> None:
    found = term(LNSR(normalize=False, layers=(2,)))
    assert found == pytest.approx(plain_penalty(compared[:1], relative=False), rel=SAME[torch.float64])


@pytest.mark.parametrize(("family", "place"), [("bert", 0), ("xlnet", -1)])
def test_penalty_of_the_sentence_counts_only_the_token_that_the_head_reads(
    family: str, place: int, compared: list[Compared]
) -> None:
    found = term(LNSR(tokens="sentence", layers=(3,)), calm(family), tiny_batch(family))
    ((noisy, clean, counted),) = compared
    only = torch.zeros(4, 9, dtype=torch.bool)
    only[:, place] = True
    assert torch.equal(counted, only)
    assert found == pytest.approx(plain_penalty([(noisy, clean, only)]), rel=SAME[torch.float64])


def test_penalty_is_the_mean_over_the_layers_that_are_named() -> None:
    one, two, both = (term(LNSR(layers=layers)) for layers in ((1,), (3,), (1, 3)))
    assert both == pytest.approx((one + two) / 2, rel=SAME[torch.float64])


def test_telemetry_is_the_root_of_the_relative_penalty_of_a_layer() -> None:
    out = step(LNSR(layers=(2,)))
    assert float(out.telemetry["lnsr/relative_distance_layer_2"]) == pytest.approx(
        math.sqrt(float(out.terms["lnsr"])), rel=SAME[torch.float32]
    )


def test_telemetry_is_relative_also_under_the_absolute_penalty() -> None:
    one, other = (step(LNSR(normalize=normalize)).telemetry for normalize in (True, False))
    assert one == other


def test_regression_is_accepted() -> None:
    out = step(LNSR(), calm(num_labels=1), tiny_batch("bert", regression=True))
    assert float(out.terms["lnsr"]) > 0


def test_penalty_needs_no_labels() -> None:
    batch = tiny_batch("bert")
    unlabelled = {**batch, "labels": torch.full_like(batch["labels"], -100)}
    assert term(LNSR(), None, unlabelled) == term(LNSR(), None, batch) > 0


def test_without_a_mask_every_token_is_real() -> None:
    batch = tiny_batch("bert", padded=False)
    bare = {name: value for name, value in batch.items() if name != "attention_mask"}
    assert term(LNSR(), None, bare) == pytest.approx(term(LNSR(), None, batch), rel=SAME[torch.float64])


def test_the_task_loss_reads_the_clean_pass() -> None:
    assert torch.equal(step(LNSR(noise_std=0.5)).task_loss, RegularizedModel(calm())(**tiny_batch("bert")).task_loss)


# -- noise ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", SAMPLERS)
def test_every_law_acts(noise: Sampler) -> None:
    assert term(LNSR(noise=noise, directions=2 if noise == "subspace" else None)) > 0


def test_each_draw_of_a_step_is_another(noises: list[Tensor]) -> None:
    step(LNSR(draws=3))
    assert len({float(noise[0, 0, 0]) for noise in noises}) == len(noises) == 3


def test_penalty_of_several_draws_is_their_mean(compared: list[Compared]) -> None:
    found = term(LNSR(draws=3, layers=(3,)))
    assert len(compared) == 3
    assert found == pytest.approx(plain_penalty(compared), rel=SAME[torch.float64])


def test_successive_steps_draw_anew(noises: list[Tensor]) -> None:
    wrapper = RegularizedModel(calm(), [LNSR()])
    for _ in range(3):
        wrapper(**tiny_batch("bert"))
    assert len({float(noise[0, 0, 0]) for noise in noises}) == 3


def test_wrappers_with_other_seeds_draw_otherwise(noises: list[Tensor]) -> None:
    for seed in (0, 1):
        RegularizedModel(calm(), [LNSR()], seed=seed)(**tiny_batch("bert"))
    assert not torch.isclose(noises[0][0], noises[1][0]).any()  # the first row has no padding


def test_noise_is_in_units_of_the_norm_of_each_embedded_token(noises: list[Tensor]) -> None:
    model, batch = calm(), tiny_batch("bert")
    with torch.no_grad():
        model.bert.embeddings.LayerNorm.weight.mul_(torch.linspace(1, 40, WIDTH))
        embedded = model.bert.embeddings(input_ids=batch["input_ids"])  # after its norm, where layer 0 begins
    step(LNSR(noise_std=0.2), model, batch)
    expected = 0.2 * embedded.norm(dim=-1) * batch["attention_mask"]
    torch.testing.assert_close(noises[0].norm(dim=-1), expected, **CLOSE)


def batch_of_states(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """States of three examples, the last of which is all padding."""
    states = torch.randn(3, 4, 6, generator=keyed_generator("cpu", "states"), dtype=torch.float64).to(dtype)
    return states, torch.tensor([[True, True, True, True], [True, True, False, False], [False] * 4])


def draw(states: Tensor, real: Tensor, sampler: Sampler, *, relative: bool = False, scale: float = 0.5) -> Tensor:
    generator = keyed_generator("cpu", "draw")
    return draw_perturbation(
        states,
        real,
        sampler=sampler,
        scale=scale,
        relative=relative,
        generator=generator,
        directions=2 if sampler == "subspace" else None,
    )


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_padding_gets_no_noise_and_gives_none(sampler: Sampler, relative: bool) -> None:
    states, real = batch_of_states()
    spoiled = states.masked_fill(~real[..., None], math.nan)
    noise = draw(spoiled, real, sampler, relative=relative)
    assert (noise[~real] == 0).all() and (noise[real] != 0).any(dim=-1).all()
    torch.testing.assert_close(noise, draw(states, real, sampler, relative=relative), **CLOSE)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_noise_carries_no_gradient(sampler: Sampler) -> None:
    states, real = batch_of_states()
    assert not draw(states.requires_grad_(), real, sampler, relative=True).requires_grad


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_noise_for_half_precision_states_is_float32(sampler: Sampler, dtype: torch.dtype) -> None:
    states, real = batch_of_states(dtype)
    noise = draw(states, real, sampler)
    assert noise.dtype == torch.float32
    torch.testing.assert_close(noise, draw(states.float(), real, sampler))


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("sampler", ["interpolate", "covariance"])
def test_a_single_state_has_no_noise_among_its_like(sampler: Sampler, relative: bool) -> None:
    states, real = batch_of_states()
    real = torch.zeros_like(real)
    real[1, 2] = True
    assert (draw(states, real, sampler, relative=relative) == 0).all()


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_batch_of_padding_has_no_noise(sampler: Sampler, relative: bool) -> None:
    states, real = batch_of_states()
    assert (draw(states, torch.zeros_like(real), sampler, relative=relative) == 0).all()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_state_of_zero_gets_no_relative_noise(sampler: Sampler) -> None:
    states, real = batch_of_states()
    states[0, 0] = 0
    noise = draw(states, real, sampler, relative=True)
    assert (noise[0, 0] == 0).all() and torch.isfinite(noise).all()


def test_subspace_of_more_directions_than_there_are_is_the_whole_space() -> None:
    states, real = batch_of_states()
    options: dict[str, Any] = {"sampler": "subspace", "scale": 1.0, "relative": False}
    one, two = (
        draw_perturbation(states, real, **options, generator=keyed_generator("cpu", 0), directions=count)
        for count in (6, 99)
    )
    torch.testing.assert_close(one, two, **CLOSE)


# -- distance ---------------------------------------------------------------------------------------------------------


def test_states_that_float16_could_not_square_have_a_finite_distance() -> None:
    clean = torch.full((1, 2, 64), 100.0, dtype=torch.float16)
    noisy, counted = clean + 300, torch.ones(1, 2, dtype=torch.bool)
    assert float(squared_distance(noisy, clean, counted, relative=False)) == pytest.approx(
        64 * 300.0**2, rel=ROUNDED[torch.float16]
    )
    assert float(squared_distance(noisy, clean, counted, relative=True)) == pytest.approx(9, rel=ROUNDED[torch.float16])


@pytest.mark.parametrize("relative", [False, True])
def test_padding_that_overflows_leaves_value_and_gradient_finite(relative: bool) -> None:
    clean = torch.ones(1, 2, 4)
    clean[0, 1] = 0
    noisy, counted = clean + 1, torch.tensor([[True, False]])
    noisy[0, 1] = 1e30
    noisy.requires_grad_()
    value = squared_distance(noisy, clean, counted, relative=relative)
    value.backward()
    assert value.item() == (1 if relative else 4)
    assert noisy.grad is not None and torch.isfinite(noisy.grad).all()


def test_an_example_without_a_counted_token_adds_nothing() -> None:
    states = torch.zeros(2, 3, 4)
    counted = torch.tensor([[True, True, True], [False, False, False]])
    assert float(squared_distance(states + 1, states, counted, relative=False)) == 4 / 2


# -- dropout ----------------------------------------------------------------------------------------------------------


def test_fresh_dropout_gives_a_much_larger_penalty_than_a_replayed_one() -> None:
    replayed, fresh = (
        term(LNSR(dropout=dropout, noise_std=0.01), tiny_model("bert")) for dropout in ("replayed", "fresh")
    )
    assert fresh > 100 * replayed > 0  # in squares; the penalty would be one on dropout


def test_fresh_dropout_without_noise_still_gives_a_penalty() -> None:
    assert term(LNSR(dropout="fresh", noise_std=0.0), tiny_model("bert")) > 0


def test_without_dropout_a_fresh_branch_is_a_replayed_one() -> None:
    assert term(LNSR(dropout="fresh")) == term(LNSR())


def test_the_noise_of_hype_is_replayed(no_noise: None) -> None:
    assert term(LNSR(injection_layer=1), tiny_model("bert"), None, HyPe(noise_std=0.1)) == 0.0


def test_the_noise_of_hype_is_drawn_anew_in_a_fresh_branch(no_noise: None) -> None:
    assert term(LNSR(dropout="fresh"), calm(), None, HyPe(noise_std=0.1)) > 0


# -- what it costs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_step_costs_the_layers_above_the_noise_once_more_for_each_draw(layer: int, draws: int) -> None:
    passes = step(LNSR(injection_layer=layer, draws=draws)).passes
    relative_cost = 1 + draws * (DEPTH - layer) / DEPTH
    assert passes.forward == pytest.approx(relative_cost)
    assert passes.units == pytest.approx(3 * relative_cost)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_only_the_layers_above_the_noise_run_again(layer: int) -> None:
    model, calls = calm(), [0] * DEPTH

    def count(index: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            calls[index] += 1

        return hook

    for index, module in enumerate(model.bert.encoder.layer):
        module.register_forward_hook(count(index))
    step(LNSR(injection_layer=layer, draws=2), model)
    assert calls == [1 if index < layer else 3 for index in range(DEPTH)]


@pytest.mark.parametrize("settings", [{"weight": 0.0}, {"noise_std": 0.0}])
def test_a_null_setting_runs_nothing_twice_and_draws_nothing(settings: dict[str, float], noises: list[Tensor]) -> None:
    out = step(LNSR(**settings))
    assert (out.passes.forward, out.passes.units, out.terms, noises) == (1, 3, {}, [])


class _Waits(TorchDispatchMode):
    """Counts the operations for which a program waits for an accelerator: reading a value, selecting by a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = func is torch.ops.aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1])
        reads = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal"}
        self.count += by_mask or func.name() in reads
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("noise", ["gaussian", "interpolate", "covariance"])
def test_only_the_first_step_waits_for_more_than_a_plain_step_does(noise: Sampler) -> None:
    waits = []
    for methods in ([], [LNSR(noise=noise, draws=2)]):
        wrapper = RegularizedModel(calm(), methods)
        for _ in range(2):
            with _Waits() as mode:
                wrapper(**tiny_batch("bert"))
            waits.append(mode.count)
    _, plain, first, later = waits
    assert later == plain < first


# -- gradients --------------------------------------------------------------------------------------------------------


def added_gradient(lnsr: LNSR) -> dict[str, Tensor]:
    """What the penalty adds to the gradient of a plain step."""
    found = []
    for methods in ([], [lnsr]):
        model = calm()
        RegularizedModel(model, methods)(**tiny_batch("bert")).loss.backward()
        found.append(gradients(model))
    return {name: found[1][name] - found[0][name] for name in found[0]}


def test_penalty_also_trains_the_layers_below_the_noise() -> None:
    added = added_gradient(LNSR(injection_layer=2))
    assert all(
        float(added[f"bert.encoder.layer.{layer}.output.dense.weight"].norm()) > SAME[torch.float64]
        for layer in (0, 1, 2)
    )
    assert float(added["bert.embeddings.word_embeddings.weight"].norm()) > SAME[torch.float64]


def test_penalty_does_not_train_the_head() -> None:
    added = added_gradient(LNSR())
    assert (added["classifier.weight"] == 0).all() and (added["bert.pooler.dense.weight"] == 0).all()


def test_penalty_on_a_lower_layer_does_not_train_those_above_it() -> None:
    added = added_gradient(LNSR(layers=(1,)))
    assert [float(added[f"bert.encoder.layer.{layer}.output.dense.weight"].norm()) > 0 for layer in range(DEPTH)] == [
        True,
        False,
        False,
    ]


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("layer", [0, 1])
def test_checkpointing_gives_the_same_gradients(layer: int, reentrant: bool) -> None:
    found = []
    for checkpointed in (False, True):
        model: Any = tiny_model("bert", dtype=torch.float64)
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        torch.manual_seed(0)
        step(LNSR(injection_layer=layer, draws=2), model).loss.backward()
        found.append(gradients(model))
    torch.testing.assert_close(found[1], found[0], rtol=REPLAYED, atol=REPLAYED)


# -- low precision ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "name"), [(torch.bfloat16, "bfloat16"), (torch.float16, "float16")])
def test_noise_below_the_rounding_of_half_precision_states_is_refused(dtype: torch.dtype, name: str) -> None:
    with pytest.raises(MethodError) as caught:
        step(LNSR(noise_std=0.02), calm(dtype=dtype))
    assert str(caught.value) == (
        f"lnsr.noise_std gives noise of 2.0e-02 times the norm of the states, which in {name} is lost in rounding; "
        "use at least 0.03, or float32."
    )


def test_absolute_noise_is_judged_by_what_it_is_to_the_states() -> None:
    model = calm(dtype=torch.bfloat16)
    with torch.no_grad():
        model.bert.embeddings.LayerNorm.weight.mul_(100)
    with pytest.raises(MethodError, match="is lost in rounding"):
        step(LNSR(relative=False, noise_std=0.1), model)


@pytest.mark.parametrize("seed", [0, 1, 2])  # the last draw is a rounding error smaller than the bound
def test_noise_at_the_bound_of_bfloat16_is_accepted(seed: int) -> None:
    wrapper = RegularizedModel(calm(dtype=torch.bfloat16), [LNSR(noise_std=0.03)], seed=seed)
    assert float(wrapper(**tiny_batch("bert")).terms["lnsr"]) > 0


def test_noise_above_the_rounding_of_bfloat16_states_has_a_float32_term_and_finite_gradients() -> None:
    out = step(LNSR(), model := calm(dtype=torch.bfloat16))
    out.loss.backward()
    assert out.terms["lnsr"].dtype == torch.float32
    assert all(torch.isfinite(gradient).all() for gradient in gradients(model).values())


def test_small_noise_is_refused_under_autocast() -> None:
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(
            MethodError, match=r"^lnsr\.noise_std gives noise of 1\.0e-02 .* in bfloat16 is lost in rounding"
        ),
    ):
        step(LNSR(noise_std=0.01), calm(dtype=torch.float32))


def test_small_noise_is_accepted_in_float32() -> None:
    assert term(LNSR(noise_std=1e-3), calm(dtype=torch.float32)) > 0

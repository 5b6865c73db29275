"""ASA inside the step: where it refuses, which units it may mask, what they cost, and what it leaves behind."""

import copy
import gc
import statistics
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForSequenceClassification

import steadytune.methods.asa
from steadytune import ASA, RegularizedModel
from steadytune.encoders import SiteUnavailable
from steadytune.functional import reversed_mask
from steadytune.methods import MethodError
from steadytune.methods.asa import Adversaries
from tiny import FAMILIES, PAD, TOKENS, gradients, inputs_of, tiny_batch, tiny_model
from tolerances import HALF_A_DIGIT, REPLAYED, SAME, STANDARD_ERRORS

DEPTH = 3
WITH_BIAS = [family for family in FAMILIES if family not in ("mpnet", "xlnet")]
EXACT = SAME[torch.float32]
CLOSE: dict[str, float] = {"rtol": SAME[torch.float64], "atol": SAME[torch.float64]}
ALL_KEPT, ALL_MASKED = 6.0, -6.0  # keep biases that the small scores of a fresh adversary cannot outweigh


@dataclass
class Mask:
    """One layer of one masked pass."""

    scores: Tensor
    free: Tensor
    bias: Tensor

    @property
    def masked(self) -> Tensor:
        return self.bias[:, 0] < 0


@pytest.fixture
def masks(monkeypatch: pytest.MonkeyPatch) -> list[Mask]:
    """What every layer's adversary did, in order."""
    kept: list[Mask] = []

    def keep(scores: Tensor, free: Tensor, *, gain: float) -> tuple[Tensor, Tensor]:
        bias, units = reversed_mask(scores, free, gain=gain)
        kept.append(Mask(scores.detach(), free, bias.detach()))
        return bias, units

    monkeypatch.setattr(steadytune.methods.asa, "reversed_mask", keep)
    return kept


def calm(family: str = "bert", **options: Any) -> Any:
    """A model whose only randomness is that of the method."""
    return tiny_model(family, dropout=0.0, **{"dtype": torch.float64, **options})


def wrap(family: str = "bert", seed: int = 0, **settings: Any) -> RegularizedModel:
    return RegularizedModel(calm(family), [ASA(**settings)], seed=seed)


def one_step(family: str = "bert", **settings: Any) -> Any:
    return wrap(family, **settings)(**tiny_batch(family))


def batch_of_lengths(lengths: list[int], tokens: int) -> dict[str, Tensor]:
    batch = tiny_batch("bert", rows=len(lengths), tokens=tokens, padded=False)
    batch["attention_mask"] = (torch.arange(tokens) < torch.tensor(lengths)[:, None]).long()
    batch["input_ids"] = torch.where(batch["attention_mask"].bool(), batch["input_ids"], PAD)
    return batch


# -- where it cannot act ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["mpnet", "xlnet"])
def test_a_family_without_a_seam_in_its_attention_is_refused_by_method_site_and_name(family: str) -> None:
    with pytest.raises(SiteUnavailable) as caught:
        wrap(family)
    assert str(caught.value) == (
        f"asa needs the site 'attention', which {family} lacks: its attention takes no additional bias."
    )


@pytest.mark.parametrize("family", ["mpnet", "xlnet"])
def test_without_an_adversary_every_family_is_accepted(family: str) -> None:
    model = tiny_model(family)
    out = RegularizedModel(model, [ASA(adversary="none")])(**tiny_batch(family))
    assert float(out.terms["asa"]) > 0


def test_eager_attention_is_refused() -> None:
    with pytest.raises(SiteUnavailable, match=r"^asa needs the site 'attention'.*load with attn_implementation='sdpa'"):
        RegularizedModel(tiny_model("bert", attention="eager"), [ASA()])


def test_attention_that_became_eager_after_wrapping_is_refused_at_the_next_step() -> None:
    wrapper = wrap()
    wrapper(**tiny_batch("bert"))
    wrapper.model.set_attn_implementation("eager")  # type: ignore[operator]
    with pytest.raises(SiteUnavailable, match="attention implementation 'eager' ignores a bias"):
        wrapper(**tiny_batch("bert"))


@pytest.mark.parametrize("layers", [(0, DEPTH), (-1,), ()])
def test_an_unknown_layer_or_none_at_all_is_refused(layers: tuple[int, ...]) -> None:
    with pytest.raises(MethodError) as caught:
        wrap(layers=layers)
    assert str(caught.value) == (
        f"asa.layers must name layers from 0 to {DEPTH - 1}, or be null for all; got {list(layers)}."
    )


@pytest.mark.parametrize("settings", [{"adversary": "random"}, {"mask_fraction": 0.2}])
def test_a_fraction_belongs_to_the_random_adversary(settings: dict[str, Any]) -> None:
    with pytest.raises(MethodError) as caught:
        wrap(**settings)
    assert str(caught.value) == "asa.mask_fraction must be given with adversary: random, and only with it."


@pytest.mark.parametrize("settings", [{"adversary": "random", "mask_fraction": 0.2}, {"temperature": 0.0}])
def test_a_target_without_a_price_to_steer_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(MethodError, match=r"^asa\.target_mask_fraction steers the price of a learned adversary;"):
        wrap(target_mask_fraction=0.2, **settings)


def test_a_frozen_encoder_is_refused() -> None:
    model = calm()
    model.bert.requires_grad_(False)
    with pytest.raises(MethodError, match=r"^asa cannot act on a frozen encoder: "):
        RegularizedModel(model, [ASA()])


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
def test_reentrant_checkpointing_is_refused() -> None:
    model = calm()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(MethodError) as caught:
        RegularizedModel(model, [ASA()])(**tiny_batch("bert"))
    assert str(caught.value) == (
        "asa cannot act under re-entrant gradient checkpointing, which cuts its gradients; enable it with "
        "use_reentrant=False."
    )


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
@pytest.mark.parametrize("when", ["before", "after"])
def test_deberta_with_checkpointing_is_refused(when: str) -> None:
    model = calm("deberta-v2")
    wrapper = RegularizedModel(model, [ASA()]) if when == "after" else None
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with pytest.raises(SiteUnavailable, match=r"gradient checkpointing would compute its layers again without the"):
        (wrapper or RegularizedModel(model, [ASA()]))(**tiny_batch("deberta-v2"))


# -- which units it may mask ------------------------------------------------------------------------------------------


def visible_far(family: str, layer: int, query: int, key: int) -> bool:
    """Whether a layer looks that far; every second layer of the tiny ModernBERT looks 2 tokens far."""
    return family != "modernbert" or layer % 2 == 0 or abs(query - key) <= 2


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("family", WITH_BIAS)
def test_free_are_the_pairs_of_real_tokens_that_see_each_other_without_the_diagonal(
    family: str, padded: bool, masks: list[Mask]
) -> None:
    batch = tiny_batch(family, padded=padded)
    wrap(family)(**batch)
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    assert len(masks) == DEPTH
    for layer, mask in enumerate(masks):
        for row, length in enumerate(lengths):
            for query in range(TOKENS):
                for key in range(TOKENS):
                    expected = max(query, key) < length and query != key and visible_far(family, layer, query, key)
                    assert bool(mask.free[row, query, key]) == expected, (layer, row, query, key)


def test_the_column_of_the_heads_token_can_be_protected_instead_of_the_diagonal(masks: list[Mask]) -> None:
    one_step(protect="cls_col", keep_bias=ALL_KEPT)
    free = masks[0].free[0]  # the first row has no padding
    assert not free[:, 0].any() and free[:, 1:].all()


def test_nothing_need_be_protected(masks: list[Mask]) -> None:
    one_step(protect="none", keep_bias=ALL_KEPT)
    assert masks[0].free[0].all()


@pytest.mark.parametrize("family", ["bert", "modernbert", "albert", "deberta-v2"])
def test_without_an_attention_mask_every_token_is_real(family: str, masks: list[Mask]) -> None:
    batch = tiny_batch(family, padded=False)
    with_mask = wrap(family)(**batch)
    del batch["attention_mask"]
    without = wrap(family)(**batch)
    torch.testing.assert_close(without.loss, with_mask.loss, **CLOSE)
    assert all(torch.equal(one.free, other.free) for one, other in zip(masks[:DEPTH], masks[DEPTH:], strict=True))


@pytest.mark.parametrize("family", WITH_BIAS)
def test_what_it_masks_changes_the_output(family: str) -> None:
    assert float(one_step(family).terms["asa"]) > 1e-6


@pytest.mark.parametrize("family", WITH_BIAS)
def test_every_adversary_gets_a_gradient_and_real_tokens_stay_finite(family: str) -> None:
    wrapper = wrap(family)
    wrapper(**tiny_batch(family)).loss.backward()
    found = gradients(wrapper.method_modules)
    assert found.keys() == dict(wrapper.method_modules.named_parameters()).keys()
    assert all(torch.isfinite(part).all() and float(part.abs().max()) > 0 for part in found.values())


def test_deberta_with_nothing_masked_is_the_same_bit_for_bit() -> None:
    out = one_step("deberta-v2", keep_bias=ALL_KEPT)
    assert (float(out.telemetry["asa/keep_rate"]), float(out.terms["asa"])) == (1, 0)


# -- rows without a unit ----------------------------------------------------------------------------------------------


def test_rows_that_would_lose_every_unit_stay_as_they_were() -> None:
    wrapper = wrap(protect="none", keep_bias=ALL_MASKED)
    out = wrapper(**tiny_batch("bert"))
    out.loss.backward()
    assert float(out.terms["asa"]) < REPLAYED
    assert all(not part.any() for part in gradients(wrapper.method_modules).values())


def test_only_rows_that_would_lose_every_unit_stay(masks: list[Mask], monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.full((1, 4, 4), -1.0, dtype=torch.float64)
    scores[0, 1, 2] = scores[0, 3, 3] = 1.0  # rows 0 and 2 lose everything
    monkeypatch.setattr(Adversaries, "forward", lambda self, place, states: scores)
    wrap(protect="none", layers=(0,))(**tiny_batch("bert", rows=1, tokens=4, padded=False))
    expected = [[0, 0, 0, 0], [1, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 0]]
    assert masks[0].masked[0].int().tolist() == expected


def test_a_window_that_does_not_show_the_protected_column_cannot_lose_every_unit(masks: list[Mask]) -> None:
    wrap("modernbert", protect="cls_col", keep_bias=ALL_MASKED)(**tiny_batch("modernbert", padded=False))
    near, far = masks[1].masked[0, 1], masks[1].masked[0, 5]  # query 1 sees the protected token 0, query 5 does not
    assert near.int().tolist() == [0, 1, 1, 1, 0, 0, 0, 0, 0]
    assert not far.any()


def test_a_protected_diagonal_keeps_every_row_alive(masks: list[Mask]) -> None:
    out = one_step(keep_bias=ALL_MASKED, temperature=0.0)
    real = tiny_batch("bert")["attention_mask"].bool()
    left = real[:, None, :] & ~masks[0].masked
    assert torch.equal(left[real], torch.eye(TOKENS, dtype=torch.bool).expand(4, -1, -1)[real])
    assert float(out.telemetry["asa/keep_rate"]) == 0
    assert torch.isfinite(out.loss)


# -- what it costs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [4, 9])
@pytest.mark.parametrize(
    ("protect", "count", "price"), [("none", 2 * (16 + 4 + 9) / 3, 4.8333), ("self", 2 * (12 + 2 + 6) / 3, 3.3333)]
)
def test_the_price_counts_real_unprotected_units_however_much_is_padded(
    protect: Any, count: float, price: float, tokens: int
) -> None:
    model = calm(depth=2)
    settings = {"protect": protect, "keep_bias": ALL_KEPT}
    out = RegularizedModel(model, [ASA(**settings)])(**batch_of_lengths([4, 2, 3], tokens))
    assert float(out.telemetry["asa/price"]) == pytest.approx(0.5**2 * count, rel=EXACT)
    assert float(out.telemetry["asa/price"]) == pytest.approx(price, abs=HALF_A_DIGIT * 1e-4)


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("lengths", [[4, 2, 3], [9, 9, 9]])
def test_the_normalized_price_of_keeping_everything_is_tau_squared_at_any_length_and_depth(
    lengths: list[int], depth: int
) -> None:
    asa = ASA(parameterization="normalized", keep_bias=ALL_KEPT)
    out = RegularizedModel(calm(depth=depth), [asa])(**batch_of_lengths(lengths, 9))
    assert float(out.telemetry["asa/price"]) == pytest.approx(0.5**2, rel=EXACT)


def test_more_padding_changes_neither_keep_rates_nor_the_adversarys_gradient() -> None:
    found = []
    for more in (0, 4):
        batch = batch_of_lengths([9, 5, 7, 3], 9)
        batch["attention_mask"] = nn.functional.pad(batch["attention_mask"], (0, more))
        batch["input_ids"] = nn.functional.pad(batch["input_ids"], (0, more), value=PAD)
        wrapper = wrap()
        out = wrapper(**batch)
        out.loss.backward()
        found.append((gradients(wrapper.method_modules), [float(v) for v in out.telemetry.values()]))
    assert found[0][1] == pytest.approx(found[1][1], rel=EXACT)
    for name, expected in found[0][0].items():
        scale = float(expected.abs().max())
        torch.testing.assert_close(found[1][0][name] / scale, expected / scale, **CLOSE)


def test_keep_rates_are_shares_of_the_free_units(masks: list[Mask]) -> None:
    out = one_step()
    shares = [int((mask.free & ~mask.masked).sum()) / int(mask.free.sum()) for mask in masks]
    assert [float(out.telemetry[f"asa/keep_rate_layer_{i}"]) for i in range(DEPTH)] == pytest.approx(shares, rel=EXACT)
    kept, free = (
        sum(int(part.sum()) for part in parts)
        for parts in zip(*[(m.free & ~m.masked, m.free) for m in masks], strict=True)
    )
    assert float(out.telemetry["asa/keep_rate"]) == pytest.approx(kept / free, rel=EXACT)


# -- its parameters ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "width", "count"),
    [(12, 768, 14_174_208), (24, 1024, 50_380_800), (12, 256, 1_579_008), (4, 256, 526_336), (2, 128, 66_048)],
)
def test_one_adversary_per_layer_has_2_n_d_squared_plus_d_parameters(depth: int, width: int, count: int) -> None:
    with torch.device("meta"):
        made = Adversaries(depth, width, width, 0.0)
    assert sum(parameter.numel() for parameter in made.parameters()) == count


def own(wrapper: RegularizedModel) -> dict[str, Tensor]:
    return dict(wrapper.method_modules["asa"].named_parameters())


@pytest.mark.parametrize(
    ("settings", "maps", "columns"),
    [({}, 2 * DEPTH, 16), ({"rank": 2}, 2 * DEPTH, 2), ({"shared": True}, 2, 16), ({"layers": (2, 0)}, 4, 16)],
)
@pytest.mark.parametrize("family", ["bert", "albert"])
def test_maps_follow_the_calls_of_layers_and_the_rank(
    family: str, settings: dict[str, Any], maps: int, columns: int
) -> None:
    weights = [part for name, part in own(wrap(family, **settings)).items() if name.endswith("weight")]
    assert [tuple(part.shape) for part in weights] == [(columns, 16)] * maps


def test_a_layer_named_twice_has_one_adversary() -> None:
    assert own(wrap(layers=(1, 1))).keys() == own(wrap(layers=(1,))).keys()


def test_it_starts_from_small_weights_without_bias() -> None:
    made = Adversaries(4, 256, 256, 0.0)
    for name, parameter in made.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        else:
            deviation = STANDARD_ERRORS * 0.02 / (2 * parameter.numel()) ** 0.5
            assert float(parameter.std().detach()) == pytest.approx(0.02, abs=deviation)


def test_each_call_of_a_shared_albert_layer_has_its_own_scores(masks: list[Mask]) -> None:
    wrapper = wrap("albert")
    wrapper(**tiny_batch("albert"))
    with torch.no_grad():
        own(wrapper)["query.1.bias"].fill_(50.0)
    wrapper(**tiny_batch("albert"))
    before, after = masks[:DEPTH], masks[DEPTH:]
    assert torch.equal(before[0].scores, after[0].scores)
    assert not torch.allclose(before[1].scores, after[1].scores)


def test_only_the_layers_that_are_named_are_masked(masks: list[Mask]) -> None:
    out = one_step(layers=(2, 0))
    assert {name for name in out.telemetry if "layer" in name} == {"asa/keep_rate_layer_0", "asa/keep_rate_layer_2"}
    assert len(masks) == 2


def test_the_second_adversary_of_two_layers_is_that_of_the_upper_one(masks: list[Mask]) -> None:
    wrapper = wrap(layers=(2, 0))
    wrapper(**tiny_batch("bert"))
    with torch.no_grad():
        own(wrapper)["query.1.bias"].fill_(50.0)
    out = wrapper(**tiny_batch("bert"))
    assert torch.equal(masks[0].scores, masks[2].scores) and not torch.allclose(masks[1].scores, masks[3].scores)
    assert "asa/keep_rate_layer_2" in out.telemetry


def test_the_keep_bias_is_added_to_every_score(masks: list[Mask]) -> None:
    for keep_bias in (0.0, 0.25):
        one_step(keep_bias=keep_bias, layers=(0,))
    torch.testing.assert_close(masks[1].scores, masks[0].scores + 0.25, **CLOSE)


def test_scores_divide_by_the_root_of_the_rank(masks: list[Mask]) -> None:
    wrapper = wrap(rank=4, layers=(0,))
    model: Any = wrapper.model
    batch = tiny_batch("bert")
    wrapper(**batch)
    with torch.no_grad():
        states = model.bert.embeddings(input_ids=batch["input_ids"])
        maps = own(wrapper)
        query, key = (states @ maps[f"{kind}.0.weight"].T for kind in ("query", "key"))
        expected = torch.stack([q @ k.T for q, k in zip(query, key, strict=True)]) / 2
    torch.testing.assert_close(masks[0].scores, expected, **CLOSE)


def test_its_learning_rate_is_a_multiple_of_the_encoders_and_it_does_not_decay() -> None:
    wrapper = wrap(learning_rate_scale=4.0)
    group = wrapper.parameter_groups(lr=1e-3, weight_decay=0.1)[-1]
    assert (group["name"], group["lr"], group["weight_decay"]) == ("asa", 4e-3, 0.0)
    assert len(group["params"]) == 4 * DEPTH


# -- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "modernbert", "deberta-v2"])
def test_scores_are_float32_under_bfloat16_autocast(family: str, masks: list[Mask]) -> None:
    wrapper = RegularizedModel(calm(family, dtype=torch.float32), [ASA()])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = wrapper(**tiny_batch(family)).loss
    loss.backward()
    assert {mask.scores.dtype for mask in masks} == {torch.float32}
    assert any((mask.scores != mask.scores.bfloat16().float()).any() for mask in masks)
    assert all(torch.isfinite(part).all() for part in gradients(wrapper).values())


@pytest.mark.parametrize("family", ["bert", "modernbert", "deberta-v2"])
def test_scores_are_float32_beside_bfloat16_weights(family: str, masks: list[Mask]) -> None:
    wrapper = RegularizedModel(calm(family, dtype=torch.bfloat16), [ASA()])
    wrapper(**tiny_batch(family)).loss.backward()
    assert {mask.scores.dtype for mask in masks} == {torch.float32}
    assert {parameter.dtype for parameter in own(wrapper).values()} == {torch.float32}
    assert all(torch.isfinite(part).all() for part in gradients(wrapper).values())


# -- steering the price -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("keep_bias", "masked"), [(ALL_KEPT, 0.0), (ALL_MASKED, 1.0)])
def test_the_price_follows_the_distance_to_the_wanted_share(keep_bias: float, masked: float) -> None:
    wrapper = wrap(target_mask_fraction=0.2, keep_bias=keep_bias)
    for step in (1, 2):
        out = wrapper(**tiny_batch("bert"))
        expected = torch.tensor(0.1 * step * (masked - 0.2)).exp()
        torch.testing.assert_close(out.telemetry["asa/price_multiplier"], expected)


def test_a_lower_multiplier_is_a_lower_price() -> None:
    wrapper = wrap(target_mask_fraction=0.2, keep_bias=ALL_KEPT)
    first, second = (float(wrapper(**tiny_batch("bert")).telemetry["asa/price"]) for _ in range(2))
    assert second / first == pytest.approx(float(torch.tensor(-0.02).exp()), rel=EXACT)


def test_without_a_target_the_price_stays() -> None:
    wrapper = wrap(keep_bias=ALL_KEPT)
    first, second = (float(wrapper(**tiny_batch("bert")).telemetry["asa/price"]) for _ in range(2))
    assert first == second


def test_the_price_survives_a_checkpoint(tmp_path: Path) -> None:
    wrapper, resumed = (wrap(target_mask_fraction=0.2, seed=seed) for seed in (0, 1))
    wrapper(**tiny_batch("bert"))
    wrapper.save_state(tmp_path)
    resumed.load_state(tmp_path)
    for name, expected in wrapper.method_modules.state_dict().items():
        assert torch.equal(resumed.method_modules.state_dict()[name], expected)
    assert float(resumed.method_modules.state_dict()["asa.log_multiplier"]) != 0


# -- when and how often -----------------------------------------------------------------------------------------------


def test_before_its_start_there_is_one_pass_and_every_own_parameter_gets_a_zero() -> None:
    wrapper = wrap(start_step=2)
    found = []
    for _ in range(3):
        out = wrapper(**tiny_batch("bert"))
        wrapper.zero_grad()
        out.loss.backward()
        got = [part.grad for part in own(wrapper).values() if part.grad is not None]
        found.append((out.passes.forward, len(got), any(bool(grad.any()) for grad in got)))
    count = 4 * DEPTH
    assert found == [(1, count, False), (1, count, False), (2, count, True)]


def test_before_its_start_the_loss_is_that_of_plain_training() -> None:
    plain = RegularizedModel(calm(), [])(**tiny_batch("bert"))
    assert torch.equal(wrap(start_step=1)(**tiny_batch("bert")).loss, plain.loss)


@pytest.mark.parametrize("settings", [{}, {"adversary": "none"}, {"adversary": "random", "mask_fraction": 0.2}])
def test_a_step_is_two_forward_and_two_backward_passes(settings: dict[str, Any]) -> None:
    passes = one_step(**settings).passes
    assert (passes.forward, passes.activation_gradient, passes.weight_gradient) == (2, 2, 2)


def notices(dropout: float, **settings: Any) -> list[str]:
    """What has been said after enough steps for a mean."""
    wrapper = RegularizedModel(tiny_model("bert", dropout=dropout, depth=1), [ASA(**settings)])
    for _ in range(8):
        wrapper(**tiny_batch("bert"))
    return wrapper.notices


def test_two_passes_with_one_dropout_and_no_mask_agree_exactly_and_it_says_so() -> None:
    (text,) = notices(0.1, adversary="none", share_dropout=True)
    assert text == "asa: the two passes agree exactly, so its term is 0; switch dropout on or mask something."


def test_two_passes_with_their_own_dropout_differ() -> None:
    assert notices(0.1, adversary="none") == []


def test_a_shared_dropout_leaves_the_masks_as_the_only_difference() -> None:
    model, batch = tiny_model("bert", dtype=torch.float64), tiny_batch("bert")
    out = RegularizedModel(model, [ASA(share_dropout=True, keep_bias=ALL_KEPT)])(**batch)
    assert float(out.terms["asa"]) < REPLAYED


def test_an_adversary_that_masks_nothing_is_told_of() -> None:
    (text,) = notices(0.1, keep_bias=ALL_KEPT)
    assert text == (
        "asa: the adversary keeps 100.0% of the attention units, so this run is consistency between two dropout draws "
        "at twice the cost; use a smaller asa.temperature or target_mask_fraction."
    )


def test_an_adversary_that_masks_something_is_not_spoken_about() -> None:
    assert notices(0.1) == []


class Waits(TorchDispatchMode):
    """Counts operations for which a host must wait for its accelerator."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero)
        return func(*args, **(kwargs or {}))


def test_masking_waits_for_nothing() -> None:
    found = []
    settings: list[dict[str, Any]] = [{"adversary": "none"}, {"target_mask_fraction": 0.2}]
    settings += [{"adversary": "random", "mask_fraction": 0.2, "protect": "none"}]
    for setting in settings:
        wrapper = wrap(**setting)
        wrapper(**tiny_batch("bert"))
        with Waits() as waits:
            wrapper(**tiny_batch("bert")).loss.backward()
        found.append(waits.count)
    assert found == [found[0]] * 3  # what the encoder itself waits for


# -- masks by chance --------------------------------------------------------------------------------------------------


def test_a_random_adversary_masks_the_asked_share_of_the_free_units_and_nothing_else(masks: list[Mask]) -> None:
    one_step(adversary="random", mask_fraction=0.3)
    free, masked = (
        sum(int(part.sum()) for part in parts) for parts in ([m.free for m in masks], [m.masked for m in masks])
    )
    error = STANDARD_ERRORS * (0.3 * 0.7 / free) ** 0.5
    assert masked / free == pytest.approx(0.3, abs=error)
    assert not any((mask.masked & ~mask.free).any() for mask in masks)


@pytest.mark.parametrize(("fraction", "kept"), [(0.0, 1.0), (1.0, 0.0)])
def test_a_random_adversary_may_mask_nothing_or_everything(fraction: float, kept: float) -> None:
    out = one_step(adversary="random", mask_fraction=fraction)
    assert float(out.telemetry["asa/keep_rate"]) == kept
    assert torch.isfinite(out.loss)


def test_random_masks_differ_by_layer_step_and_seed_and_repeat_by_name(masks: list[Mask]) -> None:
    for seed in (0, 0, 1):
        wrapper = wrap(seed=seed, adversary="random", mask_fraction=0.5)
        for _ in range(2):
            wrapper(**tiny_batch("bert"))
    first, again, other = (masks[i : i + 2 * DEPTH] for i in range(0, len(masks), 2 * DEPTH))
    assert all(torch.equal(a.masked, b.masked) for a, b in zip(first, again, strict=True))
    drawn = [mask.masked for mask in (*first, *other)]
    assert not any(torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])


@pytest.mark.parametrize("settings", [{"adversary": "none"}, {"adversary": "random", "mask_fraction": 0.2}])
def test_only_a_learned_adversary_has_parameters(settings: dict[str, Any]) -> None:
    assert len(wrap(**settings).method_modules) == 0


def test_without_an_adversary_nothing_is_masked(masks: list[Mask]) -> None:
    out = one_step(adversary="none")
    assert masks == [] and "asa/keep_rate" not in out.telemetry


# -- other inputs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", WITH_BIAS)
def test_one_token_leaves_nothing_to_mask(family: str) -> None:
    wrapper = wrap(family)
    out = wrapper(**tiny_batch(family, tokens=1, padded=False))
    out.loss.backward()
    assert float(out.terms["asa"]) < REPLAYED
    assert {float(value) for name, value in out.telemetry.items() if "keep_rate" in name} == {1.0}
    found = gradients(wrapper.method_modules)
    assert found.keys() == dict(wrapper.method_modules.named_parameters()).keys()
    assert not any(part.any() for part in found.values())


def test_regression_agrees_by_the_mean_squared_difference() -> None:
    model, batch = calm(num_labels=1), tiny_batch("bert", regression=True)
    seen: list[Tensor] = []
    model.register_forward_hook(lambda module, args, output: seen.append(output.logits.detach()))
    out = RegularizedModel(model, [ASA()])(**batch)
    clean, masked = seen
    expected = sum((a - b) ** 2 for a, b in zip(clean[:, 0], masked[:, 0], strict=True)) / 4
    torch.testing.assert_close(out.terms["asa"], expected, **CLOSE)


# -- evaluation, saving, checkpointing --------------------------------------------------------------------------------


def test_evaluation_and_a_saved_model_are_the_plain_model(tmp_path: Path) -> None:
    model, inputs = tiny_model("bert"), inputs_of(tiny_batch("bert"))
    expected = copy.deepcopy(model).eval()(**inputs).logits
    names = list(model.state_dict())
    wrapper = RegularizedModel(model, [ASA()])
    wrapper(**tiny_batch("bert"))
    assert torch.equal(wrapper.eval()(**inputs).logits, expected)
    wrapper.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(**inputs).logits, expected)
    assert list(loaded.state_dict()) == names


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
@pytest.mark.parametrize("family", ["bert", "modernbert", "distilbert"])
def test_checkpointing_gives_the_same_gradients_to_encoder_and_adversary(family: str) -> None:
    found = []
    for checkpointed in (False, True):
        model: Any = tiny_model(family, dtype=torch.float64)
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        wrapper = RegularizedModel(model, [ASA()])
        torch.manual_seed(0)
        wrapper(**tiny_batch(family)).loss.backward()
        found.append(gradients(wrapper))
    assert found[0].keys() == dict(wrapper.named_parameters()).keys()
    torch.testing.assert_close(found[1], found[0], rtol=REPLAYED, atol=REPLAYED)


# -- nothing is left behind -------------------------------------------------------------------------------------------


class Saved:
    """What a graph keeps of one activation; only the graph refers to it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Only what is not in a cycle goes away."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("family", ["bert", "modernbert", "deberta-v2"])
def test_the_graph_of_a_step_goes_with_its_output(family: str) -> None:
    wrapper = wrap(family)
    references: list[weakref.ref[Saved]] = []

    def pack(tensor: Tensor) -> Saved:
        saved = Saved(tensor.detach())  # an output that is saved for its own gradient would be a cycle of our making
        references.append(weakref.ref(saved))
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        out = wrapper(**tiny_batch(family))
    assert sum(reference() is not None for reference in references) > 100
    del out
    assert sum(reference() is not None for reference in references) == 0


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("family", ["bert", "modernbert", "deberta-v2"])
def test_a_trained_step_leaves_no_tensor_alive(family: str) -> None:
    wrapper = wrap(family)
    counts = []
    for _ in range(3):  # the first one makes gradients and telemetry
        wrapper(**tiny_batch(family)).loss.backward()
        counts.append(sum(issubclass(type(found), Tensor) for found in gc.get_objects()))
    assert counts[2] == counts[1]


def test_an_exception_in_the_masked_pass_leaves_deberta_as_it_was() -> None:
    model, batch = calm("deberta-v2"), tiny_batch("deberta-v2")
    expected = model(**inputs_of(batch)).logits
    wrapper = RegularizedModel(model, [ASA()])
    calls: list[int] = []

    def fail(module: nn.Module, args: Any) -> None:
        calls.append(1)
        if len(calls) == 2:  # the clean pass is the first
            raise ArithmeticError("inside the masked pass")

    handle = model.deberta.encoder.layer[1].intermediate.register_forward_pre_hook(fail)
    with pytest.raises(ArithmeticError):
        wrapper(**batch)
    handle.remove()
    assert torch.equal(model(**inputs_of(batch)).logits, expected)
    twin = wrap("deberta-v2")
    assert torch.equal(wrapper(**batch).loss, twin(**batch).loss)


# -- the adversary learns ---------------------------------------------------------------------------------------------


def course(steps: int, *, sign: float = 1.0, seed: int = 0, spread: float = 0.0, **settings: Any) -> list[Any]:
    """Outputs of some steps that train the adversary alone, from weights spread around its usual ones."""
    wrapper = RegularizedModel(tiny_model("bert", dropout=0.0, depth=2, seed=seed), [ASA(**settings)], seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in wrapper.method_modules.parameters():
            parameter.add_(torch.empty_like(parameter).normal_(0, spread, generator=generator))
    wrapper.model.requires_grad_(False)
    optimizer = torch.optim.AdamW(wrapper.method_modules.parameters(), lr=1e-2, weight_decay=0.0)
    outputs = []
    for _ in range(steps):
        out = wrapper(**tiny_batch("bert", seed=seed, padded=False))
        optimizer.zero_grad()
        (sign * out.loss).backward()
        optimizer.step()
        outputs.append(out)
    return outputs


def growth(sign: float) -> float:
    """Median over encoders of the mean divergence of the last steps over the first."""
    factors = []
    for seed in range(5):
        terms = [float(out.terms["asa"]) for out in course(15, sign=sign, seed=seed, spread=0.1, temperature=0.0)]
        factors.append(statistics.mean(terms[-5:]) / terms[0])
    return statistics.median(factors)


def test_without_a_price_the_adversary_drives_the_divergence_up() -> None:
    assert growth(1.0) > 1


def test_without_the_reversal_it_would_drive_the_divergence_down() -> None:
    assert growth(-1.0) < 1


def test_a_high_price_makes_it_keep_everything() -> None:
    outputs = course(20, temperature=100.0)
    assert float(outputs[0].telemetry["asa/keep_rate"]) < 0.9
    assert float(outputs[-1].telemetry["asa/keep_rate"]) == 1
    assert float(outputs[-1].terms["asa"]) < REPLAYED


@pytest.mark.parametrize(
    ("keep_rate", "multiplier", "said"),
    [(0.96, 1e-3, 1), (0.4, 2e4, 1), (0.96, 0.5, 0), (0.86, 1e-3, 0)],
    ids=["too little is masked", "too much is masked", "the price is near", "the target is met"],
)
def test_a_price_that_ran_ahead_of_the_adversary_is_said(keep_rate: float, multiplier: float, said: int) -> None:
    asa = ASA(parameterization="normalized", target_mask_fraction=0.15)
    found = asa.judge({"keep_rate": keep_rate, "price_multiplier": multiplier})
    assert ["the adversary answers late" in sentence for sentence in found] == [True] * said


def test_a_fixed_price_runs_ahead_of_nothing() -> None:
    assert ASA().judge({"keep_rate": 0.4}) == []

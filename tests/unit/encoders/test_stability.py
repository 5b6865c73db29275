from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import steadytune.encoders.stability
from dummies import LogitPenalty
from steadytune import RegularizedModel
from steadytune.encoders import Sites, SiteUnavailable, stability_curve
from steadytune.encoders.families import describe
from tiny import FAMILIES, PAD, WIDTH, inputs_of, tiny_batch, tiny_model
from tolerances import LINEAR, OTHER_ENCODER, SAME

DEPTH = 3
CLOSE: dict[str, float] = {"rtol": SAME[torch.float64], "atol": SAME[torch.float64]}


def calm(family: str = "bert", **options: Any) -> Any:
    return tiny_model(family, dropout=0.0, **{"dtype": torch.float64, **options})


def inputs(family: str = "bert", **options: Any) -> dict[str, Tensor]:
    return inputs_of(tiny_batch(family, **options))


@pytest.fixture
def constant_draws(monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Every token draws this direction."""
    direction = torch.linspace(-1.0, 2.0, WIDTH, dtype=torch.float64)
    monkeypatch.setattr(
        steadytune.encoders.stability,
        "draw_noise",
        lambda like, *_: direction.to(like.dtype).repeat(*like.shape[:2], 1),
    )
    return direction


def reported(model: Any, batch: dict[str, Tensor], layer: int, direction: Tensor | None, size: float) -> list[Tensor]:
    """The states that the model itself reports, after noise along one direction at the entrance of a layer."""
    calls = iter(range(DEPTH))
    real = batch["attention_mask"][..., None].to(torch.float64)

    def add(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if next(calls) != layer or direction is None:
            return None
        turned = real.transpose(0, 1) if describe(model).family.name == "xlnet" else real  # (tokens, batch, 1)
        noise = size * args[0].norm(dim=-1, keepdim=True) * direction / direction.norm() * turned
        return (args[0] + noise, *args[1:])

    handles = [module.register_forward_pre_hook(add) for module in describe(model).layers]
    with torch.no_grad():
        found = model.eval()(**batch, output_hidden_states=True).hidden_states
    for handle in handles:
        handle.remove()
    return list(found)


@pytest.mark.parametrize(
    ("family", "layer"), [(f, i) for f in FAMILIES for i in range(DEPTH) if (f, i) != ("deberta-v2-conv", 0)]
)
def test_curve_is_the_mean_ratio_of_two_plain_passes(family: str, layer: int, constant_draws: Tensor) -> None:
    model, batch = calm(family), inputs(family)
    clean, noisy = (reported(model, batch, layer, direction, 0.05) for direction in (None, constant_draws))
    expected = []
    for r in range(layer + 1, DEPTH + 1):
        examples = []
        for one, two, mask in zip(noisy[r], clean[r], batch["attention_mask"], strict=True):
            ratios = [float((a - b).norm() / b.norm()) for a, b, m in zip(one, two, mask, strict=True) if m]
            examples.append(sum(ratios) / len(ratios))
        expected.append(sum(examples) / len(examples))
    curve = stability_curve(model, batch, layer=layer)
    torch.testing.assert_close(curve, torch.tensor(expected, dtype=torch.float64), **CLOSE)


def pre_norm_identity() -> Any:
    """A ModernBERT whose layers add nothing to what enters them."""
    model = calm("modernbert")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.attn.Wo.weight.zero_()
            layer.mlp.Wo.weight.zero_()
    return model


@pytest.mark.parametrize("size", [0.05, 0.2])
def test_layers_that_do_nothing_keep_the_ratio_that_was_injected(size: float) -> None:
    curve = stability_curve(pre_norm_identity(), inputs("modernbert"), relative_noise=size)
    torch.testing.assert_close(curve[:-1], torch.full((DEPTH - 1,), size, dtype=torch.float64), **CLOSE)


def test_the_top_is_compared_after_the_final_norm(constant_draws: Tensor) -> None:
    model, batch = pre_norm_identity(), inputs("modernbert", rows=1)  # one row without padding
    with torch.no_grad():
        states = model.model.embeddings(batch["input_ids"])[0]
        noise = 0.05 * states.norm(dim=-1, keepdim=True) * constant_draws / constant_draws.norm()
        clean, noisy = model.model.final_norm(states), model.model.final_norm(states + noise)
    expected = ((noisy - clean).norm(dim=-1) / clean.norm(dim=-1)).mean()
    torch.testing.assert_close(stability_curve(model, batch)[-1], expected, **CLOSE)


def test_halving_a_small_noise_halves_the_curve() -> None:
    one, half = (stability_curve(calm(), inputs(), relative_noise=size) for size in (1e-5, 5e-6))
    assert float(half.min()) > 0
    torch.testing.assert_close(half, one / 2, rtol=LINEAR, atol=0)


def test_one_seed_gives_one_curve_and_another_gives_another() -> None:
    one, same, other = (stability_curve(calm(), inputs(), seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.isclose(one, other).any()


@pytest.mark.usefixtures("constant_draws")
def test_padding_does_not_count() -> None:
    batch = inputs()
    longer = {
        "input_ids": nn.functional.pad(batch["input_ids"], (0, 4), value=PAD),
        "attention_mask": nn.functional.pad(batch["attention_mask"], (0, 4)),
    }
    torch.testing.assert_close(stability_curve(calm(), longer), stability_curve(calm(), batch), **CLOSE)


def test_without_a_mask_every_token_is_real() -> None:
    batch = inputs(padded=False)
    assert torch.equal(stability_curve(calm(), {"input_ids": batch["input_ids"]}), stability_curve(calm(), batch))


def test_dropout_is_off() -> None:
    assert torch.equal(
        stability_curve(tiny_model("bert"), inputs()), stability_curve(calm(dtype=torch.float32), inputs())
    )


def test_every_module_is_put_back_in_its_own_mode() -> None:
    model: Any = tiny_model("bert")
    model.bert.embeddings.eval()
    before = {name: module.training for name, module in model.named_modules()}
    stability_curve(model, inputs())
    assert {name: module.training for name, module in model.named_modules()} == before


def test_an_exception_leaves_the_mode_and_no_hook() -> None:
    model = tiny_model("bert")
    with pytest.raises(IndexError):
        stability_curve(model, {"input_ids": torch.full((1, 4), 10_000)})
    assert model.training
    Sites(model).close()  # refuses a model that still has hooks


def test_the_main_random_stream_is_not_touched() -> None:
    before = torch.get_rng_state()
    stability_curve(tiny_model("bert"), inputs())
    assert torch.equal(torch.get_rng_state(), before)


def test_it_carries_no_graph() -> None:
    assert not stability_curve(tiny_model("bert"), inputs()).requires_grad


def test_ratios_of_half_precision_states_are_taken_in_float32() -> None:
    assert stability_curve(calm(dtype=torch.bfloat16), inputs()).dtype == torch.float32


@pytest.mark.parametrize("layer", [-1, DEPTH])
def test_a_layer_that_is_not_there_is_refused(layer: int) -> None:
    with pytest.raises(SiteUnavailable, match=rf"^layer must be from 0 to 2 for this bert; got {layer}\.$"):
        stability_curve(calm(), inputs(), layer=layer)


def test_embeddings_of_a_deberta_with_convolution_are_refused() -> None:
    with pytest.raises(SiteUnavailable, match=r"^layer must be from 1 to 2 for this deberta-v2; got 0\.$"):
        stability_curve(calm("deberta-v2-conv"), inputs("deberta-v2-conv"))


def test_a_wrapped_model_is_refused_until_its_wrapper_is_closed() -> None:
    wrapper = RegularizedModel(calm(), [LogitPenalty()])
    with pytest.raises(RuntimeError, match=r"call close\(\) on its RegularizedModel first"):
        stability_curve(wrapper.model, inputs())
    wrapper.close()
    curve = stability_curve(wrapper.model, inputs())
    wrapper.reopen()
    wrapper(**tiny_batch("bert")).loss.backward()
    assert torch.equal(curve, stability_curve(calm(), inputs()))


@pytest.mark.slow
def test_a_random_bert_base_damps_noise_at_its_embeddings_as_another_one_did() -> None:
    # source: lnsr.md, section 12, one random model; ten others average to within 1.1e-3 of it
    expected = [0.0495, 0.0489, 0.0483, 0.0479, 0.0473, 0.0469, 0.0466, 0.0459, 0.0444, 0.0439, 0.0428, 0.0412]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=1000))
        batch = {"input_ids": torch.randint(5, 1000, (4, 32))}
    torch.testing.assert_close(stability_curve(model, batch), torch.tensor(expected), rtol=0, atol=OTHER_ENCODER)

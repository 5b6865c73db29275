"""R3F and R4F against their definitions, on an encoder that knows nothing of passes."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from equivalence.straight_line import (
    CLOSE,
    RANK,
    SEED,
    WIDTH,
    batch,
    cross_entropy,
    divergence,
    dropout_of,
    forward,
    gradients,
    tiny_bert,
    trained,
)
from steadytune import R3F, HyPe, RegularizedModel
from steadytune.encoders import SiteUnavailable
from steadytune.functional import keyed_generator, keyed_seed
from steadytune.methods import MethodError
from tiny import tiny_batch, tiny_model
from tolerances import SAME

SETTINGS = {
    "as published": R3F(),
    "large noise": R3F(noise_std=0.1, weight=0.3),
    "uniform": R3F(noise_std=0.1, distribution="uniform"),
    "relative": R3F(noise_std=0.5, relative=True),
    "same dropout": R3F(noise_std=0.1, same_dropout=True),
    "not detached": R3F(noise_std=0.1, detach=False),
    "without noise": R3F(noise_std=0.0),
    "r4f": R3F(noise_std=0.1, spectral_norm=True),
    "divided head only": R3F(weight=0.0, spectral_norm=True),
}


def divided(model: Any) -> Any:
    """The same model with its classifier's weight over its largest singular value."""
    weight = model.classifier.weight
    largest = torch.linalg.eigvalsh(weight @ weight.T)[-1].sqrt()
    head = SimpleNamespace(weight=weight / largest, bias=model.classifier.bias)
    return SimpleNamespace(bert=model.bert, config=model.config, classifier=head)


def noise_of(model: Any, data: dict[str, Tensor], r3f: R3F, step: int) -> Tensor:
    noise = torch.empty(*data["input_ids"].shape, WIDTH, dtype=torch.float64)
    generator = keyed_generator("cpu", SEED, "r3f", step, RANK, "loss", "noise")
    if r3f.distribution == "normal":
        noise.normal_(0, r3f.noise_std, generator=generator)
    else:
        noise.uniform_(-r3f.noise_std, r3f.noise_std, generator=generator)
    if r3f.relative:
        noise *= (model.bert.embeddings.word_embeddings.weight.detach() ** 2).mean() ** 0.5
    return noise * data["attention_mask"][..., None]


def line(model: Any, data: dict[str, Tensor], r3f: R3F, step: int) -> tuple[Tensor, Tensor | None]:
    """Loss and term of one step."""
    shown = divided(model) if r3f.spectral_norm else model
    start = torch.get_rng_state()
    clean = forward(shown, data).logits
    loss = cross_entropy(clean, data["labels"])
    if r3f.weight == 0:
        return loss, None
    words = model.bert.embeddings.word_embeddings.weight[data["input_ids"]]
    words = (words.detach() if r3f.detach else words) + noise_of(model, data, r3f, step)
    places = torch.arange(data["input_ids"].numel()).view(data["input_ids"].shape)
    with dropout_of(start if r3f.same_dropout else keyed_seed(SEED, "dropout", "r3f", step, RANK)):
        noisy = forward(shown, {**data, "input_ids": places}, words=words.flatten(0, 1)).logits
    term = 2 * divergence(clean, noisy)
    return loss + r3f.weight * term, term


def wrapped(r3f: R3F, dropout: float = 0.1) -> RegularizedModel:
    wrapper = RegularizedModel(tiny_bert(dropout), [r3f], seed=SEED)
    wrapper.attach(torch.optim.SGD(wrapper.parameter_groups(lr=0.0)))
    return wrapper


@pytest.mark.parametrize("name", SETTINGS)
def test_value_and_gradient_are_those_of_the_definition(name: str) -> None:
    r3f = SETTINGS[name]
    wrapper, by_hand = wrapped(r3f), tiny_bert(0.1)
    for step in range(2):
        data = batch(step)
        torch.manual_seed(step)
        found = wrapper(**data)
        found.loss.backward()
        torch.manual_seed(step)
        loss, term = line(by_hand, data, r3f, step)
        loss.backward()
        torch.testing.assert_close(found.loss, loss, **CLOSE)
        if term is None:
            assert found.terms == {}
        else:
            torch.testing.assert_close(found.terms["r3f"], term.detach(), **CLOSE)
        expected = gradients(by_hand.named_parameters())
        torch.testing.assert_close(gradients(wrapper.model.named_parameters()), expected, **CLOSE)
        wrapper.zero_grad()
        by_hand.zero_grad()


@pytest.mark.parametrize("name", ["large noise", "r4f"])
def test_weights_after_several_steps_on_accumulated_batches_are_those_of_the_definition(name: str) -> None:
    r3f, number = SETTINGS[name], 0
    model, by_hand = tiny_bert(0.1), tiny_bert(0.1)
    wrapper = RegularizedModel(model, [r3f], seed=SEED)
    ours, theirs = (torch.optim.AdamW(m.parameters(), lr=1e-3) for m in (model, by_hand))
    wrapper.attach(ours)
    for update in range(3):
        batches = [batch(2 * update), {name: value[:2] for name, value in batch(2 * update + 1).items()}]
        torch.manual_seed(update)
        for output in wrapper.accumulate(batches):
            output.loss.backward()
        torch.manual_seed(update)
        for data in batches:
            loss, _ = line(by_hand, data, r3f, number)
            (loss * len(data["labels"]) / 8).backward()
            number += 1
        for optimizer in (ours, theirs):
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(dict(model.named_parameters()), dict(by_hand.named_parameters()), **CLOSE)
    if r3f.spectral_norm:
        wrapper.finish()
        torch.testing.assert_close(
            model.classifier.weight.detach(), divided(by_hand).classifier.weight.detach(), **CLOSE
        )


def test_a_weight_of_0_trains_as_plain_bit_for_bit() -> None:
    ends = []
    for methods in ([], [R3F(weight=0.0)]):
        model = tiny_bert(0.1)
        wrapper = RegularizedModel(model, methods, seed=SEED)
        ends.append(trained(model, lambda data, wrapper=wrapper: wrapper(**data).loss))
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


@pytest.mark.parametrize(
    ("name", "count"), [("as published", 2), ("same dropout", 2), ("r4f", 2), ("divided head only", 1)]
)
def test_the_number_of_passes(name: str, count: int) -> None:
    passes = wrapped(SETTINGS[name])(**batch()).passes
    assert (passes.forward, passes.activation_gradient, passes.weight_gradient) == (count,) * 3


def test_regression_compares_by_the_squared_difference() -> None:
    model, data = tiny_model("bert", num_labels=1, dropout=0.0), tiny_batch("bert", regression=True)
    kept: list[Tensor] = []
    model.register_forward_hook(lambda m, a, out: kept.append(out.logits.detach()))
    found = RegularizedModel(model, [R3F(noise_std=0.1)])(**data)
    torch.testing.assert_close(found.terms["r3f"], ((kept[0] - kept[1]) ** 2).mean())


def test_with_the_same_dropout_and_tiny_noise_the_term_is_tiny_and_with_fresh_dropout_it_is_not() -> None:
    terms = [float(wrapped(R3F(same_dropout=same))(**batch()).terms["r3f"]) for same in (True, False)]
    assert terms[0] < SAME[torch.float64] < terms[1]


def test_noise_of_hype_is_replayed_with_the_same_dropout() -> None:
    wrapper = RegularizedModel(tiny_bert(0.1), [HyPe(noise_std=0.1), R3F(same_dropout=True)])
    assert float(wrapper(**batch()).terms["r3f"]) < SAME[torch.float64]


# -- the divided head -------------------------------------------------------------------------------------------------


def largest(weight: Tensor) -> float:
    return float(torch.linalg.svdvals(weight.detach())[0])


def test_evaluation_uses_the_divided_head_and_training_goes_on_with_the_other() -> None:
    wrapper = wrapped(SETTINGS["r4f"])
    before = wrapper.model.classifier.weight.detach().clone()
    assert wrapper.swap_averages()
    assert largest(wrapper.model.classifier.weight) == pytest.approx(1.0, abs=SAME[torch.float64])
    wrapper.swap_averages()
    assert torch.equal(wrapper.model.classifier.weight, before)


def test_evaluation_of_the_divided_head_gives_the_scores_of_training() -> None:
    wrapper = wrapped(R3F(noise_std=0.1, spectral_norm=True), dropout=0.0)
    data = batch()
    trained_scores = wrapper(**data).logits.detach()
    wrapper.swap_averages()
    torch.testing.assert_close(wrapper.eval()(**data).logits.detach(), trained_scores, **CLOSE)


def test_the_exported_head_is_divided_as_it_was_after_the_last_update() -> None:
    model = tiny_bert(0.1)
    wrapper = RegularizedModel(model, [SETTINGS["r4f"]], seed=SEED)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    wrapper.attach(optimizer)
    wrapper(**batch()).loss.backward()
    optimizer.step()
    last = model.classifier.weight.detach().clone()
    wrapper.finish()
    torch.testing.assert_close(model.classifier.weight.detach(), last / largest(last), **CLOSE)


def test_divided_weights_survive_a_saved_state(tmp_path: Path) -> None:
    one = wrapped(SETTINGS["r4f"])
    one.save_state(tmp_path)
    two = RegularizedModel(copy.deepcopy(one.model), [SETTINGS["r4f"]], seed=SEED)
    two.load_state(tmp_path)
    assert one.method_modules.state_dict().keys() == two.method_modules.state_dict().keys()
    for wrapper in (one, two):
        wrapper.swap_averages()
    assert torch.equal(one.model.classifier.weight, two.model.classifier.weight)


@pytest.mark.parametrize(("family", "names"), [("bert", 1), ("roberta", 2), ("distilbert", 2), ("xlnet", 2)])
def test_every_linear_map_outside_the_encoder_is_divided(family: str, names: int) -> None:
    wrapper = RegularizedModel(tiny_model(family, dtype=torch.float64), [R3F(spectral_norm=True)])
    found = wrapper.methods[0].averages(wrapper.method_modules["r3f"])
    assert len(found) == names
    assert [largest(weight) for weight in found.values()] == pytest.approx([1.0] * names, abs=SAME[torch.float64])


def test_a_weight_of_zeros_stays_zeros_with_a_finite_gradient() -> None:
    model = tiny_bert(0.1)
    with torch.no_grad():
        model.classifier.weight.zero_()
    wrapper = RegularizedModel(model, [SETTINGS["r4f"]])
    wrapper.attach(torch.optim.SGD(model.parameters(), lr=0.0))
    wrapper(**batch()).loss.backward()
    assert torch.isfinite(model.classifier.weight.grad).all()


def test_only_a_divided_head_needs_the_optimizer() -> None:
    RegularizedModel(tiny_bert(0.1), [R3F()])(**batch())
    with pytest.raises(MethodError, match=r"^r3f acts in optimizer steps; call attach"):
        RegularizedModel(tiny_bert(0.1), [SETTINGS["r4f"]])(**batch())


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
def test_a_divided_head_under_gradient_checkpointing_is_refused() -> None:
    model = tiny_bert(0.1)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with pytest.raises(SiteUnavailable, match=r"^r3f\.spectral_norm needs the site 'weights'"):
        RegularizedModel(model, [SETTINGS["r4f"]])


# -- what it refuses and says -----------------------------------------------------------------------------------------


def test_two_equal_passes_are_refused() -> None:
    with pytest.raises(MethodError, match=r"^r3f compares two equal passes: with noise_std 0 and same_dropout true"):
        RegularizedModel(tiny_bert(0.1), [R3F(noise_std=0.0, same_dropout=True)])


def test_no_noise_and_no_dropout_are_refused_at_the_first_step() -> None:
    with pytest.raises(MethodError) as caught:
        RegularizedModel(tiny_bert(0.0), [R3F(noise_std=0.0)])(**batch())
    assert str(caught.value) == (
        "r3f compares two equal passes: noise_std is 0 and dropout is 0 for hidden, attention, head; raise one of them."
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_embeddings_that_round_the_noise_away_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(MethodError, match=r"^r3f\.noise_std 1e-05 is rounded away by the b?float16 embeddings \("):
        RegularizedModel(tiny_bert(0.1, dtype), [R3F()])(**batch())


def test_autocast_that_rounds_the_noise_away_is_said_once() -> None:
    wrapper = RegularizedModel(tiny_bert(0.1, torch.float32), [R3F()])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wrapper(**batch())
    assert [text for text in wrapper.notices if text.startswith("r3f: autocast to bfloat16 rounds noise")]


def test_a_batch_with_its_own_embeddings_is_refused() -> None:
    data, model = batch(), tiny_bert(0.1)
    data["inputs_embeds"] = model.bert.embeddings.word_embeddings(data.pop("input_ids")).detach()
    with pytest.raises(MethodError, match=r"^r3f needs input_ids: "):
        RegularizedModel(model, [R3F()])(**data)


@pytest.mark.parametrize(("noise", "dropout", "said"), [(1e-4, 0.1, 1), (1e-4, 0.0, 0), (0.1, 0.1, 0), (0.0, 0.1, 0)])
def test_a_term_that_is_mostly_dropout_is_spoken_about(noise: float, dropout: float, said: int) -> None:
    assert len(R3F().judge({"relative_noise": noise, "fresh_dropout": dropout})) == said


def test_telemetry_has_the_size_of_the_noise_and_of_the_term() -> None:
    telemetry = wrapped(R3F(noise_std=0.1))(**batch()).telemetry
    assert telemetry.keys() == {"r3f/divergence", "r3f/relative_noise", "r3f/fresh_dropout"}
    assert float(telemetry["r3f/relative_noise"]) > 0.1

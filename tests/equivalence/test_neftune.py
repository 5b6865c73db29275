"""NEFTune against its definition and against the arithmetic of transformers."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.integrations.neftune import neftune_post_forward_hook

from dummies import Climb
from equivalence.straight_line import (
    CLOSE,
    RANK,
    SEED,
    WIDTH,
    Seen,
    batch,
    cross_entropy,
    dropout_of,
    forward,
    gradients,
    tiny_bert,
    trained,
)
from steadytune import NEFTune, RDrop, RegularizedModel
from steadytune.functional import keyed_generator, keyed_seed
from steadytune.methods import MethodError
from tiny import FAMILIES, inputs_of, tiny_batch, tiny_model
from tolerances import SAME


def noised(model: Any, data: dict[str, Tensor], noise: Tensor) -> Seen:
    """A pass whose word embeddings carry this noise: every place has a row of the matrix to itself."""
    words = model.bert.embeddings.word_embeddings.weight[data["input_ids"]] + noise
    places = torch.arange(words.shape[0] * words.shape[1]).view(data["input_ids"].shape)
    return forward(model, {**data, "input_ids": places}, words=words.flatten(0, 1))


def drawn(data: dict[str, Tensor], neftune: NEFTune, stream: str, step: int) -> Tensor:
    rows, tokens = data["input_ids"].shape
    generator = keyed_generator("cpu", SEED, "neftune", step, RANK, stream, "noise")
    noise = torch.empty(rows, tokens, WIDTH, dtype=torch.float64).uniform_(-1, 1, generator=generator)
    for row, length in enumerate(data["attention_mask"].sum(dim=1).tolist()):
        noise[row] *= neftune.alpha / ((length if neftune.scale_by == "real" else tokens) * WIDTH) ** 0.5
        noise[row, length:] = 0
    return noise


@pytest.mark.parametrize("neftune", [NEFTune(), NEFTune(alpha=3.0), NEFTune(scale_by="padded")], ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_value_and_gradient_are_those_of_the_definition(neftune: NEFTune, dropout: float) -> None:
    wrapper, by_hand = RegularizedModel(tiny_bert(dropout), [neftune], seed=SEED), tiny_bert(dropout)
    for step in range(2):
        data = batch(step)
        torch.manual_seed(step)
        found = wrapper(**data).loss
        found.backward()
        torch.manual_seed(step)
        expected = cross_entropy(noised(by_hand, data, drawn(data, neftune, "clean", step)).logits, data["labels"])
        expected.backward()
        torch.testing.assert_close(found, expected, **CLOSE)
        named = gradients(by_hand.named_parameters())
        torch.testing.assert_close(gradients(wrapper.model.named_parameters()), named, **CLOSE)
        wrapper.zero_grad()
        by_hand.zero_grad()


def test_both_passes_of_a_stack_carry_noise_of_their_own() -> None:
    neftune, data, model = NEFTune(alpha=2.0), batch(), tiny_bert(0.1)
    torch.manual_seed(0)
    found = RegularizedModel(tiny_bert(0.1), [neftune, RDrop(weight=0.0)], seed=SEED)(**data).loss
    torch.manual_seed(0)
    one = noised(model, data, drawn(data, neftune, "clean", 0)).logits
    with dropout_of(keyed_seed(SEED, "dropout", "rdrop", 0, RANK)):
        two = noised(model, data, drawn(data, neftune, "rdrop", 0)).logits
    expected = (cross_entropy(one, data["labels"]) + cross_entropy(two, data["labels"])) / 2
    torch.testing.assert_close(found, expected, **CLOSE)


class Embeddings(nn.Module):
    """What the hook of transformers reads from an embedding."""

    neftune_noise_alpha = 2.5


def test_padded_is_the_arithmetic_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("bert", dropout=0.0)
    data = tiny_batch("bert", padded=False)
    states = model.bert.embeddings.word_embeddings(data["input_ids"]).detach()  # type: ignore[union-attr,operator]
    torch.manual_seed(5)
    expected = neftune_post_forward_hook(Embeddings().train(), None, states)

    def from_the_main_stream(like: Tensor, scale: float, *_: Any) -> Tensor:
        torch.manual_seed(5)
        return torch.empty_like(like, requires_grad=False).uniform_(-scale, scale)

    monkeypatch.setattr("steadytune.methods.neftune.draw_noise", from_the_main_stream)
    seen: list[Tensor] = []
    wrapper = RegularizedModel(model, [NEFTune(alpha=2.5, scale_by="padded")])
    norm: Any = wrapper.model.bert.embeddings.LayerNorm
    norm.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    wrapper(**data)
    parts: Any = wrapper.model.bert.embeddings
    rest = parts.position_embeddings.weight[: states.shape[1]] + parts.token_type_embeddings.weight[0]
    found, near = seen[0] - rest.detach(), SAME[torch.float32]  # the hook takes its square root in float32
    torch.testing.assert_close(found, expected, rtol=near, atol=near)


def test_padding_and_the_other_texts_of_the_batch_do_not_change_the_strength_on_a_text() -> None:
    widths = []
    for tokens in (9, 30):
        data = tiny_batch("bert", rows=1, tokens=9)
        extra = tokens - 9
        data = {
            "input_ids": nn.functional.pad(data["input_ids"], (0, extra), value=1),
            "attention_mask": nn.functional.pad(data["attention_mask"], (0, extra)),
            "labels": data["labels"],
        }
        widths.append(
            [
                float(
                    RegularizedModel(tiny_model("bert"), [NEFTune(scale_by=by)])(**data).telemetry["neftune/half_width"]
                )
                for by in ("real", "padded")
            ]
        )
    assert widths[0] == [widths[1][0], widths[0][0]]
    assert widths[1][1] < widths[0][1]


@pytest.mark.parametrize("family", FAMILIES)
def test_it_acts_on_real_tokens_only_in_every_family(family: str) -> None:
    model, data = tiny_model(family, dropout=0.0), tiny_batch(family)
    wrapper, kept = RegularizedModel(model, [NEFTune()]), list[Tensor]()
    from_table = copy.deepcopy(model).get_input_embeddings()(data["input_ids"])  # type: ignore[operator]
    wrapper._sites.anatomy.embedding.register_forward_hook(lambda m, a, out: kept.append(out))  # type: ignore[union-attr]
    wrapper(**data)
    states = kept[0] if family != "xlnet" else kept[0].transpose(0, 1)
    moved = (states != from_table).any(dim=-1)
    assert torch.equal(moved, data["attention_mask"].bool())


def test_a_pass_that_only_finds_a_direction_has_no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    method, seen = NEFTune(), list[str]()
    wrapper = RegularizedModel(tiny_bert(0.1), [method])
    describe = type(method).edits

    def edits(self: NEFTune, now: Any) -> Any:
        found = describe(self, now)
        for kind in ("label", "auxiliary", "probe", "teacher"):
            other = copy.copy(now)
            object.__setattr__(other, "kind", kind)
            seen.extend([kind] * (describe(self, other) is not None))
        return found

    monkeypatch.setattr(NEFTune, "edits", edits)
    wrapper(**batch())
    assert seen == ["label", "auxiliary"]


def test_the_noise_is_no_obstacle_to_a_gradient_at_the_embeddings() -> None:
    assert torch.isfinite(RegularizedModel(tiny_bert(0.1), [NEFTune(), Climb()])(**batch()).loss)


def test_an_alpha_of_0_trains_as_plain_bit_for_bit() -> None:
    ends = []
    for methods in ([], [NEFTune(alpha=0.0)]):
        model = tiny_bert(0.1)
        wrapper = RegularizedModel(model, methods, seed=SEED)
        ends.append(trained(model, lambda data, wrapper=wrapper: wrapper(**data).loss))
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_without_a_mask_every_token_is_real() -> None:
    data = tiny_batch("bert", padded=False)
    losses = []
    for given in (data, {name: value for name, value in data.items() if name != "attention_mask"}):
        torch.manual_seed(0)
        losses.append(RegularizedModel(tiny_model("bert", dtype=torch.float64), [NEFTune()])(**given).loss)
    torch.testing.assert_close(*losses, **CLOSE)


def test_there_is_one_pass() -> None:
    passes = RegularizedModel(tiny_bert(0.1), [NEFTune()])(**batch()).passes
    assert (passes.forward, passes.units) == (1, 3)


def test_embeddings_that_round_the_noise_away_are_refused() -> None:
    with pytest.raises(MethodError, match=r"^neftune\.alpha 0\.001 is rounded away by the bfloat16 embeddings \("):
        RegularizedModel(tiny_bert(0.1, torch.bfloat16), [NEFTune(alpha=1e-3)])(**batch())


def test_autocast_that_rounds_the_noise_away_is_said_once() -> None:
    wrapper = RegularizedModel(tiny_bert(0.1, torch.float32), [NEFTune(alpha=1e-3)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wrapper(**batch())
    assert [text for text in wrapper.notices if text.startswith("neftune: autocast to bfloat16 rounds noise")]


def test_a_batch_with_its_own_embeddings_is_refused() -> None:
    data = inputs_of(batch()) | {"labels": batch()["labels"]}
    model = tiny_bert(0.1)
    data["inputs_embeds"] = model.bert.embeddings.word_embeddings(data.pop("input_ids")).detach()
    with pytest.raises(MethodError, match=r"^neftune needs input_ids: "):
        RegularizedModel(model, [NEFTune()])(**data)


@pytest.mark.parametrize(("noise", "said"), [(1.5, 1), (0.2, 0)])
def test_noise_that_drowns_the_embeddings_is_spoken_about(noise: float, said: int) -> None:
    assert len(NEFTune().judge({"relative_noise": noise})) == said

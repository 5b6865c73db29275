"""TMix beside a straight line that mixes states, masks and one-hot labels by hand."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from equivalence.straight_line import (
    CLASSES,
    CLOSE,
    DEPTH,
    PADDING,
    RANK,
    SEED,
    batch,
    contrast,
    drop,
    forward,
    gradients,
    linear,
    norm,
    one_layer,
    same_class,
    tiny_bert,
    unbiased,
)
from steadytune import SCL, RegularizedModel, TMix
from steadytune.encoders import PassRunner, Sites, SiteUnavailable
from steadytune.functional import keyed_generator
from steadytune.methods import MethodError, Mixture
from steadytune.methods.tmix import mixing, partners_of
from tiny import tiny_batch, tiny_model

SETTINGS = [
    TMix(),
    TMix(alpha=0.5),
    TMix(alpha=0.5, fold=True),
    TMix(mix_layers=(0,)),
    TMix(mix_layers=(0, 1, 2), alpha=1.0),
    TMix(states=False),
]


def drawn(tmix: TMix, data: dict[str, Tensor], step: int) -> tuple[Tensor, float, int]:
    """Partners, share and layer of a step; all rows have labels."""
    generator = keyed_generator("cpu", SEED, "tmix", step, RANK, "loss", "partners")
    chance = random.Random(generator.initial_seed())
    share = chance.betavariate(tmix.alpha, tmix.alpha)
    share = max(share, 1 - share) if tmix.fold else share
    layer = chance.choice(sorted(tmix.mix_layers or (2,)))  # 7/12 and 9/12 of three layers, rounded up below the last
    return torch.rand(len(data["labels"]), generator=generator).argsort(), share, layer


def mixed_scores(model: Any, data: dict[str, Tensor], partners: Tensor, share: float, layer: int) -> Tensor:
    parts, mask = model.bert.embeddings, data["attention_mask"]
    positions = parts.position_embeddings.weight[: mask.shape[1]]
    summed = parts.word_embeddings.weight[data["input_ids"]] + positions + parts.token_type_embeddings.weight[0]
    states = drop(model, norm(parts.LayerNorm, summed))
    for index in range(DEPTH):
        if index == layer:
            states = share * states + (1 - share) * states[partners]
            mask = ((mask + mask[partners]) > 0).long()
        states = one_layer(model, index, states, mask, lambda place, at, entering: entering, unbiased(index, states))
    return linear(model.classifier, drop(model, torch.tanh(linear(model.bert.pooler.dense, states[:, 0]))))


def soft_cross_entropy(logits: Tensor, labels: Tensor, partners: Tensor, share: float) -> Tensor:
    targets = torch.eye(CLASSES, dtype=logits.dtype)[labels]
    targets = share * targets + (1 - share) * targets[partners]
    return -(targets * logits.log_softmax(dim=-1)).sum(dim=-1).mean()


@pytest.mark.parametrize("tmix", SETTINGS, ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_loss_and_every_gradient_are_those_of_mixed_states_and_soft_labels(tmix: TMix, dropout: float) -> None:
    wrapper, by_hand = RegularizedModel(tiny_bert(dropout), [tmix], seed=SEED), tiny_bert(dropout)
    for step in range(3):
        data = batch(step)
        torch.manual_seed(step)
        found = wrapper(**data)
        found.loss.backward()
        partners, share, layer = drawn(tmix, data, step)
        torch.manual_seed(step)
        logits = mixed_scores(by_hand, data, partners, share, layer if tmix.states else DEPTH)
        expected = soft_cross_entropy(logits, data["labels"], partners, share)
        expected.backward()
        by_hand.bert.embeddings.word_embeddings.weight.grad[PADDING] = 0  # attended to, and never trained
        torch.testing.assert_close(found.loss.detach(), expected.detach(), **CLOSE)
        torch.testing.assert_close(
            gradients(wrapper.model.named_parameters()), gradients(by_hand.named_parameters()), **CLOSE
        )
        assert found.passes.units == 3
        wrapper.zero_grad()
        by_hand.zero_grad()


def test_a_contrast_beside_it_reads_unmixed_texts_at_the_cost_of_one_pass() -> None:
    wrapper, by_hand = RegularizedModel(tiny_bert(0.0), [TMix(), SCL(weight=0.25)], seed=SEED), tiny_bert(0.0)
    found = wrapper(**batch(0))
    partners, share, layer = drawn(TMix(), batch(0), 0)
    label_loss = soft_cross_entropy(
        mixed_scores(by_hand, batch(0), partners, share, layer), batch(0)["labels"], partners, share
    )
    clean = forward(by_hand, batch(0))
    term = contrast(clean.vector, same_class(batch(0)["labels"]), SCL().temperature)
    torch.testing.assert_close(found.loss, 0.75 * label_loss + 0.25 * term, **CLOSE)
    assert found.passes.units == 6


def test_the_squared_error_has_the_gradient_of_the_mixed_target() -> None:
    model, data = tiny_model("bert", num_labels=1, dtype=torch.float64), tiny_batch("bert", regression=True)
    wrapper = RegularizedModel(model, [TMix(mix_layers=(1,))], seed=SEED)
    torch.manual_seed(0)
    found = wrapper(**data)
    (gradient,) = torch.autograd.grad(found.loss, found.logits)
    partners, share, _ = drawn(TMix(mix_layers=(1,)), data, 0)
    labels = data["labels"].double()
    target = share * labels + (1 - share) * labels[partners]
    expected = 2 * (found.logits.detach()[:, 0] - target) / len(target)
    torch.testing.assert_close(gradient[:, 0], expected, **CLOSE)


def test_labelled_rows_meet_labelled_rows() -> None:
    labels = torch.tensor([0, -100, 1, -100, 2, 0])
    seen = set()
    for seed in range(50):
        partners = partners_of(labels, torch.Generator().manual_seed(seed))
        assert sorted(partners.tolist()) == list(range(6))
        assert torch.equal(labels[partners] == -100, labels == -100)
        seen.add(tuple(partners.tolist()))
    assert len(seen) > 20


def test_a_row_without_a_label_counts_for_nothing() -> None:
    data = batch(0)
    data["labels"] = torch.tensor([0, 1, -100, 2, -100, 0])
    wrapper = RegularizedModel(tiny_bert(0.0), [TMix(states=False)], seed=SEED)
    found = wrapper(**data)
    without = data["labels"] == -100
    (gradient,) = torch.autograd.grad(found.loss, found.logits)
    assert (gradient[without] == 0).all()
    assert (gradient[~without] != 0).all()


@pytest.mark.parametrize("family", ["deberta-v2", "modernbert", "mpnet", "distilbert", "albert"])
def test_in_every_family_the_layers_above_attend_to_the_tokens_of_both_texts(family: str) -> None:
    """A short text mixed with share 1 hears the tokens that only its longer partner has."""
    model, data = tiny_model(family).eval(), tiny_batch(family)
    inputs = {name: value for name, value in data.items() if name != "labels"}
    longest = int(inputs["attention_mask"].sum(dim=1).argmax())
    partners = torch.full((len(data["labels"]),), longest)
    sites = Sites(model)
    runner = PassRunner(model, sites)
    plain = runner.run(inputs).logits
    joined = runner.run(inputs, [mixing(1, Mixture(partners, 1.0))]).logits
    sites.close()
    assert plain is not None and joined is not None
    short = inputs["attention_mask"].sum(dim=1) < inputs["attention_mask"].shape[1]
    assert torch.equal(plain[longest], joined[longest])
    assert short.any() and (plain[short] != joined[short]).any(dim=-1).all()


def test_layers_that_are_not_there_are_refused() -> None:
    with pytest.raises(MethodError, match="must lie between 0 and 2 in this model; got 3"):
        RegularizedModel(tiny_bert(0.1), [TMix(mix_layers=(3,))])
    with pytest.raises(MethodError, match="at least one layer"):
        RegularizedModel(tiny_bert(0.1), [TMix(mix_layers=())])


def test_a_model_whose_masks_have_another_form_is_refused() -> None:
    with pytest.raises(SiteUnavailable, match="tmix needs the site 'mask', which xlnet lacks"):
        RegularizedModel(tiny_model("xlnet"), [TMix()])


def test_a_head_that_takes_the_mean_over_tokens_is_refused_where_states_are_mixed() -> None:
    model = tiny_model("modernbert")
    model.config.classifier_pooling = "mean"
    with pytest.raises(MethodError, match=r"^tmix cannot mix states under a head that takes the mean over the tokens"):
        RegularizedModel(model, [TMix()])
    RegularizedModel(model, [TMix(states=False)])


def test_one_class_in_every_batch_is_said() -> None:
    data = batch(0)
    data["labels"] = torch.ones_like(data["labels"])
    wrapper: nn.Module = RegularizedModel(tiny_bert(0.1), [TMix()])
    wrapper(**data)
    assert isinstance(wrapper, RegularizedModel)
    wrapper.drain_telemetry()
    assert any("labels did not mix" in text for text in wrapper.notices)

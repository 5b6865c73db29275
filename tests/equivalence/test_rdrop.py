"""R-Drop against its definition, written out on an encoder that knows nothing of passes."""

import copy

import pytest
import torch
from torch import Tensor

from equivalence.straight_line import (
    CLOSE,
    RANK,
    SEED,
    batch,
    cross_entropy,
    divergence,
    dropout_of,
    forward,
    gradients,
    tiny_bert,
)
from steadytune import RDrop, RegularizedModel
from steadytune.functional import keyed_seed
from steadytune.methods import MethodError
from tiny import tiny_batch, tiny_model


def two_passes(model: object, data: dict[str, Tensor], step: int) -> tuple[Tensor, Tensor]:
    clean = forward(model, data).logits
    with dropout_of(keyed_seed(SEED, "dropout", "rdrop", step, RANK)):
        return clean, forward(model, data).logits


@pytest.mark.parametrize("weight", [0.0, 0.5, 2.5])
def test_value_and_gradient_are_those_of_the_mean_label_loss_and_half_the_sum_of_divergences(weight: float) -> None:
    wrapper, by_hand = RegularizedModel(tiny_bert(0.1), [RDrop(weight=weight)], seed=SEED), tiny_bert(0.1)
    for step in range(2):
        data = batch(step)
        torch.manual_seed(step)
        found = wrapper(**data)
        found.loss.backward()
        torch.manual_seed(step)
        one, two = two_passes(by_hand, data, step)
        label = (cross_entropy(one, data["labels"]) + cross_entropy(two, data["labels"])) / 2
        expected = label + weight * divergence(one, two)
        expected.backward()
        torch.testing.assert_close(found.loss, expected, **CLOSE)
        torch.testing.assert_close(found.task_loss, label.detach(), **CLOSE)
        named = gradients(by_hand.named_parameters())
        torch.testing.assert_close(gradients(wrapper.model.named_parameters()), named, **CLOSE)
        wrapper.zero_grad()
        by_hand.zero_grad()


def test_half_of_the_papers_alpha_gives_half_of_the_papers_loss() -> None:
    alpha, data = 1.0, batch()
    torch.manual_seed(0)
    found = RegularizedModel(tiny_bert(0.1), [RDrop(weight=alpha / 2)], seed=SEED)(**data).loss
    torch.manual_seed(0)
    one, two = two_passes(tiny_bert(0.1), data, 0)
    p, q = one.softmax(dim=-1), two.softmax(dim=-1)
    both = ((p * (p / q).log()).sum(dim=-1) + (q * (q / p).log()).sum(dim=-1)).mean()
    paper = cross_entropy(one, data["labels"]) + cross_entropy(two, data["labels"]) + alpha / 2 * both
    torch.testing.assert_close(2 * found, paper, **CLOSE)


def test_regression_pulls_by_the_squared_difference() -> None:
    model, data = tiny_model("bert", num_labels=1, dtype=torch.float64), tiny_batch("bert", regression=True)
    plain = copy.deepcopy(model)
    torch.manual_seed(0)
    found = RegularizedModel(model, [RDrop()], seed=SEED)(**data)
    torch.manual_seed(0)
    one = plain(input_ids=data["input_ids"], attention_mask=data["attention_mask"]).logits[:, 0]
    with dropout_of(keyed_seed(SEED, "dropout", "rdrop", 0, RANK)):
        two = plain(input_ids=data["input_ids"], attention_mask=data["attention_mask"]).logits[:, 0]
    torch.testing.assert_close(found.terms["rdrop"], ((one - two) ** 2).mean().detach(), **CLOSE)


def test_the_group_of_accumulated_batches_has_the_mean_over_its_rows() -> None:
    wrapper, by_hand = RegularizedModel(tiny_bert(0.1), [RDrop()], seed=SEED), tiny_bert(0.1)
    batches = [batch(0), {name: value[:2] for name, value in batch(1).items()}]
    torch.manual_seed(0)
    for output in wrapper.accumulate(batches):
        output.loss.backward()
    torch.manual_seed(0)
    for step, data in enumerate(batches):
        one, two = two_passes(by_hand, data, step)
        label = (cross_entropy(one, data["labels"]) + cross_entropy(two, data["labels"])) / 2
        ((label + 0.5 * divergence(one, two)) * len(data["labels"]) / 8).backward()
    expected = gradients(by_hand.named_parameters())
    torch.testing.assert_close(gradients(wrapper.model.named_parameters()), expected, **CLOSE)


def test_there_are_two_whole_passes() -> None:
    passes = RegularizedModel(tiny_bert(0.1), [RDrop()])(**batch()).passes
    assert (passes.forward, passes.activation_gradient, passes.weight_gradient) == (2, 2, 2)


def test_evaluation_runs_the_model_once() -> None:
    wrapper, calls = RegularizedModel(tiny_bert(0.1), [RDrop()]).eval(), list[int]()
    wrapper.model.bert.register_forward_hook(lambda *_: calls.append(1))
    wrapper(**batch())
    assert len(calls) == 1


def test_without_any_dropout_the_first_step_is_refused_and_the_zeros_are_named() -> None:
    with pytest.raises(MethodError) as caught:
        RegularizedModel(tiny_bert(0.0), [RDrop()])(**batch())
    assert str(caught.value) == (
        "rdrop cannot act on this bert: its two passes have equal scores, because dropout is 0 for hidden, attention, "
        "head; load the model with dropout, or leave rdrop out."
    )


def test_dropout_modules_that_drop_nothing_are_refused_too() -> None:
    wrapper = RegularizedModel(tiny_bert(0.1), [RDrop()])
    for module in wrapper.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for layer in wrapper.model.bert.encoder.layer:
        layer.attention.self.dropout.p = 0.0
    with pytest.raises(MethodError, match="because its dropout modules do not drop anything; "):
        wrapper(**batch())


def test_attention_dropout_alone_is_enough() -> None:
    model = tiny_bert(0.1)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Dropout) and "attention.self" not in name:
            module.p = 0.0
    assert float(RegularizedModel(model, [RDrop()])(**batch()).terms["rdrop"]) > 0


@pytest.mark.parametrize(("value", "said"), [(3.5e-12, 1), (5e-3, 0)])
def test_passes_that_agree_but_for_rounding_are_spoken_about(value: float, said: int) -> None:
    assert len(RDrop().judge({"divergence": value})) == said

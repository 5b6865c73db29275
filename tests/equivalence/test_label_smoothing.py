"""Label smoothing against its definition."""

import pytest
import torch
from torch import Tensor

from equivalence.straight_line import CLOSE, SEED, batch, forward, gradients, tiny_bert, trained
from steadytune import LabelSmoothing, RDrop, RegularizedModel
from steadytune.methods import MethodError
from steadytune.tasks import Classification, MultiLabel, Task, TokenClassification
from tiny import tiny_model
from tolerances import SAME

NAMES = ("a", "b", "c")


def smoothed(logits: Tensor, labels: Tensor, amount: float) -> Tensor:
    rows = []
    for scores, label in zip(logits, labels.tolist(), strict=True):
        each = [scores.logsumexp(dim=0) - score for score in scores]
        rows.append((1 - amount) * each[label] + amount / len(each) * torch.stack(each).sum())
    return torch.stack(rows).mean()


@pytest.mark.parametrize("amount", [0.1, 0.5])
def test_value_and_gradient_are_those_of_the_definition(amount: float) -> None:
    wrapper, by_hand = RegularizedModel(tiny_bert(0.1), [LabelSmoothing(amount=amount)], seed=SEED), tiny_bert(0.1)
    data = batch()
    torch.manual_seed(0)
    found = wrapper(**data)
    found.loss.backward()
    torch.manual_seed(0)
    expected = smoothed(forward(by_hand, data).logits, data["labels"], amount)
    expected.backward()
    torch.testing.assert_close(found.loss, expected, **CLOSE)
    named = gradients(by_hand.named_parameters())
    torch.testing.assert_close(gradients(wrapper.model.named_parameters()), named, **CLOSE)


def test_an_amount_of_0_trains_as_plain_bit_for_bit() -> None:
    ends = []
    for methods in ([], [LabelSmoothing(amount=0.0)]):
        model = tiny_bert(0.1)
        wrapper = RegularizedModel(model, methods, seed=SEED)
        ends.append(trained(model, lambda data, wrapper=wrapper: wrapper(**data).loss))
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_both_label_passes_of_a_stack_are_smoothed() -> None:
    data = batch()
    losses = []
    for methods in ([RDrop(weight=0.0)], [LabelSmoothing(amount=0.3), RDrop(weight=0.0)]):
        torch.manual_seed(0)
        losses.append(RegularizedModel(tiny_bert(0.1), methods, seed=SEED)(**data).loss)
    task = Classification(NAMES, label_smoothing=0.3)
    torch.manual_seed(0)
    given = RegularizedModel(tiny_bert(0.1), [RDrop(weight=0.0)], seed=SEED, task=task)(**data).loss
    assert torch.equal(losses[1], given)
    assert not torch.equal(*losses)


def test_rows_without_a_label_do_not_count() -> None:
    data = batch()
    some = {**data, "labels": torch.tensor([0, -100, 0, -100, 1, 0])}
    kept = {name: value[[0, 2, 4, 5]] for name, value in data.items()}
    found, expected = (RegularizedModel(tiny_bert(0.0), [LabelSmoothing()])(**rows).loss for rows in (some, kept))
    torch.testing.assert_close(found, expected, **CLOSE)


def test_the_given_task_stays_as_it_was() -> None:
    task = Classification(NAMES)
    wrapper = RegularizedModel(tiny_bert(0.1), [LabelSmoothing(amount=0.2)], task=task)
    assert isinstance(wrapper.task, Classification)
    assert (task.label_smoothing, wrapper.task.label_smoothing) == (0.0, 0.2)


def test_telemetry_keeps_the_amount_and_there_is_one_pass() -> None:
    output = RegularizedModel(tiny_bert(0.1), [LabelSmoothing(amount=0.2)])(**batch())
    assert float(output.telemetry["label_smoothing/amount"]) == pytest.approx(0.2, abs=SAME[torch.float32])
    assert (output.passes.forward, output.passes.units) == (1, 3)


def test_regression_is_refused() -> None:
    with pytest.raises(
        MethodError, match=r"^label_smoothing cannot act on a regression task: it softens the class of a "
    ):
        RegularizedModel(tiny_model("bert", num_labels=1), [LabelSmoothing()])


@pytest.mark.parametrize("task", [MultiLabel(NAMES), TokenClassification(NAMES)], ids=lambda task: str(task.name))
def test_tasks_whose_texts_have_several_labels_are_not_said_to_have_no_classes(task: Task) -> None:
    with pytest.raises(MethodError) as caught:
        LabelSmoothing().training_task(task)
    assert str(caught.value) == (
        f"label_smoothing cannot act on a {task.name} task: it softens the class of a text, and here a text does not "
        "have one class; leave it out."
    )


def test_a_task_that_is_smoothed_already_is_refused() -> None:
    with pytest.raises(MethodError, match=r"whose targets are smoothed by 0\.05 already; set it in one place\."):
        RegularizedModel(tiny_bert(0.1), [LabelSmoothing()], task=Classification(NAMES, label_smoothing=0.05))


def test_a_loss_of_the_users_own_is_refused() -> None:
    task = Classification(NAMES)
    task.loss = lambda logits, labels: logits.sum()  # type: ignore[method-assign]
    with pytest.raises(MethodError, match=r"^label_smoothing cannot reach into a loss function of your own; "):
        RegularizedModel(tiny_bert(0.1), [LabelSmoothing()], task=task)


@pytest.mark.parametrize("amount", [1, 1.0, 1.5])
def test_an_amount_of_1_or_more_is_refused(amount: float) -> None:
    with pytest.raises(MethodError, match=r"^label_smoothing\.amount must be a number >= 0 and below 1, "):
        LabelSmoothing(amount=amount)

"""Classification: torch's own loss, scikit-learn's own scores, and answers by name."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from torch import Tensor
from torch.nn.functional import cross_entropy

from steadytune.tasks import Classification, TaskError
from tolerances import PRINTED, SAME

NAMES = ("bad", "fair", "good")
EXACT = SAME[torch.float64]


def logits(rows: int = 7, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()


LABELS = torch.tensor([0, 1, 2, 2, 1, 0, 1])


# -- loss -------------------------------------------------------------------------------------------------------------


def test_loss_is_the_mean_cross_entropy_of_torch_to_the_bit() -> None:
    assert torch.equal(Classification(NAMES).loss(logits(), LABELS), cross_entropy(logits(), LABELS))


def test_loss_with_smoothing_is_that_of_torch() -> None:
    ours = Classification(NAMES, label_smoothing=0.2).loss(logits(dtype=torch.float64), LABELS)
    expected = cross_entropy(logits(dtype=torch.float64), LABELS, label_smoothing=0.2)
    torch.testing.assert_close(ours, expected, rtol=EXACT, atol=EXACT)


def test_rows_without_a_label_are_left_out() -> None:
    labels = torch.tensor([0, -100, 2, -100, 1, 0, -100])
    labelled = [0, 2, 4, 5]
    ours = Classification(NAMES).loss(logits(dtype=torch.float64), labels)
    expected = cross_entropy(logits(dtype=torch.float64)[labelled], labels[labelled])
    torch.testing.assert_close(ours, expected, rtol=EXACT, atol=EXACT)


def test_loss_without_any_label_is_0() -> None:
    assert Classification(NAMES).loss(logits(), torch.full((7,), -100)).item() == 0


def test_gradient_without_any_label_is_0() -> None:
    scores = logits()
    Classification(NAMES).loss(scores, torch.full((7,), -100)).backward()
    assert scores.grad is not None and torch.equal(scores.grad, torch.zeros(7, 3))


def test_loss_of_bfloat16_scores_is_float32() -> None:
    assert Classification(NAMES).loss(logits(dtype=torch.bfloat16), LABELS).dtype == torch.float32


# -- divergence -------------------------------------------------------------------------------------------------------


def test_divergence_of_classes_is_the_symmetric_relative_entropy_in_nats() -> None:
    one, other = torch.tensor([[1.0, 2.0, 3.0]]).double(), torch.tensor([[3.0, 2.0, 1.0]]).double()
    p, q = one.softmax(dim=-1), other.softmax(dim=-1)
    expected = ((p * (p / q).log()).sum() + (q * (q / p).log()).sum()) / 2
    assert float(expected) == pytest.approx(1.150421, rel=0, abs=PRINTED[torch.float64])
    torch.testing.assert_close(Classification(NAMES).divergence(one, other), expected, rtol=EXACT, atol=EXACT)


def test_divergence_is_a_mean_over_the_examples() -> None:
    one, other = logits(dtype=torch.float64).detach(), logits(dtype=torch.float64).detach().flip(0)
    rows = [Classification(NAMES).divergence(a[None], b[None]) for a, b in zip(one, other, strict=True)]
    found = Classification(NAMES).divergence(one, other)
    torch.testing.assert_close(found, torch.stack(rows).mean(), rtol=EXACT, atol=EXACT)


def test_label_smoothing_does_not_enter_the_divergence() -> None:
    one, other = logits(), logits().flip(0)
    found = [Classification(NAMES, label_smoothing=share).divergence(one, other) for share in (0.0, 0.2)]
    assert torch.equal(*found)


def test_divergence_of_bfloat16_scores_is_float32() -> None:
    one, other = logits(dtype=torch.bfloat16), logits(dtype=torch.bfloat16).flip(0)
    assert Classification(NAMES).divergence(one, other).dtype == torch.float32


# -- scores -----------------------------------------------------------------------------------------------------------

PREDICTED = [0, 1, 2, 1, 0, 0]
TRUE = [0, 1, 2, 2, 1, 0]  # four of six are right


def scores() -> dict[str, float]:
    return Classification(NAMES).scores(np.eye(3)[PREDICTED], np.asarray(TRUE))


def test_accuracy_is_the_share_of_right_answers() -> None:
    assert scores()["accuracy"] == accuracy_score(TRUE, PREDICTED) == 4 / 6


def test_macro_f1_is_the_mean_over_the_classes() -> None:
    by_class = [2 * 2 / (2 * 2 + 1 + 0), 2 * 1 / (2 * 1 + 1 + 1), 2 * 1 / (2 * 1 + 0 + 1)]  # 2tp / (2tp + fp + fn)
    assert scores()["macro_f1"] == pytest.approx(sum(by_class) / 3, abs=EXACT)
    assert scores()["macro_f1"] == f1_score(TRUE, PREDICTED, average="macro")


def test_matthews_is_that_of_scikit_learn() -> None:
    assert scores()["matthews"] == matthews_corrcoef(TRUE, PREDICTED)


def test_matthews_of_a_constant_prediction_is_0() -> None:
    constant = Classification(NAMES).scores(np.eye(3)[[1] * 6], np.asarray(TRUE))
    assert constant["matthews"] == 0


# -- answers and head -------------------------------------------------------------------------------------------------


def test_the_decoded_label_is_the_one_with_the_highest_score() -> None:
    decoded = Classification(NAMES).decode(np.asarray([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]]))
    assert [row["label"] for row in decoded] == ["fair", "bad"]


def test_decoded_probabilities_are_named_and_sum_to_1() -> None:
    (row,) = Classification(NAMES).decode(np.asarray([[0.0, 200.0, 1.0]], dtype=np.float32))
    assert tuple(row["probabilities"]) == NAMES
    assert sum(row["probabilities"].values()) == pytest.approx(1, abs=EXACT)


def test_equal_scores_have_equal_probabilities() -> None:
    (row,) = Classification(("no", "yes")).decode(np.zeros((1, 2)))
    assert row["probabilities"] == {"no": 0.5, "yes": 0.5}


def test_the_head_names_its_labels() -> None:
    assert Classification(("no", "yes")).head_config() == {
        "num_labels": 2,
        "id2label": {0: "no", 1: "yes"},
        "label2id": {"no": 0, "yes": 1},
        "problem_type": "single_label_classification",
    }


@pytest.mark.parametrize("names", [(), ("alone",)])
def test_fewer_than_two_classes_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(TaskError, match=re.escape(f"classification needs at least two classes; got {list(names)}.")):
        Classification(names)


# -- labels -----------------------------------------------------------------------------------------------------------


def test_a_trailing_axis_of_one_is_dropped_from_labels() -> None:
    assert torch.equal(Classification(NAMES).checked(torch.tensor([[2], [0]])), torch.tensor([2, 0]))


@pytest.mark.parametrize("shape", [(), (2, 2), (2, 1, 1)])
def test_labels_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    labels: Any = torch.zeros(shape, dtype=torch.long)
    with pytest.raises(TaskError, match=re.escape(f"takes one label per example; got labels of shape {shape}.")):
        Classification(NAMES).checked(labels)


def test_fractional_class_indices_are_refused() -> None:
    with pytest.raises(TaskError, match=r"^classification takes class indices as integers; got torch\.float32\.$"):
        Classification(NAMES).checked(torch.tensor([0.0, 1.0]))

"""Regression: torch's own loss, SciPy's own scores, and a constant that correlates with nothing."""

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from torch import Tensor
from torch.nn.functional import mse_loss

from steadytune.tasks import Regression, TaskError
from tolerances import SAME

EXACT = SAME[torch.float64]
LABELS = torch.tensor([0.5, -1.0, 2.0, 3.5])


def logits(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor([[0.0], [-2.0], [2.5], [1.0]]).to(dtype).requires_grad_()


# -- loss -------------------------------------------------------------------------------------------------------------


def test_loss_is_the_mean_squared_error_of_torch_to_the_bit() -> None:
    assert torch.equal(Regression().loss(logits(), LABELS), mse_loss(logits()[:, 0], LABELS))


def test_rows_without_a_score_are_left_out() -> None:
    labels = torch.tensor([0.5, -100.0, 2.0, -100.0])
    assert Regression().loss(logits(), labels).item() == (0.5**2 + 0.5**2) / 2


def test_loss_without_any_score_is_0() -> None:
    assert Regression().loss(logits(), torch.full((4,), -100.0)).item() == 0


def test_gradient_without_any_score_is_0() -> None:
    predicted = logits()
    Regression().loss(predicted, torch.full((4,), -100.0)).backward()
    assert predicted.grad is not None and torch.equal(predicted.grad, torch.zeros(4, 1))


def test_loss_of_bfloat16_predictions_is_float32() -> None:
    assert Regression().loss(logits(torch.bfloat16), LABELS).dtype == torch.float32


# -- divergence -------------------------------------------------------------------------------------------------------


def test_divergence_of_numbers_is_the_mean_squared_difference() -> None:
    one, other = torch.tensor([[1.0], [2.0], [3.0]]).double(), torch.tensor([[3.0], [2.0], [1.0]]).double()
    assert float(Regression().divergence(one, other)) == pytest.approx((4 + 0 + 4) / 3, rel=EXACT)


def test_divergence_of_numbers_is_symmetric() -> None:
    one, other = logits(torch.float64), logits(torch.float64).flip(0)
    assert torch.equal(Regression().divergence(one, other), Regression().divergence(other, one))


def test_a_number_is_no_distribution_of_one_class() -> None:
    assert Regression().divergence(torch.tensor([[1.0]]), torch.tensor([[4.0]])).item() == 9  # a softmax would give 0


def test_divergence_of_bfloat16_predictions_is_float32() -> None:
    assert Regression().divergence(logits(torch.bfloat16), logits(torch.bfloat16)).dtype == torch.float32


# -- scores -----------------------------------------------------------------------------------------------------------

PREDICTED = np.asarray([1.0, 2.0, 3.0, 10.0])
TRUE = np.asarray([1.0, 3.0, 2.0, 4.0])


def scores() -> dict[str, float]:
    return Regression().scores(PREDICTED[:, None], TRUE)


def test_pearson_is_that_of_scipy() -> None:
    assert scores()["pearson"] == pearsonr(PREDICTED, TRUE).statistic


def test_spearman_is_that_of_the_ranks() -> None:
    expected = 1 - 6 * (0 + 1 + 1 + 0) / (4 * (4**2 - 1))  # ranks 1 2 3 4 against 1 3 2 4
    assert scores()["spearman"] == pytest.approx(expected, abs=EXACT)
    assert scores()["spearman"] == spearmanr(PREDICTED, TRUE).statistic


def test_the_score_that_decides_is_the_mean_of_both_correlations() -> None:
    assert scores()[Regression().metric] == (scores()["pearson"] + scores()["spearman"]) / 2


def test_the_error_is_the_mean_square() -> None:
    assert scores()["mse"] == pytest.approx((0 + 1 + 1 + 36) / 4, abs=EXACT)


def test_a_constant_prediction_has_correlation_0() -> None:
    found = Regression().scores(np.full((4, 1), 0.3, dtype=np.float32), TRUE)
    assert (found["pearson"], found["spearman"], found["pearson_spearman"]) == (0, 0, 0)


# -- answers, head, labels --------------------------------------------------------------------------------------------


def test_a_prediction_is_decoded_as_its_number() -> None:
    assert Regression().decode(np.asarray([[0.5], [-2.0]])) == [{"value": 0.5}, {"value": -2.0}]


def test_the_head_has_one_output() -> None:
    assert Regression().head_config() == {"num_labels": 1, "problem_type": "regression"}


def test_a_trailing_axis_of_one_is_dropped_from_scores() -> None:
    assert torch.equal(Regression().checked(torch.tensor([[0.5], [1.0]])), torch.tensor([0.5, 1.0]))


def test_two_scores_per_example_are_refused() -> None:
    with pytest.raises(TaskError, match=r"^regression takes one label per example; got labels of shape \(2, 2\)\.$"):
        Regression().checked(torch.zeros(2, 2))


def test_whole_numbers_are_accepted_as_scores() -> None:
    assert torch.equal(Regression().checked(torch.tensor([1, 2])), torch.tensor([1, 2]))

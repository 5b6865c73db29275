"""Noise at the entrance of every layer of a linear chain, whose mean and covariance are known: hype.md, section 11."""

import math

import pytest
import torch
from torch import Tensor

from steadytune.functional import draw_noise, keyed_generator
from tolerances import STANDARD_ERRORS

W1 = torch.tensor([[1, 2], [0, 1]]).double()
W2 = torch.tensor([[1, 0], [-1, 2]]).double()
W3 = torch.tensor([[2, 1], [1, 1]]).double()
START, TARGET = torch.tensor([1, -1]).double(), torch.tensor([1, 2]).double()
SIGMA, DRAWS = 0.1, 1 << 20


def chain(weights: tuple[Tensor, Tensor, Tensor], start: Tensor, scale: float, law: str, draws: int) -> Tensor:
    """`draws` outputs of h ← W_i (h + ε_i), each with noise of its own at every layer."""
    states = start.expand(draws, 2)
    for layer, weight in enumerate(weights):
        noise = draw_noise(states, scale, law, keyed_generator("cpu", "chain", law, layer))
        states = (states + noise) @ weight.T
    return states


def losses(outputs: Tensor) -> Tensor:
    return (outputs - TARGET).square().sum(dim=-1) / 2


def test_chain_without_noise_has_the_printed_products_and_loss() -> None:
    products = [(W3 @ W2 @ W1).tolist(), (W3 @ W2).tolist(), W3.tolist()]
    assert products == [[[1, 4], [0, 2]], [[1, 2], [0, 2]], [[2, 1], [1, 1]]]
    output = W3 @ W2 @ W1 @ START
    assert output.tolist() == [-3, -2]
    assert float(losses(output)) == 16.0


@pytest.mark.parametrize(
    ("law", "expected"),
    [
        ("normal", 16 + 0.01 * (21 + 9 + 7) / 2),  # variance times the squared Frobenius norms, halved
        ("uniform", 16 + 0.01 / 3 * (21 + 9 + 7) / 2),
        ("uniform_released", 12.811667),  # off center: the mean of the output moves too
    ],
)
def test_expected_loss_is_the_clean_loss_and_the_variance_term(law: str, expected: float) -> None:
    found = losses(chain((W1, W2, W3), START, SIGMA, law, DRAWS))
    allowed = STANDARD_ERRORS * float(found.std()) / math.sqrt(DRAWS)
    assert allowed < 16 + 0.01 / 3 * 37 / 2 - 16  # fine enough to tell every law from no noise
    assert float(found.mean()) == pytest.approx(expected, rel=0, abs=allowed)


@pytest.mark.parametrize(
    ("law", "shift"), [("normal", (0.0, 0.0)), ("uniform", (0.0, 0.0)), ("uniform_released", (0.55, 0.30))]
)
def test_only_the_released_law_moves_the_mean_output(law: str, shift: tuple[float, float]) -> None:
    outputs = chain((W1, W2, W3), START, SIGMA, law, DRAWS)
    allowed = STANDARD_ERRORS * outputs.std(dim=0) / math.sqrt(DRAWS)
    off = outputs.mean(dim=0) - torch.tensor([-3, -2]).double() - torch.tensor(shift).double()
    assert (off.abs() < allowed).all()


@pytest.mark.parametrize(("law", "share"), [("normal", 1.0), ("uniform", 1 / 3), ("uniform_released", 1 / 12)])
def test_covariance_of_the_output_is_that_of_independent_draws_per_layer(law: str, share: float) -> None:
    expected = share * torch.tensor([[0.27, 0.15], [0.15, 0.10]]).double()
    found = chain((W1, W2, W3), START, SIGMA, law, DRAWS).T.cov()
    variances = expected.diagonal()
    # exact for normal draws, and too wide for uniform ones, whose fourth moment is smaller
    allowed = STANDARD_ERRORS * ((variances[:, None] * variances + expected**2) / DRAWS).sqrt()
    assert ((found - expected).abs() < allowed).all()


@pytest.mark.parametrize("law", ["normal", "uniform", "uniform_released"])
def test_gradient_with_the_noise_held_fixed_agrees_with_finite_differences(law: str) -> None:
    inputs = tuple(tensor.clone().requires_grad_() for tensor in (W1, W2, W3, START))

    def mean_loss(first: Tensor, second: Tensor, third: Tensor, start: Tensor) -> Tensor:
        return losses(chain((first, second, third), start, SIGMA, law, 4)).mean()

    assert torch.autograd.gradcheck(mean_loss, inputs)

"""Noise that runs up a linear chain, and maps whose answer to noise is known in closed form: lnsr.md, section 11."""

import functools
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from steadytune.functional import keyed_generator
from steadytune.methods.lnsr import Sampler, draw_perturbation, squared_distance
from tolerances import SAME, STANDARD_ERRORS

EXACT = SAME[torch.float64]
CLOSE: dict[str, float] = {"rtol": EXACT, "atol": EXACT}

W1, W2, W3 = (torch.tensor(rows).double() for rows in ([[1, 2], [0, 1]], [[1, 0], [-1, 2]], [[2, 1], [1, 1]]))
CHAIN = (W1, W2, W3)
START = torch.tensor([1, -1]).double()
FIXED = torch.tensor([0.1, -0.2], dtype=torch.float64)
SIGMA, DRAWS, GROUPS = 0.1, 1 << 19, 64

Branch = Callable[[Tensor], Tensor]


def one_token(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors as a batch of examples with one real token each."""
    return rows[:, None], torch.ones(len(rows), 1, dtype=torch.bool)


def noise_for(rows: Tensor, scale: float = SIGMA, *, relative: bool = False, seed: int = 0) -> Tensor:
    """One Gaussian draw of our own for each vector."""
    states, real = one_token(rows)
    generator = keyed_generator("cpu", "chain", seed)
    noise = draw_perturbation(
        states, real, sampler="gaussian", scale=scale, relative=relative, generator=generator, directions=None
    )
    return noise[:, 0]


def penalties(weights: Sequence[Tensor], rows: Tensor, noise: Tensor, cut: Branch = lambda states: states) -> Tensor:
    """Squared distance after each layer of the chain, mean over the rows; `cut` is applied to the clean states."""
    clean, noisy, found = rows, rows + noise, []
    for weight in weights:
        clean, noisy = clean @ weight.T, noisy @ weight.T
        one, real = one_token(noisy)
        found.append(squared_distance(one, one_token(cut(clean))[0], real, relative=False))
    return torch.stack(found)


def leaves() -> list[Tensor]:
    return [weight.clone().requires_grad_() for weight in CHAIN]


def chain_gradient(start: Tensor, noise: Tensor, cut: Branch = lambda states: states) -> list[Tensor]:
    weights = leaves()
    rows = start.expand(len(noise), 2)
    return list(torch.autograd.grad(penalties(weights, rows, noise, cut).sum(), weights))


def table(*matrices: Sequence[Sequence[float]]) -> list[Tensor]:
    return [torch.tensor(matrix, dtype=torch.float64) for matrix in matrices]


# -- one given noise --------------------------------------------------------------------------------------------------


def test_fixed_noise_has_the_printed_distance_after_each_layer() -> None:
    found = penalties(CHAIN, START[None], FIXED[None])
    torch.testing.assert_close(found, torch.tensor([0.13, 0.10, 0.65], dtype=torch.float64), **CLOSE)
    assert float(found.sum()) == pytest.approx(0.88, abs=EXACT)


BOTH = table([[-0.24, 0.48], [-0.52, 1.04]], [[1.26, 0.84], [0.72, 0.48]], [[0.42, 0.14], [0.24, 0.08]])
CUT = table([[-2.64, 2.88], [-5.72, 6.24]], [[5.46, 5.04], [3.12, 2.88]], [[1.82, 1.54], [1.04, 0.88]])


@pytest.mark.parametrize("start", [(1.0, -1.0), (0.0, 0.0), (3.0, 7.0)])
def test_gradient_of_fixed_noise_is_the_printed_one_wherever_the_chain_starts(start: tuple[float, float]) -> None:
    found = chain_gradient(torch.tensor(start, dtype=torch.float64), FIXED[None])
    torch.testing.assert_close(found, BOTH, **CLOSE)


def test_gradient_with_the_clean_branch_cut_is_the_printed_other_one() -> None:
    torch.testing.assert_close(chain_gradient(START, FIXED[None], cut=Tensor.detach), CUT, **CLOSE)


def test_default_gradient_is_nowhere_that_with_the_clean_branch_cut() -> None:
    found = chain_gradient(START, FIXED[None])
    assert not any(torch.isclose(ours, other).any() for ours, other in zip(found, CUT, strict=True))


def test_gradient_agrees_with_finite_differences() -> None:
    rows, noise = START[None], FIXED[None]
    assert torch.autograd.gradcheck(lambda *weights: penalties(weights, rows, noise).sum(), leaves())


# -- means over draws -------------------------------------------------------------------------------------------------


def products(weights: Sequence[Tensor], skip: int = 0) -> list[Tensor]:
    """From the entrance of layer `skip` to the output of each layer above."""
    found = [torch.eye(2, dtype=torch.float64)]
    for weight in weights[skip:]:
        found.append(weight @ found[-1])
    return found[1:]


def test_products_have_the_printed_squared_norms() -> None:
    assert [float(product.square().sum()) for product in products(CHAIN)] == [6, 6, 21]


def allowed(matrices: Sequence[Tensor], sigma: float = SIGMA) -> float:
    """Standard errors of the mean of Σ ‖A ε‖²: each draw has variance 2σ⁴ ‖Σ AᵀA‖²."""
    total = torch.stack([matrix.T @ matrix for matrix in matrices]).sum(dim=0)
    return STANDARD_ERRORS * math.sqrt(2) * sigma**2 * float(total.norm()) / math.sqrt(DRAWS)


def test_expected_penalty_is_the_variance_times_the_squared_norms() -> None:
    rows = START.expand(DRAWS, 2)
    found = penalties(CHAIN, rows, noise_for(rows))
    for value, expected, product in zip(found, (0.06, 0.06, 0.21), products(CHAIN), strict=True):
        assert float(value) == pytest.approx(expected, rel=0, abs=allowed([product]))
    assert float(found.sum()) == pytest.approx(0.33, rel=0, abs=allowed(products(CHAIN)))


def test_one_draw_scatters_as_printed() -> None:
    noise = noise_for(START.expand(DRAWS, 2))
    each = sum((noise @ product.T).square().sum(dim=-1) for product in products(CHAIN))
    assert isinstance(each, Tensor)
    fourth = float((each - each.mean()).pow(4).mean().sqrt())  # of the square of a deviation
    error = STANDARD_ERRORS * fourth / float(each.std()) / 2 / math.sqrt(DRAWS)
    assert float(each.std()) == pytest.approx(0.44385, rel=0, abs=error)
    assert error < 0.44385 - 0.33  # fine enough to tell it from the mean


def test_noise_injected_one_layer_higher_meets_the_layers_above_it_only() -> None:
    rows = START.expand(DRAWS, 2)
    found = penalties(CHAIN[1:], rows, noise_for(rows)).sum()
    assert float(found) == pytest.approx(0.15, rel=0, abs=allowed(products(CHAIN, skip=1)))


def test_relative_noise_has_the_variance_of_its_sphere() -> None:
    rows = START.expand(DRAWS, 2)
    found = penalties(CHAIN, rows, noise_for(rows, 0.05, relative=True)).sum()
    sphere = 0.05**2 * 2 / 2  # ρ²‖x‖²/d, an entry's variance; a draw scatters less than a Gaussian one of the same size
    assert float(found) == pytest.approx(0.0825, rel=0, abs=allowed(products(CHAIN), math.sqrt(sphere)))


MEAN_GRADIENT = table([[0.08, 0.16], [0, 0.26]], [[0.54, 0.24], [0.24, 0.12]], [[0.18, -0.02], [0.08, 0]])


def test_printed_mean_gradient_is_that_of_the_squared_norms() -> None:
    weights = leaves()
    value = SIGMA**2 * torch.stack([product.square().sum() for product in products(weights)]).sum()
    torch.testing.assert_close(list(torch.autograd.grad(value, weights)), MEAN_GRADIENT, **CLOSE)


def test_mean_gradient_is_the_printed_one() -> None:
    parts = [chain_gradient(START, part) for part in noise_for(START.expand(DRAWS, 2)).chunk(GROUPS)]
    for group, expected in zip(zip(*parts, strict=True), MEAN_GRADIENT, strict=True):
        found = torch.stack(group)
        error = STANDARD_ERRORS * found.std(dim=0) / math.sqrt(GROUPS)
        assert ((found.mean(dim=0) - expected).abs() < error).all()
        assert (error < 0.01).all()


@pytest.mark.parametrize(
    ("cut", "expected"),
    [(lambda states: states, math.sqrt(64 + 1)), (Tensor.detach, math.sqrt(64 + 1 + 64 / 0.05**2))],
    ids=["both branches", "clean branch cut"],
)
def test_gradient_of_one_draw_scatters_as_printed_and_far_more_with_the_clean_branch_cut(
    cut: Branch, expected: float
) -> None:
    width, draws = 64, 400  # 8.06 and 160.2 times the length of the mean gradient, 2σ²W
    generator = keyed_generator("cpu", "scatter")
    weight = torch.randn(width, width, generator=generator, dtype=torch.float64).requires_grad_()
    row = torch.randn(1, width, generator=generator, dtype=torch.float64)
    sigma = 0.05 * float(row.norm()) / math.sqrt(width)
    noise = noise_for(row.expand(draws, width), sigma)
    mean = 2 * sigma**2 * weight.detach()
    off = [torch.autograd.grad(penalties([weight], row, one[None], cut).sum(), weight)[0] - mean for one in noise]
    squares = torch.stack([one.square().sum() for one in off]) / mean.square().sum()
    error = STANDARD_ERRORS * float(squares.std()) / math.sqrt(draws)
    assert float(squares.mean()) == pytest.approx(expected**2, rel=0, abs=error)
    assert error < expected**2


# -- maps that are not linear -----------------------------------------------------------------------------------------


def mean_distance(function: Callable[[Tensor], Tensor], start: Sequence[float], sigma: float) -> tuple[float, float]:
    """Our mean over draws of ‖f(x + ε) − f(x)‖², and its allowed error."""
    rows = torch.tensor([start], dtype=torch.float64).expand(DRAWS, -1)
    noisy, clean = function(rows + noise_for(rows, sigma)), function(rows)
    scatter = (noisy - clean).square().sum(dim=-1).std()
    (one, real), (two, _) = one_token(noisy), one_token(clean)
    found = squared_distance(one, two, real, relative=False)
    return float(found), STANDARD_ERRORS * float(scatter) / math.sqrt(DRAWS)


def test_squares_have_a_fourth_order_term() -> None:
    found, error = mean_distance(torch.square, (1.0, 2.0, -0.5), 0.1)
    assert found == pytest.approx(0.2109, rel=0, abs=error)  # Σ 4σ²x² + 3σ⁴


def test_cubes_have_a_sixth_order_term() -> None:
    found, error = mean_distance(lambda x: x**3, (1.0,), 0.1)
    assert found == pytest.approx(0.094515, rel=0, abs=error)  # 9σ² + 45σ⁴ + 15σ⁶
    assert error < 45 * 0.1**4


def test_a_rectifier_at_zero_lets_half_of_the_variance_through() -> None:
    found, error = mean_distance(torch.relu, (0.0,), 0.1)
    assert found == pytest.approx(0.1**2 / 2, rel=0, abs=error)


@pytest.mark.parametrize("gain", [None, (1.0, 2.0, -0.5, 0.25)])
def test_layer_norm_divides_the_noise_by_the_deviation_of_its_input(gain: tuple[float, ...] | None) -> None:
    start, sigma = (3.0, -1.0, 0.5, 6.0), 1e-5
    x = torch.tensor(start, dtype=torch.float64)
    gamma = torch.ones(4, dtype=torch.float64) if gain is None else torch.tensor(gain, dtype=torch.float64)
    spread = x.std(correction=0)
    normalized = (x - x.mean()) / spread
    expected = float((gamma**2 * (1 - 1 / 4 - normalized**2 / 4)).sum() / spread**2)
    if gain is None:
        assert expected == pytest.approx(float((4 - 2) / spread**2))
    found, error = mean_distance(lambda rows: torch.layer_norm(rows, (4,), gamma, eps=0.0), start, sigma)
    assert found / sigma**2 == pytest.approx(expected, rel=0, abs=error / sigma**2)


# -- noise among the states of the batch ------------------------------------------------------------------------------

MAP = torch.tensor([[1, 2], [-1, 0]]).double()
STATES = torch.tensor([[1, 0], [3, 2], [2, 1], [0, -1]]).double()
REPEATS = 1000


@functools.cache
def drawn(sampler: Sampler, scale: float, directions: int | None = None, *, relative: bool = False) -> Tensor:
    """Draws for the four states (repeats, 4, 2), which lie in two examples beside padding that is far away."""
    states = torch.full((2, 3, 2), 1e3, dtype=torch.float64)
    real = torch.tensor([[True, True, False], [False, True, True]])
    states[real] = STATES
    generator = keyed_generator("cpu", "among", sampler)
    noise = [
        draw_perturbation(
            states, real, sampler=sampler, scale=scale, relative=relative, generator=generator, directions=directions
        )
        for _ in range(REPEATS)
    ]
    assert all((one[~real] == 0).all() for one in noise)
    return torch.stack([one[real] for one in noise])


def assert_power(noise: Tensor, expected: float) -> None:
    """The mean of ‖A ε‖² over draws is what it should be; draws of one repeat may hang together."""
    each = (noise @ MAP.T).square().sum(dim=-1).mean(dim=1)
    error = STANDARD_ERRORS * float(each.std()) / math.sqrt(REPEATS)
    assert float(each.mean()) == pytest.approx(expected, rel=0, abs=error)
    assert error < 0.25 * expected  # 10 is not 50/3


def test_states_have_the_printed_covariance() -> None:
    covariance = STATES.T.cov()
    torch.testing.assert_close(covariance, torch.full((2, 2), 5 / 3, dtype=torch.float64), **CLOSE)
    assert float((MAP @ covariance @ MAP.T).trace()) == pytest.approx(50 / 3)


def test_covariance_noise_has_the_covariance_of_the_states() -> None:
    assert_power(drawn("covariance", 0.5), 0.5**2 * 50 / 3)


def test_covariance_noise_lies_in_the_span_of_the_centered_states() -> None:
    noise = drawn("covariance", 0.5)
    torch.testing.assert_close(noise[..., 0], noise[..., 1], **CLOSE)  # all four states lie on one line


def test_covariance_noise_is_drawn_apart_for_every_state() -> None:
    steps = drawn("covariance", 0.5)[..., 0]
    off = steps.T.corrcoef() - torch.eye(4, dtype=torch.float64)
    assert float(off.abs().max()) < STANDARD_ERRORS / math.sqrt(REPEATS)


def test_interpolation_has_the_power_of_pairs_of_different_states() -> None:
    pairs = [STATES[j] - STATES[i] for i in range(4) for j in range(4) if i != j]
    expected = sum(float((MAP @ pair).square().sum()) for pair in pairs) / len(pairs)
    assert expected == pytest.approx(100 / 3)
    assert_power(drawn("interpolate", 0.3), 0.3**2 * expected)


def test_interpolation_moves_every_state_towards_each_other_one_equally_often_and_never_towards_itself() -> None:
    reached = STATES + drawn("interpolate", 0.3) / 0.3
    distance = (reached[:, :, None] - STATES).norm(dim=-1)  # repeats, from, to
    share = (distance < EXACT).double().mean(dim=0)
    assert (share.diagonal() == 0).all()
    torch.testing.assert_close(share.sum(dim=1), torch.ones(4, dtype=torch.float64), **CLOSE)
    others = share[~torch.eye(4, dtype=torch.bool)]
    assert float((others - 1 / 3).abs().max()) < STANDARD_ERRORS * math.sqrt(2 / 9 / REPEATS)


def test_subspace_noise_has_the_power_of_the_projected_map() -> None:
    top = torch.tensor([[1.0], [1.0]], dtype=torch.float64) / math.sqrt(2)  # the line of the states
    expected = float((MAP @ top @ top.T).square().sum())
    assert_power(drawn("subspace", 0.5, 1), 0.5**2 * expected)


def test_subspace_of_every_direction_is_isotropic() -> None:
    assert_power(drawn("subspace", 0.5, 2), 0.5**2 * float(MAP.square().sum()))


def test_isotropic_noise_of_the_power_of_the_states_gives_less_than_theirs() -> None:
    sigma = math.sqrt(float(STATES.T.cov().trace()) / 2)
    assert_power(drawn("gaussian", sigma), 10.0)  # where noise along the states gives 50/3


@pytest.mark.parametrize(("sampler", "directions"), [("gaussian", None), ("covariance", None), ("subspace", 1)])
def test_noise_without_a_partner_has_mean_zero(sampler: Sampler, directions: int | None) -> None:
    noise = drawn(sampler, 0.5, directions)
    error = STANDARD_ERRORS * noise.std(dim=0) / math.sqrt(REPEATS)
    assert (noise.mean(dim=0).abs() < error).all()


@pytest.mark.parametrize(
    ("sampler", "directions"), [("gaussian", None), ("interpolate", None), ("covariance", None), ("subspace", 1)]
)
def test_every_relative_draw_has_exactly_its_share_of_the_norm_of_its_state(
    sampler: Sampler, directions: int | None
) -> None:
    noise = drawn(sampler, 0.05, directions, relative=True)
    expected = 0.05 * torch.tensor([1.0, 13**0.5, 5**0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(noise.norm(dim=-1), expected.expand(REPEATS, 4), **CLOSE)

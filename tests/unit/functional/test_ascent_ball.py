"""Balls around the embeddings of each example, against numbers that can be derived by hand."""

import math

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from steadytune.functional import Ball, Norm, end_tokens, keyed_generator, real_tokens, relative_size
from tolerances import SAME

EXACT = SAME[torch.float64]
CLOSE: dict[str, float] = {"rtol": EXACT, "atol": EXACT}
NORMS: list[Norm] = ["l2", "linf"]
every_norm = pytest.mark.parametrize("norm", NORMS)

EMBEDDING = torch.tensor([[[3.0, 4.0], [0.0, 5.0], [9.0, 9.0]], [[6.0, 8.0], [1.0, 0.0], [0.0, 1.0]]]).double()
REAL = torch.tensor([[True, True, False], [True, True, True]])
GRADIENT = torch.tensor([[[0.0, 3.0], [4.0, 0.0], [7.0, 7.0]], [[0.0, 0.0], [0.0, -2.0], [1.0, 0.5]]]).double()


def ball(norm: Norm = "l2", radius: float | None = None, *, relative: bool = False, **more: Tensor) -> Ball:
    return Ball.around(EMBEDDING, REAL, norm=norm, radius=radius, relative=relative, **more)


def nowhere() -> Tensor:
    return torch.zeros_like(EMBEDDING)


# -- sizes ------------------------------------------------------------------------------------------------------------


def test_an_absolute_unit_is_one() -> None:
    assert ball().unit.flatten().tolist() == [1, 1]


@pytest.mark.parametrize(("norm", "units"), [("l2", [5.0, 4.0]), ("linf", [4.5, 10 / 3])])
def test_a_relative_unit_is_the_mean_norm_of_the_real_tokens_of_the_example(norm: Norm, units: list[float]) -> None:
    assert ball(norm, relative=True).unit.flatten().tolist() == pytest.approx(units, rel=EXACT)


@pytest.mark.parametrize(
    ("norm", "sizes"), [("l2", [[math.sqrt(123)], [math.sqrt(5.25)]]), ("linf", [[3, 4, 7], [0, 2, 1]])]
)
def test_a_size_is_the_length_of_an_example_or_the_largest_entry_of_a_token(norm: Norm, sizes: list[float]) -> None:
    torch.testing.assert_close(ball(norm).size(GRADIENT)[..., 0], torch.tensor(sizes).double(), rtol=0, atol=1e-6)


def test_relative_size_is_that_of_real_tokens_averaged_over_examples() -> None:
    offset = torch.full_like(EMBEDDING, 0.5)
    one, two = math.sqrt(4 * 0.25) / math.sqrt(50), math.sqrt(6 * 0.25) / math.sqrt(102)
    assert float(relative_size(offset, EMBEDDING, REAL)) == pytest.approx((one + two) / 2, rel=EXACT)


def test_an_example_without_tokens_has_no_size() -> None:
    none = torch.zeros(2, 3, dtype=torch.bool)
    assert Ball.around(EMBEDDING, none, norm="l2", radius=1.0, relative=True).unit.flatten().tolist() == [0, 0]
    assert float(relative_size(EMBEDDING, EMBEDDING, none)) == 0


# -- directions and steps ---------------------------------------------------------------------------------------------


def test_the_l2_direction_of_an_example_has_length_one() -> None:
    expected = [[[0, 0.6], [0.8, 0], [0, 0]], [[0, 0], [0, -2 / 5.25**0.5], [1 / 5.25**0.5, 0.5 / 5.25**0.5]]]
    torch.testing.assert_close(ball().normalized(GRADIENT), torch.tensor(expected).double(), rtol=0, atol=1e-7)


def test_the_linf_direction_of_every_token_has_one_entry_of_size_one() -> None:
    expected = [[[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, -1.0], [1.0, 0.5]]]
    assert ball("linf").normalized(GRADIENT).tolist() == expected


@every_norm
@pytest.mark.parametrize("factor", [1e-200, 1e-30, 1e12])
def test_the_scale_of_the_gradient_does_not_count(factor: float, norm: Norm) -> None:
    torch.testing.assert_close(ball(norm).normalized(GRADIENT * factor), ball(norm).normalized(GRADIENT), **CLOSE)


def test_a_step_is_in_units_of_the_example() -> None:
    moved = ball(relative=True).step(nowhere(), GRADIENT, 0.1)
    assert moved.square().sum(dim=(1, 2)).sqrt().tolist() == pytest.approx([0.5, 0.4], rel=EXACT)


@every_norm
@pytest.mark.parametrize("relative", [False, True])
def test_no_step_leaves_the_ball(relative: bool, norm: Norm) -> None:
    here = ball(norm, 0.3, relative=relative)
    offset = here.placed(torch.randn(EMBEDDING.shape, generator=keyed_generator("cpu", norm), dtype=torch.float64))
    for number in range(5):
        gradient = torch.randn(EMBEDDING.shape, generator=keyed_generator("cpu", number), dtype=torch.float64)
        offset = here.step(offset, gradient, 0.2)
        assert bool((here.size(offset) <= 0.3 * here.unit * (1 + EXACT)).all())


def test_projection_into_the_l2_ball_keeps_the_direction() -> None:
    offset = torch.tensor([[[3.0, 4.0]], [[0.3, 0.4]]])
    real = torch.ones(2, 1, dtype=torch.bool)
    here = Ball.around(offset, real, norm="l2", radius=1.0, relative=False)
    torch.testing.assert_close(here.project(offset), torch.tensor([[[0.6, 0.8]], [[0.3, 0.4]]]))


def test_projection_into_the_linf_ball_cuts_every_entry() -> None:
    offset = torch.tensor([[[3.0, -4.0]], [[0.3, 0.4]]])
    here = Ball.around(offset, torch.ones(2, 1, dtype=torch.bool), norm="linf", radius=1.0, relative=False)
    torch.testing.assert_close(here.project(offset), torch.tensor([[[1.0, -1.0]], [[0.3, 0.4]]]))


def test_without_a_radius_steps_add_up() -> None:
    twice = ball().step(ball().step(nowhere(), GRADIENT, 1.0), GRADIENT, 1.0)
    torch.testing.assert_close(twice, 2 * ball().normalized(GRADIENT), **CLOSE)


@every_norm
def test_a_ball_of_radius_zero_is_its_center(norm: Norm) -> None:
    assert not ball(norm, 0.0).step(nowhere(), GRADIENT, 1.0).any()


# -- what does not move -----------------------------------------------------------------------------------------------


@every_norm
def test_padding_stays_at_zero_and_counts_for_no_norm(norm: Norm) -> None:
    other = GRADIENT.clone()
    other[0, 2] = torch.tensor([math.nan, math.inf])
    moved = ball(norm, 0.3).step(nowhere(), other, 0.2)
    assert not moved[0, 2].any()
    assert torch.equal(moved, ball(norm, 0.3).step(nowhere(), GRADIENT, 0.2))


@every_norm
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_takes_the_perturbation_of_its_example_alone(value: float, norm: Norm) -> None:
    broken, here = GRADIENT.clone(), ball(norm, 0.3)
    broken[0, 1, 0] = value
    start = here.placed(torch.full_like(EMBEDDING, 0.1))
    moved = here.step(start, broken, 0.2)
    assert not moved[0].any()
    assert torch.equal(moved[1], here.step(start, GRADIENT, 0.2)[1])


@every_norm
def test_an_example_without_gradient_has_no_perturbation(norm: Norm) -> None:
    gradient, here = GRADIENT.clone(), ball(norm, 0.3)
    gradient[1] = 0
    moved = here.step(here.placed(torch.full_like(EMBEDDING, 0.1)), gradient, 0.2)
    assert moved[0].any()
    assert not moved[1].any()


def test_a_token_without_gradient_keeps_its_place_in_an_example_with_one() -> None:
    start = ball("linf").placed(torch.full_like(EMBEDDING, 0.1))
    assert ball("linf", 0.3).step(start, GRADIENT, 0.2)[1, 0].tolist() == [0.1, 0.1]


@every_norm
def test_tokens_that_may_not_move_stay_at_zero(norm: Norm) -> None:
    movable = torch.tensor([[False, True, True], [True, False, True]])
    here = ball(norm, 1.0, movable=movable)
    for moved in (here.step(nowhere(), GRADIENT, 1.0), here.placed(EMBEDDING), here.spread(EMBEDDING)):
        assert moved.any(dim=2).int().tolist()[0] == [0, 1, 0]
        assert not moved[1, 1].any()


@every_norm
def test_every_example_is_its_own(norm: Norm) -> None:
    both = ball(norm, 0.3, relative=True).step(nowhere(), GRADIENT, 0.2)
    swapped = Ball.around(EMBEDDING.flip(0), REAL.flip(0), norm=norm, radius=0.3, relative=True)
    assert torch.equal(swapped.step(nowhere(), GRADIENT.flip(0), 0.2), both.flip(0))
    alone = Ball.around(EMBEDDING[:1], REAL[:1], norm=norm, radius=0.3, relative=True)
    assert torch.equal(alone.step(nowhere()[:1], GRADIENT[:1], 0.2), both[:1])


# -- starts -----------------------------------------------------------------------------------------------------------


def test_a_spread_draw_is_divided_by_the_root_of_its_entries() -> None:
    spread = ball().spread(torch.full_like(EMBEDDING, 0.2))
    one, two = 0.2 / math.sqrt(2 * 2), 0.2 / math.sqrt(3 * 2)
    expected = torch.tensor([[[one] * 2, [one] * 2, [0, 0]], [[two] * 2] * 3]).double()
    torch.testing.assert_close(spread, expected, rtol=0, atol=1e-7)


def test_a_placed_draw_is_in_units() -> None:
    placed = ball("linf", relative=True).placed(torch.full_like(EMBEDDING, 0.2))
    assert placed[:, 0, 0].tolist() == pytest.approx([0.9, 2 / 3], rel=EXACT)


# -- which tokens -----------------------------------------------------------------------------------------------------

IDS = torch.tensor([[2, 7, 1], [2, 8, 3]])


def test_real_tokens_are_those_of_the_mask() -> None:
    mask = torch.tensor([[1, 0, 0], [1, 1, 1]])
    found = real_tokens(EMBEDDING, token_ids=IDS, attention_mask=mask, padding_id=1)
    assert torch.equal(found, mask.bool())


def test_real_tokens_without_a_mask_are_those_with_another_id_than_padding() -> None:
    assert torch.equal(real_tokens(EMBEDDING, token_ids=IDS, attention_mask=None, padding_id=1), REAL)


@pytest.mark.parametrize("ids", [None, IDS])
def test_without_mask_and_padding_all_tokens_are_real(ids: Tensor | None) -> None:
    assert bool(real_tokens(EMBEDDING, token_ids=ids, attention_mask=None, padding_id=None).all())


@pytest.mark.parametrize(
    ("mask", "place", "expected"),
    [
        ([1, 1, 1, 0], 0, [1, 0, 1, 0]),
        ([1, 0, 0, 0], 0, [1, 0, 0, 0]),
        ([0, 1, 1, 1], -1, [0, 0, 1, 1]),
        ([0, 0, 0, 1], -1, [0, 0, 0, 1]),
        ([0, 0, 0, 0], 0, [0, 0, 0, 0]),
    ],
)
def test_end_tokens_are_the_first_and_last_or_the_last_two(mask: list[int], place: int, expected: list[int]) -> None:
    assert end_tokens(torch.tensor([mask]).bool(), place).int().tolist() == [expected]


# -- precision --------------------------------------------------------------------------------------------------------


@every_norm
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_perturbations_are_float32_or_wider(dtype: torch.dtype, expected: torch.dtype, norm: Norm) -> None:
    here = Ball.around(EMBEDDING.to(dtype), REAL, norm=norm, radius=0.3, relative=True)
    offset = here.placed(torch.zeros(EMBEDDING.shape, dtype=expected))
    assert here.step(offset, GRADIENT.to(dtype), 0.2).dtype == expected


@every_norm
def test_perturbations_are_constants(norm: Norm) -> None:
    here = Ball.around(EMBEDDING.clone().requires_grad_(), REAL, norm=norm, radius=0.3, relative=True)
    assert not here.step(nowhere(), GRADIENT.clone().requires_grad_() * 2, 0.2).requires_grad


@every_norm
def test_nothing_waits_for_the_value_of_a_tensor(norm: Norm) -> None:
    with FakeTensorMode():  # tensors without values: whatever reads one raises
        values, real = torch.empty(5, 7, 3), torch.zeros(5, 7, dtype=torch.bool)
        here = Ball.around(values, real, norm=norm, radius=0.3, relative=True, movable=end_tokens(real, 0))
        assert here.step(here.spread(values), values, 0.2).shape == (5, 7, 3)

"""Laws and repeatability of the noise, and what low precision leaves of it: hype.md, sections 9.1 and 11."""

import inspect
import math

import pytest
import torch
from torch import Tensor

from steadytune.functional import draw_noise, keyed_generator, keyed_seed, realized_noise
from tolerances import STANDARD_ERRORS

DRAWS = 1 << 20
SIGMA = 0.3


def drawn(distribution: str, scale: float = SIGMA, dtype: torch.dtype = torch.float64, draws: int = DRAWS) -> Tensor:
    return draw_noise(
        torch.empty(draws, dtype=dtype), scale, distribution, keyed_generator("cpu", "test", distribution)
    )


@pytest.mark.parametrize(
    ("distribution", "mean", "deviation"),
    [
        ("normal", 0.0, SIGMA),
        ("uniform", 0.0, SIGMA / math.sqrt(3)),
        ("uniform_released", SIGMA / 2, SIGMA / math.sqrt(12)),
    ],
)
def test_mean_of_each_law(distribution: str, mean: float, deviation: float) -> None:
    allowed = STANDARD_ERRORS * deviation / math.sqrt(DRAWS)
    assert float(drawn(distribution).mean()) == pytest.approx(mean, rel=0, abs=allowed)


@pytest.mark.parametrize(
    ("distribution", "variance", "standard_error"),
    [
        ("normal", SIGMA**2, SIGMA**2 * math.sqrt(2 / DRAWS)),
        ("uniform", SIGMA**2 / 3, SIGMA**2 * math.sqrt(4 / (45 * DRAWS))),
        ("uniform_released", SIGMA**2 / 12, SIGMA**2 / 4 * math.sqrt(4 / (45 * DRAWS))),  # half the half-width
    ],
)
def test_variance_of_each_law(distribution: str, variance: float, standard_error: float) -> None:
    found = float(drawn(distribution).var())
    assert found == pytest.approx(variance, rel=0, abs=STANDARD_ERRORS * standard_error)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("distribution", "low"), [("uniform", -SIGMA), ("uniform_released", 0.0)])
def test_uniform_noise_fills_its_interval_and_nothing_else(distribution: str, low: float, dtype: torch.dtype) -> None:
    noise = drawn(distribution, dtype=dtype)
    bound = torch.tensor([low, SIGMA], dtype=dtype)
    assert float(noise.min()) >= float(bound[0])
    assert float(noise.max()) <= float(bound[1])
    missed = 20 * (SIGMA - low) / DRAWS  # chance e^-20 that an end piece of this length stays empty
    assert float(noise.min()) < low + missed
    assert float(noise.max()) > SIGMA - missed


def test_entries_of_normal_noise_are_independent_of_their_neighbors() -> None:
    noise = drawn("normal") / SIGMA
    correlation = float((noise[1:] * noise[:-1]).mean())
    assert correlation == pytest.approx(0, abs=STANDARD_ERRORS / math.sqrt(DRAWS))


@pytest.mark.parametrize(
    ("like", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_noise_is_drawn_in_float32_or_wider(like: torch.dtype, expected: torch.dtype) -> None:
    assert drawn("normal", dtype=like, draws=3).dtype == expected


def test_noise_has_the_shape_of_the_states_and_no_gradient() -> None:
    states = torch.zeros(2, 3, 4, requires_grad=True)
    noise = draw_noise(states, 1.0, "normal", keyed_generator("cpu", 0))
    assert noise.shape == (2, 3, 4)
    assert not noise.requires_grad


def test_an_unknown_law_is_refused() -> None:
    plain = inspect.unwrap(draw_noise)  # as outside the tests, where types are not checked
    with pytest.raises(
        ValueError, match=r"^distribution must be 'normal', 'uniform' or 'uniform_released'; got 'x'\.$"
    ):
        plain(torch.zeros(2), 1.0, "x", keyed_generator("cpu", 0))


# -- keyed streams ----------------------------------------------------------------------------------------------------

KEY = (0, "hype", 3, 0, "clean", "between", 1)
OTHER_KEYS = [
    (1, "hype", 3, 0, "clean", "between", 1),  # seed
    (0, "lnsr", 3, 0, "clean", "between", 1),  # method
    (0, "hype", 4, 0, "clean", "between", 1),  # step
    (0, "hype", 3, 1, "clean", "between", 1),  # process
    (0, "hype", 3, 0, "second", "between", 1),  # pass
    (0, "hype", 3, 0, "clean", "inside", 1),  # place
    (0, "hype", 3, 0, "clean", "between", 2),  # layer
    (3, "hype", 0, 0, "clean", "between", 1),  # order
    ("0", "hype", 3, 0, "clean", "between", 1),  # type
    (0, "hype", 30, "clean", "between", 1),  # two parts run together
    (0, "hype", 3, 0, "clean", "between"),  # a part less
    (0, "hype", 3, 0, "clean", "between\x1f1"),  # the separator inside a part
]


def test_one_key_names_one_stream() -> None:
    assert torch.equal(
        torch.randn(8, generator=keyed_generator("cpu", *KEY)), torch.randn(8, generator=keyed_generator("cpu", *KEY))
    )


@pytest.mark.parametrize("other", OTHER_KEYS)
def test_every_part_of_the_key_names_another_stream(other: tuple[int | str, ...]) -> None:
    one, two = (torch.randn(8, generator=keyed_generator("cpu", *key)) for key in (KEY, other))
    assert not (one == two).any()


def test_a_seed_is_the_same_in_every_process_and_version() -> None:
    assert keyed_seed(*KEY) == 6065873268318353684  # half of BLAKE2b-64 of the key's parts, as little-endian integer


@pytest.mark.parametrize("step", range(50))
def test_a_seed_fits_a_generator(step: int) -> None:
    assert 0 <= keyed_seed("any", step) < 2**63


def test_keyed_draws_leave_the_global_stream_where_it_was() -> None:
    before = torch.get_rng_state()
    draw_noise(torch.zeros(100), 1.0, "normal", keyed_generator("cpu", *KEY))
    assert torch.equal(torch.get_rng_state(), before)


# -- low precision ----------------------------------------------------------------------------------------------------

SCALES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
REALIZED = {  # share of entries that change and correlation, at the five scales; standard-normal states
    (torch.float16, "uniform"): ((0.0123, 0.117, 0.719, 0.972, 0.997), (0.13, 0.40, 0.94, 1.00, 1.00)),
    (torch.float16, "normal"): ((0.0188, 0.182, 0.785, 0.978, 0.998), (0.19, 0.57, 0.98, 1.00, 1.00)),
    (torch.bfloat16, "uniform"): ((0.0015, 0.015, 0.138, 0.775, 0.978), (0.05, 0.14, 0.43, 0.96, 1.00)),
    (torch.bfloat16, "normal"): ((0.0024, 0.024, 0.224, 0.826, 0.982), (0.07, 0.21, 0.63, 0.99, 1.00)),
}
CELLS = [
    (dtype, law, scale, shares[i], correlations[i])
    for (dtype, law), (shares, correlations) in REALIZED.items()
    for i, scale in enumerate(SCALES)
]
SAMPLE = 1 << 19
ROUNDING = 0.005  # of a correlation printed with two digits


def realized(dtype: torch.dtype, law: str, scale: float) -> tuple[float, float]:
    states = torch.randn(SAMPLE, generator=keyed_generator("cpu", "states")).to(dtype)
    noise = draw_noise(states, scale, law, keyed_generator("cpu", "noise"))
    correlation, moved = realized_noise(states, noise, dtype)
    return float(correlation), float(moved)


@pytest.mark.parametrize(("dtype", "law", "scale", "share", "correlation"), CELLS)
def test_low_precision_keeps_the_measured_part_of_the_noise(
    dtype: torch.dtype, law: str, scale: float, share: float, correlation: float
) -> None:
    found_correlation, found_share = realized(dtype, law, scale)
    sampling = STANDARD_ERRORS * math.sqrt(share * (1 - share) / SAMPLE)
    assert found_share == pytest.approx(share, rel=0.03, abs=sampling)  # printed with two or three digits
    assert found_correlation == pytest.approx(correlation, rel=0, abs=0.01 + ROUNDING)


def test_float32_keeps_the_published_scale() -> None:
    correlation, share = realized(torch.float32, "normal", 1e-5)
    assert correlation == pytest.approx(1.0, abs=ROUNDING)
    assert share == pytest.approx(0.997, abs=0.001)


def test_no_noise_has_no_correlation_and_moves_nothing() -> None:
    assert [float(v) for v in realized_noise(torch.ones(4), torch.zeros(4), torch.bfloat16)] == [0.0, 0.0]


def test_only_a_change_above_half_a_unit_of_the_last_place_is_seen() -> None:
    states = torch.ones(2)  # spacing 2^-7 above 1 in bfloat16, so 0.0038 is rounded away and 0.0040 is not
    _, moved = realized_noise(states, torch.tensor([0.0038, 0.0040]), torch.bfloat16)
    assert float(moved) == 0.5


def test_rounding_of_the_states_themselves_is_no_effect_of_the_noise() -> None:
    states = torch.tensor([1.0010, 1.0020])  # float32, as under autocast; both are read as 1 in bfloat16
    _, moved = realized_noise(states, torch.full((2,), 1e-5), torch.bfloat16)
    assert float(moved) == 0.0

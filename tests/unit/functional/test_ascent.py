"""Steps that raise a loss, against numbers that can be derived by hand: cat.md, K1, K2, K10, K11."""

import math

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import cross_entropy, embedding

from steadytune.functional import Norm, ascent_step, by_token, keyed_generator
from tolerances import PRINTED, SAME

EXACT = SAME[torch.float64]
CLOSE: dict[str, float] = {"rtol": EXACT, "atol": EXACT}
NORMS: list[Norm] = ["l2", "linf"]
every_norm = pytest.mark.parametrize("norm", NORMS)


def near(expected: float, dtype: torch.dtype = torch.float64) -> object:
    return pytest.approx(expected, rel=0, abs=PRINTED[dtype])


# -- a table of four ids, two examples, the mean of two embeddings as logits ------------------------------------------

TABLE = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
IDS, LABELS = torch.tensor([[1, 2], [3, 3]]), torch.tensor([0, 1])
GRADIENT = [[0.0, 0.0], [-0.125, 0.125], [-0.125, 0.125], [0.25, -0.25]]  # of the mean loss, by row of the table


def looked_up_losses(looked_up: Tensor) -> Tensor:
    """Loss of each example from its embedded tokens."""
    return cross_entropy(looked_up.mean(dim=1), LABELS, reduction="none")


def gradient_at_the_tokens(dtype: torch.dtype = torch.float64) -> Tensor:
    looked_up = TABLE[IDS].to(dtype).requires_grad_()
    (gradient,) = torch.autograd.grad(looked_up_losses(looked_up).mean(), looked_up)
    return gradient


def offset(epsilon: float, norm: Norm, dtype: torch.dtype = torch.float64) -> Tensor:
    """What is added at every token."""
    sums, slots = by_token(gradient_at_the_tokens(dtype), IDS)
    return ascent_step(sums, epsilon, norm)[slots]


def perturbed_loss(epsilon: float, norm: Norm, dtype: torch.dtype = torch.float64) -> float:
    return float(looked_up_losses(TABLE[IDS].to(dtype) + offset(epsilon, norm, dtype)).mean())


def test_sums_are_the_gradient_of_the_rows_of_the_table() -> None:
    sums, slots = by_token(gradient_at_the_tokens(), IDS)
    torch.testing.assert_close(sums[slots], torch.tensor(GRADIENT).double()[IDS], **CLOSE)


def test_l2_step_of_the_toy_has_the_printed_rows() -> None:
    rows = torch.tensor([[0.0, 0.0], [-0.0288675, 0.0288675], [-0.0288675, 0.0288675], [0.0577350, -0.0577350]])
    torch.testing.assert_close(offset(0.1, "l2"), rows.double()[IDS], rtol=0, atol=PRINTED[torch.float64])


def test_l2_step_of_the_toy_has_the_printed_loss_of_each_example() -> None:
    losses = looked_up_losses(TABLE[IDS] + offset(0.1, "l2"))
    assert losses.tolist() == [near(0.722431), near(0.752548)]


STEPPED = [
    ("l2", 0.1, 0.737490),
    ("l2", 0.02, 0.701849),
    ("l2", 0.001, 0.693580),
    ("linf", 0.1, 0.798139),
    ("linf", 0.02, 0.713347),
    ("linf", 0.001, 0.694148),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("norm", "epsilon", "expected"), STEPPED)
def test_loss_after_a_step_on_the_table(norm: Norm, epsilon: float, expected: float, dtype: torch.dtype) -> None:
    assert perturbed_loss(epsilon, norm, dtype) == near(expected, dtype)


@pytest.mark.parametrize(
    ("norm", "epsilon", "expected"),
    [
        ("l2", 0.1, 0.650887),
        ("l2", 0.02, 0.684529),
        ("l2", 0.001, 0.692714),
        ("linf", 0.1, 0.598139),
        ("linf", 0.02, 0.673347),
        ("linf", 0.001, 0.692148),
    ],
)
def test_the_opposite_step_lowers_the_loss(norm: Norm, epsilon: float, expected: float) -> None:
    assert float(looked_up_losses(TABLE[IDS] - offset(epsilon, norm)).mean()) == near(expected)


@pytest.mark.parametrize(("epsilon", "expected"), [(0.1, 0.766356), (0.02, 0.707389), (0.001, 0.693855)])
def test_one_norm_for_each_row_is_another_method(epsilon: float, expected: float) -> None:
    rows = torch.tensor(GRADIENT).double()
    step = torch.stack([epsilon * row / row.norm() if row.any() else row for row in rows])
    found = float(looked_up_losses((TABLE + step)[IDS]).mean())
    assert found == near(expected)
    assert found > perturbed_loss(epsilon, "l2") + PRINTED[torch.float64]


@pytest.mark.parametrize(("epsilon", "expected"), [(0.1, 0.744397), (0.02, 0.703197), (0.001, 0.693647)])
def test_tokens_perturbed_apart_in_each_example_are_another_method(epsilon: float, expected: float) -> None:
    gradient = gradient_at_the_tokens()
    step = torch.stack([epsilon * example / example.norm() for example in gradient])
    found = float(looked_up_losses(TABLE[IDS] + step).mean())
    assert found == near(expected)
    assert found > perturbed_loss(epsilon, "l2") + PRINTED[torch.float64]


@pytest.mark.parametrize(
    ("norm", "epsilon", "ratio"),
    [
        ("l2", 0.1, 1.024045),
        ("l2", 0.02, 1.004811),
        ("l2", 0.001, 1.000241),
        ("linf", 0.1, 1.049917),
        ("linf", 0.02, 1.009999),
        ("linf", 0.001, 1.000500),
    ],
)
def test_loss_rises_as_the_first_order_predicts(norm: Norm, epsilon: float, ratio: float) -> None:
    entries = [entry for row in GRADIENT for entry in row]
    slope = math.hypot(*entries) if norm == "l2" else math.fsum(map(abs, entries))
    assert slope == near({"l2": 0.433013, "linf": 1.0}[norm])
    assert (perturbed_loss(epsilon, norm) - math.log(2)) / (epsilon * slope) == near(ratio)


# -- sums by id -------------------------------------------------------------------------------------------------------


def random_lookup(seed: int, rows: int = 5, tokens: int = 7, vocabulary: int = 9) -> tuple[Tensor, Tensor]:
    generator = keyed_generator("cpu", "lookup", seed)
    ids = torch.randint(vocabulary, (rows, tokens), generator=generator)
    return torch.randn(rows, tokens, 3, generator=generator, dtype=torch.float64), ids


@pytest.mark.parametrize("seed", range(5))
def test_sums_spread_out_are_those_of_plain_loops(seed: int) -> None:
    values, ids = random_lookup(seed)
    totals = {token: torch.zeros(3).double() for token in ids.unique().tolist()}
    for vector, token in zip(values.flatten(0, 1), ids.flatten().tolist(), strict=True):
        totals[token] += vector
    expected = torch.stack([torch.stack([totals[token] for token in row]) for row in ids.tolist()])
    sums, slots = by_token(values, ids)
    torch.testing.assert_close(sums[slots], expected, **CLOSE)


@pytest.mark.parametrize("seed", range(5))
def test_sums_have_the_norm_of_the_gradient_of_the_whole_matrix(seed: int) -> None:
    values, ids = random_lookup(seed)
    matrix = torch.zeros(9, 3, dtype=torch.float64, requires_grad=True)
    embedding(ids, matrix).backward(values)
    assert matrix.grad is not None
    assert float(by_token(values, ids)[0].norm()) == pytest.approx(float(matrix.grad.norm()), rel=EXACT)


def test_every_occurrence_of_an_id_has_the_same_slot_and_no_other_id_has_it() -> None:
    _, ids = random_lookup(0)
    _, slots = by_token(torch.zeros(5, 7, 1), ids)
    assert torch.equal(slots.flatten()[:, None] == slots.flatten(), ids.flatten()[:, None] == ids.flatten())


def test_slots_without_an_id_are_zero() -> None:
    sums, slots = by_token(torch.ones(2, 3, 1), torch.tensor([[7, 7, 7], [7, 2, 7]]))
    assert slots.max() == 1
    assert sums.squeeze(1).tolist() == [1, 5, 0, 0, 0, 0]


def test_one_token_is_its_own_sum() -> None:
    sums, slots = by_token(torch.tensor([[[2.0, -1.0]]]), torch.tensor([[31_000]]))
    assert (sums.tolist(), slots.tolist()) == ([[2.0, -1.0]], [[0]])


# -- the step ---------------------------------------------------------------------------------------------------------


def test_l2_step_has_the_length_epsilon_over_the_whole_tensor() -> None:
    gradient, _ = random_lookup(0)
    assert float(ascent_step(gradient, 0.3, "l2").norm()) == pytest.approx(0.3, rel=EXACT)


def test_every_entry_of_the_sign_step_has_the_size_epsilon() -> None:
    gradient, _ = random_lookup(0)
    assert ascent_step(gradient, 0.3, "linf").abs().unique().tolist() == [0.3]


def test_entries_without_a_gradient_stay_in_the_sign_step() -> None:
    assert ascent_step(torch.tensor([[0.0, 2.0], [0.0, 0.0]]), 0.5, "linf").tolist() == [[0.0, 0.5], [0.0, 0.0]]


@every_norm
def test_scale_of_the_loss_does_not_count(norm: Norm) -> None:
    gradient, _ = random_lookup(0)
    torch.testing.assert_close(ascent_step(gradient * 2**16, 0.3, norm), ascent_step(gradient, 0.3, norm), **CLOSE)


@every_norm
def test_no_gradient_gives_no_step(norm: Norm) -> None:
    assert torch.equal(ascent_step(torch.zeros(3, 2), 0.3, norm), torch.zeros(3, 2))


@every_norm
def test_a_gradient_too_short_to_divide_by_gives_no_step(norm: Norm) -> None:
    assert torch.equal(ascent_step(torch.full((3, 2), 1e-40), 0.3, norm), torch.zeros(3, 2))


@every_norm
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_gradient_that_is_not_finite_gives_no_step_anywhere(value: float, norm: Norm) -> None:
    gradient = torch.ones(3, 2)
    gradient[1, 0] = value
    assert torch.equal(ascent_step(gradient, 0.3, norm), torch.zeros(3, 2))


@every_norm
def test_no_radius_gives_no_step(norm: Norm) -> None:
    assert torch.equal(ascent_step(torch.ones(3, 2), 0.0, norm), torch.zeros(3, 2))


@every_norm
def test_the_step_is_a_constant(norm: Norm) -> None:
    assert not ascent_step(torch.ones(3, 2, requires_grad=True) * 2, 0.3, norm).requires_grad


@every_norm
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_the_step_is_float32_or_wider(dtype: torch.dtype, expected: torch.dtype, norm: Norm) -> None:
    assert ascent_step(torch.ones(3, 2, dtype=dtype), 0.3, norm).dtype == expected


def test_length_of_a_half_precision_gradient_does_not_overflow() -> None:
    gradient = torch.full((4,), 6e4, dtype=torch.float16)  # its norm is above the largest float16, 65504
    assert ascent_step(gradient, 1.0, "l2").tolist() == pytest.approx([0.5] * 4, rel=SAME[torch.float32])


@every_norm
def test_nothing_waits_for_the_value_of_a_tensor(norm: Norm) -> None:
    with FakeTensorMode():  # tensors without values: whatever reads one raises
        sums, slots = by_token(torch.empty(5, 7, 3), torch.zeros(5, 7, dtype=torch.long))
        assert ascent_step(sums, 0.3, norm)[slots].shape == (5, 7, 3)

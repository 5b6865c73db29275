"""Values of the contrasts that can be derived by hand: scl.md, section 8, and cat.md, K3."""

import inspect
import math

import pytest
import torch
from torch import Tensor

from steadytune.functional import nt_xent_loss, positives, supcon_loss
from steadytune.methods import SCL
from steadytune.objective import Coefficients
from tolerances import PRINTED, ROUNDED, SAME

GENERAL = [[1, 2, 2], [2, 1, 2], [-1, 0, 1], [0, -3, 4], [3, 0, 0]]
LAST_ALONE = [0, 0, 1, 1, 2]
CLUSTERS = [[1, 0], [1, 0], [0, 1], [0, 1]]
ANTIPODES = [[1, 0], [1, 0], [-1, 0], [-1, 0]]
DTYPES = [torch.float64, torch.float32]


def loss(
    rows: list[list[float]], labels: list[int], tau: float, reduction: str = "mean", dtype: torch.dtype = torch.float64
) -> float:
    z = torch.tensor(rows, dtype=dtype)
    return float(supcon_loss(z, torch.tensor(labels), temperature=tau, reduction=reduction))


def loss_and_gradient(rows: list[list[float]], labels: list[int], tau: float) -> tuple[Tensor, Tensor]:
    z = torch.tensor(rows, dtype=torch.float64, requires_grad=True)
    value = supcon_loss(z, torch.tensor(labels), temperature=tau)
    value.backward()
    assert z.grad is not None
    return value.detach(), z.grad


def near(expected: float, dtype: torch.dtype = torch.float64) -> object:
    return pytest.approx(expected, rel=0, abs=PRINTED[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("tau", "expected"),
    [
        (0.1, 0.000090796),
        (0.3, 0.068918),
        (0.5, 0.239545),
        (0.7, 0.391570),
        (1.0, 0.551445),
        (10, 1.033069),
        (1e6, 1.098612),
    ],
)
def test_two_perfect_clusters_have_the_closed_form(tau: float, expected: float, dtype: torch.dtype) -> None:
    assert math.log(1 + 2 * math.exp(-1 / tau)) == near(expected)  # one positive at cosine 1, two negatives at 0
    assert loss(CLUSTERS, [0, 0, 1, 1], tau, dtype=dtype) == near(expected, dtype)


def test_sum_is_eq_3_as_printed_and_mean_is_a_share_of_it() -> None:
    assert loss(CLUSTERS, [0, 0, 1, 1], 0.3, "sum") == near(0.275671)
    assert loss(CLUSTERS, [0, 0, 1, 1], 0.3, "mean") == near(0.275671 / 4)


def test_length_of_a_vector_does_not_count() -> None:
    assert loss([[5, 0], [0.1, 0], [0, 3], [0, 7]], [0, 0, 1, 1], 0.3) == near(0.068918)


@pytest.mark.parametrize(("tau", "expected"), [(0.1, 10.000091), (0.3, 3.402251), (1.0, 1.551445)])
def test_crossed_labels_pay_one_over_temperature_more(tau: float, expected: float) -> None:
    assert math.log(1 + 2 * math.exp(-1 / tau)) + 1 / tau == near(expected)
    assert loss(CLUSTERS, [0, 1, 0, 1], tau) == near(expected)


@pytest.mark.parametrize(("tau", "expected"), [(0.3, 0.002542), (1.0, 0.239545)])
def test_antipodal_clusters_have_the_closed_form(tau: float, expected: float) -> None:
    assert math.log(1 + 2 * math.exp(-2 / tau)) == near(expected)
    assert loss(ANTIPODES, [0, 0, 1, 1], tau) == near(expected)


TABLE = [  # tau, then anchors 1 to 4 (the fifth adds 0), sum, mean over 5, mean over the 4 with a positive
    (0.07, (0.000466, 0.041306, 0.009235, 0.037840), 0.088847, 0.017769, 0.022212),
    (0.1, (0.005828, 0.106495, 0.039592, 0.108563), 0.260477, 0.052095, 0.065119),
    (0.3, (0.300751, 0.521987, 0.404795, 0.614816), 1.842349, 0.368470, 0.460587),
    (0.5, (0.599198, 0.760519, 0.651224, 0.863770), 2.874712, 0.574942, 0.718678),
    (0.7, (0.781765, 0.900593, 0.802954, 0.994156), 3.479468, 0.695894, 0.869867),
    (1.0, (0.941525, 1.024464, 0.942720, 1.101813), 4.010523, 0.802105, 1.002631),
    (1e6, (1.386294, 1.386294, 1.386294, 1.386294), 5.545176, 1.109035, 1.386294),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tau", "total", "mean", "valid"), [(row[0], *row[2:]) for row in TABLE])
def test_general_case_in_all_three_reductions(
    tau: float, total: float, mean: float, valid: float, dtype: torch.dtype
) -> None:
    found = [loss(GENERAL, LAST_ALONE, tau, kind, dtype) for kind in ("sum", "mean", "mean_valid")]
    assert found == [near(total, dtype), near(mean, dtype), near(valid, dtype)]


@pytest.mark.parametrize(("tau", "anchors"), [row[:2] for row in TABLE])
@pytest.mark.parametrize(("pair", "labels"), [((0, 1), [0, 0, 1, 2, 3]), ((2, 3), [0, 1, 2, 2, 3])])
def test_an_anchor_depends_on_other_labels_only_through_its_own_positives(
    tau: float, anchors: tuple[float, ...], pair: tuple[int, int], labels: list[int]
) -> None:
    rounding = 1e-6  # two printed values are added
    assert loss(GENERAL, labels, tau, "sum") == pytest.approx(anchors[pair[0]] + anchors[pair[1]], rel=0, abs=rounding)


def test_gradient_of_the_general_case() -> None:
    expected = [
        (-0.08717400, -0.00675004, 0.05033704),
        (0.03568698, -0.12291938, 0.02577270),
        (-0.03354222, 0.34093673, -0.03354222),
        (0.12439519, 0.00717582, 0.00538187),
        (0.0, 0.02722631, 0.07521329),
    ]
    _, gradient = loss_and_gradient(GENERAL, LAST_ALONE, 0.3)
    torch.testing.assert_close(gradient, torch.tensor(expected).double(), rtol=0, atol=PRINTED[torch.float64])


def test_an_example_without_a_positive_still_gets_a_gradient_as_a_negative() -> None:
    _, gradient = loss_and_gradient(GENERAL, LAST_ALONE, 0.3)
    assert float(gradient[4].norm()) == near(0.07998944)


def test_an_anchor_without_a_positive_adds_nothing_but_counts_in_the_mean() -> None:
    assert loss(GENERAL, LAST_ALONE, 0.3, "mean") == near(loss(GENERAL, LAST_ALONE, 0.3, "sum") / 5)
    assert loss(GENERAL, LAST_ALONE, 0.3, "mean_valid") == near(loss(GENERAL, LAST_ALONE, 0.3, "sum") / 4)


@pytest.mark.parametrize(("tau", "expected"), [(0.1, 4.961800), (0.3, 2.076631), (1.0, 1.474251)])
def test_classes_of_unequal_size(tau: float, expected: float) -> None:
    assert loss(GENERAL, [0, 0, 0, 1, 1], tau) == near(expected)


def test_mean_over_positives_is_outside_the_logarithm() -> None:
    one_positive_at_a_time = 1.618639  # the same batch with the other positives left out of the denominator
    assert abs(loss(GENERAL, [0, 0, 0, 1, 1], 0.3) - one_positive_at_a_time) > 0.4


@pytest.mark.parametrize("reduction", ["mean", "sum", "mean_valid"])
def test_without_any_pair_the_loss_is_exactly_zero(reduction: str) -> None:
    assert loss(GENERAL, [0, 1, 2, 3, 4], 0.3, reduction) == 0.0


def test_without_any_pair_the_gradient_is_exactly_zero() -> None:
    _, gradient = loss_and_gradient(GENERAL, [0, 1, 2, 3, 4], 0.3)
    assert torch.equal(gradient, torch.zeros(5, 3).double())


@pytest.mark.parametrize(("tau", "expected"), [(0.1, 4.761146), (0.3, 2.009747), (1.0, 1.454185)])
def test_one_class_stays_above_the_logarithm_of_the_others(tau: float, expected: float) -> None:
    found = loss(GENERAL, [7] * 5, tau)
    assert found == near(expected)
    assert found >= math.log(4)


@pytest.mark.parametrize("tau", [0.1, 0.3, 1.0])
@pytest.mark.parametrize(("rows", "expected"), [(4, 1.098612), (6, 1.609438), (8, 1.945910), (16, 2.708050)])
def test_collapsed_vectors_give_the_logarithm_of_the_others_at_any_temperature(
    rows: int, expected: float, tau: float
) -> None:
    assert math.log(rows - 1) == near(expected)
    value, gradient = loss_and_gradient([[1, 2, 2]] * rows, [i % 2 for i in range(rows)], tau)
    assert float(value) == near(expected)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=SAME[torch.float64])


def cosines(rows: list[list[float]]) -> list[list[float]]:
    units = [[x / math.hypot(*row) for x in row] for row in rows]
    return [[math.fsum(a * b for a, b in zip(u, v, strict=True)) for v in units] for u in units]


def second_order(anchor: int, partner: int, tau: float) -> float:
    """log(N-1) + (mean of all - mean of positives)/τ + population variance of all/(2τ²); one positive per anchor."""
    others = [s for k, s in enumerate(cosines(GENERAL)[anchor]) if k != anchor]
    mean = sum(others) / 4
    variance = sum((s - mean) ** 2 for s in others) / 4
    return math.log(4) + (mean - cosines(GENERAL)[anchor][partner]) / tau + variance / (2 * tau**2)


def test_high_temperature_has_the_printed_expansion() -> None:
    assert second_order(0, 1, 100) == near(1.381388)
    expected = sum(second_order(anchor, anchor ^ 1, 100) for anchor in range(4))
    assert loss(GENERAL, LAST_ALONE, 100, "sum") == near(expected)


@pytest.mark.parametrize(("labels", "expected"), [([0, 1, 0, 1], 1.0), ([0, 0, 1, 1], 0.0)])
def test_low_temperature_leaves_the_gap_between_nearest_and_positives(labels: list[int], expected: float) -> None:
    tau = 1e-6  # crossed: nearest at cosine 1, positive at 0; not crossed: the positive is the nearest
    assert tau * loss(CLUSTERS, labels, tau) == near(expected)


def test_low_temperature_leaves_nothing_where_every_positive_is_nearest() -> None:
    assert 1e-6 * loss(GENERAL, LAST_ALONE, 1e-6) == near(0.0)


@pytest.mark.parametrize(
    ("rows", "labels", "closed_form", "expected"),
    [
        ([[1, 0]] * 8 + [[-1, 0]] * 8, [0] * 8 + [1] * 8, math.log(7 + 8 * math.exp(-2 / 0.3)), 1.947364),
        ([[1, 0]] * 8 + [[0, 1]] * 8, [0] * 8 + [1] * 8, math.log(7 + 8 * math.exp(-1 / 0.3)), 1.985871),
        (
            [[1, 0]] * 5 + [[-0.5, 3**0.5 / 2]] * 5 + [[-0.5, -(3**0.5) / 2]] * 5,
            [0] * 5 + [1] * 5 + [2] * 5,
            math.log(4 + 10 * math.exp(-1.5 / 0.3)),
            1.402999,
        ),
    ],
    ids=["antipodal", "orthogonal", "simplex of three"],
)
def test_best_arrangement_of_a_balanced_batch(
    rows: list[list[float]], labels: list[int], closed_form: float, expected: float
) -> None:
    assert closed_form == near(expected)
    assert loss(rows, labels, 0.3) == near(expected)


@pytest.mark.parametrize(
    ("weight", "reduction", "expected"),
    [
        (0.0, "mean", 0.5),
        (0.5, "mean", 0.434235),
        (0.9, "mean", 0.381623),
        (1.0, "mean", 0.368470),
        (0.0, "sum", 0.5),
        (0.5, "sum", 1.171174),
        (0.9, "sum", 1.708114),
        (1.0, "sum", 1.842349),
    ],
)
def test_weight_mixes_convexly_with_a_label_loss(weight: float, reduction: str, expected: float) -> None:
    methods = [method for method in [SCL(weight=weight)] if method.active]
    factors = Coefficients.of(methods)
    term = loss(GENERAL, LAST_ALONE, 0.3, reduction)
    assert factors.task * 0.5 + factors.terms.get("scl", 0.0) * term == near(expected)


def test_two_of_one_class_have_neither_loss_nor_gradient() -> None:
    value, gradient = loss_and_gradient(GENERAL[:2], [0, 0], 0.3)
    assert float(value) == 0.0
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=SAME[torch.float64])


def test_contrast_is_not_additive_over_parts_of_a_batch() -> None:
    assert loss(GENERAL[:4], LAST_ALONE[:4], 0.3) == near(0.322772)
    assert loss(GENERAL[:2], [0, 0], 0.3) + loss(GENERAL[2:4], [1, 1], 0.3) == 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tau", [0.07, 0.1, 0.3, 1.0])
def test_half_precision_vectors_are_contrasted_in_float32(tau: float, dtype: torch.dtype) -> None:
    z, labels = torch.tensor(GENERAL, dtype=dtype), torch.tensor(LAST_ALONE)  # small integers: exact in half precision
    value = supcon_loss(z, labels, temperature=tau)
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(loss(GENERAL, LAST_ALONE, tau), rel=ROUNDED[dtype])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tau", [0.07, 0.1, 0.3, 1.0])
def test_autocast_does_not_round_the_cosines(tau: float, dtype: torch.dtype) -> None:
    z, labels = torch.tensor(GENERAL, dtype=torch.float32), torch.tensor(LAST_ALONE)
    with torch.autocast("cpu", dtype=dtype):
        value = supcon_loss(z, labels, temperature=tau)
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(loss(GENERAL, LAST_ALONE, tau), rel=ROUNDED[dtype])


def test_a_loss_near_zero_agrees_in_half_precision_to_a_millionth() -> None:
    value = supcon_loss(torch.tensor(CLUSTERS).bfloat16(), torch.tensor([0, 0, 1, 1]), temperature=0.1)
    assert float(value) == near(0.000090796)


@pytest.mark.parametrize("reduction", ["mean", "sum", "mean_valid"])
def test_ignored_rows_are_neither_anchors_nor_positives_nor_negatives(reduction: str) -> None:
    rows = [[9, 9, 9], *GENERAL[:2], [8, -8, 1], *GENERAL[2:]]
    labels = [-100, *LAST_ALONE[:2], -100, *LAST_ALONE[2:]]
    assert loss(rows, labels, 0.3, reduction) == near(loss(GENERAL, LAST_ALONE, 0.3, reduction))


def test_positives_are_the_others_of_the_same_class() -> None:
    expected = [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert positives(torch.tensor([3, 3, 1, 0])).int().tolist() == expected


def test_ignored_rows_are_no_class_of_their_own() -> None:
    assert not positives(torch.tensor([-100, -100, 1])).any()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"labels": torch.tensor([0, 0])}, "z and labels must have the same length; got 3 vectors and 2 labels."),
        ({"temperature": 0.0}, "temperature must be a number > 0; got 0.0."),
        ({"temperature": -1.0}, "temperature must be a number > 0; got -1.0."),
        ({"temperature": float("nan")}, "temperature must be a number > 0; got nan."),
        ({"reduction": "average"}, "reduction must be 'mean', 'sum' or 'mean_valid'; got 'average'."),
    ],
)
def test_what_is_out_of_range_is_refused(change: dict[str, object], sentence: str) -> None:
    arguments = {"z": torch.eye(3), "labels": torch.tensor([0, 0, 1]), "temperature": 0.3} | change
    with pytest.raises(ValueError) as caught:
        inspect.unwrap(supcon_loss)(**arguments)  # as outside the tests, where types are not checked
    assert str(caught.value) == sentence


# -- two views --------------------------------------------------------------------------------------------------------

ONE = [[1, 0], [0, 1], [1, 1]]
OTHER = [[1, 0.1], [0.2, 1], [1, 0.8]]


def views_loss(
    one: list[list[float]], other: list[list[float]], tau: float, dtype: torch.dtype = torch.float64
) -> float:
    return float(nt_xent_loss(torch.tensor(one, dtype=dtype), torch.tensor(other, dtype=dtype), temperature=tau))


def axes(rows: int) -> list[list[float]]:
    """That many orthogonal unit vectors."""
    return [[float(i == j) for j in range(rows)] for i in range(rows)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "tau", "expected"),
    [
        (2, 0.05, 4.1223e-09),
        (2, 0.1, 9.0796e-05),
        (2, 0.5, 0.239545),
        (2, 1.0, 0.551445),
        (8, 0.1, 6.3540e-04),
        (16, 0.1, 1.36107e-03),
        (32, 0.1, 2.81084e-03),
    ],
)
def test_orthogonal_examples_with_exact_copies_have_the_closed_form(
    rows: int, tau: float, expected: float, dtype: torch.dtype
) -> None:
    closed = math.log1p((2 * rows - 2) * math.exp(-1 / tau))  # the copy at cosine 1, all others at 0
    assert closed == near(expected)
    assert views_loss(axes(rows), axes(rows), tau, dtype) == near(closed, dtype)


def test_a_contrast_near_zero_keeps_its_digits_in_float64() -> None:
    assert f"{views_loss(axes(2), axes(2), 0.05):.4e}" == "4.1223e-09"


@pytest.mark.parametrize("tau", [0.05, 0.1, 1.0])
@pytest.mark.parametrize(("rows", "expected"), [(2, 1.098612), (8, 2.708050), (16, 3.433987), (32, 4.143135)])
def test_equal_vectors_give_the_logarithm_of_the_others(rows: int, expected: float, tau: float) -> None:
    assert math.log(2 * rows - 1) == near(expected)
    assert views_loss([[3, 4]] * rows, [[3, 4]] * rows, tau) == near(expected)


def test_at_a_large_temperature_any_views_give_the_logarithm_of_the_others() -> None:
    assert views_loss(ONE, OTHER, 1e7) == near(math.log(2 * 3 - 1))


@pytest.mark.parametrize("tau", [0.05, 1.0])
def test_views_that_are_as_wrong_as_can_be_reach_the_upper_bound(tau: float) -> None:
    one, other = [[1, 0]] * 4, [[-1, 0]] * 4  # 3 others at cosine 1, the partner and 3 others at −1
    bound = math.log(2 * 4 - 1) + 2 / tau
    expected = math.log(3 + 4 * math.exp(-2 / tau)) + 2 / tau
    assert views_loss(one, other, tau) == near(expected)
    assert expected < bound


@pytest.mark.parametrize("tau", [0.05, 1.0])
def test_one_example_has_no_negatives_and_no_loss(tau: float) -> None:
    assert views_loss([[1, 2]], [[-2, 5]], tau) == 0.0


def test_one_example_gives_a_gradient_of_exactly_zero() -> None:
    one, other = torch.tensor([[1.0, 2.0]], requires_grad=True), torch.tensor([[-2.0, 5.0]], requires_grad=True)
    nt_xent_loss(one, other, temperature=0.07).backward()
    assert one.grad is not None and other.grad is not None
    assert torch.equal(one.grad, torch.zeros(1, 2)) and torch.equal(other.grad, torch.zeros(1, 2))


def test_no_example_at_all_gives_zero() -> None:
    assert float(nt_xent_loss(torch.zeros(0, 3), torch.zeros(0, 3), temperature=0.1)) == 0.0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("tau", "expected"), [(0.05, 0.043990), (0.07, 0.121006), (0.1, 0.259071), (0.5, 1.063756), (1.0, 1.300365)]
)
def test_general_views_have_the_printed_loss(tau: float, expected: float, dtype: torch.dtype) -> None:
    assert views_loss(ONE, OTHER, tau, dtype) == near(expected, dtype)


@pytest.mark.parametrize(("tau", "expected"), [(0.05, 0.021605), (0.1, 0.136309), (1.0, 0.846267)])
def test_negatives_from_the_other_view_alone_are_another_objective(tau: float, expected: float) -> None:
    one, other = ([[x / math.hypot(*row) for x in row] for row in rows] for rows in (ONE, OTHER))
    scores = [[math.exp((a[0] * b[0] + a[1] * b[1]) / tau) for b in other] for a in one]
    assert sum(math.log(sum(row) / row[i]) for i, row in enumerate(scores)) / 3 == near(expected)
    assert views_loss(ONE, OTHER, tau) > expected + 0.02


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tau", [0.05, 0.1, 1.0])
def test_half_precision_views_are_contrasted_in_float32(tau: float, dtype: torch.dtype) -> None:
    one, other = torch.tensor(ONE, dtype=dtype), torch.tensor([[2, 1], [1, 4], [3, 1]], dtype=dtype)
    value = nt_xent_loss(one, other, temperature=tau)  # small integers: exact in half precision
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(views_loss(ONE, other.tolist(), tau), rel=ROUNDED[dtype])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tau", [0.05, 0.1, 1.0])
def test_autocast_does_not_round_the_cosines_of_views(tau: float, dtype: torch.dtype) -> None:
    one, other = torch.tensor(ONE, dtype=torch.float32), torch.tensor(OTHER, dtype=torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        value = nt_xent_loss(one, other, temperature=tau)
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(views_loss(ONE, OTHER, tau), rel=ROUNDED[dtype])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"b": torch.eye(2, 3)}, "a and b must have the same length; got 3 and 2 vectors."),
        ({"temperature": 0.0}, "temperature must be a number > 0; got 0.0."),
        ({"temperature": float("nan")}, "temperature must be a number > 0; got nan."),
    ],
)
def test_views_that_are_out_of_range_are_refused(change: dict[str, object], sentence: str) -> None:
    arguments = {"a": torch.eye(3), "b": torch.eye(3), "temperature": 0.1} | change
    with pytest.raises(ValueError) as caught:
        inspect.unwrap(nt_xent_loss)(**arguments)  # as outside the tests, where types are not checked
    assert str(caught.value) == sentence

"""Soups as arithmetic: the mean of weights, and which ingredients a greedy soup keeps."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from steadytune.training.soup import SoupError, averaged_weights, greedy_choice

# -- the mean ---------------------------------------------------------------------------------------------------------


def test_the_mean_is_that_of_a_hand_computation() -> None:
    states = [
        {"w": torch.tensor([1.0, 2.0]), "b": torch.tensor(0.5)},
        {"w": torch.tensor([3.0, -4.0]), "b": torch.tensor(1.0)},
    ]
    states.append({"w": torch.tensor([5.0, 8.0]), "b": torch.tensor(0.0)})
    found = averaged_weights(states)
    assert {name: value.tolist() for name, value in found.items()} == {"w": [3.0, 2.0], "b": 0.5}


def test_the_mean_of_one_is_that_one_to_the_bit() -> None:
    state = {"w": torch.randn(100, generator=torch.Generator().manual_seed(0))}
    assert torch.equal(averaged_weights([state])["w"], state["w"])


def test_the_sum_is_wider_than_the_weights() -> None:
    """In float32 the 1 would be lost beside 2²⁵; the mean of 2²⁵, 1, −2²⁵ and 3 is 1."""
    values = (2.0**25, 1.0, -(2.0**25), 3.0)
    assert averaged_weights({"w": torch.tensor([value])} for value in values)["w"].item() == 1.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_tensor_keeps_its_dtype(dtype: torch.dtype) -> None:
    states = [{"w": torch.tensor([value], dtype=dtype)} for value in (1.0, 2.0)]
    found = averaged_weights(states)["w"]
    assert (found.dtype, found.item()) == (dtype, 1.5)


def test_integers_are_those_of_the_first() -> None:
    states = [
        {"ids": torch.tensor([7, 8]), "mask": torch.tensor([True])},
        {"ids": torch.tensor([1, 2]), "mask": ~torch.tensor([True])},
    ]
    found = averaged_weights(states)
    assert (found["ids"].tolist(), found["mask"].tolist()) == ([7, 8], [True])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_weights_that_came_are_left_as_they_are_and_shared_with_none(dtype: torch.dtype) -> None:
    states = [{"w": torch.ones(2, dtype=dtype), "ids": torch.ones(2, dtype=torch.long)} for _ in range(2)]
    for value in averaged_weights(states).values():
        value.zero_()
    assert all(torch.equal(value, torch.ones_like(value)) for state in states for value in state.values())


REFUSED: dict[str, tuple[list[dict[str, Tensor]], str]] = {
    "none": ([], "a mean needs the weights of one model or more; got none."),
    "name more": (
        [{"a": torch.ones(2)}, {"a": torch.ones(2), "b": torch.ones(2)}],
        "the weights do not average: only some of the models have b.",
    ),
    "name less": (
        [{"a": torch.ones(2), "b": torch.ones(2)}, {"b": torch.ones(2)}],
        "the weights do not average: only some of the models have a.",
    ),
    "shape": (
        [{"a": torch.ones(2, 3)}, {"a": torch.ones(3)}],
        "the weights do not average: a is (2, 3) and (3,).",
    ),
    "dtype": (
        [{"a": torch.ones(2)}, {"a": torch.ones(2, dtype=torch.float64)}],
        "the weights do not average: a is torch.float32 and torch.float64.",
    ),
}


@pytest.mark.parametrize(("states", "sentence"), REFUSED.values(), ids=REFUSED)
def test_weights_that_do_not_fit_together_are_refused(states: list[dict[str, Tensor]], sentence: str) -> None:
    with pytest.raises(SoupError) as caught:
        averaged_weights(states)
    assert str(caught.value) == sentence


# -- the choice -------------------------------------------------------------------------------------------------------


def scored(table: dict[str, float]) -> Callable[[Sequence[str]], float]:
    return lambda soup: table["".join(soup)]


@pytest.mark.parametrize(
    ("table", "kept"),
    [
        ({"a": 5, "ab": 6, "abc": 7}, "abc"),
        ({"a": 5, "ab": 4, "ac": 6}, "ac"),  # what is dropped is no part of what is tried next
        ({"a": 5, "ab": 6, "abc": 5.5}, "ab"),  # better than the best alone, but not than the soup so far
        ({"a": 5, "ab": 4, "ac": 4}, "a"),
    ],
    ids=str,
)
def test_an_ingredient_is_kept_if_the_soup_so_far_is_no_better(table: dict[str, float], kept: str) -> None:
    assert "".join(greedy_choice("abc", scored(table))) == kept


def test_equality_admits() -> None:
    assert greedy_choice("abc", scored({"a": 5, "ab": 5, "abc": 5})) == ["a", "b", "c"]


def test_a_score_that_is_not_finite_keeps_nothing_but_the_first() -> None:
    bad = float("nan")
    assert greedy_choice("abc", scored({"a": 5, "ab": bad, "ac": -float("inf")})) == ["a"]


def test_every_soup_is_scored_once() -> None:
    seen: list[str] = []

    def score(soup: Sequence[str]) -> float:
        seen.append("".join(soup))
        return -len(soup)

    greedy_choice("abcd", score)
    assert seen == ["a", "ab", "ac", "ad"]

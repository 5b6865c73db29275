import pytest
import torch

from steadytune.encoders import RandomState, borrowed_stream

CPU = torch.device("cpu")


def test_a_restored_state_repeats_the_draws() -> None:
    state = RandomState.capture(CPU)
    first = torch.rand(5)
    torch.rand(3)
    state.restore()
    assert torch.equal(torch.rand(5), first)


def test_a_seed_names_the_draws_inside_the_block() -> None:
    with borrowed_stream(CPU, 9):
        first = torch.rand(5)
    with borrowed_stream(CPU, 9):
        again = torch.rand(5)
    with borrowed_stream(CPU, 10):
        other = torch.rand(5)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_captured_state_is_replayed_inside_the_block() -> None:
    state = RandomState.capture(CPU)
    first = torch.rand(5)
    with borrowed_stream(CPU, state):
        assert torch.equal(torch.rand(5), first)


@pytest.mark.parametrize("start", [4, RandomState.capture(CPU)], ids=["seed", "state"])
def test_a_borrowed_stream_leaves_the_main_one_where_it_was(start: RandomState | int) -> None:
    before = torch.get_rng_state()
    with borrowed_stream(CPU, start):
        torch.rand(5)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_start_the_block_draws_from_the_main_stream() -> None:
    state = RandomState.capture(CPU)
    expected = torch.rand(5)
    state.restore()
    with borrowed_stream(CPU, None):
        assert torch.equal(torch.rand(5), expected)
    assert not torch.equal(torch.get_rng_state(), state.cpu)


def test_the_main_stream_comes_back_after_an_exception() -> None:
    before = torch.get_rng_state()
    with pytest.raises(ArithmeticError), borrowed_stream(CPU, 4):
        torch.rand(5)
        raise ArithmeticError
    assert torch.equal(torch.get_rng_state(), before)

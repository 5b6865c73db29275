"""Two processes through DistributedDataParallel have the gradient of one process on the joined batch."""

import os
import time

import pytest
import torch
from torch import Tensor

from gloo import CASES, LOCAL, LOCAL_CASES, WORLD, Case, batch_of, model_of, work
from tiny import gradients

Results = list[dict[str, dict[str, Tensor]]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """By process and case: gradients after one step; all cases in one start of the processes.

    Of several pytest workers the first one starts them and the others wait for its results.
    """
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "two_processes"
    try:
        folder.mkdir()
    except FileExistsError:
        for _ in range(1000):
            if (folder / "ended").exists():
                break
            time.sleep(0.2)
    else:
        try:
            torch.multiprocessing.spawn(work, args=(str(folder),), nprocs=WORLD)
        finally:
            (folder / "ended").touch()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


def joined(case: Case) -> dict[str, Tensor]:
    """Gradients of one process that sees all rows in one batch."""
    model = model_of(case)
    model(**batch_of(case)).loss.backward()
    return gradients(model)


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys() and one
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_have_the_gradient_of_the_joined_batch(name: str, results: Results) -> None:
    expected = joined(CASES[name])
    for rank in range(WORLD):
        assert largest_difference(results[rank][name], expected) < 1e-12


@pytest.mark.parametrize("name", [*CASES, LOCAL])
def test_both_processes_end_with_the_same_gradient(name: str, results: Results) -> None:
    assert largest_difference(results[0][name], results[1][name]) == 0.0


def test_without_gathering_the_contrast_of_two_processes_is_another_objective(results: Results) -> None:
    assert largest_difference(results[0][LOCAL], joined(LOCAL_CASES[LOCAL])) > 1e-3

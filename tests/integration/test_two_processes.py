"""Two processes through DistributedDataParallel have the gradient of one process on the joined batch."""

import os
import time
from typing import Any

import pytest
import torch
from torch import Tensor

from gloo import CASES, LOCAL_CASES, TRAINED, UPDATED, WORLD, Case, batch_of, constant_noise, model_of, work
from tiny import gradients

Results = list[dict[str, dict[str, Tensor]]]
Trained = list[dict[str, dict[str, dict[str, Tensor]]]]
OWNERS = [name for name, case in CASES.items() if any(method.key in ("cat", "asa") for method in case.methods)]


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process computed, in one start of the processes.

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


@pytest.fixture
def results(everything: list[dict[str, Any]]) -> Results:
    """By process and case: gradients after one step."""
    return [part["one step"] for part in everything]


@pytest.fixture
def trained(everything: list[dict[str, Any]]) -> Trained:
    """By process and case: "gradients" of the last step, own parameters "before", all parameters "after"."""
    return [part["trained"] for part in everything]


def joined(case: Case) -> dict[str, Tensor]:
    """Gradients of one process that sees all rows in one batch."""
    model = model_of(case)
    with constant_noise():
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


@pytest.mark.parametrize("name", OWNERS)
def test_own_parameters_are_among_those_gradients(name: str, results: Results) -> None:
    own = {key for key in model_of(CASES[name]).state_dict() if key.startswith("method_modules.")}
    found = {key: gradient for key, gradient in results[0][name].items() if key.startswith("method_modules.")}
    assert found.keys() == own - {"method_modules.asa.log_multiplier"} and found
    assert ("later" in name) != any(gradient.any() for gradient in found.values())


@pytest.mark.parametrize("name", [*CASES, *LOCAL_CASES])
def test_both_processes_end_with_the_same_gradient(name: str, results: Results) -> None:
    assert largest_difference(results[0][name], results[1][name]) == 0.0


@pytest.mark.parametrize("name", LOCAL_CASES)
def test_what_belongs_to_a_process_gives_two_of_them_another_objective(name: str, results: Results) -> None:
    assert largest_difference(results[0][name], joined(LOCAL_CASES[name])) > 1e-3


@pytest.mark.parametrize("name", [*TRAINED, *UPDATED])
def test_after_several_steps_both_processes_have_the_same_gradients_and_parameters(name: str, trained: Trained) -> None:
    one, other = (part[name] for part in trained)
    assert largest_difference(one["gradients"], other["gradients"]) == 0.0
    assert largest_difference(one["after"], other["after"]) == 0.0


@pytest.mark.parametrize("name", TRAINED)
def test_own_parameters_of_two_processes_are_trained(name: str, trained: Trained) -> None:
    before, after = trained[0][name]["before"], trained[0][name]["after"]
    assert before and [key for key in before if torch.equal(before[key], after[f"method_modules.{key}"])] == []

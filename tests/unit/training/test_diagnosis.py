"""What each method does to one batch of a model."""

import copy
import math

import pytest
import torch

from steadytune.methods import METHODS
from steadytune.training import diagnosis
from steadytune.training.diagnosis import Trial, diagnose
from tiny import tiny_batch, tiny_model

FORWARD = {"asa": 2, "cat": 2, "lnsr": 2, "rdrop": 2, "r3f": 2, "pgd": 4, "freelb": 3, "smart": 4, "sam": 2}
"""Forward passes of a step; 1 for all others."""


@pytest.fixture(autouse=True)
def one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are not looked at here."""
    monkeypatch.setattr(diagnosis, "_ROUNDS", 1)


LATER = {"averaging"}
"""Methods that change no step, but what comes out in the end."""


def test_every_method_moves_the_gradient_and_says_what_it_did() -> None:
    found = diagnose(tiny_model("bert", depth=4), tiny_batch("bert"))
    assert found.keys() == METHODS.keys()
    assert {key for key, one in found.items() if not one.gradient_change} == LATER
    assert all(one.telemetry for one in found.values())
    assert {key: one.passes["forward"] for key, one in found.items()} == {key: FORWARD.get(key, 1) for key in METHODS}


def test_a_method_that_cannot_act_says_why_and_has_no_numbers() -> None:
    refused = diagnose(tiny_model("xlnet"), tiny_batch("xlnet"))["asa"]
    assert "asa needs the site 'attention', which xlnet lacks" in refused.verdict
    assert (refused.gradient_change, refused.step_time_ratio, dict(refused.telemetry)) == (None, None, {})


def test_a_method_without_meaning_for_regression_says_so() -> None:
    assert "scl cannot act on a regression task" in diagnose(tiny_model("bert"), tiny_batch("bert"))["scl"].verdict


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model("bert").eval()
    before = copy.deepcopy(model.state_dict())
    diagnose(model, tiny_batch("bert"))
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_plain_steps_of_one_model_have_one_gradient(dropout: float) -> None:
    model, batch = tiny_model("bert", dropout=dropout), tiny_batch("bert")
    one, two = (Trial(model, (), batch).descent() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    trial = Trial(model, (), batch)
    assert trial.seconds() > 0 and math.isclose(trial.passes["units"], 3)

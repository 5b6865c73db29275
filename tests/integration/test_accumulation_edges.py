"""Edges of a step: groups without labels, batches after `prime`, resumed passes, gathers that find nothing."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from dummies import Watch
from steadytune.methods import SCL, HyPe
from steadytune.methods.contract import MethodError, Step
from steadytune.objective import RegularizedModel
from tiny import gradients, rows_of, tiny_batch, tiny_model

DEPTH = 3
GATHERED = SCL(weight=0.9, gather_across_accumulation=True)


def wrapped(*methods: Any, rows: int = 8) -> tuple[RegularizedModel, dict[str, Tensor]]:
    model = tiny_model("bert", dropout=0.0, depth=DEPTH, dtype=torch.float64)
    return RegularizedModel(model, methods), tiny_batch("bert", rows=rows)


# -- a primed group ---------------------------------------------------------------------------------------------------


def test_after_prime_a_batch_needs_the_labels_of_its_group() -> None:
    model, batch = wrapped(GATHERED)
    parts = rows_of(batch, [4, 4])
    model.prime(parts)
    with pytest.raises(ValueError, match=r"^after prime\(\), give forward num_items_in_batch: the labelled items of"):
        model(**parts[0])


def test_after_a_batch_without_the_labels_of_its_group_the_next_one_trains_alone() -> None:
    model, batch = wrapped(GATHERED)
    parts = rows_of(batch, [4, 4])
    expected = model(**parts[0]).loss.item()
    model.prime(parts)
    with pytest.raises(ValueError, match="num_items_in_batch"):
        model(**parts[0])
    assert model(**parts[0]).loss.item() == expected


@pytest.mark.parametrize("unlabelled", [0, 1], ids=["first", "last"])
def test_a_batch_without_any_label_in_a_gathered_group_gives_finite_gradients(unlabelled: int) -> None:
    model, batch = wrapped(GATHERED)
    batch["labels"][4 * unlabelled : 4 * unlabelled + 4] = -100
    for output in model.accumulate(rows_of(batch, [4, 4])):
        output.loss.backward()
    found = gradients(model)
    assert found and all(torch.isfinite(gradient).all() for gradient in found.values())


@pytest.mark.parametrize("methods", [[], [GATHERED]], ids=["plain", "gathered contrast"])
def test_a_group_without_any_label_gives_gradients_of_0(methods: list[SCL]) -> None:
    model, batch = wrapped(*methods)
    batch["labels"][:] = -100
    for output in model.accumulate(rows_of(batch, [4, 4])):
        output.loss.backward()
    found = gradients(model)
    assert found and all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in found.values())


@pytest.mark.parametrize("methods", [[], [GATHERED]], ids=["plain", "gathered contrast"])
def test_a_group_without_any_label_has_loss_0(methods: list[SCL]) -> None:
    model, batch = wrapped(*methods)
    batch["labels"][:] = -100
    assert [output.loss.item() for output in model.accumulate(rows_of(batch, [4, 4]))] == [0, 0]


# -- a resumed pass ---------------------------------------------------------------------------------------------------


def looked(step_of: Any, *methods: Any) -> Mapping[str, Any]:
    """What a method finds that may resume at layer 1."""
    watch = Watch(look=step_of, layers=frozenset({1}))
    model, batch = wrapped(*methods, watch)
    model(**batch)
    return watch.seen


def above(step: Step, name: str, dropout: str, offset: float = 0.0) -> Tensor:
    hidden = step.clean.hidden[1] + offset if offset else step.clean.hidden[1]
    return step.resume(name, base="clean", layer=1, hidden=hidden, dropout=dropout).hidden[DEPTH].detach()


def test_a_resumed_pass_of_one_name_with_other_states_is_refused() -> None:
    def twice(step: Step) -> dict[str, Any]:
        above(step, "noisy", "as base")
        return {"second": above(step, "noisy", "as base", offset=1.0)}

    with pytest.raises(MethodError, match=r"^the pass 'noisy' was run with other states or dropout; give this one"):
        looked(twice)


def test_a_resumed_pass_of_one_name_with_other_dropout_is_refused() -> None:
    def twice(step: Step) -> dict[str, Any]:
        above(step, "noisy", "as base")
        return {"second": above(step, "noisy", "fresh")}

    with pytest.raises(MethodError, match=r"^the pass 'noisy' was run with other states or dropout; give this one"):
        looked(twice)


def test_a_resumed_pass_of_one_name_with_the_same_states_is_one_pass() -> None:
    def twice(step: Step) -> dict[str, Any]:
        hidden = step.clean.hidden[1]
        one, other = (step.resume("noisy", base="clean", layer=1, hidden=hidden) for _ in range(2))
        return {"same": one is other}

    assert looked(twice)["same"]


@pytest.mark.parametrize(("dropout", "same"), [("as base", True), ("fresh", False)])
def test_a_resumed_pass_draws_other_hype_noise_if_and_only_if_it_is_fresh(dropout: str, same: bool) -> None:
    def compare(step: Step) -> dict[str, Any]:
        return {"clean": step.clean.hidden[DEPTH].detach(), "resumed": above(step, "again", dropout)}

    seen = looked(compare, HyPe(noise_std=0.1))  # no dropout in this model: what differs is the noise above layer 1
    assert torch.equal(seen["clean"], seen["resumed"]) == same


# -- gathers that find nothing ----------------------------------------------------------------------------------------


def test_gathering_over_one_process_says_that_it_does_nothing() -> None:
    model, batch = wrapped(SCL(gather_across_devices=True))
    model(**batch)
    assert "scl.gather_across_devices has no effect: there is one process." in model.notices


def test_gathering_over_one_batch_says_that_it_does_nothing() -> None:
    model, batch = wrapped(GATHERED)
    model(**batch)
    assert model.notices[:1] == [
        "scl.gather_across_accumulation has no effect: there is one batch per optimizer step, or accumulate() was not "
        "used."
    ]


def test_a_gather_over_several_batches_says_nothing() -> None:
    model, batch = wrapped(GATHERED)
    for output in model.accumulate(rows_of(batch, [4, 4])):
        output.loss.backward()
    assert not [notice for notice in model.notices if "has no effect" in notice]

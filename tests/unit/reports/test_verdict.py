"""From records to verdict tables."""

import dataclasses
from typing import Any

import pytest

from steadytune.records import Cost, RunRecord
from steadytune.reports.verdict import Arm, Table, verdict_tables

COST = Cost(optimizer_steps=1, forward_passes=1, pass_units=3, tokens=1, train_seconds=1, peak_memory_bytes=1)
PLAIN = {0: 0.50, 1: 0.52, 2: 0.48, 3: 0.51, 4: 0.49}


def record(recipe: str, role: str, seed: int, score: float | None, **place: Any) -> RunRecord:
    cell = {"task": "t", "protocol": "p", "budget": "steps", "recipe": recipe, "role": role, "seed": seed, **place}
    return RunRecord(
        run_id="",
        config={},
        task="classification",
        metric="accuracy",
        label_names=[],
        data_fingerprints={},
        data_rows={},
        data_notes=[],
        model_name="",
        model_revision="",
        dropout={},
        learning_rate=1,
        coefficients={},
        status="failed" if score is None else "done",
        scores={} if score is None else {"test": {"accuracy": score}},
        history=[],
        notices=[],
        cost=None if score is None else COST,
        versions={},
        hardware={},
        cell=cell,
    )


def runs(recipe: str, role: str, scores: dict[int, float | None], **place: Any) -> list[RunRecord]:
    return [record(recipe, role, seed, score, **place) for seed, score in scores.items()]


def shifted(by: float) -> dict[int, float | None]:
    wobble = {0: 0.001, 1: -0.001, 2: 0.002, 3: 0.0, 4: -0.002}
    return {seed: score + by + wobble[seed] for seed, score in PLAIN.items()}


def only(records: list[RunRecord]) -> Table:
    (table,) = verdict_tables(records)
    return table


def arm(table: Table, recipe: str) -> Arm:
    return next(found for found in table.arms if found.recipe == recipe)


def test_a_steady_gain_is_better_and_a_steady_loss_worse() -> None:
    table = only(
        runs("plain", "baseline", dict(PLAIN))
        + runs("up", "recipe", shifted(0.05))
        + runs("down", "recipe", shifted(-0.05))
    )
    outcomes = {found.recipe: found.verdict.outcome for found in table.arms if found.verdict}
    assert outcomes == {"up": "better", "down": "worse"}


def test_below_five_pairs_there_is_no_evidence() -> None:
    four = {seed: score for seed, score in shifted(0.05).items() if seed < 4}
    table = only(runs("plain", "baseline", dict(PLAIN)) + runs("up", "recipe", four))
    verdict = arm(table, "up").verdict
    assert verdict is not None and verdict.outcome == "no evidence"


def test_a_control_has_a_difference_and_no_verdict() -> None:
    table = only(runs("plain", "baseline", dict(PLAIN)) + runs("c", "control", shifted(0.05)))
    control = arm(table, "c")
    assert control.verdict is None
    assert control.comparison is not None and control.comparison.mean == pytest.approx(0.05)


def test_a_failed_run_is_counted_and_its_pair_left_out() -> None:
    scores: dict[int, float | None] = {**shifted(0.05), 2: None}
    table = only(runs("plain", "baseline", dict(PLAIN)) + runs("up", "recipe", scores))
    found = arm(table, "up")
    assert (found.failed, found.scores[2]) == (1, None)
    assert found.comparison is not None and found.comparison.dropped == (2,)


def test_places_are_apart_and_the_order_of_records_does_not_count() -> None:
    records = [
        one
        for task in ("b", "a")
        for one in runs("plain", "baseline", dict(PLAIN), task=task) + runs("up", "recipe", shifted(0.05), task=task)
    ]
    tables = verdict_tables(records)
    assert [table.task for table in tables] == ["a", "b"]
    assert tables == verdict_tables(records[::-1])


def test_the_baseline_comes_first_and_controls_last() -> None:
    table = only(
        runs("z", "control", dict(PLAIN)) + runs("b", "recipe", dict(PLAIN)) + runs("plain", "baseline", dict(PLAIN))
    )
    assert [found.role for found in table.arms] == ["baseline", "recipe", "control"]


def test_a_record_without_a_place_is_left_out() -> None:
    alone = record("plain", "baseline", 0, 0.5).model_copy(update={"cell": None})
    assert verdict_tables([alone]) == []


def test_mean_and_units_are_those_of_the_runs() -> None:
    plain = arm(only(runs("plain", "baseline", dict(PLAIN))), "plain")
    assert plain.mean == pytest.approx(0.5)
    assert plain.pass_units == 3
    assert dataclasses.asdict(plain)["scores"] == PLAIN

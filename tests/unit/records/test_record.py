"""A record of an earlier version is read as it is, and one with scores on robustness sets survives its file."""

import json
from pathlib import Path

import numpy as np
import pytest

from steadytune.records import GroupScores, RobustnessScores, RunRecord, read_record, write_record
from toystudy import record_of


@pytest.fixture
def record() -> RunRecord:
    cell = {"task": "shop", "protocol": "all", "recipe": "plain", "role": "baseline", "budget": "steps", "seed": 0}
    return record_of("0" * 16, cell, ["a", "b"], 0.5, np.random.default_rng(0))


def test_a_record_from_before_there_were_robustness_sets_has_none(record: RunRecord, tmp_path: Path) -> None:
    write_record(tmp_path / "record.json", record)
    before = json.loads((tmp_path / "record.json").read_text())
    del before["robustness"]
    (tmp_path / "record.json").write_text(json.dumps(before))
    assert read_record(tmp_path / "record.json") == record
    assert record.robustness == {}


def test_scores_on_robustness_sets_survive_the_file(record: RunRecord, tmp_path: Path) -> None:
    group = GroupScores(column="capability", name="Negation", rows=3, accuracy=1 / 3)
    scores = RobustnessScores(rows=3, accuracy=1 / 3, majority=2 / 3, groups=[group], fingerprint="ab")
    with_scores = record.model_copy(update={"robustness": {"checklist:sentiment": scores}})
    write_record(tmp_path / "record.json", with_scores)
    assert read_record(tmp_path / "record.json").robustness == {"checklist:sentiment": scores}

"""Records are written whole or not at all, and read back as they were."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from steadytune.records import Cost, RunRecord, config_hash, write_json, write_predictions, write_record

NAN = float("nan")


def record(**changes: Any) -> RunRecord:
    values: dict[str, Any] = {
        "run_id": "0123456789abcdef",
        "config": {"seed": 0, "run": {"learning_rate": None}},
        "task": "classification",
        "metric": "accuracy",
        "label_names": ["no", "ja, älskling"],
        "data_fingerprints": {"train": "ab"},
        "data_rows": {"train": 3},
        "data_notes": [],
        "model_name": "tiny",
        "model_revision": "cd",
        "dropout": {"hidden": 0.1},
        "learning_rate": 1e-4,
        "coefficients": {"task": 1.0},
        "status": "done",
        "scores": {"test": {"accuracy": 1 / 3}},
        "history": [{"step": 1.0, "loss": 0.5}],
        "notices": [],
        "cost": Cost(
            optimizer_steps=1, forward_passes=1, pass_units=3, tokens=9, train_seconds=0.1, peak_memory_bytes=7
        ),
        "versions": {"torch": "2"},
        "hardware": {"threads": 1},
    }
    return RunRecord(**{**values, **changes})


def read_back(path: Path) -> RunRecord:
    return RunRecord.model_validate_json(path.read_text(encoding="utf-8"))


# -- whole or not at all ----------------------------------------------------------------------------------------------


def test_a_written_value_is_read_back(tmp_path: Path) -> None:
    value = {"a": [1, 0.1, None, "ö"], "b": {"c": True}}
    write_json(tmp_path / "x.json", value)
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == value


@pytest.mark.parametrize("value", [{"a": NAN}, {"a": object()}], ids=["not finite", "not JSON"])
def test_a_value_that_cannot_be_written_leaves_the_old_file_alone(value: dict[str, Any], tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"old": 1})
    with pytest.raises((ValueError, TypeError)):
        write_json(tmp_path / "x.json", value)
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
    assert json.loads((tmp_path / "x.json").read_text()) == {"old": 1}


def test_a_full_disk_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(path: Path, text: str, **_: Any) -> None:
        path.write_bytes(text[:5].encode())
        raise OSError("no space left on device")

    write_json(tmp_path / "x.json", {"old": 1})
    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_json(tmp_path / "x.json", {"new": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
    assert json.loads((tmp_path / "x.json").read_text()) == {"old": 1}


def test_predictions_that_cannot_be_written_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(_: Any, path: Path, **__: Any) -> None:
        path.write_bytes(b"PAR1")
        raise OSError("no space left on device")

    monkeypatch.setattr(pq, "write_table", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_predictions(tmp_path / "p.parquet", ["a"], ["dev"], {"label": [0], "logits": [[0.0, 0.0]]})
    assert list(tmp_path.iterdir()) == []


# -- hash -------------------------------------------------------------------------------------------------------------


def test_the_hash_does_not_depend_on_the_order_of_keys() -> None:
    assert config_hash({"a": 1, "b": {"c": 2, "d": 3}}) == config_hash({"b": {"d": 3, "c": 2}, "a": 1})


def test_the_hash_has_16_hexadecimal_digits() -> None:
    assert len(config_hash({})) == 16 and set(config_hash({})) <= set("0123456789abcdef")


def test_other_content_has_another_hash() -> None:
    several = [({"a": 1},), ({"a": 2},), ({"a": "1"},), ({"b": 1},), ({"a": [1]},), ({"a": 1}, {}), ({}, {"a": 1}), ()]
    assert len({config_hash(*parts) for parts in several}) == len(several)


# -- records ----------------------------------------------------------------------------------------------------------


def test_a_record_is_read_back_as_it_was(tmp_path: Path) -> None:
    write_record(tmp_path / "record.json", record())
    assert read_back(tmp_path / "record.json") == record()


@pytest.mark.parametrize("value", [NAN, float("inf"), -float("inf")])
def test_a_history_value_that_is_not_finite_is_read_back_as_none(value: float, tmp_path: Path) -> None:
    write_record(tmp_path / "record.json", record(history=[{"step": 1.0, "loss": value}]))
    assert read_back(tmp_path / "record.json").history == [{"step": 1.0, "loss": None}]


def test_a_score_that_is_not_finite_is_read_back_as_none(tmp_path: Path) -> None:
    write_record(tmp_path / "record.json", record(scores={"test": {"pearson": NAN, "mse": 0.5}}))
    assert read_back(tmp_path / "record.json").scores == {"test": {"pearson": None, "mse": 0.5}}


def test_a_record_without_finite_numbers_is_valid_json(tmp_path: Path) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    write_record(tmp_path / "record.json", record(history=[{"loss": NAN}]))
    json.loads((tmp_path / "record.json").read_text(), parse_constant=refuse)


# -- predictions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [[0, 1, 1], [0.5, -1.0, 2.0]], ids=["classes", "scores"])
def test_predictions_are_read_back_as_they_were(labels: list[float], tmp_path: Path) -> None:
    logits = np.asarray([[0.1, 0.2], [1.5, -2.0], [0.0, 3.0]], dtype=np.float32)
    columns = {"label": labels, "logits": list(logits)}
    write_predictions(tmp_path / "p.parquet", ["a", "b", "ö"], ["dev", "dev", "test"], columns)
    assert pq.read_table(tmp_path / "p.parquet").to_pydict() == {
        "id": ["a", "b", "ö"],
        "split": ["dev", "dev", "test"],
        "label": labels,
        "logits": logits.tolist(),
    }

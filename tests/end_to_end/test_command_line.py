"""The command line from the first command to the last, on a tiny data set and a tiny random encoder."""

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from steadytune.encoders.bundled import PACKAGE
from steadytune.methods import METHODS

COMMANDS = ("train", "compare", "soup", "evaluate", "predict", "methods", "recipes", "doctor")
SHORT = "train reviews.csv -m encoder --max-length 32 --learning-rate 0.003 --epochs 1"
LABELS = {"pos", "neg"}
Run = Callable[[str], Any]


def python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """This code in a fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


# Train, evaluate, predict ---------------------------------------------------------------------------------------------


def test_a_run_leaves_model_record_predictions_and_its_own_repetition(workplace: Path) -> None:
    assert sorted(path.name for path in (workplace / "trained").iterdir()) == [
        "model",
        "predictions.parquet",
        "record.json",
        "run.yaml",
    ]
    record = json.loads((workplace / "trained" / "record.json").read_text())
    assert (record["status"], record["task"], set(record["label_names"])) == ("done", "classification", LABELS)
    assert {path.suffix for path in (workplace / "trained" / "model").iterdir()} == {".json", ".safetensors", ".md"}


def test_train_prints_the_scores_of_dev_and_test_and_where_the_model_lies(workplace: Path, run: Run) -> None:
    done = run(SHORT + " -o run --set run.min_steps=3")
    assert done.code == 0
    assert all(word in done.out for word in ("dev", "test", "accuracy", "macro_f1", "run/record.json", "run/model"))


def test_train_names_the_run_itself_without_output(workplace: Path, run: Run) -> None:
    assert run(SHORT + " -r scl+hype --seed 7 --set run.min_steps=3").code == 0
    assert (workplace / "runs" / "reviews-scl+hype-seed7" / "record.json").is_file()


def test_train_prints_json_and_nothing_else(workplace: Path, run: Run) -> None:
    done = run(SHORT + " -o run --set run.min_steps=3 --json")
    shown = json.loads(done.out)
    assert (done.code, done.err) == (0, "")
    assert shown["output"] == "run"
    assert shown["scores"] == json.loads((workplace / "run" / "record.json").read_text())["scores"]


def test_run_file_repeats_the_run(workplace: Path, run: Run) -> None:
    assert run("train --config trained/run.yaml -o again").code == 0
    first, second = (json.loads((workplace / name / "record.json").read_text()) for name in ("trained", "again"))
    assert first["run_id"] == second["run_id"]
    assert first["config"] == second["config"]
    assert first["scores"] == second["scores"]
    weights = [(workplace / name / "model" / "model.safetensors").read_bytes() for name in ("trained", "again")]
    assert weights[0] == weights[1]


def test_command_line_overrides_the_run_file(workplace: Path, run: Run) -> None:
    words = "--seed 3 --set run.min_steps=3 -r scl --set scl.weight=0.25 --train-rows 20"
    assert run(f"train --config trained/run.yaml {words} -o again").code == 0
    config = yaml.safe_load((workplace / "again" / "run.yaml").read_text())
    assert (config["seed"], config["run"]["min_steps"], config["data"]["train_rows"]) == (3, 3, 20)
    assert config["recipe"]["methods"] == {"scl": {"weight": 0.25, "temperature": 0.3}}
    assert config["run"]["learning_rate"] == 0.003  # as in the file


def test_evaluate_scores_the_trained_model_well_on_its_own_rows(workplace: Path, run: Run) -> None:
    done = run("evaluate trained reviews.csv --json")
    shown = json.loads(done.out)
    assert (done.code, done.err, shown["split"], shown["rows"]) == (0, "", "train", 60)
    assert shown["scores"]["accuracy"] > 0.9  # chance is 0.5


def test_evaluate_repeats_the_scores_of_the_run(workplace: Path, run: Run) -> None:
    """As the run did, it cuts texts to the run's own length, not to a default of its own."""
    rows = "".join(f"{'word1 ' * 8}{'good' if i % 2 else 'bad'} {i},{i % 2}\n" for i in range(30))
    (workplace / "long").mkdir()
    for name in ("train", "test"):
        (workplace / "long" / f"{name}.csv").write_text("text,label\n" + rows)
    done = run("train long -m encoder --max-length 8 --epochs 1 --set run.min_steps=3 -o cut --json")
    evaluated = run("evaluate cut long --json")
    assert json.loads(evaluated.out)["scores"] == json.loads(done.out)["scores"]["test"]
    assert run("predict cut -t a --max-length 65").code == 2  # more than the encoder reads


@pytest.mark.parametrize("words", ["evaluate trained long.csv", "predict trained long.csv", "predict trained -t '{}'"])
@pytest.mark.parametrize("form", ["", " --json"])
def test_rows_that_are_cut_are_counted(words: str, form: str, workplace: Path, run: Run) -> None:
    long = "good " + "day " * 40
    Path("long.csv").write_text(f"text,label\n{long},pos\nbad day,neg\n")
    done = run(words.format(long) + form)
    assert done.code == 0
    assert "note: 1 rows cut to 32 tokens\n" in done.err
    assert "cut" not in done.out
    assert "cut" not in run(words.format("good day").replace("long", "reviews") + form).err


@pytest.mark.parametrize("words", ["evaluate trained reviews.csv", "predict trained reviews.csv -o out.csv"])
@pytest.mark.parametrize("form", ["", " --json"])
def test_a_model_whose_scores_are_no_numbers_answers_nothing(words: str, form: str, workplace: Path, run: Run) -> None:
    file = "trained/model/model.safetensors"
    broken = {name: np.full_like(values, np.nan) for name, values in load_file(file).items()}
    save_file(broken, file, metadata={"format": "pt"})
    done = run(words + form)
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines()[-1] == (
        "steadytune: the model gives scores that are not finite for these rows; train it again, or name another."
    )
    assert not Path("out.csv").exists()


def test_evaluate_shows_a_table(workplace: Path, run: Run) -> None:
    done = run("evaluate trained reviews.csv --batch-size 7")
    assert done.code == 0
    assert all(word in done.out for word in ("train", "60", "accuracy"))


def test_predict_labels_texts_with_probabilities_that_sum_to_one(workplace: Path, run: Run) -> None:
    done = run("predict trained -t 'good film' -t 'awful film' --json")
    answers = json_lines(done.out)
    assert (done.code, done.err) == (0, "")
    assert [(answer["text"], answer["label"]) for answer in answers] == [("good film", "pos"), ("awful film", "neg")]
    for answer in answers:
        assert set(answer["probabilities"]) == LABELS
        assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-6)


def test_predict_reads_a_table_and_writes_one(workplace: Path, run: Run) -> None:
    done = run("predict trained reviews.csv -o labelled.csv")
    assert (done.code, done.out) == (0, "")
    assert "60 rows" in done.err
    with (workplace / "labelled.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["id", "text", "label", "probability_neg", "probability_pos"]
    assert [row["text"] for row in rows] == [
        row["text"] for row in csv.DictReader((workplace / "reviews.csv").open(newline=""))
    ]


def test_predict_writes_the_same_answers_as_json_lines(workplace: Path, run: Run) -> None:
    assert run("predict trained reviews.csv -o labelled.jsonl").code == 0
    assert json_lines((workplace / "labelled.jsonl").read_text()) == json_lines(
        run("predict trained reviews.csv --json").out
    )


def test_predict_gives_numbers_for_a_regression(workplace: Path, run: Run) -> None:
    rows = "".join(f"{'good' if i % 2 else 'bad'} day,{i % 2 + 0.25}\n" for i in range(30))
    (workplace / "scores.csv").write_text("text,score\n" + rows)
    assert run("train scores.csv -m encoder --max-length 32 --epochs 1 --set run.min_steps=3 -o scored").code == 0
    answers = json_lines(run("predict scored -t 'good day' --json").out)
    assert isinstance(answers[0]["value"], float)


# What there is --------------------------------------------------------------------------------------------------------


def test_methods_lists_every_method(run: Run) -> None:
    done = run("methods")
    assert done.code == 0
    assert all(key in done.out for key in METHODS)
    assert [card["name"] for card in json.loads(run("methods --json").out)] == list(METHODS)


@pytest.mark.parametrize("key", METHODS)
def test_methods_shows_the_card_of_one(key: str, run: Run) -> None:
    assert run(f"methods {key}").out.startswith("# ")
    assert json.loads(run(f"methods {key} --json").out)["name"] == key


def test_recipes_lists_the_bundled_ones(run: Run) -> None:
    names = [recipe["name"] for recipe in json.loads(run("recipes --json").out)]
    assert {"plain", "paper/scl", *METHODS} <= set(names)
    assert all(name in run("recipes").out for name in names)


def test_recipes_shows_a_stack_with_the_origin_of_every_value(run: Run) -> None:
    stack = json.loads(run("recipes scl+hype --json").out)
    assert list(stack["methods"]) == ["scl", "hype"]
    values = {f"{key}.{name}" for key, settings in stack["methods"].items() for name in settings}
    values |= {f"dropout.{kind}" for kind, rate in stack["dropout"].items() if rate is not None}
    assert set(stack["origin"]) == values
    assert yaml.safe_load(run("recipes scl+hype").out) == stack


def test_a_shown_recipe_can_be_trained(workplace: Path, run: Run) -> None:
    (workplace / "mine.yaml").write_text(run("recipes scl+hype").out)
    assert run(SHORT + " -r mine.yaml --set run.min_steps=3 -o run").code == 0


def test_doctor_says_what_can_act_what_it_does_to_one_batch_and_what_it_costs(workplace: Path, run: Run) -> None:
    done = run("doctor encoder")
    assert done.code == 0
    assert all(word in done.out for word in ("encoder", "bert", "embedding", "pooled", *METHODS, "can act"))
    facts = json.loads(run("doctor encoder --json").out)
    assert (facts["family"], facts["layers"], set(facts["methods"])) == ("bert", 3, set(METHODS))
    assert set(facts["sites"].values()) == {"available"}
    assert facts["versions"]["torch"]
    found = facts["methods"]
    assert {key for key, facts in found.items() if facts["gradient_change"] is None} == {"topk"}  # 3 of 3 layers
    assert {key for key, facts in found.items() if facts["gradient_change"] == 0} == {"averaging"}
    acting = {key: facts for key, facts in found.items() if key != "topk"}
    assert {key for key, facts in acting.items() if facts["step_time_ratio"] > 0} == set(acting)
    assert {key for key, facts in acting.items() if facts["telemetry"]} == set(acting)
    forward = {"asa": 2, "cat": 2, "lnsr": 2, "rdrop": 2, "r3f": 2, "pgd": 4, "freelb": 3, "smart": 4, "sam": 2}
    assert {key: facts["passes"]["forward"] for key, facts in acting.items()} == {k: forward.get(k, 1) for k in acting}


# Around the commands --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_an_example(command: str, run: Run) -> None:
    done = run(f"{command} --help")
    assert (done.code, done.err) == (0, "")
    assert f"Example: steadytune {command}" in " ".join(done.out.split())


def test_help_and_version_come_without_torch() -> None:
    code = """
import sys
from steadytune.cli import main
for words in [[c, "--help"] for c in sys.argv[1:]] + [["--help"], ["--version"]]:
    sys.argv[1:] = words
    assert main() == 0, words
print(sorted({"torch", "transformers", "datasets", "sklearn"} & set(sys.modules)))
"""
    done = python(code, *COMMANDS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_progress_in_a_log_file_is_a_dozen_lines(workplace: Path, run: Run) -> None:
    done = run(SHORT + " -o run --set run.min_steps=40")
    lines = [line for line in done.err.splitlines() if line.startswith("training: step ")]
    assert 5 <= len(lines) <= 12
    assert lines[-1].startswith("training: step 40 of 40, loss ")
    assert "\r" not in done.err
    assert "\x1b" not in done.err + done.out


@pytest.mark.parametrize("no_color", ["", "1"])
def test_no_color_is_respected(no_color: str) -> None:
    code = "import sys; from steadytune.cli import main; sys.argv[1:] = ['train', '--help']; main()"
    done = python(code, TERM="xterm-256color", FORCE_COLOR="1", NO_COLOR=no_color)
    colors = re.search(r"\x1b\[(\d+;)*3[0-7]", done.stdout)
    assert (colors is None) == bool(no_color)


def test_hidden_labels_of_a_hub_set_are_left_out_and_a_note_says_so(
    workplace: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = {"train": [0, 1] * 20, "validation": [0, 1] * 5, "test": [-1] * 4}
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    tables = {
        name: datasets.Dataset.from_dict({"text": [f"good {i}" for i in range(len(column))], "label": column}, features)
        for name, column in labels.items()
    }
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name, config: list(labels))
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, split: tables[split])
    done = run("train owner/set -m encoder --max-length 32 --epochs 1 --set run.min_steps=3 -o run --json")
    shown = json.loads(done.out)
    assert shown["data_rows"]["test"] == 10  # the published validation rows
    assert "split 'test' left out: its labels are hidden (all are -1)" in shown["data_notes"]


OFFLINE = """
import socket, sys
def refuse(*_): raise AssertionError("the network was asked")
socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = refuse
from steadytune.cli import main
for words in sys.argv[1:]:
    sys.argv = ["steadytune", *words.split()]
    assert main() == 0, words
"""


def test_local_and_bundled_models_and_data_need_no_network(workplace: Path) -> None:
    commands = [SHORT + " -r scl+hype --set run.min_steps=3 -o run --json", "predict run reviews.csv -o new.csv"]
    shown = ['"recipe": {"name": "scl+hype"']
    if find_spec(PACKAGE) is not None:  # the bundled encoder is an optional package
        train = "train sample --train-rows 24 --eval-rows 12 --max-length 32 --epochs 1 --set run.min_steps=2"
        commands += [train + " -o small --json", "evaluate small sample --json", "predict small -t refund --json"]
        shown += ['"source": "sample"', '"split": "test"', '"text": "refund"']
    online = {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0"}  # sockets alone refuse
    done = python(OFFLINE, *commands, **online)
    assert done.returncode == 0, done.stderr
    assert "wrote 60 rows to new.csv" in done.stderr.splitlines()  # a note on rows that were cut comes after it
    assert [words for words in shown if words not in done.stdout] == []
    assert len((workplace / "new.csv").read_text().splitlines()) == 61

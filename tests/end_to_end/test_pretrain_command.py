"""`steadytune pretrain`: from raw texts to a model that `train` fine-tunes, its report, and bad input."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForMaskedLM

from toycorpus import write_texts

Run = Callable[[str], Any]
SMALL = (
    "--max-length 16 --batch-size 4 --vocabulary 100 --eval-rows 8 --set run.eval_points=2 --set run.logging_steps=1"
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with `texts.txt`."""
    write_texts(tmp_path / "texts.txt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_from_raw_texts_to_a_fine_tuned_model_and_a_report(workplace: Path, run: Run) -> None:
    write_texts(workplace / "texts.txt")
    done = run(f"pretrain texts.txt --model new:1x32 --recipe asa --steps 4 {SMALL} --json -o runs/asa")
    assert done.code == 0, done.err
    said = json.loads(done.out)
    assert (said["status"], said["cost"]["optimizer_steps"], said["output"]) == ("done", 4, "runs/asa")
    assert AutoModelForMaskedLM.from_pretrained("runs/asa/model").config.num_hidden_layers == 1

    tuned = run("train reviews.csv --model runs/asa --max-length 16 --epochs 1 --json -o tuned")
    assert tuned.code == 0, tuned.err
    assert json.loads(tuned.out)["model_name"] == "asa"

    plain = run(f"pretrain texts.txt --model new:1x32 --minutes 0.001 {SMALL} -o runs/plain")
    assert plain.code == 0 and "loss" in plain.out and "runs/plain/model" in plain.out
    assert "training: step" in plain.err

    page = run("report runs/asa runs/plain")
    assert page.code == 0 and Path("runs/pretraining.html").is_file(), page.err
    again = run("report runs/asa --output page.html --json")
    assert json.loads(again.out) == {"report": "page.html"}


def test_a_run_file_repeats_the_run(place: Path, run: Run) -> None:
    assert run(f"pretrain texts.txt --model new:1x32 --steps 2 {SMALL} -o one").code == 0
    assert run("pretrain --config one/run.yaml -o two").code == 0
    one, two = (json.loads((place / name / "record.json").read_text()) for name in ("one", "two"))
    assert one["run_id"] == two["run_id"] and one["scores"] == two["scores"]
    shorter = run("pretrain --config one/run.yaml --minutes 0.001 -o three --json")
    assert json.loads(shorter.out)["config"]["run"]["steps"] is None


def test_the_default_folder_names_texts_recipe_and_seed(place: Path, run: Run) -> None:
    assert run(f"pretrain texts.txt --model new:1x32 --steps 1 --recipe consistency --seed 3 {SMALL}").code == 0
    assert Path("runs/pretrain-texts-consistency-seed3/record.json").is_file()


def test_help_shows_an_example(run: Run) -> None:
    shown = run("pretrain --help")
    assert shown.code == 0 and "steadytune pretrain novels.txt" in " ".join(shown.out.split())


BAD: dict[str, tuple[dict[str, str | bytes], str, str]] = {
    "no texts": ({}, "--steps 1", "no texts given; name files or folders after `steadytune pretrain`."),
    "no budget": ({}, "texts.txt", "a run needs a budget: give either steps or minutes; got neither."),
    "two budgets": ({}, "texts.txt --steps 1 --minutes 1", "give either steps or minutes; got both."),
    "no steps": ({}, "texts.txt --steps 0", "--steps must be greater than or equal to 1; got 0."),
    "no such file": ({}, "text.txt --steps 1", "text.txt does not exist (did you mean texts.txt?)."),
    "empty file": ({"e.txt": ""}, "e.txt --steps 1 --model new:1x32", "the texts hold no word to learn a vocabulary"),
    "short file": (
        {"s.txt": "a few words"},
        "s.txt --steps 1 --model new:1x32",
        "fill 0 sequences of --max-length 128",
    ),
    "no column": ({"a.jsonl": '{"a": "b"}'}, "a.jsonl --steps 1 --model new:1x32", "name it with --text-column."),
    "unknown column": (
        {"a.jsonl": '{"text": "b"}'},
        "a.jsonl --steps 1 --text-column body --model new:1x32",
        "a.jsonl has no column 'body'; its columns are 'text'.",
    ),
    "wrong encoding": ({"l.txt": b"\xff\xfe"}, "l.txt --steps 1 --model new:1x32", "l.txt, line 1 is not UTF-8"),
    "cut gzip": (
        {"c.txt.gz": gzip.compress(b"a")[:-4]},
        "c.txt.gz --steps 1 --model new:1x32",
        "not a whole gzip file",
    ),
    "a table": ({"t.csv": "text\na\n"}, "t.csv --steps 1", "t.csv is of no type that texts are read from"),
    "no shape": (
        {},
        "texts.txt --steps 1 --model new:large",
        "--model new:large names no shape; give new:LAYERSxWIDTH",
    ),
    "no model": ({}, "texts.txt --steps 1 --model ./none", "model folder ./none does not exist."),
    "unknown recipe": ({}, "texts.txt --steps 1 --recipe asaa", "unknown recipe 'asaa'; did you mean"),
    "unknown setting": ({}, "texts.txt --steps 1 --set run.step=3", "unknown entry run.step; did you mean 'steps'?"),
    "no share": (
        {},
        "texts.txt --steps 1 --set run.warmup_fraction=2",
        "run.warmup_fraction must be less than 1; got 2.",
    ),
    "a share of nothing": ({}, "texts.txt --steps 1 --set run.batch_size=0", "--batch-size must be greater than or"),
    "longer in minutes": ({}, "texts.txt --minutes 1 --recipe plain-equal-time", "so take 'plain'."),
    "a file in the way": ({"out": "mine"}, "texts.txt --steps 1", "--output out is a file; name a folder."),
    "a full folder": ({"out/mine.txt": "mine"}, "texts.txt --steps 1", "--output out is not empty and holds no run"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence_and_leaves_nothing(name: str, place: Path, run: Run) -> None:
    files, words, sentence = BAD[name]
    for file, content in files.items():
        (place / file).parent.mkdir(exist_ok=True)
        (place / file).write_bytes(content.encode() if isinstance(content, str) else content)
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    done = run(f"pretrain {words} -o out")
    assert done.code == 2 and done.out == ""
    assert done.err.startswith("steadytune: ") and done.err.count("\n") == 1 and sentence in done.err
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before
    assert "out" in {Path(file).parts[0] for file in files} or not (place / "out").exists()


def test_runs_of_which_one_is_none_give_no_report(place: Path, run: Run) -> None:
    (place / "other").mkdir()
    done = run("report other nowhere")
    assert done.code == 2 and "other holds no record of a finished pre-training run" in done.err

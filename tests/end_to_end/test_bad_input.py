"""Bad usage and bad input: one clear sentence, exit code 2, and nothing on the disk touched."""

import errno
import gzip
import hashlib
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors import SafetensorError

import steadytune.training.fit as fit_module
from steadytune.cli import answers as answer_files
from steadytune.objective import STATE_FILE
from steadytune.recipes import DataSettings, RunConfig, RunSettings, load_recipe, save_run
from tiny import tiny_model

Arrange = Callable[[Path], None]
Run = Callable[[str], Any]
TRAIN = "train {} -m encoder --max-length 32 -o run"
ON_REVIEWS = TRAIN.format("reviews.csv")
METHODS_OF = "name: mine\nmethods:\n  "


# What each case puts into the working directory ----------------------------------------------------------------------


def nothing(place: Path) -> None:
    """The working directory as it is."""


def writes(name: str, content: str | bytes) -> Arrange:
    def arrange(place: Path) -> None:
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return arrange


def together(*parts: Arrange) -> Arrange:
    def arrange(place: Path) -> None:
        for part in parts:
            part(place)

    return arrange


def several_splits(test: str) -> Arrange:
    return together(writes("set/train.csv", "text,label\na,x\nb,y\n"), writes("set/test.csv", test))


def described(place: Path) -> None:
    writes("set/train.jsonl", '{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n')(place)
    split = {"file": "train.jsonl", "sha256": "0" * 64}
    entries = {"task": "classification", "label_names": ["n", "p"], "splits": {"train": split}}
    (place / "set" / "dataset.json").write_text(json.dumps(entries))


def repeated_parquet_column(place: Path) -> None:
    pq.write_table(pa.table([["a"], ["b"]], names=["text", "text"]), place / "t.parquet")


def drops(name: str) -> Arrange:
    return lambda place: (place / name).unlink()


def of_family(kind: str) -> Arrange:
    return lambda place: (place / "encoder" / "config.json").write_text(json.dumps({"model_type": kind}))


def without_head(place: Path) -> None:
    tiny_model("bert").base_model.save_pretrained(place / "encoder")  # type: ignore[operator]


def unfinished(seed: int) -> Arrange:
    """A run of the settings of `ON_REVIEWS`, cut short; its only checkpoint has no readable weights."""

    def arrange(place: Path) -> None:
        data, settings = DataSettings(source="reviews.csv"), RunSettings(max_length=32)
        config = RunConfig(data=data, model="encoder", recipe=load_recipe("plain"), run=settings, seed=seed)
        checkpoint = place / "run" / "checkpoints" / "checkpoint-3"
        checkpoint.mkdir(parents=True)
        save_run(config, place / "run" / "run.yaml")
        (checkpoint / "trainer_state.json").write_text("{}")
        for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", STATE_FILE):
            (checkpoint / name).write_bytes(b"cut")

    return arrange


SCORES = writes("scores.csv", "text,score\n" + "".join(f"good day,{i / 7}\n" for i in range(20)))
DROPS = together(
    writes("low.yaml", "name: low\ndropout: {hidden: 0.0}\n"), writes("high.yaml", "name: high\ndropout: {hidden: 0.3}")
)

# name: (what is put there, the command, what the sentence says) -----------------------------------------------------

Case = tuple[Arrange, str, tuple[str, ...]]
FILES: dict[str, Case] = {
    "file not found": (nothing, TRAIN.format("reviws.csv"), ("reviws.csv does not exist", "did you mean reviews.csv?")),
    "name of nothing": (nothing, TRAIN.format("reviews"), ("reviews does not exist", "reviews.csv", "owner/name")),
    "path of nothing": (nothing, TRAIN.format("encoder/data"), ("encoder/data does not exist",)),
    "empty file": (writes("t.csv", ""), TRAIN.format("t.csv"), ("t.csv is empty",)),
    "header only": (writes("t.csv", "text,label\n"), TRAIN.format("t.csv"), ("t.csv has no rows, only a header",)),
    "missing column": (
        writes("t.csv", "body,label\na,b\n"),
        TRAIN.format("t.csv"),
        ("t.csv", "no text column", "'body', 'label'", "--text-column"),
    ),
    "named column missing": (
        nothing,
        ON_REVIEWS + " --label-column mood",
        ("'mood'", "'text', 'label'", "reviews.csv"),
    ),
    "duplicated column": (
        writes("t.csv", "text,label,text\na,b,c\n"),
        TRAIN.format("t.csv"),
        ("'text' more than once",),
    ),
    "duplicated parquet column": (repeated_parquet_column, TRAIN.format("t.parquet"), ("'text' more than once",)),
    "wrong encoding": (
        writes("t.csv", "text,label\nok,a\ncafé,b\n".encode("latin-1")),
        TRAIN.format("t.csv"),
        ("t.csv", "line 3", "UTF-8"),
    ),
    "malformed JSON line": (
        writes("t.jsonl", '{"text": "a", "label": 1}\n{"text": \n'),
        TRAIN.format("t.jsonl"),
        ("t.jsonl, line 2", "not valid JSON"),
    ),
    "wrong field count": (
        writes("t.csv", "text,label\na,b\nc,d,e\n"),
        TRAIN.format("t.csv"),
        ("t.csv, row 2 (line 3)", "3 fields where the header has 2", "quotes"),
    ),
    "NaN label": (writes("t.csv", "text,label\na,b\nc,nan\n"), TRAIN.format("t.csv"), ("line 3", "'label' is missing")),
    "empty label": (writes("t.csv", "text,label\na,b\nc,\n"), TRAIN.format("t.csv"), ("line 3", "'label' is missing")),
    "one class": (
        writes("t.csv", "text,label\na,b\nc,b\n"),
        TRAIN.format("t.csv"),
        ("t.csv", "are 'b'", "two classes"),
    ),
    "row of 10 MB": (
        writes("t.csv", "text,label\na,b\n" + "x" * 10_000_000 + ",c\n"),
        TRAIN.format("t.csv"),
        ("t.csv, row 2 (line 3)", "10,000,000 characters", "shorten"),
    ),
    "unsupported ending": (writes("t.xlsx", "x"), TRAIN.format("t.xlsx"), ("t.xlsx", "'.csv'", "'.parquet'")),
    "corrupt gzip": (
        writes("t.csv.gz", gzip.compress(b"text,label\n" * 9)[:-9]),
        TRAIN.format("t.csv.gz"),
        ("t.csv.gz is not a whole gzip file", "again"),
    ),
    "corrupt parquet": (
        writes("t.parquet", "PAR1 x"),
        TRAIN.format("t.parquet"),
        ("t.parquet is not a readable Parq",),
    ),
    "hash mismatch": (described, TRAIN.format("set"), ("train.jsonl", "SHA-256", "0" * 64)),
    "folder without data": (nothing, TRAIN.format("encoder"), ("encoder holds no data", "dataset.json")),
    "too few rows to set any aside": (
        writes("t.csv", "text,label\na,x\nb,y\n"),
        TRAIN.format("t.csv"),
        ("2 training rows", "too few", "test split"),
    ),
}
SPLITS: dict[str, Case] = {
    "unknown label in another split": (
        several_splits("text,label\nc,z\n"),
        TRAIN.format("set"),
        ("test.csv, row 1", "unknown label 'z'", "'x', 'y'"),
    ),
    "no split to train on": (
        writes("set/test.csv", "text,label\na,x\nb,y\n"),
        TRAIN.format("set"),
        ("'train'", "'test'"),
    ),
    "unknown training split": (nothing, ON_REVIEWS + " --train-split first", ("'first'", "splits are 'train'")),
    "unknown dev split": (nothing, ON_REVIEWS + " --dev-split dve", ("'dve'", "splits are 'train'")),
    "more training rows than there are": (
        nothing,
        ON_REVIEWS + " --train-rows 99",
        ("train_rows", "60 rows", "got 99"),
    ),
    "two numbers of training rows": (
        nothing,
        ON_REVIEWS + " --train-rows 9 --k-shot 2",
        ("at most one of", "train_rows and k_shot"),
    ),
    "fraction out of range": (
        nothing,
        ON_REVIEWS + " --fraction 1.5",
        ("--fraction", "less than or equal to 1", "1.5"),
    ),
    "label noise of all rows": (
        nothing,
        ON_REVIEWS + " --label-noise 1",
        ("--label-noise must be less than 1; got 1",),
    ),
    "label noise of no row": (
        nothing,
        ON_REVIEWS + " --k-shot 2 --label-noise 0.1",
        ("label_noise 0.1 of 4 training rows is no row", "raise it or take more"),
    ),
    "unknown kind of label noise": (
        nothing,
        ON_REVIEWS + " --label-noise 0.1 --label-noise-kind matrix",
        ("--label-noise-kind must be 'uniform' or 'pair'; got 'matrix'",),
    ),
    "kind of no label noise": (
        nothing,
        ON_REVIEWS + " --label-noise-kind pair",
        ("data.label_noise_kind", "data.label_noise above 0", "'pair' with 0"),
    ),
    "label noise of scores": (
        SCORES,
        TRAIN.format("scores.csv --label-noise 0.1"),
        ("label_noise needs rows with classes", "scores", "leave it out"),
    ),
    "text noise out of range": (
        nothing,
        ON_REVIEWS + " --text-noise 1.5",
        ("--text-noise must be less than or equal to 1; got 1.5",),
    ),
    "imbalance out of range": (
        nothing,
        ON_REVIEWS + " --imbalance 0.5",
        ("--imbalance must be greater than or equal to 1; got 0.5",),
    ),
    "imbalance of too few rows": (
        nothing,
        ON_REVIEWS + " --k-shot 1 --imbalance 4",
        ("imbalance 4 of 2 training rows leaves 1 to every one of the 2 classes", "take more rows"),
    ),
    "imbalance of scores": (
        SCORES,
        TRAIN.format("scores.csv --imbalance 4"),
        ("imbalance needs rows with classes", "scores", "leave it out"),
    ),
}
RECIPES: dict[str, Case] = {
    "unknown recipe": (nothing, ON_REVIEWS + " -r slc", ("unknown recipe 'slc'", "did you mean 'scl'?")),
    "unknown recipe to show": (nothing, "recipes hyp", ("unknown recipe 'hyp'", "did you mean 'hype'?")),
    "recipe file missing": (nothing, ON_REVIEWS + " -r mine.yaml", ("mine.yaml does not exist",)),
    "recipe is not YAML": (
        writes("r.yaml", "name: [a\n"),
        ON_REVIEWS + " -r r.yaml",
        ("r.yaml, line 2", "not valid YAML"),
    ),
    "recipe is a list": (writes("r.yaml", "- scl\n"), ON_REVIEWS + " -r r.yaml", ("r.yaml", "mapping", "list")),
    "recipe in latin-1": (
        writes("r.yaml", "name: é".encode("latin-1")),
        ON_REVIEWS + " -r r.yaml",
        ("r.yaml is not UTF-8",),
    ),
    "recipe without name": (
        writes("r.yaml", "methods: {}\n"),
        ON_REVIEWS + " -r r.yaml",
        ("r.yaml", "name is missing"),
    ),
    "recipe with unknown entry": (
        writes("r.yaml", "name: a\nmethod: {}\n"),
        ON_REVIEWS + " -r r.yaml",
        ("r.yaml", "unknown entry method", "'methods'"),
    ),
    "recipe with unknown method": (
        writes("r.yaml", METHODS_OF + "slc: {}\n"),
        ON_REVIEWS + " -r r.yaml",
        ("unknown method 'slc'", "did you mean 'scl'?"),
    ),
    "recipe with unknown setting": (
        writes("r.yaml", METHODS_OF + "scl: {temprature: 1}\n"),
        ON_REVIEWS + " -r r.yaml",
        ("scl", "'temprature'", "temperature"),
    ),
    "recipe with a value out of range": (
        writes("r.yaml", METHODS_OF + "scl: {temperature: -0.3}\n"),
        ON_REVIEWS + " -r r.yaml",
        ("scl.temperature must be a number > 0; got -0.3.",),
    ),
    "recipe with dropout out of range": (
        writes("r.yaml", "name: a\ndropout: {hidden: 1.5}\n"),
        ON_REVIEWS + " -r r.yaml",
        (
            "r.yaml",
            "dropout.hidden must be less than 1; got 1.5",
        ),
    ),
    "stack that contradicts itself": (
        DROPS,
        ON_REVIEWS + " -r low.yaml+high.yaml",
        ("'low'", "'high'", "dropout.hidden", "0 and 0.3"),
    ),
    "stack that repeats a method": (nothing, ON_REVIEWS + " -r scl+scl", ("'scl'", "name it once")),
    "setting without a value": (nothing, ON_REVIEWS + " --set scl.weight", ("--set", "KEY.NAME=VALUE", "'scl.weight'")),
    "setting of an absent method": (nothing, ON_REVIEWS + " --set scl.weight=1", ("'plain'", "'scl'", "dropout, run")),
    "unknown setting": (nothing, ON_REVIEWS + " -r scl --set scl.wieght=1", ("scl", "'wieght'", "weight")),
    "setting out of range": (nothing, ON_REVIEWS + " -r scl --set scl.weight=2", ("scl.weight", "<= 1; got 2")),
    "unknown setting of the run": (nothing, ON_REVIEWS + " --set run.epoch=1", ("run.epoch", "did you mean 'epochs'?")),
    "setting of the run out of range": (nothing, ON_REVIEWS + " --set run.epochs=-1", ("run.epochs must be", "got -1")),
    "infinite setting": (
        nothing,
        ON_REVIEWS + " --set run.epochs=.inf",
        ("run.epochs must be a finite number", "got inf"),
    ),
    "infinite dropout": (nothing, ON_REVIEWS + " --set dropout.hidden=nan", ("dropout.hidden must be", "nan")),
    "more per class than a batch holds": (
        nothing,
        ON_REVIEWS + " --batch-size 4 --set run.examples_per_class=8",
        ("run.examples_per_class", "run.batch_size, 4", "got 8"),
    ),
    "run file missing": (nothing, "train --config run.yaml", ("run.yaml does not exist",)),
    "run file with unknown entry": (
        writes("r.yaml", "data: {source: a, trian_rows: 3}\nrecipe: {name: a}\n"),
        "train --config r.yaml",
        ("r.yaml", "unknown entry data.trian_rows", "'train_rows'"),
    ),
    "run file without recipe": (
        writes("r.yaml", "data: {source: a}\n"),
        "train --config r.yaml",
        ("r.yaml", "recipe is missing"),
    ),
}
USAGE: dict[str, Case] = {
    "unknown command": (nothing, "trian", ("'trian'", "'train'")),
    "unknown option": (nothing, ON_REVIEWS + " --epohcs 3", ("--epohcs", "--epochs", "steadytune train --help")),
    "option without value": (nothing, ON_REVIEWS + " --epochs", ("'--epochs'", "argument")),
    "too many arguments": (nothing, "doctor a b", ("unexpected", "(b)", "steadytune doctor --help")),
    "missing argument": (nothing, "evaluate", ("missing argument 'model'", "steadytune evaluate --help")),
    "text for a number": (nothing, ON_REVIEWS + " --epochs abc", ("--epochs must be a valid number; got 'abc'",)),
    "negative epochs": (nothing, ON_REVIEWS + " --epochs=-1", ("--epochs must be greater than 0", "got -1")),
    "epochs that are no number": (nothing, ON_REVIEWS + " --epochs nan", ("--epochs must be", "nan")),
    "empty batch": (nothing, ON_REVIEWS + " --batch-size 0", ("--batch-size must be", "1; got 0")),
    "negative seed": (nothing, ON_REVIEWS + " --seed=-1", ("--seed must be", "0; got -1")),
    "unknown task": (
        nothing,
        ON_REVIEWS + " --task ner",
        ("--task must be 'classification', 'regression', 'multi_label', ", "; got 'ner'"),
    ),
    "no data": (nothing, "train", ("no data given", "sample", "steadytune train")),
    "unknown method to show": (nothing, "methods slc", ("'slc'", "scl")),
    "too short a length": (nothing, "predict trained -t a --max-length 3", ("--max-length must be", "4", "got '3'")),
    "longer than the model reads": (
        nothing,
        ON_REVIEWS + " --max-length 65",
        ("max_length must be at most 64", "got 65"),
    ),
}
MODELS: dict[str, Case] = {
    "no such model folder": (nothing, "train reviews.csv -m ./gone -o run", ("model folder ./gone does not exist",)),
    "no such model": (nothing, "predict gone -t a", ("model folder gone does not exist", "owner/name")),
    "no such model below a folder": (nothing, "doctor trained/gone", ("model folder trained/gone does not exist",)),
    "no such model on the hub": (nothing, "doctor owner/gone", ("'owner/gone'", "no local folder", "connection")),
    "folder without config": (drops("encoder/config.json"), ON_REVIEWS, ("encoder holds no config.json",)),
    "model is a file": (nothing, "doctor reviews.csv", ("reviews.csv is a file", "folder")),
    "corrupt config": (writes("encoder/config.json", "{"), ON_REVIEWS, ("model encoder", "config.json", "JSON")),
    "corrupt weights": (writes("encoder/model.safetensors", "cut"), ON_REVIEWS, ("weights of model encoder",)),
    "corrupt weights in doctor": (
        writes("encoder/model.safetensors", "cut"),
        "doctor encoder",
        ("weights of model encoder",),
    ),
    "corrupt tokenizer": (writes("encoder/tokenizer.json", "{"), ON_REVIEWS, ("tokenizer of model encoder",)),
    "weights missing": (drops("encoder/model.safetensors"), ON_REVIEWS, ("weights of model encoder",)),
    "a decoder to train": (of_family("gpt2"), ON_REVIEWS, ("'gpt2' is not supported", "bert")),
    "a decoder to examine": (of_family("gpt2"), "doctor encoder", ("'gpt2' is not supported", "bert")),
    "an encoder-decoder": (of_family("t5"), ON_REVIEWS, ("'t5' is not supported", "bert")),
    "a family nobody knows": (of_family("nonesuch"), ON_REVIEWS, ("configuration of model encoder", "nonesuch")),
    "encoder without a head to predict": (
        without_head,
        "predict encoder -t a",
        ("model encoder has no trained head", "classifier"),
    ),
    "bundled encoder to predict": (nothing, "predict bundled -t a", ("no trained head", "folder of a run")),
    "method that cannot act on the task": (
        SCORES,
        TRAIN.format("scores.csv -r scl"),
        ("scl cannot act on a regression task",),
    ),
    "balanced batches of scores": (
        SCORES,
        TRAIN.format("scores.csv --set run.examples_per_class=2"),
        ("run.examples_per_class", "regression"),
    ),
    "classes for a regression": (nothing, ON_REVIEWS + " --task regression", ("reviews.csv, row 1", "'pos'", "number")),
}
PLACES: dict[str, Case] = {
    "output is a file": (writes("run", "x"), ON_REVIEWS, ("--output run is a file",)),
    "output below a file": (
        nothing,
        "train reviews.csv -m encoder -o reviews.csv/run",
        ("--output", "reviews.csv, which is"),
    ),
    "output is finished": (nothing, "train reviews.csv -m encoder -o trained", ("--output trained", "finished run")),
    "output holds something else": (writes("run/notes.txt", "x"), ON_REVIEWS, ("--output run", "holds no run")),
    "output holds another run": (unfinished(seed=1), ON_REVIEWS, ("--output run", "another run")),
    "corrupt checkpoint": (unfinished(seed=0), ON_REVIEWS, ("checkpoint-3 is corrupt", "model.safetensors", "remove")),
    "neither file nor text": (nothing, "predict trained", ("--text",)),
    "both file and text": (nothing, "predict trained reviews.csv -t a", ("--text", "not both")),
    "predictions exist": (writes("p.csv", "x"), "predict trained reviews.csv -o p.csv", ("--output p.csv exists",)),
    "predictions of unknown form": (nothing, "predict trained reviews.csv -o p.xls", ("p.xls", ".jsonl or .csv")),
    "predictions in no folder": (
        nothing,
        "predict trained reviews.csv -o gone/p.csv",
        ("gone/p.csv", "make gone first"),
    ),
    "no column to predict from": (
        writes("t.csv", "body\na\n"),
        "predict trained t.csv",
        ("no text column", "'body'", "--text-column"),
    ),
    "several files to predict from": (several_splits("text,label\nc,y\n"), "predict trained set", ("set", "one file")),
    "labels that the model does not know": (
        writes("t.csv", "text,label\na,poss\nb,neg\n"),
        "evaluate trained t.csv",
        ("t.csv, row 1", "unknown label 'poss'", "did you mean 'pos'?"),
    ),
    "nothing to evaluate against": (
        writes("t.csv", "text\na\n"),
        "evaluate trained t.csv",
        ("t.csv", "no label column", "--label-column"),
    ),
    "no such split to evaluate": (nothing, "evaluate trained reviews.csv --split test", ("'test'", "'train'")),
}
CASES = FILES | SPLITS | RECIPES | USAGE | MODELS | PLACES


def on_disk(place: Path) -> dict[str, str]:
    """Hash of every file and the name of every folder."""
    return {
        str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(place.rglob("*"))
    }


def assert_one_sentence(code: int, err: str, words: tuple[str, ...]) -> None:
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1, err
    assert lines[0].startswith("steadytune: ")
    assert "Traceback" not in err
    assert [word for word in words if word not in lines[0]] == [], lines[0]
    assert lines[0].endswith((".", "?"))
    assert code == 2


@pytest.mark.parametrize("name", CASES)
def test_bad_input_gives_one_sentence_and_touches_nothing(name: str, workplace: Path, run: Run) -> None:
    arrange, words, said = CASES[name]
    arrange(workplace)
    before = on_disk(workplace)
    outcome = run(words)
    assert_one_sentence(outcome.code, outcome.err, said)
    assert outcome.out == ""
    assert on_disk(workplace) == before


@pytest.mark.parametrize("name", ["unknown option", "too short a length", "corrupt checkpoint"])
def test_bad_input_gives_one_sentence_in_a_process_of_its_own(name: str, workplace: Path) -> None:
    arrange, words, said = CASES[name]
    arrange(workplace)
    before = on_disk(workplace)
    command = [sys.executable, "-m", "steadytune", *shlex.split(words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert_one_sentence(done.returncode, done.stderr, said)
    assert done.stdout == ""
    assert on_disk(workplace) == before


# Trouble that no file shows -------------------------------------------------------------------------------------------


def no_space(*_: object, **__: object) -> NoReturn:
    raise OSError(errno.ENOSPC, "No space left on device", "run")


def test_full_disk_under_predictions_leaves_no_part_of_them(
    workplace: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_files, "json", SimpleNamespace(dumps=no_space))
    before = on_disk(workplace)
    outcome = run("predict trained reviews.csv -o new.jsonl")
    assert_one_sentence(outcome.code, outcome.err, ("no space left",))
    assert on_disk(workplace) == before


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "run"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 15552 vs 15440"),  # of torch.save
        RuntimeError("basic_ios::clear: iostream error"),  # of torch.save
    ],
    ids=["system", "safetensors", "torch", "torch's stream"],
)
def test_full_disk_under_a_model_leaves_a_run_that_goes_on(
    error: Exception, workplace: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> NoReturn:
        raise error

    words = ON_REVIEWS + " --epochs 1 --set run.min_steps=2"
    with monkeypatch.context() as patched:
        patched.setattr(fit_module, "export_model", full)
        outcome = run(words + " --json")
    assert_one_sentence(outcome.code, outcome.err, ("no space left",))
    assert not (workplace / "run" / "record.json").exists()
    assert run(words).code == 0


def test_stopping_says_how_to_go_on(workplace: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(fit_module, "fit", stop)
    outcome = run(ON_REVIEWS)
    assert (outcome.code, outcome.err.count("\n")) == (130, 1)
    assert "repeated" in outcome.err


def test_an_error_of_the_program_itself_is_not_dressed_up(
    workplace: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*_: object, **__: object) -> NoReturn:
        raise ValueError("a fault inside")

    monkeypatch.setattr(fit_module, "fit", fault)
    with pytest.raises(ValueError, match="a fault inside"):
        run(ON_REVIEWS)


def test_without_a_command_the_help_comes_and_counts_as_bad_usage(run: Run) -> None:
    outcome = run("")
    assert outcome.code == 2
    assert "train" in outcome.out

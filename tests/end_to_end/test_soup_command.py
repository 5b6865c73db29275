"""`steadytune soup`: the mean of the weights of several runs, from `train` to `predict`, and what makes no soup."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from steadytune.records import SoupRecord
from steadytune.training.fit import fit
from steadytune.training.prepare import prepare
from toyrun import LABELS, recipe_of, run_of, write_data, write_model

Run = Callable[[str], Any]
Arrange = Callable[[Path], object]
RUNS = ("a", "b", "c")


@pytest.fixture(scope="module")
def pantry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, an encoder, and runs of three seeds from one head."""
    folder = tmp_path_factory.mktemp("pantry")
    data, model = write_data(folder / "data"), write_model(folder / "encoder")
    for seed, name in enumerate(RUNS):
        steps = {"min_steps": 12, "checkpoint_steps": 100, "head_seed": 7}
        fit(run_of(data, model, recipe_of("plain"), seed=seed, **steps), folder / name)
    return folder


@pytest.fixture
def kitchen(pantry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the runs, as the working directory; their data stays where it was."""
    for name in RUNS:
        shutil.copytree(pantry / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def record_of(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(name, "record.json").read_text())
    return content


def change(name: str, edit: Callable[[dict[str, Any]], object]) -> None:
    record = record_of(name)
    edit(record)
    Path(name, "record.json").write_text(json.dumps(record))


def config_of(name: str, **values: Any) -> None:
    """Set values in the configuration of the model of a run."""
    path = Path(name, "model", "config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def weights(name: str) -> dict[str, np.ndarray]:
    return load_file(Path(name, "model", "model.safetensors"))


def is_mean(soup: str, runs: list[str]) -> bool:
    parts = [weights(run) for run in runs]
    expected = {name: np.mean([part[name] for part in parts], axis=0, dtype=np.float64) for name in parts[0]}
    found = weights(soup)
    return found.keys() == expected.keys() and all(
        found[name].dtype == parts[0][name].dtype and np.array_equal(found[name], value.astype(found[name].dtype))
        for name, value in expected.items()
    )


# -- the soup ---------------------------------------------------------------------------------------------------------


def test_the_uniform_soup_is_the_mean_of_all_runs(kitchen: Path, run: Run) -> None:
    assert run("soup a b c --uniform -o soup").code == 0
    record = SoupRecord.model_validate_json(Path("soup/soup.json").read_text())
    assert record.rule == "uniform"
    assert all(one.kept for one in record.ingredients)
    assert is_mean("soup", [one.path.removeprefix("../") for one in record.ingredients])


def test_the_greedy_soup_is_the_mean_of_those_that_it_keeps_and_no_worse_than_the_best_run(
    kitchen: Path, run: Run
) -> None:
    assert run("soup c b a -o soup").code == 0
    record = SoupRecord.model_validate_json(Path("soup/soup.json").read_text())
    assert record.rule == "greedy"
    dev = [one.dev_scores["accuracy"] or 0.0 for one in record.ingredients]
    assert dev == sorted(dev, reverse=True)
    assert record.ingredients[0].kept
    assert is_mean("soup", [one.path.removeprefix("../") for one in record.ingredients if one.kept])
    assert (record.scores["dev"]["accuracy"] or 0.0) >= dev[0]


def test_a_run_that_makes_validation_worse_is_left_out(kitchen: Path, run: Run) -> None:
    """Whatever it claims for itself: its head is turned upside down, so that the mean of the two knows nothing."""
    values = weights("a")
    shutil.rmtree("b")
    shutil.copytree("a", "b")
    model = AutoModelForSequenceClassification.from_pretrained("b/model")
    with torch.no_grad():
        for name, parameter in model.classifier.named_parameters():
            parameter.copy_(torch.from_numpy(-3 * values[f"classifier.{name}"]))
    model.save_pretrained("b/model")
    shown = json.loads(run("soup a b -o soup --json").out)
    assert [(one["path"], one["kept"]) for one in shown["ingredients"]] == [("../a", True), ("../b", False)]
    assert shown["scores"] == shown["best_scores"] == record_of("a")["scores"]
    assert is_mean("soup", ["a"])


def test_the_record_says_what_went_in_and_what_came_out(kitchen: Path, run: Run) -> None:
    done = run("soup a b c -o made/soup --json")
    shown = json.loads(done.out)
    assert (done.code, done.err, shown.pop("output")) == (0, "", "made/soup")
    assert shown == json.loads(Path("made/soup/soup.json").read_text())
    for one in shown["ingredients"]:
        record = record_of(os.path.normpath(Path("made/soup") / one["path"]))
        assert (one["run_id"], one["dev_scores"]) == (record["run_id"], record["scores"]["dev"])
    best = record_of(os.path.normpath(Path("made/soup") / shown["ingredients"][0]["path"]))
    assert shown["best_scores"] == best["scores"]
    assert (shown["config"], shown["head_seed"], shown["data_rows"]) == (best["config"], 7, {"dev": 12, "test": 12})


def test_a_soup_leaves_model_and_record_and_nothing_else(kitchen: Path, run: Run) -> None:
    before = set(kitchen.iterdir())
    assert run("soup a b -o soup").code == 0
    assert set(kitchen.iterdir()) - before == {kitchen / "soup"}
    assert {path.name for path in Path("soup").iterdir()} == {"model", "soup.json"}
    assert {path.name for path in Path("soup/model").iterdir()} == {path.name for path in Path("a/model").iterdir()}
    assert "Wortsman" in Path("soup/model/README.md").read_text()


def test_people_see_every_soup_that_was_tried_and_the_scores(kitchen: Path, run: Run) -> None:
    done = run("soup a b c -o soup")
    assert done.err.count("validation accuracy ") == 3
    assert all(word in done.out for word in ("dev accuracy", "test accuracy", "kept", "soup/soup.json", "soup/model"))


def test_plain_transformers_load_the_soup_and_give_the_recorded_scores(kitchen: Path, run: Run) -> None:
    assert run("soup a b c -o soup --uniform").code == 0
    record, data = json.loads(Path("soup/soup.json").read_text()), Path(record_of("a")["config"]["data"]["source"])
    model = AutoModelForSequenceClassification.from_pretrained("soup/model").eval()
    tokenizer = AutoTokenizer.from_pretrained("soup/model")
    for split in ("dev", "test"):
        rows = [line.rsplit(",", 1) for line in (data / f"{split}.csv").read_text().splitlines()[1:]]
        with torch.no_grad():
            logits = model(**tokenizer([text for text, _ in rows], padding=True, return_tensors="pt")).logits
        right = [LABELS[int(i)] == label for i, (_, label) in zip(logits.argmax(-1), rows, strict=True)]
        assert record["scores"][split]["accuracy"] == pytest.approx(np.mean(right))
        evaluated = json.loads(run(f"evaluate soup {data} --split {split} --json").out)
        assert evaluated["scores"] == record["scores"][split]


def test_predict_takes_a_soup_and_reads_as_its_runs_did(kitchen: Path, run: Run) -> None:
    assert run("soup a b -o soup").code == 0
    long = "the film was superb " + "very " * 30
    found = [run(f"predict {place} -t '{long}' --json").out for place in ("soup", "soup/model")]
    assert found[0] == found[1] == run(f"predict soup -t '{long}' --json --max-length 16").out
    assert json.loads(found[0])["label"] in LABELS


def test_a_run_can_start_from_a_soup(kitchen: Path, run: Run) -> None:
    assert run("soup a b -o soup").code == 0
    data = record_of("a")["config"]["data"]["source"]
    assert run(f"train {data} -m soup --max-length 16 --epochs 1 -o on").code == 0


# -- the head ---------------------------------------------------------------------------------------------------------


def test_runs_of_several_seeds_with_one_head_seed_begin_with_one_head(pantry: Path) -> None:
    def head(seed: int, head_seed: int | None) -> torch.Tensor:
        config = run_of(pantry / "data", pantry / "encoder", recipe_of("plain"), seed=seed, head_seed=head_seed)
        found: torch.Tensor = prepare(config).model.classifier.weight.detach()
        return found

    assert torch.equal(head(1, 7), head(2, 7))
    assert not torch.equal(head(1, None), head(2, None))
    assert torch.equal(head(1, None), head(2, 1))


# -- what makes no soup -----------------------------------------------------------------------------------------------


def edited(*path: str, value: Any) -> Arrange:
    """The record of `b` with one entry changed."""

    def edit(record: dict[str, Any]) -> None:
        for name in path[:-1]:
            record = record[name]
        record[path[-1]] = value

    return lambda place: change("b", edit)


def without(path: str) -> Arrange:
    return lambda place: shutil.rmtree(place / path) if (place / path).is_dir() else (place / path).unlink()


def occupied(place: Path) -> None:
    (place / "soup").mkdir()
    (place / "soup" / "letter.txt").write_text("mine")


def other_rows(place: Path) -> None:
    shutil.copytree(record_of("a")["config"]["data"]["source"], place / "data")
    with (place / "data" / "dev.csv").open("a") as file:
        file.write("a superb film,good\n")
    for name in RUNS:
        change(name, lambda record: record["config"]["data"].update(source="data"))


def nothing(place: Path) -> None:
    """The runs as they are."""


REFUSED: dict[str, tuple[Arrange, str, str]] = {
    "one run": (nothing, "a", "a soup needs two runs or more; got 1."),
    "twice the same": (nothing, "a b ./a", "a run is named twice; name each once."),
    "no such folder": (nothing, "a d", "d holds no record.json; name the folders of finished runs."),
    "not finished": (without("b/record.json"), "a b", "b holds no record.json; name the folders of finished runs."),
    "damaged": (
        lambda place: Path("b/record.json").write_text("{"),
        "a b",
        "b/record.json is no record that this version can read; remove it to run its cell again.",
    ),
    "failed": (edited("status", value="failed"), "a b", "the run in b failed; leave it out."),
    "not scored": (
        edited("scores", "dev", "accuracy", value=None),
        "a b",
        "the run in b has no validation score; leave it out.",
    ),
    "no model": (without("b/model"), "a b", "b holds no model; a soup needs the weights of every run."),
    "task": (
        edited("task", value="regression"),
        "a b",
        "a and b make no soup: their tasks are classification and regression.",
    ),
    "order of labels": (
        edited("label_names", value=["good", "bad", "fair"]),
        "a b",
        "a and b make no soup: their labels are ['bad', 'fair', 'good'] and ['good', 'bad', 'fair']; names and order "
        "must agree.",
    ),
    "model": (
        edited("model_name", value="other"),
        "a b",
        "started from encoder (REVISION) and other (REVISION); a soup needs one checkpoint.",
    ),
    "revision": (
        edited("model_revision", value="0123456789abcdef"),
        "a b",
        "started from encoder (REVISION) and encoder (0123456789ab); a soup needs one checkpoint.",
    ),
    "head seed": (
        edited("config", "run", "head_seed", value=8),
        "a b",
        "a and b make no soup: their heads were drawn from seeds 7 and 8; train them with one `--set run.head_seed=N`.",
    ),
    "head of the run's seed": (
        edited("config", "run", "head_seed", value=None),
        "a b",
        "a and b make no soup: their heads were drawn from seeds 7 and 1; train them with one `--set run.head_seed=N`.",
    ),
    "reinit": (
        edited("config", "recipe", "methods", value={"reinit": {"layers": 1}}),
        "a b",
        "a and b make no soup: reinit drew anew nothing and {'layers': 1} from seed 1; runs with it must share it and "
        "the seed.",
    ),
    "validation rows": (
        edited("data_fingerprints", "dev", value="0" * 64),
        "a b",
        "a and b make no soup: they were scored on different validation rows; use data with a dev split, or one seed.",
    ),
    "test rows": (
        edited("data_fingerprints", "test", value="0" * 64),
        "a b",
        "a and b make no soup: they were scored on different test rows; use data with a test split, or one seed.",
    ),
    "metric": (
        edited("metric", value="macro_f1"),
        "a b",
        "a and b make no soup: their scores are accuracy and macro_f1.",
    ),
    "length": (
        edited("config", "run", "max_length", value=12),
        "a b",
        "a and b make no soup: run.max_length is 16 and 12; they must read texts alike.",
    ),
    "no answer": (
        lambda place: config_of("b", allow_empty_answer=True),
        "a b",
        "a and b make no soup: a question may have no answer in one of them and not in the other; train them on rows "
        "alike.",
    ),
    "the third of three": (
        lambda place: change("c", lambda record: record.update(status="failed")),
        "a b c",
        "the run in c failed; leave it out.",
    ),
    "changed data": (
        other_rows,
        "a b",
        "the rows or labels of data are not those that RUN was scored on; put those back.",
    ),
    "folder in use": (occupied, "a b", "--output soup exists; name a new folder."),
    "below a file": (
        lambda place: Path("file").touch(),
        "a b -o file/soup",
        "--output file/soup lies below file, which is a file; name another folder.",
    ),
}


@pytest.mark.parametrize(("arrange", "words", "sentence"), REFUSED.values(), ids=REFUSED)
def test_what_makes_no_soup_is_refused_in_one_sentence(
    arrange: Arrange, words: str, sentence: str, kitchen: Path, run: Run
) -> None:
    revision = record_of("a")["model_revision"][:12]
    best = max("ab", key=lambda name: (record_of(name)["scores"]["dev"]["accuracy"], name == "a"))
    arrange(kitchen)
    before = {path: path.stat().st_mtime_ns for path in kitchen.rglob("*")}
    outcome = run(f"soup {words}" if "-o" in words else f"soup {words} -o soup")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("steadytune: ") and outcome.err.count("\n") == 1
    assert outcome.err.rstrip().endswith(sentence.replace("REVISION", revision).replace("RUN", best))
    assert {path: path.stat().st_mtime_ns for path in kitchen.rglob("*")} == before


def test_a_soup_without_a_place_is_refused(kitchen: Path, run: Run) -> None:
    outcome = run("soup a b")
    assert (outcome.code, outcome.err) == (
        2,
        "steadytune: missing option '--output' / '-o'; see steadytune soup --help.\n",
    )


def test_a_soup_that_cannot_be_written_leaves_nothing(kitchen: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "soup")

    before = set(kitchen.rglob("*"))
    monkeypatch.setattr("steadytune.training.soup.write_json", full)
    outcome = run("soup a b -o soup")
    assert outcome.code == 2
    assert "no space left" in outcome.err.splitlines()[-1]
    assert set(kitchen.rglob("*")) == before

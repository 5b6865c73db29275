"""Every task whose texts or labels have parts, from `train` to `predict`, on a tiny encoder."""

import csv
import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import seqeval.metrics
import sklearn.metrics
import torch
import transformers
import yaml

from steadytune.cli import main
from tolerances import SAME
from toyrun import FILLERS, LABELS, WORDS, write_model

Row = dict[str, Any]
CLOSE = SAME[torch.float32]
SHORT = "-m encoder --max-length 16 --learning-rate 0.005 --epochs 1 --set run.min_steps=60"


# -- several labels ---------------------------------------------------------------------------------------------------


def opinions(draw: random.Random) -> Row:
    """A text, and which opinions are in it; there may be none."""
    found = [label for label in LABELS if draw.random() < 0.4]
    words = [draw.choice(FILLERS) for _ in range(3)] + [draw.choice(WORDS[label]) for label in found]
    draw.shuffle(words)
    return {"text": " ".join(words), "labels": found}


def plain_scores_of_opinions(model: Any, tokenizer: Any, rows: Sequence[Row], run: Path) -> dict[str, float]:
    """By transformers and scikit-learn alone; the scores of single rows are compared with those that were kept."""
    tokens = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**tokens).logits.numpy()
    kept = [row["logits"] for row in pq.read_table(run / "predictions.parquet").to_pylist() if row["split"] == "test"]
    np.testing.assert_allclose(logits, kept, rtol=CLOSE, atol=CLOSE)
    names = [model.config.id2label[i] for i in range(model.config.num_labels)]
    truth = [[int(name in row["labels"]) for name in names] for row in rows]
    return {
        "micro_f1": sklearn.metrics.f1_score(truth, logits > 0, average="micro"),
        "exact_match": sklearn.metrics.accuracy_score(truth, logits > 0),
    }


# -- tagged words -----------------------------------------------------------------------------------------------------


NOUNS = {"bad": "film", "fair": "book", "good": "song"}


def reviews(draw: random.Random) -> Row:
    """Words with tags: an opinion with its noun is an entity."""
    words, tags = [], []
    for _ in range(draw.randint(2, 4)):
        words.append(draw.choice([word for word in FILLERS if word not in NOUNS.values()]))
        tags.append("O")
        if draw.random() < 0.5:
            label = draw.choice(LABELS)
            words += [draw.choice(WORDS[label]), NOUNS[label]]
            tags += [f"B-{label}", f"I-{label}"]
    return {"tokens": words, "tags": tags}


def plain_scores_of_reviews(model: Any, tokenizer: Any, rows: Sequence[Row], run: Path) -> dict[str, float]:
    """By transformers and seqeval alone; every word of this data is one token."""
    predicted = []
    for row in rows:
        tokens = tokenizer(row["tokens"], is_split_into_words=True, truncation=True, max_length=16, return_tensors="pt")
        with torch.no_grad():
            best = model(**tokens).logits[0].argmax(dim=-1).tolist()
        tags = [model.config.id2label[tag] for tag in best[1:-1]]
        predicted.append(tags + ["O"] * (len(row["tokens"]) - len(tags)))
    truth = [row["tags"] for row in rows]
    return {
        "entity_f1": seqeval.metrics.f1_score(truth, predicted),
        "accuracy": seqeval.metrics.accuracy_score(truth, predicted),
    }


# -- the tasks --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One task.

    Attributes:
        row: makes a row of the data.
        head: class of transformers that loads the trained model.
        hub: kind of task, as the hub calls it.
        plain_scores: from the plain model and tokenizer, the test rows and the folder of the run, without steadytune.
        asked: columns that `predict` needs.
        answer: columns of an answer, beside its id.
        words: of `predict`, in place of a file.
        fault: a row that cannot be used, and what is said of it.
    """

    row: Callable[[random.Random], Row]
    head: str
    hub: str
    plain_scores: Callable[[Any, Any, Sequence[Row], Path], dict[str, float]]
    asked: tuple[str, ...]
    answer: tuple[str, ...]
    words: str
    fault: tuple[Row, str]


TASKS = {
    "multi_label": Case(
        row=opinions,
        head="AutoModelForSequenceClassification",
        hub="text-classification",
        plain_scores=plain_scores_of_opinions,
        asked=("text",),
        answer=("text", "labels", "probabilities"),
        words="the film was awful and superb",
        fault=({"text": "a film", "labels": [["good"]]}, "'labels' must hold names or numbers; got ['good']."),
    ),
    "token_classification": Case(
        row=reviews,
        head="AutoModelForTokenClassification",
        hub="token-classification",
        plain_scores=plain_scores_of_reviews,
        asked=("tokens",),
        answer=("tokens", "tags", "entities"),
        words="the awful film was to me",
        fault=({"tokens": ["a"], "tags": ["O", "O"]}, "has 1 words in 'tokens' and 2 tags in 'tags'; give one tag per"),
    ),
}


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder with `encoder`, the data `set` and `run`, a finished run on both, made once for each task."""
    made: dict[str, Path] = {}

    def folder_of(task: str) -> Path:
        if task not in made:
            folder = tmp_path_factory.mktemp(task)
            write_model(folder / "encoder")
            (folder / "set").mkdir()
            for seed, (split, rows) in enumerate({"train": 60, "dev": 12, "test": 20}.items()):
                draw = random.Random(seed)
                write_rows(folder / "set" / f"{split}.jsonl", [TASKS[task].row(draw) for _ in range(rows)])
            patch = pytest.MonkeyPatch()
            with patch.context() as here:
                here.chdir(folder)
                here.setattr("sys.argv", ["steadytune", *f"train set {SHORT} --task {task} -o run --json".split()])
                assert main() == 0
            made[task] = folder
        return made[task]

    return folder_of


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def place(task: str, trained: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder of the task, as the working directory."""
    shutil.copytree(trained(task), tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


def record_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "record.json").read_text())
    return found


# -- train ------------------------------------------------------------------------------------------------------------


def test_a_run_says_its_task_and_learns_something(task: str, place: Path) -> None:
    record = record_of(place / "run")
    assert (record["status"], record["task"]) == ("done", task)
    assert record["scores"]["test"][record["metric"]] > 0.5


def test_the_run_file_repeats_the_run(task: str, place: Path, run: Any) -> None:
    assert yaml.safe_load((place / "run" / "run.yaml").read_text())["data"]["task"] == task
    shown = run("train --config run/run.yaml -o again")
    assert shown.code == 0
    first, second = (record_of(place / name) for name in ("run", "again"))
    assert (first["run_id"], first["scores"]) == (second["run_id"], second["scores"])
    assert all(word in shown.out for word in ("dev", "test", first["metric"], "again/record.json", "again/model"))
    weights = [(place / name / "model" / "model.safetensors").read_bytes() for name in ("run", "again")]
    assert weights[0] == weights[1]


def test_the_plain_model_gives_the_recorded_scores(task: str, place: Path) -> None:
    case, folder = TASKS[task], place / "run" / "model"
    model = getattr(transformers, case.head).from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    found = case.plain_scores(model, tokenizer, read_rows(place / "set" / "test.jsonl"), place / "run")
    recorded = record_of(place / "run")["scores"]["test"]
    assert found and found == pytest.approx({name: recorded[name] for name in found}, rel=CLOSE)


def test_the_card_names_the_class_that_loads_the_model_and_the_task_of_the_hub(task: str, place: Path) -> None:
    case, card = TASKS[task], (place / "run" / "model" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert f"`{case.head}.from_pretrained`" in card
    assert front["pipeline_tag"] == case.hub
    assert {result["task"]["type"] for result in front["model-index"][0]["results"]} == {case.hub}


# -- evaluate and predict ---------------------------------------------------------------------------------------------


def test_evaluate_repeats_the_recorded_scores(task: str, place: Path, run: Any) -> None:
    done = run("evaluate run set --json --batch-size 3")
    assert done.code == 0
    shown = json.loads(done.out)
    assert (shown["split"], shown["rows"]) == ("test", 20)
    assert shown["scores"] == pytest.approx(record_of(place / "run")["scores"]["test"], rel=CLOSE)


def test_predict_answers_every_row_of_a_file_without_labels(task: str, place: Path, run: Any) -> None:
    case, rows = TASKS[task], read_rows(place / "set" / "test.jsonl")
    write_rows(place / "new.jsonl", [{name: row[name] for name in case.asked} for row in rows])
    done = run("predict run new.jsonl -o answers.jsonl")
    assert (done.code, done.out) == (0, "")
    assert "wrote 20 rows to answers.jsonl" in done.err
    answers = read_rows(place / "answers.jsonl")
    assert [tuple(answer) for answer in answers] == [("id", *case.answer)] * 20
    assert [answer[case.asked[0]] for answer in answers] == [row[case.asked[0]] for row in rows]
    shown = run("predict run new.jsonl --json")
    assert [json.loads(line) for line in shown.out.splitlines()] == answers


def test_predict_writes_the_same_answers_as_csv_with_lists_in_json(task: str, place: Path, run: Any) -> None:
    assert run("predict run set/test.jsonl -o answers.jsonl").code == 0
    assert run("predict run set/test.jsonl -o answers.csv").code == 0
    with (place / "answers.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    answers = read_rows(place / "answers.jsonl")
    assert len(table) == len(answers) == 20
    for cells, answer in zip(table, answers, strict=True):
        for name, value in answer.items():
            if isinstance(value, dict):
                assert {label: float(cells[f"probability_{label}"]) for label in value} == value
            else:
                assert (json.loads(cells[name]) if isinstance(value, list) else cells[name]) == value


def test_predict_takes_words_in_place_of_a_file(task: str, place: Path, run: Any) -> None:
    words = TASKS[task].words
    done = run(f"predict run -t '{words}'")
    assert (done.code, done.out.splitlines()[0]) == (0, words)


def test_recipes_are_compared_by_the_metric_of_the_task(task: str, place: Path, run: Any) -> None:
    words = f"--task {task} --recipes plain,hype --second-baseline none --seeds 2 -m encoder --max-length 16 --epochs 1"
    done = run(f"compare set {words} -o study")
    assert done.code == 0
    assert record_of(place / "run")["metric"] in done.out
    assert (place / "study" / "report.html").is_file()


# -- what cannot be used ----------------------------------------------------------------------------------------------


def test_a_row_that_cannot_be_used_gives_one_sentence(task: str, place: Path, run: Any) -> None:
    row, said = TASKS[task].fault
    write_rows(place / "set" / "train.jsonl", [*read_rows(place / "set" / "train.jsonl"), row])
    done = run(f"train set {SHORT} --task {task} -o new")
    assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1)
    assert "train.jsonl, row 61 (line 61)" in done.err and said in done.err
    assert not (place / "new").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--k-shot 2", "k rows per class need class labels, one per row"),
        ("--label-noise 0.1", "label_noise and imbalance need one class per row"),
        ("--imbalance 2", "label_noise and imbalance need one class per row"),
        ("--set run.examples_per_class=2", "run.examples_per_class has no meaning for a"),
        ("-r scl", "scl cannot act on a"),
    ],
)
def test_what_needs_one_class_per_text_is_refused_in_one_sentence(
    words: str, said: str, task: str, place: Path, run: Any
) -> None:
    done = run(f"train set {SHORT} --task {task} -o new {words}")
    assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1)
    assert said in done.err
    assert not (place / "new").exists()


# -- what is particular to one task -----------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["multi_label"], indirect=True)
def test_several_labels_are_read_from_csv(place: Path, run: Any) -> None:
    rows = read_rows(place / "set" / "test.jsonl")
    cells = "".join(f"{row['text']},{';'.join(row['labels'])}\n" for row in rows)
    (place / "test.csv").write_text("text,labels\n" + cells)
    scores = json.loads(run("evaluate run test.csv --json").out)["scores"]
    assert scores == pytest.approx(record_of(place / "run")["scores"]["test"], rel=CLOSE)


@pytest.mark.parametrize("task", ["multi_label"], indirect=True)
def test_labels_are_shown_with_their_probabilities_and_the_nearest_where_there_is_none(place: Path, run: Any) -> None:
    answers = [json.loads(line) for line in run("predict run set/train.jsonl --json").out.splitlines()]
    shown = run("predict run set/train.jsonl").out.splitlines()
    sizes = [len(answer["labels"]) for answer in answers]
    assert min(sizes) == 0 and max(sizes) > 1
    for answer, text, line in zip(answers, shown[::2], shown[1::2], strict=True):
        shares = {name: f"{name} {share:.1%}" for name, share in answer["probabilities"].items()}
        best = max(answer["probabilities"], key=answer["probabilities"].__getitem__)
        assert text == answer["text"]
        assert sorted(line[2:].split("   ")) == sorted(shares[name] for name in answer["labels"]) or (
            not answer["labels"] and line == f"  no label; nearest {shares[best]}"
        )


@pytest.mark.parametrize("task", ["token_classification"], indirect=True)
def test_entities_are_shown_with_their_words(place: Path, run: Any) -> None:
    assert run("predict run -t 'the awful film was to me'").out.splitlines()[1] == "  bad: awful film"
    assert run("predict run -t 'to me the'").out.splitlines()[1] == "  no entity"
    refused = run("predict run -t ' '")
    assert (refused.code, refused.err) == (2, "steadytune: --text must hold a word; got an empty text.\n")


@pytest.mark.parametrize("task", ["token_classification"], indirect=True)
def test_answers_are_data_to_train_on(place: Path, run: Any) -> None:
    assert run("predict run set/train.jsonl -o tagged.jsonl").code == 0
    write_rows(
        place / "words.jsonl", [{k: row[k] for k in ("tokens", "tags")} for row in read_rows(place / "tagged.jsonl")]
    )
    scores = json.loads(run("evaluate run words.jsonl --json").out)["scores"]
    assert scores["entity_f1"] == 1


@pytest.mark.parametrize("task", ["token_classification"], indirect=True)
def test_tagged_words_train_a_model_of_the_kinds_of_entity_in_a_text(place: Path, run: Any) -> None:
    done = run(f"train set {SHORT} --task multi_label -o kinds --json")
    record = json.loads(done.out)
    assert (done.code, record["task"], record["label_names"]) == (0, "multi_label", ["bad", "fair", "good"])
    evaluated = json.loads(run("evaluate kinds set --json").out)
    assert evaluated["scores"] == pytest.approx(record["scores"]["test"], rel=CLOSE)
    assert run("predict kinds set/test.jsonl -o answers.jsonl").code == 0
    first = read_rows(place / "set" / "test.jsonl")[0]
    assert read_rows(place / "answers.jsonl")[0]["text"] == " ".join(first["tokens"])

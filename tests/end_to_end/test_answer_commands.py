"""Multiple choice and question answering from `train` to `predict`, on a tiny encoder."""

import csv
import json
import random
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torchmetrics.functional.text import squad
from transformers import AutoModelForMultipleChoice, AutoModelForQuestionAnswering, AutoTokenizer

from steadytune.cli import main
from tinyanswers import TASKS
from tolerances import SAME
from toyrun import FILLERS, WORDS, write_model

Row = dict[str, Any]
CLOSE = SAME[torch.float32]
SHORT = "-m encoder --max-length 16 --learning-rate 0.005 --epochs 1 --set run.min_steps=60"
LONG_TEXT = " ".join(["the film was"] * 10)


def choice_row(draw: random.Random) -> Row:
    """Two to four choices, of which one is a word of praise."""
    choices = [f"{draw.choice(FILLERS)} {draw.choice(WORDS['bad'])}" for _ in range(draw.randint(2, 4))]
    label = draw.randrange(len(choices))
    choices[label] = f"{draw.choice(FILLERS)} {draw.choice(WORDS['good'])}"
    text = " ".join(draw.choice(FILLERS) for _ in range(draw.randint(2, 6)))
    return {"context": text, "question": "very", "choices": choices, "label": label}


def answer_row(draw: random.Random, words: int | None = None) -> Row:
    """One or two words of praise in a text, which are the answer; some texts need two windows."""
    before, after = (" ".join(draw.choice(FILLERS) for _ in range(words or draw.randint(1, 8))) for _ in range(2))
    answer = " ".join(draw.choice(WORDS["good"]) for _ in range(draw.randint(1, 2)))
    found = {"text": [answer], "answer_start": [len(before) + 1]}
    return {"context": f"{before} {answer} {after}", "question": "very", "answers": found}


ROWS: dict[str, Callable[[random.Random], Row]] = {"multiple_choice": choice_row, "question_answering": answer_row}
NAMES = {"multiple_choice": "multiple_choice", "question_answering": "extractive_qa"}
SCORES = {"multiple_choice": {"accuracy"}, "question_answering": {"f1", "exact_match"}}


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_set(folder: Path, task: str, sizes: dict[str, int]) -> None:
    """A folder that says its task."""
    folder.mkdir()
    for seed, (split, count) in enumerate(sizes.items()):
        draw = random.Random(seed)
        write_rows(folder / f"{split}.jsonl", [ROWS[task](draw) for _ in range(count)])
    splits = {split: {"file": f"{split}.jsonl"} for split in sizes}
    (folder / "dataset.json").write_text(json.dumps({"name": "toy", "task": NAMES[task], "splits": splits}))


def in_folder(folder: Path, words: str) -> int:
    patch = pytest.MonkeyPatch()
    with patch.context() as here:
        here.chdir(folder)
        here.setattr("sys.argv", ["steadytune", *words.split()])
        return main()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder with `encoder`, the data `set` and `run`, a finished run on both, made once for each task."""
    made: dict[str, Path] = {}

    def folder_of(task: str) -> Path:
        if task not in made:
            made[task] = tmp_path_factory.mktemp(task)
            write_model(made[task] / "encoder")
            write_set(made[task] / "set", task, {"train": 60, "dev": 12, "test": 20})
            assert in_folder(made[task], f"train set {SHORT} -o run --json") == 0
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


choosing = pytest.mark.parametrize("task", ["multiple_choice"], indirect=True)
finding = pytest.mark.parametrize("task", ["question_answering"], indirect=True)


def record_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "record.json").read_text())
    return found


def kept(place: Path, split: str = "test") -> list[Row]:
    rows: list[Row] = pq.read_table(place / "run" / "predictions.parquet").to_pylist()
    return [row for row in rows if row["split"] == split]


# -- train ------------------------------------------------------------------------------------------------------------


def test_a_run_says_its_task_and_learns_it(task: str, place: Path) -> None:
    record = record_of(place / "run")
    assert (record["status"], record["task"], record["label_names"]) == ("done", task, [])
    assert record["data_rows"] == {"train": 60, "dev": 12, "test": 20}
    assert set(record["scores"]["test"]) == SCORES[task] and record["metric"] in SCORES[task]
    assert record["scores"]["test"][record["metric"]] > 0.8


def test_a_table_trains_the_task_that_is_named(task: str, place: Path, run: Any) -> None:
    done = run(f"train set/train.jsonl {SHORT} --task {task} --train-rows 30 -o named --json")
    record = json.loads(done.out)
    assert (done.code, record["status"], record["task"]) == (0, "done", task)
    assert record["data_rows"]["train"] == 30


@finding
def test_a_run_says_in_how_many_windows_it_reads_long_texts(place: Path) -> None:
    notes = record_of(place / "run")["data_notes"]
    told = [re.match(r"split 'train': 60 rows read as (\d+) overlapping windows$", note) for note in notes]
    (windows,) = (int(match.group(1)) for match in told if match)
    assert 60 < windows <= 120


@finding
def test_a_run_says_how_many_answers_no_window_holds(place: Path, run: Any) -> None:
    before = read_rows(place / "set" / "train.jsonl")
    long = {**before[0], "context": LONG_TEXT, "answers": {"text": [LONG_TEXT], "answer_start": [0]}}
    for split, count in (("train", 2), ("test", 1)):
        rows = read_rows(place / "set" / f"{split}.jsonl")
        write_rows(place / "set" / f"{split}.jsonl", [long] * count + rows[count:])
    assert run(f"train set {SHORT.replace('=60', '=4')} -o other").code == 0
    told = [note for note in record_of(place / "other")["data_notes"] if "no window holds" in note]
    assert told == [
        "split 'train': no window holds the answer of 2 rows, which are learnt as if they had none",
        "split 'test': no window holds the answer of 1 rows",
    ]


@choosing
def test_the_plain_model_gives_the_recorded_scores_of_choices(place: Path) -> None:
    model = AutoModelForMultipleChoice.from_pretrained(place / "run" / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(place / "run" / "model")
    right = []
    for row, known in zip(read_rows(place / "set" / "test.jsonl"), kept(place), strict=True):
        choices = [f"{row['question']} {choice}" for choice in row["choices"]]
        tokens = tokenizer([row["context"]] * len(choices), choices, padding=True, return_tensors="pt")
        with torch.no_grad():
            logits = model(**{name: value[None] for name, value in tokens.items()}).logits[0].numpy()
        np.testing.assert_allclose(logits, known["logits"], rtol=CLOSE, atol=CLOSE)
        assert known["label"] == row["label"]
        right.append(logits.argmax() == row["label"])
    assert np.mean(right) == record_of(place / "run")["scores"]["test"]["accuracy"]


@finding
def test_the_plain_model_gives_the_recorded_scores_of_answers(place: Path) -> None:
    model = AutoModelForQuestionAnswering.from_pretrained(place / "run" / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(place / "run" / "model")
    given, truth = [], []
    for number, row in enumerate(read_rows(place / "set" / "test.jsonl")):
        windows = tokenizer(
            row["question"],
            row["context"],
            truncation="only_second",
            max_length=16,
            stride=5,
            padding=True,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_tensors="pt",
        )
        spans = windows.pop("offset_mapping").tolist()
        windows.pop("overflow_to_sample_mapping")
        with torch.no_grad():
            found = model(**windows)
        best = max(
            (float(start[i] + end[j]), spans[place][i][0], spans[place][j][1])
            for place, (start, end) in enumerate(zip(found.start_logits, found.end_logits, strict=True))
            for i, part in enumerate(windows.sequence_ids(place))
            for j in range(i, len(spans[place]))
            if part == 1 and windows.sequence_ids(place)[j] == 1
        )
        assert kept(place)[number]["predicted"] == [best[1], best[2] - best[1]]
        given.append({"prediction_text": row["context"][best[1] : best[2]], "id": str(number)})
        truth.append({"answers": row["answers"], "id": str(number)})
    scores = squad(given, truth)
    found_scores = {"f1": float(scores["f1"]) / 100, "exact_match": float(scores["exact_match"]) / 100}
    assert found_scores == record_of(place / "run")["scores"]["test"]


def test_predictions_hold_no_text(task: str, place: Path) -> None:
    table = pq.read_table(place / "run" / "predictions.parquet")
    assert (table.num_rows, table.column_names[:3]) == (32, ["id", "split", "label"])
    for name in table.column_names[2:]:
        kind = table.schema.field(name).type
        assert not pa.types.is_string(kind.value_type if pa.types.is_list(kind) else kind)


@pytest.mark.parametrize("recipe", ["hype", "lnsr", "rdrop", "asa", "pgd", "mixout"])
def test_recipes_train_the_task(task: str, place: Path, run: Any, recipe: str) -> None:
    done = run(f"train set {SHORT.replace('=60', '=4')} -r {recipe} --train-rows 16 -o other --json")
    assert (done.code, json.loads(done.out)["status"]) == (0, "done")


def test_recipes_are_compared(task: str, place: Path, run: Any) -> None:
    words = SHORT.partition(" --set")[0] + " --recipes plain,hype --second-baseline none --seeds 1 --train-rows 16"
    done = run(f"compare set {words} --json -o out")
    assert done.code == 0
    (table,) = json.loads(done.out)["tables"]
    assert {arm["recipe"] for arm in table["arms"]} == {"plain", "hype"}
    assert (place / "out" / "report.html").is_file()


# -- evaluate and predict ---------------------------------------------------------------------------------------------


def test_evaluate_repeats_the_recorded_scores(task: str, place: Path, run: Any) -> None:
    done = run("evaluate run set --json --batch-size 3")
    shown = json.loads(done.out)
    assert (done.code, shown["split"], shown["rows"]) == (0, "test", 20)
    assert shown["scores"] == pytest.approx(record_of(place / "run")["scores"]["test"], rel=CLOSE)


@choosing
def test_a_choice_is_shown_with_its_probability(place: Path, run: Any) -> None:
    rows = read_rows(place / "set" / "test.jsonl")
    write_rows(place / "new.jsonl", [{n: row[n] for n in ("context", "question", "choices")} for row in rows])
    answers = [json.loads(line) for line in run("predict run new.jsonl --json").out.splitlines()]
    assert [sorted(answer) for answer in answers] == [["answer", "choice", "id", "probabilities", "text"]] * 20
    shown = run("predict run new.jsonl").out.splitlines()
    for row, answer, known, text, line in zip(rows, answers, kept(place), shown[::2], shown[1::2], strict=True):
        assert answer["choice"] == int(np.argmax(known["logits"]))
        assert answer["answer"] == row["choices"][answer["choice"]]
        assert len(answer["probabilities"]) == len(row["choices"])
        assert (text, line) == (row["context"], f"  {answer['answer']} {max(answer['probabilities']):.1%}")


@finding
def test_an_answer_is_shown_below_its_question(place: Path, run: Any) -> None:
    rows = read_rows(place / "set" / "test.jsonl")
    write_rows(place / "new.jsonl", [{n: row[n] for n in ("context", "question")} for row in rows])
    answers = [json.loads(line) for line in run("predict run new.jsonl --json").out.splitlines()]
    assert [sorted(answer) for answer in answers] == [["answer", "id", "question", "score", "start", "text"]] * 20
    shown = run("predict run new.jsonl").out.splitlines()
    for answer, known, question, line in zip(answers, kept(place), shown[::2], shown[1::2], strict=True):
        assert [answer["start"], len(answer["answer"])] == known["predicted"]
        assert answer["text"][answer["start"] :].startswith(answer["answer"])
        assert (question, line) == (answer["question"], f"  {answer['answer']}")


def test_answers_are_written_as_csv(task: str, place: Path, run: Any) -> None:
    assert run("predict run set/test.jsonl -o answers.csv").code == 0
    with (place / "answers.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    answers = [json.loads(line) for line in run("predict run set/test.jsonl --json").out.splitlines()]
    assert [row["answer"] for row in table] == [answer["answer"] for answer in answers]


@finding
def test_where_questions_have_no_answer_a_model_may_say_so(place: Path, run: Any) -> None:
    rows = read_rows(place / "set" / "train.jsonl")
    nothing = {"text": [], "answer_start": []}
    silent = [
        {**row, "context": row["context"].replace(row["answers"]["text"][0], "dull"), "answers": nothing}
        for row in rows
    ]
    write_rows(place / "some.jsonl", [row for both in zip(rows, silent, strict=True) for row in both])
    done = run(f"train some.jsonl {SHORT} --task question_answering --epochs 6 -o some --json")
    assert json.loads(done.out)["scores"]["test"]["exact_match"] > 0.8
    assert json.loads((place / "some" / "model" / "config.json").read_text())["allow_empty_answer"] is True
    write_rows(place / "ask.jsonl", silent[:5])
    assert run("predict some ask.jsonl").out.splitlines()[1::2] == ["  no answer"] * 5
    assert run("predict run ask.jsonl").out.splitlines()[1::2] != ["  no answer"] * 5
    scores = json.loads(run("evaluate some ask.jsonl --json").out)["scores"]
    assert scores == {"f1": 1.0, "exact_match": 1.0}


# -- what cannot be used ----------------------------------------------------------------------------------------------

FAULTS = {
    "multiple_choice": [
        ({"label": 7}, "the label in 'label' must be an integer from 0 to "),
        ({"choices": ["one"]}, "'choices' must be a list of two texts or more; got ['one']."),
        ({"choices": ["a", LONG_TEXT], "label": 0}, "has a choice of 31 tokens, which leaves no place for its text in"),
    ],
    "question_answering": [
        (
            {"answers": {"text": ["superb"], "answer_start": [900]}},
            "the answer 'superb' does not stand at character 900 of the text; write no answer as two empty lists.",
        ),
        ({"answers": 3}, "'answers' must hold 'text' and 'answer_start', two lists of one length; got 3."),
        ({"question": LONG_TEXT}, "has a question of 30 tokens, which leaves no place for its text in max_length 16"),
    ],
}


@pytest.mark.parametrize(
    ("task", "change", "said"),
    [(task, change, said) for task, faults in FAULTS.items() for change, said in faults],
    indirect=["task"],
)
def test_a_row_that_cannot_be_used_gives_one_sentence(task: str, change: Row, said: str, place: Path, run: Any) -> None:
    rows = read_rows(place / "set" / "train.jsonl")
    write_rows(place / "set" / "train.jsonl", [{**rows[0], **change}, *rows[1:]])
    done = run(f"train set {SHORT} -o new")
    assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1)
    assert said in done.err
    assert not (place / "new").exists()


@pytest.mark.parametrize("recipe", ["scl", "tmix", "label_smoothing"])
def test_a_recipe_without_a_meaning_for_the_task_gives_one_sentence(
    recipe: str, task: str, place: Path, run: Any
) -> None:
    done = run(f"train set {SHORT} -r {recipe} -o new")
    assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1)
    assert f"{recipe} cannot act on a {task} task" in done.err
    assert not (place / "new").exists()


def test_a_text_alone_gives_one_sentence(task: str, place: Path, run: Any) -> None:
    done = run("predict run -t 'a film'")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        f"steadytune: a {task} model reads more than one text of a row; give a file in place of --text.\n"
    )

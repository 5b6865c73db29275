"""`compare` and `report` where an answer is more than a class: the page shows the metric, and which rows are right."""

import csv
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tolerances import SAME
from toyrun import FILLERS, WORDS, write_model

Row = dict[str, Any]
WORDS_OF = "compare set -m encoder --recipes plain,hype --second-baseline none --seeds 2 -o out"
ONE_STEP = " --epochs 1 --batch-size 16 --max-length 24"


def tagged_row(draw: random.Random) -> Row:
    """Words, of which those of praise are an entity."""
    words = [draw.choice((*FILLERS, *WORDS["good"])) for _ in range(draw.randint(2, 6))]
    return {"tokens": words, "tags": ["B-praise" if word in WORDS["good"] else "O" for word in words]}


def question_row(draw: random.Random) -> Row:
    """A text whose word of praise is the answer."""
    before, answer = (draw.choice(FILLERS), draw.choice(WORDS["good"]))
    found = {"text": [answer], "answer_start": [len(before) + 1]}
    return {"context": f"{before} {answer} {draw.choice(FILLERS)}", "question": "very", "answers": found}


TASKS: dict[str, tuple[Callable[[random.Random], Row], str, str, str]] = {
    "token_classification": (tagged_row, "entity_f1", "every word has its tag", "runs keep the tags of words"),
    "question_answering": (question_row, "f1", "the answer is an exact match", "runs keep answers"),
}
"""By task: a row, the metric that decides, what makes a row right, why there is no calibration."""


@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_compared_and_reported(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    monkeypatch.chdir(tmp_path)
    row, metric, right, uncalibrated = TASKS[task]
    write_model(Path("encoder"))
    Path("set").mkdir()
    for seed, split in enumerate(("train", "dev", "test")):
        rows = [row(random.Random(f"{seed} {number}")) for number in range(12)]
        Path(f"set/{split}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    done = run(f"{WORDS_OF} --task {task}{ONE_STEP}")
    assert done.code == 0, done.err
    assert metric in done.out
    page = Path("out/report.html")
    before = page.read_bytes()
    assert run("report out").code == 0
    assert page.read_bytes() == before
    sections = dict(re.findall(r'<section id="(\w+)"(.*?)</section>', before.decode(), flags=re.DOTALL))
    assert f"<th>{metric}</th>" in re.sub(r"<th[^>]*>", "<th>", sections["verdict"])
    assert right in sections["errors"] and "Rows that changed sides" in sections["errors"]
    assert uncalibrated in sections["calibration"]

    # what the page says of right rows is what the metrics of the records say
    exact = {"question_answering": "exact_match"}.get(task)
    with Path("out/tables/right.csv").open(newline="") as file:
        table = {line["recipe"]: line for line in csv.DictReader(file)}
    records = [json.loads(path.read_text()) for path in Path("out/records").iterdir()]
    for name, title in {"plain": "plain (baseline)", "hype": "hype"}.items():
        own = [record for record in records if record["cell"]["recipe"] == name]
        assert len(own) == 2 and table[title]["seeds"] == "2"
        line = table[title]
        assert sum(int(line[key]) for key in ("right in every seed", "in some", "in none")) == 12
        if exact:
            mean = sum(record["scores"]["test"][exact] for record in own) / 2
            assert float(line["rows right, %"]) == pytest.approx(100 * mean, rel=SAME[torch.float32])

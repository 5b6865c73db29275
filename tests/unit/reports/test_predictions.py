"""Answers of every task are read from the table of a run, and are right or wrong row by row."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.special import softmax

from steadytune.records import write_predictions
from steadytune.reports.predictions import Answers, answers_of, predictions_of


@pytest.fixture
def kept(tmp_path: Path) -> Any:
    """Columns as a run writes them and a report reads them."""

    def table(**columns: list[Any]) -> pa.Table:
        rows = len(next(iter(columns.values())))
        ids = [f"r{row}" for row in range(rows)]
        write_predictions(tmp_path / "predictions.parquet", ids, ["test"] * rows, columns)
        return pq.read_table(tmp_path / "predictions.parquet")

    return table


def right(found: Answers | None) -> list[bool]:
    assert found is not None
    assert found.ids == [f"r{row}" for row in range(len(found.labels))]
    return found.right


def test_a_text_is_right_if_its_class_is_the_likeliest(kept: Any) -> None:
    table = kept(label=[0, 1, 1], logits=[[2.0, 1.0], [2.0, 1.0], [0.0, 1.0]])
    assert right(answers_of("classification", table)) == [True, False, True]


def test_a_text_of_several_labels_is_right_if_all_of_them_and_no_other_is_predicted(kept: Any) -> None:
    labels = [[0, 2], [0, 2], [0, 2], [], []]
    logits = [[1.0, -1.0, 1.0], [1.0, 1.0, 1.0], [1.0, -1.0, -1.0], [-1.0, -1.0, 0.0], [-1.0, 1.0, -1.0]]
    found = answers_of("multi_label", kept(label=labels, logits=logits))
    assert right(found) == [True, False, False, True, False]
    assert found is not None and found.given == [(0, 2), (0, 1, 2), (0,), (), (1,)]


def test_tagged_words_are_right_if_every_word_is(kept: Any) -> None:
    table = kept(label=[[0, 1], [0, 1, 2]], predicted=[[0, 1], [0, 1, 1]])
    assert right(answers_of("token_classification", table)) == [True, False]


def test_a_choice_is_right_if_it_is_the_likeliest_of_its_own_row(kept: Any) -> None:
    table = kept(label=[1, 0, 2], logits=[[-9.0, -8.0], [1.0, 2.0, 0.0, 1.0], [0.0, 1.0, 2.0]])
    assert right(answers_of("multiple_choice", table)) == [True, False, True]


def test_an_answer_is_right_if_the_metric_says_so(kept: Any) -> None:
    table = kept(label=[[0, 3], []], predicted=[[4, 3], [0, 0]], exact_match=[True, False])
    assert right(answers_of("question_answering", table)) == [True, False]


def test_no_choice_has_a_probability_where_a_row_has_none(kept: Any) -> None:
    found = predictions_of("multiple_choice", kept(label=[0, 0], logits=[[1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]))
    assert found is not None and found.finite
    for temperature in (0.01, 1.0, 100.0):
        shares = softmax(found.logits / temperature, axis=1)
        assert shares.tolist() == [[0.5, 0.5, 0.0, 0.0], [0.25] * 4]
    assert found.choices.tolist() == [2, 4]


@pytest.mark.parametrize(
    ("task", "columns"),
    [
        ("regression", {"label": [0.5], "logits": [[0.4]]}),
        ("spans", {"label": [0], "logits": [[0.4, 0.1]]}),
        ("classification", {"label": [0], "logits": [[np.nan, 0.1]]}),
        ("multiple_choice", {"label": [0], "logits": [[np.nan, 0.1]]}),
        ("multi_label", {"label": [[0]], "logits": [[np.nan, 0.1]]}),
        ("question_answering", {"label": [[0, 1]], "predicted": [[0, 1]]}),  # of before exact matches were kept
    ],
)
def test_where_nothing_can_be_right_there_are_no_answers(task: str, columns: dict[str, Any], kept: Any) -> None:
    assert answers_of(task, kept(**columns)) is None


@pytest.mark.parametrize("task", ["classification", "multi_label", "token_classification", "multiple_choice"])
def test_a_split_without_rows_has_no_answers(task: str, kept: Any) -> None:
    assert answers_of(task, kept(label=[[0]], logits=[[0.5]], predicted=[[0]]).slice(1)) is None

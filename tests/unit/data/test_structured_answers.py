"""Choices and answers: how a row may be written, and one sentence for a row that cannot be used."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from steadytune.data import DataError, Dataset, load_dataset

CHOICES: dict[str, Any] = {"context": "It rained.", "choices": ["The street is wet.", "It is dry."], "label": 0}
ANSWERS: dict[str, Any] = {
    "context": "The red fox ran home.",
    "question": "Who ran?",
    "answers": {"text": ["The red fox", "fox"], "answer_start": [0, 8]},
}


def written(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def written_csv(path: Path, row: dict[str, Any]) -> Path:
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, fieldnames=list(row))
        table.writeheader()
        table.writerow(row)
    return path


def choices_of(folder: Path, *rows: dict[str, Any], **given: Any) -> Dataset:
    return load_dataset(written(folder / "t.jsonl", *rows), task="multiple_choice", **given)


def answers_of(folder: Path, *rows: dict[str, Any], **given: Any) -> Dataset:
    return load_dataset(written(folder / "t.jsonl", *rows), task="question_answering", **given)


def refused(message: str) -> Any:
    return pytest.raises(DataError, match=f"^{re.escape(message)}$")


# -- choices ----------------------------------------------------------------------------------------------------------


def test_a_row_is_a_text_its_choices_and_the_index_of_the_right_one(tmp_path: Path) -> None:
    rows = choices_of(tmp_path, CHOICES).splits["train"]
    assert (rows.texts, rows.pairs, rows.labels) == (
        ("It rained.",),
        (("The street is wet.", "It is dry."),),
        (0,),
    )


def test_rows_may_have_different_numbers_of_choices(tmp_path: Path) -> None:
    rows = choices_of(tmp_path, CHOICES, {**CHOICES, "choices": ["a", "b", "c"], "label": 2}).splits["train"]
    assert rows.pairs is not None and list(map(len, rows.pairs)) == [2, 3]
    assert rows.labels == (0, 2)


def test_a_question_stands_before_each_choice(tmp_path: Path) -> None:
    rows = choices_of(tmp_path, {**CHOICES, "question": "Why?"}).splits["train"]
    assert rows.pairs == (("Why? The street is wet.", "Why? It is dry."),)


def test_the_choices_of_a_row_are_kept_without_the_question_too(tmp_path: Path) -> None:
    choices = [" It is dry.", "Why? Snow. "]
    rows = choices_of(tmp_path, CHOICES, {**CHOICES, "choices": choices, "question": "Why?"}).splits["train"]
    assert rows.choices == (tuple(CHOICES["choices"]), tuple(choices))
    assert rows.select([1]).choices == (tuple(choices),)


def test_a_question_without_another_text_is_the_text(tmp_path: Path) -> None:
    rows = choices_of(tmp_path, {"question": "Why?", "choices": ["a", "b"], "answer": 1}).splits["train"]
    assert (rows.texts, rows.pairs, rows.labels) == (("Why?",), (("a", "b"),), (1,))


@pytest.mark.parametrize(
    ("names", "label", "place"),
    [
        pytest.param({}, 1, 1, id="a number"),
        pytest.param({}, "1", 1, id="a number in a text"),
        pytest.param({}, "B", 1, id="a letter"),
        pytest.param({"label": ["A", "B"]}, "A", 0, id="a name that the choices have"),
        pytest.param({"label": ["1", "2"]}, "2", 1, id="a number that the choices have"),
        pytest.param({"label": ["1", "2"]}, 1, 0, id="a number that the choices have as a text"),
        pytest.param({"label": ["A", "B"]}, 1, 1, id="a number where the choices have letters"),
        pytest.param({"label": []}, "B", 1, id="a letter where the choices have no names"),
    ],
)
def test_the_right_choice_may_be_named_in_several_ways(
    names: dict[str, Any], label: Any, place: int, tmp_path: Path
) -> None:
    choices: Any = {"text": CHOICES["choices"], **names} if names else CHOICES["choices"]
    rows = choices_of(tmp_path, {**CHOICES, "choices": choices, "label": label}).splits["train"]
    assert rows.labels == (place,) and rows.pairs == (tuple(CHOICES["choices"]),)


@pytest.mark.parametrize("choices", [json.dumps(CHOICES["choices"]), "The street is wet.; It is dry."])
def test_a_table_of_strings_holds_choices_as_json_or_with_semicolons(choices: str, tmp_path: Path) -> None:
    path = written_csv(tmp_path / "t.csv", {**CHOICES, "choices": choices})
    rows = load_dataset(path, task="multiple_choice").splits["train"]
    assert (rows.pairs, rows.labels) == ((("The street is wet.", "It is dry."),), (0,))


def test_columns_may_be_named(tmp_path: Path) -> None:
    row = {"story": "It rained.", "ends": ["a", "b"], "gold": 1}
    rows = choices_of(tmp_path, row, text_column="story", pair_column="ends", label_column="gold").splits["train"]
    assert (rows.texts, rows.pairs, rows.labels) == (("It rained.",), (("a", "b"),), (1,))


def test_labels_are_not_read_where_none_are_needed(tmp_path: Path) -> None:
    assert choices_of(tmp_path, {**CHOICES, "label": "?"}, require_labels=False).splits["train"].labels is None


@pytest.mark.parametrize("label", [2, -1, True, None, "", "C", "AB", "first", 0.0])
def test_a_label_that_is_no_choice_is_refused(label: Any, tmp_path: Path) -> None:
    with refused(
        f"{tmp_path / 't.jsonl'}, row 1 (line 1): the label in 'label' must be an integer from 0 to 1, the index of a "
        f"choice, or a letter from A to B; got {label!r}."
    ):
        choices_of(tmp_path, {**CHOICES, "label": label})


@pytest.mark.parametrize("label", [0, "0", 3, "A", None, True])
def test_a_number_is_a_name_where_choices_are_named_by_numbers(label: Any, tmp_path: Path) -> None:
    choices = {"text": CHOICES["choices"], "label": ["1", "2"]}
    with refused(
        f"{tmp_path / 't.jsonl'}, row 1 (line 1): the label in 'label' must be a name of a choice, '1', '2'; got "
        f"{label!r}."
    ):
        choices_of(tmp_path, {**CHOICES, "choices": choices, "label": label})


@pytest.mark.parametrize("names", [3, "AB", ["A"], ["A", "B", "C"], ["A", 2], ["A", "A"], {"A": "B"}])
def test_names_of_choices_are_one_text_for_each(names: Any, tmp_path: Path) -> None:
    with refused(
        f"{tmp_path / 't.jsonl'}, row 1 (line 1): 'label' in 'choices' must be a list of distinct texts, one for each "
        f"choice; got {names!r}."
    ):
        choices_of(tmp_path, {**CHOICES, "choices": {"text": CHOICES["choices"], "label": names}})


def test_there_may_be_more_choices_than_letters(tmp_path: Path) -> None:
    rows = choices_of(tmp_path, {**CHOICES, "choices": [f"choice {n}" for n in range(30)], "label": 29})
    assert rows.splits["train"].labels == (29,)


@pytest.mark.parametrize(("column", "value"), [("question", "Why\ud83d?"), ("choices", ["a", "b\ud83d"])])
def test_half_a_character_in_a_question_or_a_choice_is_refused(column: str, value: Any, tmp_path: Path) -> None:
    with refused(
        f"{tmp_path / 't.jsonl'}, row 1 (line 1): {column!r} holds half a character (a lone surrogate); write it anew."
    ):
        choices_of(tmp_path, {**CHOICES, column: value})


def test_a_choice_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with refused(
        f"{tmp_path / 't.jsonl'}, row 1 (line 1): 'choices' has 1,000,001 characters, over 1,000,000; split or shorten "
        "this text."
    ):
        choices_of(tmp_path, {**CHOICES, "choices": ["a", "b" * 1_000_001]})


@pytest.mark.parametrize("choices", [["one"], [], "one", 7, None, ["a", 3], ["a", " "]])
def test_fewer_than_two_texts_are_no_choice(choices: Any, tmp_path: Path) -> None:
    got = ["one"] if choices == "one" else choices
    with refused(
        f"{tmp_path / 't.jsonl'}, row 1 (line 1): 'choices' must be a list of two texts or more; got {got!r}."
    ):
        choices_of(tmp_path, {**CHOICES, "choices": choices})


def test_a_question_that_is_no_text_is_refused(tmp_path: Path) -> None:
    with refused(f"{tmp_path / 't.jsonl'}, row 1 (line 1): 'question' must be a text; got 7."):
        choices_of(tmp_path, {**CHOICES, "question": 7})


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    with refused(
        f"{tmp_path / 't.jsonl'} has no column 'choices', 'options', 'endings' for the pair of a multiple_choice task; "
        "its columns are 'context', 'label': name it with --pair-column."
    ):
        choices_of(tmp_path, {"context": "a", "label": 0})


# -- answers ----------------------------------------------------------------------------------------------------------


def test_a_row_is_a_text_its_question_and_all_right_answers(tmp_path: Path) -> None:
    rows = answers_of(tmp_path, ANSWERS).splits["train"]
    assert (rows.texts, rows.pairs) == (("The red fox ran home.",), ("Who ran?",))
    assert rows.labels == ((("The red fox", 0), ("fox", 8)),)


def test_a_question_may_have_no_answer(tmp_path: Path) -> None:
    rows = answers_of(tmp_path, {**ANSWERS, "answers": {"text": [], "answer_start": []}}).splits["train"]
    assert rows.labels == ((),)


def test_answers_may_be_written_as_in_the_files_of_squad(tmp_path: Path) -> None:
    answers = [{"text": "fox", "answer_start": 8}, {"text": "red", "answer_start": 4}]
    rows = answers_of(tmp_path, {**ANSWERS, "answers": answers}, {**ANSWERS, "answers": []}).splits["train"]
    assert rows.labels == ((("fox", 8), ("red", 4)), ())


def test_a_table_of_strings_holds_answers_as_json(tmp_path: Path) -> None:
    path = written_csv(tmp_path / "t.csv", {**ANSWERS, "answers": json.dumps(ANSWERS["answers"])})
    rows = load_dataset(path, task="question_answering").splits["train"]
    assert rows.labels == ((("The red fox", 0), ("fox", 8)),)


def test_parquet_holds_answers_as_they_are(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([ANSWERS]), tmp_path / "t.parquet")
    rows = load_dataset(tmp_path / "t.parquet", task="question_answering").splits["train"]
    assert rows.labels == ((("The red fox", 0), ("fox", 8)),)


@pytest.mark.parametrize(("said", "start"), [("fox", 7), ("wolf", 8), ("fox", 800), ("fox", -13)])
def test_an_answer_that_does_not_stand_at_its_character_is_refused(said: str, start: int, tmp_path: Path) -> None:
    with refused(
        f"{tmp_path / 't.jsonl'}, row 1 (line 1): the answer {said!r} does not stand at character {start} of the text; "
        "write no answer as two empty lists."
    ):
        answers_of(tmp_path, {**ANSWERS, "answers": {"text": [said], "answer_start": [start]}})


@pytest.mark.parametrize(("said", "start"), [("", 3), (" ", 3), (" ", 7), ("\t", 0)])
def test_a_blank_answer_is_refused_wherever_it_stands(said: str, start: int, tmp_path: Path) -> None:
    with refused(
        f"{tmp_path / 't.jsonl'}, row 1 (line 1): the answer {said!r} is blank; write no answer as two empty lists."
    ):
        answers_of(tmp_path, {**ANSWERS, "answers": {"text": [said], "answer_start": [start]}})


@pytest.mark.parametrize(
    "answers",
    [
        *("fox", 8, None, {}, {"text": ["fox"]}),
        *({"text": "fox", "answer_start": 8}, {"text": ["fox"], "answer_start": [8, 9]}, ["fox"]),
    ],
)
def test_answers_of_another_form_are_refused(answers: Any, tmp_path: Path) -> None:
    with refused(
        f"{tmp_path / 't.jsonl'}, row 1 (line 1): 'answers' must hold 'text' and 'answer_start', two lists of one "
        f"length; got {answers!r:.60}."
    ):
        answers_of(tmp_path, {**ANSWERS, "answers": answers})


@pytest.mark.parametrize(("said", "start"), [("fox", "8"), (None, 8), ("fox", 8.0), ("fox", None)])
def test_an_answer_is_a_text_and_a_whole_number(said: Any, start: Any, tmp_path: Path) -> None:
    with refused(
        f"{tmp_path / 't.jsonl'}, row 1 (line 1): an answer in 'answers' must be a text and the number of its first "
        f"character; got {said!r} and {start!r}."
    ):
        answers_of(tmp_path, {**ANSWERS, "answers": {"text": [said], "answer_start": [start]}})


def test_answers_that_are_no_valid_json_are_refused(tmp_path: Path) -> None:
    path = written_csv(tmp_path / "t.csv", {**ANSWERS, "answers": '{"text": [}'})
    with refused(f"{path}, row 1 (line 2): 'answers' is no valid JSON; got '{{\"text\": [}}'."):
        load_dataset(path, task="question_answering")


def test_answers_are_not_read_where_none_are_needed(tmp_path: Path) -> None:
    assert answers_of(tmp_path, {**ANSWERS, "answers": 7}, require_labels=False).splits["train"].labels is None


def test_a_missing_question_is_named(tmp_path: Path) -> None:
    with refused(
        f"{tmp_path / 't.jsonl'} has no column 'question' for the pair of a question_answering task; its columns are "
        "'context', 'answers': name it with --pair-column."
    ):
        answers_of(tmp_path, {"context": "a", "answers": []})


# -- folders ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "name", "row"),
    [("multiple_choice", "multiple_choice", CHOICES), ("extractive_qa", *("question_answering", ANSWERS))],
)
def test_a_folder_says_its_task(task: str, name: str, row: dict[str, Any], tmp_path: Path) -> None:
    written(tmp_path / "a.jsonl", row)
    (tmp_path / "dataset.json").write_text(json.dumps({"task": task, "splits": {"train": {"file": "a.jsonl"}}}))
    found = load_dataset(tmp_path)
    assert (found.task, found.label_names, len(found.splits["train"])) == (name, (), 1)


# -- what a table says by itself --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "task", "reason"),
    [
        (CHOICES, "multiple_choice", "rows hold lists of choices"),
        (ANSWERS, "question_answering", "rows hold answers and the characters at which they begin"),
    ],
)
def test_a_table_of_such_rows_says_its_task(row: dict[str, Any], task: str, reason: str, tmp_path: Path) -> None:
    found = load_dataset(written(tmp_path / "t.jsonl", row))
    assert found.task == task
    assert f"task: {task}, because {reason}" in found.notes


def test_a_question_that_is_read_before_each_choice_is_told(tmp_path: Path) -> None:
    note = "the text of 'question' is read before each choice"
    assert note in choices_of(tmp_path, {**CHOICES, "question": "Why?"}).notes
    assert note not in choices_of(tmp_path, CHOICES).notes
    assert note not in choices_of(tmp_path, {"question": "Why?", "choices": ["a", "b"], "label": 1}).notes


def test_a_table_of_texts_with_another_kind_of_answers_stays_a_table_of_texts(tmp_path: Path) -> None:
    rows = [{"text": text, "question": "?", "answers": "fox", "label": label} for text, label in (("a", 0), ("b", 1))]
    assert load_dataset(written(tmp_path / "t.jsonl", *rows)).task == "classification"


# -- sets on the hub --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "task"),
    [
        ({**CHOICES, "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "label": "B"}, "multiple_choice"),
        (ANSWERS, "question_answering"),
    ],
)
def test_sets_on_the_hub_are_read(
    row: dict[str, Any], task: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name, config: ["train"])
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, split: datasets.Dataset.from_list([row]))
    rows = load_dataset("owner/set", task=task).splits["train"]
    assert rows.labels == ((1,) if task == "multiple_choice" else ((("The red fox", 0), ("fox", 8)),))


def test_a_split_of_the_hub_whose_choices_are_hidden_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    labels: dict[str, Any] = {"train": 0, "validation": 1, "test": -1}
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name, config: list(labels))
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda name, config, split: datasets.Dataset.from_list([{**CHOICES, "label": labels[split]}]),
    )
    found = load_dataset("owner/set")
    assert list(found.splits) == ["train", "validation"]
    assert "split 'test' left out: its labels are hidden (all are -1 or empty)" in found.notes
    with pytest.raises(DataError, match=r"got -1\.$"):
        load_dataset("owner/set", splits=["train", "test"])

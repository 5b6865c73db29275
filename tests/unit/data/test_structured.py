"""Rows with several labels and rows of tagged words: what is read, what is inferred, and one sentence where neither."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from steadytune.data import DataError, Dataset, Examples, data_report, load_dataset, select
from steadytune.data.corruption import corrupt
from steadytune.data.sampling import Selection

TAGS = ["O", "B-date", "I-date", "B-people"]
BOOKINGS = [
    {"tokens": ["two", "on", "May", "1"], "tags": ["B-people", "O", "B-date", "I-date"]},
    {"tokens": ["today"], "tags": ["B-date"]},
    {"tokens": ["hello", "there"], "tags": ["O", "O"]},
]
TOPICS = [
    {"text": "rain and goals", "labels": ["weather", "sport"]},
    {"text": "rain", "labels": ["weather"]},
    {"text": "nothing", "labels": []},
]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_csv(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def write_described(folder: Path, rows: list[dict[str, Any]], task: str, names: list[str]) -> Path:
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", rows)
    described = {"task": task, "label_names": names, "splits": {"train": {"file": "train.jsonl"}}}
    (folder / "dataset.json").write_text(json.dumps(described))
    return folder


def refused(reads: Callable[[], object]) -> str:
    """The one sentence of the error."""
    with pytest.raises(DataError) as caught:
        reads()
    return str(caught.value)


# Several labels -------------------------------------------------------------------------------------------------------


def test_lists_of_labels_are_read_as_sorted_indices_of_sorted_names(tmp_path: Path) -> None:
    dataset = load_dataset(write_jsonl(tmp_path / "topics.jsonl", TOPICS))
    assert (dataset.task, dataset.label_names) == ("multi_label", ("sport", "weather"))
    assert dataset.splits["train"].labels == ((0, 1), (1,), ())
    assert dataset.splits["train"].texts == ("rain and goals", "rain", "nothing")
    assert "task: multi_label, because labels are lists" in dataset.notes


@pytest.mark.parametrize(
    "cells",
    [
        pytest.param(("weather;sport", "weather", ""), id="semicolons"),
        pytest.param((" sport ; weather;", "weather ", " "), id="semicolons and spaces"),
        pytest.param(('"[""weather"", ""sport""]"', '"[""weather""]"', "[]"), id="JSON"),
    ],
)
def test_labels_in_csv_are_json_or_separated_by_semicolons(cells: tuple[str, ...], tmp_path: Path) -> None:
    texts = ("rain and goals", "rain", "nothing")
    rows = "".join(f"{text},{cell}\n" for text, cell in zip(texts, cells, strict=True))
    dataset = load_dataset(write_csv(tmp_path / "t.csv", "text,labels\n" + rows), task="multi_label")
    assert (dataset.label_names, dataset.splits["train"].labels) == (("sport", "weather"), ((0, 1), (1,), ()))


def test_numbers_as_labels_are_sorted_as_numbers(tmp_path: Path) -> None:
    rows = [{"text": "a", "labels": [10, 2]}, {"text": "b", "labels": [2]}]
    dataset = load_dataset(write_jsonl(tmp_path / "t.jsonl", rows))
    assert (dataset.label_names, dataset.splits["train"].labels) == (("2", "10"), ((0, 1), (0,)))


def test_class_indices_are_read_by_the_names_of_the_set(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": [1, 0]}, {"text": "b", "label": []}]
    dataset = load_dataset(write_described(tmp_path / "set", rows, "multi_label", ["x", "y", "z"]))
    assert (dataset.task, dataset.label_names) == ("multi_label", ("x", "y", "z"))
    assert dataset.splits["train"].labels == ((0, 1), ())


@pytest.mark.parametrize(("column", "given"), [("labels", None), ("category", None), ("topics", "topics")])
def test_the_names_of_the_set_are_those_of_the_labels_whatever_their_column(
    column: str, given: str | None, tmp_path: Path
) -> None:
    rows: list[dict[str, Any]] = [{"text": "a", column: [1, 0]}, {"text": "b", column: []}]
    folder = write_described(tmp_path / "set", rows, "multi_label", ["x", "y", "z"])
    dataset = load_dataset(folder, label_column=given)
    assert (dataset.label_names, dataset.splits["train"].labels) == (("x", "y", "z"), ((0, 1), ()))


def test_labels_may_be_written_by_the_names_of_the_set(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"text": "a", "labels": ["y", "x"]}, {"text": "b", "labels": [2]}]
    dataset = load_dataset(write_described(tmp_path / "set", rows, "multi_label", ["x", "y", "z"]))
    assert (dataset.label_names, dataset.splits["train"].labels) == (("x", "y", "z"), ((0, 1), (2,)))


def test_texts_of_several_labels_may_be_pairs_in_columns_of_other_names(tmp_path: Path) -> None:
    rows = [{"premise": "a", "hypothesis": "b", "topics": ["x"]}]
    path = write_jsonl(tmp_path / "t.jsonl", rows)
    dataset = load_dataset(path, label_column="topics")
    assert (dataset.splits["train"].texts, dataset.splits["train"].pairs) == (("a",), ("b",))
    alone = load_dataset(path, label_column="topics", pair_column="")
    assert alone.splits["train"].pairs is None


def test_topics_in_a_column_named_tags_are_labels_of_the_text(tmp_path: Path) -> None:
    rows = [{"text": "a", "tags": ["B-plan", "x"]}]
    dataset = load_dataset(write_jsonl(tmp_path / "t.jsonl", rows), task="multi_label", label_column="tags")
    assert dataset.label_names == ("B-plan", "x")


def test_names_of_a_trained_model_decide_the_indices(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "topics.jsonl", TOPICS)
    dataset = load_dataset(path, task="multi_label", label_names=("weather", "sport"))
    assert dataset.splits["train"].labels == ((0, 1), (0,), ())


def test_without_labels_the_texts_are_read_alone(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "topics.jsonl", TOPICS)
    dataset = load_dataset(path, task="multi_label", require_labels=False)
    assert (dataset.splits["train"].labels, len(dataset.splits["train"])) == (None, 3)


# Tagged words ---------------------------------------------------------------------------------------------------------


def test_words_beside_tags_are_read_with_the_outside_tag_first(tmp_path: Path) -> None:
    dataset = load_dataset(write_jsonl(tmp_path / "bookings.jsonl", BOOKINGS))
    assert (dataset.task, dataset.label_names) == ("token_classification", ("O", "B-date", "B-people", "I-date"))
    assert dataset.splits["train"].texts == (("two", "on", "May", "1"), ("today",), ("hello", "there"))
    assert dataset.splits["train"].labels == ((2, 0, 1, 3), (1,), (0, 0))
    assert "task: token_classification, because words stand beside tags" in dataset.notes


def test_tag_indices_are_read_by_the_names_of_the_set(tmp_path: Path) -> None:
    rows = [{"tokens": ["two", "today"], "tags": [3, 1]}]
    dataset = load_dataset(write_described(tmp_path / "set", rows, "token_classification", TAGS))
    assert (dataset.label_names, dataset.splits["train"].labels) == (tuple(TAGS), ((3, 1),))


@pytest.mark.parametrize(("column", "given"), [("ner_tags", None), ("labels", None), ("kinds", "kinds")])
def test_the_names_of_the_set_are_those_of_the_tags_whatever_their_column(
    column: str, given: str | None, tmp_path: Path
) -> None:
    rows = [{"tokens": ["two", "today"], column: [3, 1]}]
    dataset = load_dataset(write_described(tmp_path / "set", rows, "token_classification", TAGS), label_column=given)
    assert (dataset.label_names, dataset.splits["train"].labels) == (tuple(TAGS), ((3, 1),))


def test_a_named_column_beside_the_tags_has_names_of_its_own(tmp_path: Path) -> None:
    rows = [{"tokens": ["two", "today"], "tags": [3, 1], "parts_of_speech": [0, 1]}]
    folder = write_described(tmp_path / "set", rows, "token_classification", TAGS)
    assert load_dataset(folder).label_names == tuple(TAGS)
    assert load_dataset(folder, label_column="parts_of_speech").label_names == ("0", "1")


def test_words_and_tags_in_csv_are_json_or_separated_by_white_space(tmp_path: Path) -> None:
    text = 'words,tags\ntwo on; May,B-people O B-date\n"[""New York""]","[""O""]"\n'
    dataset = load_dataset(write_csv(tmp_path / "t.csv", text), task="token_classification")
    assert dataset.splits["train"].texts == (("two", "on;", "May"), ("New York",))
    assert dataset.splits["train"].labels == ((2, 0, 1), (0,))


def test_a_text_is_taken_word_by_word_where_there_are_no_words(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", "text\ntwo on May\n[sic] two\n")
    dataset = load_dataset(path, task="token_classification", require_labels=False)
    assert dataset.splits["train"].texts == (("two", "on", "May"), ("[sic]", "two"))


def test_words_alone_are_read_for_a_prediction_whatever_tags_stand_beside(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "bookings.jsonl", BOOKINGS)
    dataset = load_dataset(path, task="token_classification", require_labels=False)
    assert (dataset.splits["train"].labels, dataset.splits["train"].texts[1]) == (None, ("today",))


def test_a_hub_set_of_tagged_words_gives_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {"id": datasets.Value("string"), "tokens": datasets.List(datasets.Value("string"))}
    features = datasets.Features(
        {**kinds, "ner_tags": datasets.List(datasets.ClassLabel(names=TAGS)), "photo": datasets.Image()}
    )
    content = {"id": ["0"], "tokens": [["two", "today"]], "ner_tags": [[3, 1]], "photo": [None]}
    rows = datasets.Dataset.from_dict(content, features)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name, config: ["train"])
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, split: rows)
    dataset = load_dataset("owner/set")
    assert (dataset.task, dataset.label_names) == ("token_classification", tuple(TAGS))
    assert dataset.splits["train"] == Examples(("train-0",), (("two", "today"),), None, ((3, 1),))


# Kinds of entity as labels --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("described", [True, False])
def test_tagged_words_read_as_several_labels_have_the_kinds_of_entity_that_occur(
    described: bool, tmp_path: Path
) -> None:
    if described:
        indexed = [{**row, "tags": [TAGS.index(tag) for tag in row["tags"]]} for row in BOOKINGS]
        path = write_described(tmp_path / "set", indexed, "token_classification", TAGS)
    else:
        path = write_jsonl(tmp_path / "bookings.jsonl", BOOKINGS)
    dataset = load_dataset(path, task="multi_label")
    assert (dataset.task, dataset.label_names) == ("multi_label", ("date", "people"))
    assert "labels: the kinds of entity in 'tags'" in dataset.notes
    assert dataset.splits["train"].labels == ((0, 1), (0,), ())
    assert dataset.splits["train"].texts == ("two on May 1", "today", "hello there")


def test_kinds_of_entity_follow_the_names_of_a_trained_model(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "bookings.jsonl", BOOKINGS)
    dataset = load_dataset(path, task="multi_label", label_names=("people", "date"))
    assert dataset.splits["train"].labels == ((0, 1), (1,), ())


def test_words_without_tags_are_texts_to_predict_the_labels_of(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [{"tokens": row["tokens"]} for row in BOOKINGS])
    dataset = load_dataset(path, task="multi_label", require_labels=False)
    assert (dataset.splits["train"].texts[0], dataset.splits["train"].labels) == ("two on May 1", None)


# What cannot be used --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "a", "labels": "[weather"}, "'labels' begins like a list and is none; write a list in JSON, or sep"),
        ({"text": "a", "labels": None}, "'labels' must be a list; got None."),
        ({"text": "a", "labels": 3}, "'labels' must be a list; got 3."),
        ({"text": "a", "labels": [0.5]}, "'labels' must hold names or numbers; got 0.5."),
        ({"text": "a", "labels": [True]}, "'labels' must hold names or numbers; got True."),
        ({"text": "a", "labels": [["x"]]}, "'labels' must hold names or numbers; got ['x']."),
        ({"text": "a", "labels": [""]}, "'labels' must hold names or numbers; got ''."),
        ({"text": ["a"], "labels": ["x"]}, "'text' must be a text; got ['a']."),
    ],
)
def test_a_row_whose_labels_cannot_be_read_is_named(row: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [TOPICS[0], row])
    sentence = refused(lambda: load_dataset(path, task="multi_label"))
    assert sentence.startswith(f"{path}, row 2 (line 2): {said}")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"tokens": ["a", "b"], "tags": ["O"]},
            " has 2 words in 'tokens' and 1 tags in 'tags'; give one tag per word.",
        ),
        ({"tokens": [], "tags": []}, ": 'tokens' must be a list of words, at least one."),
        ({"tokens": ["a", 1], "tags": ["O", "O"]}, ": 'tokens' must be a list of words, at least one."),
        ({"tokens": None, "tags": ["O"]}, ": 'tokens' must be a list; got None."),
        (
            {"tokens": ["a", "\ud83d"], "tags": ["O", "O"]},
            ": 'tokens' holds half a character (a lone surrogate); write it anew.",
        ),
        (
            {"tokens": ["a" * 1_000_001], "tags": ["O"]},
            ": 'tokens' has 1,000,001 characters, over 1,000,000; split or shorten this text.",
        ),
        ({"tokens": ["a"], "tags": [None]}, ": 'tags' must hold names or numbers; got None."),
    ],
)
def test_a_row_whose_tags_do_not_fit_its_words_is_named(row: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [BOOKINGS[0], row])
    assert refused(lambda: load_dataset(path)) == f"{path}, row 2 (line 2){said}"


def test_an_index_beyond_the_names_is_refused(tmp_path: Path) -> None:
    folder = write_described(tmp_path / "set", [{"tokens": ["a"], "tags": [4]}], "token_classification", TAGS)
    said = f"{folder / 'train.jsonl'}, row 1 (line 1): 'tags' must hold integers from 0 to 3; got 4."
    assert refused(lambda: load_dataset(folder)) == said


@pytest.mark.parametrize(
    ("found", "hint"),
    [("wether", "did you mean 'weather'?"), ("art", "the classes are 'sport', 'weather'.")],
)
def test_an_unknown_label_is_refused_with_what_is_known(found: str, hint: str, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [{"text": "a", "labels": [found]}])
    said = refused(lambda: load_dataset(path, task="multi_label", label_names=("sport", "weather")))
    assert said == f"{path}, row 1 (line 1): unknown label {found!r}; {hint}"


def test_an_unknown_tag_of_a_later_split_is_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", BOOKINGS)
    path = write_jsonl(tmp_path / "test.jsonl", [{"tokens": ["a"], "tags": ["B-place"]}])
    said = refused(lambda: load_dataset(tmp_path))
    assert said.startswith(f"{path}, row 1 (line 1): unknown tag 'B-place'; ")


def test_rows_without_any_label_name_no_class(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [{"text": "a", "labels": []}])
    assert (
        refused(lambda: load_dataset(path)) == f"{path}: no row has a label in 'labels'; training needs at least one."
    )


def test_names_given_twice_are_refused(tmp_path: Path) -> None:
    rows = [{"tokens": ["a"], "tags": [0]}]
    folder = write_described(tmp_path / "set", rows, "token_classification", ["O", "O"])
    said = f"{folder / 'train.jsonl'}: label_names must be distinct; got 'O', 'O'."
    assert refused(lambda: load_dataset(folder)) == said


@pytest.mark.parametrize("task", ["multi_label", "token_classification"])
def test_a_missing_column_lists_those_there(task: Any, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [{"body": "a", "labels": ["x"]}])
    said = refused(lambda: load_dataset(path, task=task))
    assert said.startswith(f"{path} has no ") and said.endswith(
        "its columns are 'body', 'labels': name it with --text-column."
    )


# Rows of a run --------------------------------------------------------------------------------------------------------


def dataset_of(task: Any, labels: tuple[Any, ...], names: tuple[str, ...]) -> Dataset:
    texts = tuple((f"w{i}",) * len(own) if task == "token_classification" else f"t {i}" for i, own in enumerate(labels))
    rows = Examples(tuple(map(str, range(len(labels)))), texts, None, labels)
    return Dataset("made", task, names, {"train": rows}, None, "made", ())


MANY = {
    "multi_label": dataset_of("multi_label", tuple(((0,), (0, 1), ())[i % 3] for i in range(30)), ("x", "y", "z")),
    "token_classification": dataset_of(
        "token_classification", tuple(((0,), (0, 1))[i % 2] for i in range(30)), ("O", "B-x")
    ),
}


@pytest.mark.parametrize("task", MANY)
def test_rows_in_total_and_a_fraction_are_drawn_plainly(task: str) -> None:
    assert [len(select(MANY[task], train_rows=10, seed=s).train) for s in range(3)] == [10, 10, 10]
    assert len(select(MANY[task], fraction=0.5).train) == 15
    first, second = (select(MANY[task], train_rows=10, seed=seed).train.ids for seed in (0, 1))
    assert first != second


@pytest.mark.parametrize("task", MANY)
def test_rows_per_class_are_refused(task: str) -> None:
    assert refused(lambda: select(MANY[task], k_shot=2)).startswith("k rows per class need class labels, one per row;")


@pytest.mark.parametrize("setting", [{"label_noise": 0.2}, {"imbalance": 3.0}])
@pytest.mark.parametrize("task", MANY)
def test_damage_to_classes_is_refused(task: str, setting: dict[str, float]) -> None:
    rows = MANY[task].splits["train"]
    said = refused(lambda: corrupt(MANY[task], Selection(rows, rows, rows, ()), **setting))  # type: ignore[arg-type]
    assert said == f"label_noise and imbalance need one class per row, which a {task} task has not; leave them out."


def test_misspelt_words_are_refused_where_words_are_tagged() -> None:
    rows = MANY["token_classification"].splits["train"]
    said = refused(lambda: corrupt(MANY["token_classification"], Selection(rows, rows, rows, ()), text_noise=0.1))
    assert said == "text_noise has no meaning for a token_classification task; leave it out."


def test_texts_of_several_labels_can_be_misspelt() -> None:
    rows = MANY["multi_label"].splits["train"]
    damaged = corrupt(MANY["multi_label"], Selection(rows, rows, rows, ()), text_noise=0.9).train
    assert (damaged.texts != rows.texts, damaged.labels) == (True, rows.labels)


@pytest.mark.parametrize("task", MANY)
def test_a_report_counts_every_class_of_a_row_and_every_tagged_word(task: str) -> None:
    dataset = MANY[task]
    report = data_report(dataset).splits["train"]
    counts = Counter(one for own in dataset.splits["train"].labels or () for one in own)
    assert report.labels == {name: counts[index] for index, name in enumerate(dataset.label_names)}
    assert (report.scores, sum(report.labels.values())) == (None, {"multi_label": 30, "token_classification": 45}[task])


def test_a_report_names_the_tags_that_no_training_row_has() -> None:
    train, dev = (Examples((name,), (("a", "b"),), None, (tags,)) for name, tags in (("t", (0, 0)), ("d", (0, 1))))
    dataset = Dataset("made", "token_classification", ("O", "B-x"), {"train": train, "dev": dev}, None, "made", ())
    assert data_report(dataset).splits["dev"].unseen_labels == ("B-x",)


def test_a_report_on_answers_and_choices_has_neither_counts_nor_scores() -> None:
    for task, pair, label in (("question_answering", "q", (("a", 0),)), ("multiple_choice", ("x", "y"), 1)):
        rows = Examples(("1",), ("a b",), (pair,), (label,))
        dataset = Dataset("made", task, (), {"train": rows}, None, "made", ())  # type: ignore[arg-type]
        report = data_report(dataset).splits["train"]
        assert (report.labels, report.scores, report.unseen_labels) == (None, None, ())

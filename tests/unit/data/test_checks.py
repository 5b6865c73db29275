"""Checks of rows: counts, distributions and repeats, with ids and never with texts."""

import json
from dataclasses import replace
from typing import Literal

from steadytune.data import DataReport, Dataset, Examples, Selection, data_report


def rows(name: str, texts: list[str], labels: tuple[int, ...] | tuple[float, ...] | None = None) -> Examples:
    return Examples(tuple(f"{name}-{index}" for index in range(len(texts))), tuple(texts), None, labels)


def dataset(task: Literal["classification", "regression"] = "classification", **splits: Examples) -> Dataset:
    return Dataset("toy", task, ("no", "yes", "may") if task == "classification" else (), splits, None, "toy", ())


def report(**splits: Examples) -> DataReport:
    return data_report(dataset(**splits))


# Repeats --------------------------------------------------------------------------------------------------------------


def test_a_text_in_two_splits_is_found_whatever_its_case_and_white_space() -> None:
    train = rows("train", ["A Fine  day", "other"])
    test = rows("test", ["new", " a fine\tDAY\n"])
    (found,) = report(train=train, test=test).repeats
    assert (found.split, found.other, found.rows, found.other_rows) == ("test", "train", 1, 1)
    assert found.ids == (("test-1", "train-0"),)


def test_case_is_folded_as_unicode_says() -> None:
    assert len(report(train=rows("train", ["STRASSE"]), dev=rows("dev", ["straße"])).repeats) == 1


def test_texts_that_differ_in_a_letter_are_no_repeats() -> None:
    assert report(train=rows("train", ["a day"]), dev=rows("dev", ["a dey", "aday", "a"])).repeats == ()


def test_repeats_are_counted_on_both_sides() -> None:
    train, dev = rows("train", ["x", "x", "x", "y"]), rows("dev", ["X", "x", "z"])
    (found,) = report(train=train, dev=dev).repeats
    assert (found.rows, found.other_rows) == (2, 3)


def test_each_repeat_is_given_with_the_first_row_that_it_repeats() -> None:
    train, dev = rows("train", ["y", "x", "x"]), rows("dev", ["x", "X"])
    assert report(train=train, dev=dev).repeats[0].ids == (("dev-0", "train-1"), ("dev-1", "train-1"))


def test_at_most_five_ids_are_given_in_the_order_of_rows() -> None:
    texts = [str(index) for index in range(8)]
    (found,) = report(train=rows("train", texts[::-1]), test=rows("test", texts)).repeats
    assert found.rows == 8
    assert found.ids == tuple((f"test-{index}", f"train-{7 - index}") for index in range(5))


def test_every_two_splits_are_compared() -> None:
    found = report(train=rows("train", ["x", "y"]), dev=rows("dev", ["x", "z"]), test=rows("test", ["y", "z"])).repeats
    assert [(repeats.other, repeats.split) for repeats in found] == [
        ("train", "dev"),
        ("train", "test"),
        ("dev", "test"),
    ]


def test_pairs_repeat_only_if_both_texts_do() -> None:
    train = Examples(("1", "2"), ("a", "b"), ("x", "y"), None)
    dev = Examples(("3", "4", "5"), ("a", "B", "ax"), ("y", "Y", ""), None)
    (found,) = report(train=train, dev=dev).repeats
    assert found.ids == (("4", "2"),)


def test_rows_repeated_within_a_split_are_no_repeats_between_splits() -> None:
    assert report(train=rows("train", ["x", "x"]), dev=rows("dev", ["y", "y"])).repeats == ()


# Splits ---------------------------------------------------------------------------------------------------------------


def test_labels_are_counted_by_name_and_absent_ones_as_none() -> None:
    train = report(train=rows("train", ["a", "b", "c"], (1, 1, 0))).splits["train"]
    assert train.labels == {"no": 1, "yes": 2, "may": 0}
    assert (train.rows, train.scores) == (3, None)


def test_classes_without_a_training_row_are_named() -> None:
    found = report(
        train=rows("train", ["a", "b"], (1, 1)), dev=rows("dev", ["c"], (1,)), test=rows("test", list("def"), (2, 0, 1))
    )
    assert [found.splits[name].unseen_labels for name in ("train", "dev", "test")] == [(), (), ("no", "may")]


def test_without_a_training_split_no_class_is_called_unseen() -> None:
    assert report(test=rows("test", ["a"], (2,))).splits["test"].unseen_labels == ()


def test_scores_have_quartiles_instead_of_counts() -> None:
    data = dataset("regression", train=rows("train", list("abcde"), (4.0, 1.0, 0.5, 3.0, 2.0)))
    train = data_report(data).splits["train"]
    assert train.scores is not None
    assert train.labels is None
    assert vars(train.scores) == {"min": 0.5, "lower": 1.0, "median": 2.0, "upper": 3.0, "max": 4.0}


def test_lengths_are_words_with_quartiles_between_neighbors() -> None:
    words = report(train=rows("train", ["one", "one  two", "a b c d", "a b c d e f g\n"])).splits["train"].words
    assert words is not None
    # 1, 2, 4, 7: the quartiles lie at places 0.75, 1.5 and 2.25
    assert vars(words) == {"min": 1.0, "lower": 1.75, "median": 3.0, "upper": 4.75, "max": 7.0}


def test_both_texts_of_a_pair_count_as_words() -> None:
    words = report(train=Examples(("1",), ("a b",), ("c d e",), None)).splits["train"].words
    assert words is not None and words.median == 5


def test_of_several_choices_the_longest_counts_as_it_is_read_with_the_text() -> None:
    choices = ("why is it one", "why is it two or three")  # the question stands before each
    data = dataset(train=Examples(("1",), ("a b",), (choices,), (0,)))
    words = data_report(replace(data, task="multiple_choice", label_names=())).splits["train"].words
    assert words is not None and words.median == 2 + 6


def test_blank_texts_are_counted() -> None:
    assert report(train=rows("train", ["a", "", " \n"])).splits["train"].empty_texts == 2


def test_a_pair_with_one_blank_text_is_counted_once() -> None:
    pairs = Examples(("1", "2", "3", "4"), ("a", "", "b", ""), ("c", "d", "", " "), None)
    assert report(train=pairs).splits["train"].empty_texts == 3


def test_rows_without_labels_have_neither_counts_nor_scores() -> None:
    train = report(train=rows("train", ["a"])).splits["train"]
    assert (train.labels, train.scores, train.unseen_labels) == (None, None, ())


def test_a_split_without_rows_has_no_lengths() -> None:
    empty = report(train=rows("train", [], ())).splits["train"]
    assert (empty.rows, empty.words) == (0, None)


# The whole ------------------------------------------------------------------------------------------------------------


def test_the_rows_of_a_run_are_looked_at_in_place_of_all_splits() -> None:
    data = dataset(train=rows("train", list("abcd"), (0, 1, 2, 0)), extra=rows("extra", ["a"], (0,)))
    drawn = Selection(data.splits["train"].select([0, 1]), data.splits["train"].select([2]), rows("t", ["A"], (0,)), ())
    found = data_report(data, drawn)
    assert {name: split.rows for name, split in found.splits.items()} == {"train": 2, "dev": 1, "test": 1}
    assert found.splits["dev"].unseen_labels == ("may",)
    assert [repeats.ids for repeats in found.repeats] == [(("t-0", "train-0"),)]


def test_a_report_is_plain_json() -> None:
    found = report(train=rows("train", ["x y"], (1,)), dev=rows("dev", ["X Y"], (0,))).as_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    words = {"min": 2.0, "lower": 2.0, "median": 2.0, "upper": 2.0, "max": 2.0}
    split = {"rows": 1, "scores": None, "words": words, "empty_texts": 0}
    assert found == {
        "splits": {
            "train": {**split, "labels": {"no": 0, "yes": 1, "may": 0}, "unseen_labels": []},
            "dev": {**split, "labels": {"no": 1, "yes": 0, "may": 0}, "unseen_labels": ["no"]},
        },
        "repeats": [{"split": "dev", "other": "train", "rows": 1, "other_rows": 1, "ids": [["dev-0", "train-0"]]}],
    }


def test_a_report_holds_no_text() -> None:
    texts = ["secret sentence", "private matters"]
    found = report(train=rows("train", texts), dev=rows("dev", texts))
    assert not any(word in str(found) + json.dumps(found.as_dict()) for text in texts for word in text.split())

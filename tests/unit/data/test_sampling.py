"""Sampling: the same arguments give the same rows, stratified, and the choice of dev and test disturbs nothing."""

import math
import re
from collections import Counter
from dataclasses import replace
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadytune.data import (
    DataError,
    Dataset,
    Examples,
    resolve_splits,
    sampling,
    select,
    take_fraction,
    take_k_shot,
    take_rows,
)

LABELS = st.lists(st.integers(0, 6), min_size=1, max_size=80)
SEEDS = st.integers(0, 2**64)


def classes(labels: list[int], name: str = "train") -> Examples:
    ids = tuple(f"{name}-{index}" for index in range(len(labels)))
    return Examples(ids, tuple(f"text {row_id}" for row_id in ids), None, tuple(labels))


def scores(size: int) -> Examples:
    return Examples(*(tuple(map(str, range(size))),) * 2, None, tuple(float(index) for index in range(size)))


def dataset(task: Literal["classification", "regression"] = "classification", **splits: Examples) -> Dataset:
    names = ("a", "b", "c") if task == "classification" else ()
    return Dataset("toy", task, names, splits, None, "toy", ())


THREE = classes([0, 1, 2] * 100)


# Samples --------------------------------------------------------------------------------------------------------------


@given(LABELS, SEEDS, st.data())
def test_rows_in_total_keep_the_shares_of_classes(labels: list[int], seed: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(labels)))
    chosen = take_rows(classes(labels), n, seed)
    size, taken = Counter(labels), Counter(chosen.labels)
    assert len(chosen) == n
    lifted = sum(n * count < len(labels) for count in size.values())  # classes whose share is less than a row
    for label, count in size.items():
        share = n * count / len(labels)
        assert taken[label] <= math.ceil(share)
        assert taken[label] >= math.floor(share) - lifted
        assert n < len(size) or taken[label] >= 1


@given(LABELS, SEEDS, st.integers(1, 9))
def test_k_shot_gives_k_rows_per_class_or_all_there_are(labels: list[int], seed: int, k: int) -> None:
    taken = Counter(take_k_shot(classes(labels), k, seed).labels)
    assert taken == {label: min(k, count) for label, count in Counter(labels).items()}


@given(LABELS, SEEDS, st.integers(1, 9))
def test_smaller_k_shot_is_part_of_a_larger_one(labels: list[int], seed: int, k: int) -> None:
    rows = classes(labels)
    assert set(take_k_shot(rows, k, seed).ids) <= set(take_k_shot(rows, k + 1, seed).ids)


@given(LABELS, SEEDS, st.floats(0.01, 1.0))
def test_fraction_rounds_halves_up_and_leaves_no_class_empty(labels: list[int], seed: int, fraction: float) -> None:
    taken = Counter(take_fraction(classes(labels), fraction, seed).labels)
    expected = {label: max(1, math.floor(fraction * count + 0.5)) for label, count in Counter(labels).items()}
    assert taken == expected


def test_half_of_five_rows_is_three() -> None:
    assert len(take_fraction(classes([0] * 5), 0.5, seed=1)) == 3


@given(LABELS, SEEDS)
def test_chosen_rows_keep_their_order_and_come_once(labels: list[int], seed: int) -> None:
    rows = classes(labels)
    places = [rows.ids.index(row_id) for row_id in take_rows(rows, (len(labels) + 1) // 2, seed).ids]
    assert places == sorted(set(places))


def test_scores_are_drawn_plainly() -> None:
    rows = scores(10)
    assert len(take_rows(rows, 4, seed=0)) == 4
    assert len(take_fraction(rows, 0.25, seed=0)) == 3
    assert take_rows(rows, 4, seed=0) != take_rows(rows, 4, seed=1)


def test_rows_of_a_seed_never_change() -> None:
    """Frozen: another machine or version of NumPy must give the same rows."""
    assert take_rows(THREE, 6, seed=0).ids == FROZEN["rows"]
    assert take_k_shot(THREE, 2, seed=7).ids == FROZEN["k_shot"]
    assert take_rows(scores(100), 4, seed=3).ids == FROZEN["scores"]


FROZEN: dict[str, tuple[str, ...]] = {
    "rows": ("train-17", "train-46", "train-216", "train-223", "train-251", "train-264"),
    "k_shot": ("train-34", "train-80", "train-111", "train-146", "train-198", "train-253"),
    "scores": ("19", "35", "57", "79"),
}


def test_ties_between_classes_are_broken_by_the_seed() -> None:
    drawn = {take_rows(classes(list(range(7)) * 3), 1, seed).labels for seed in range(60)}
    assert drawn == {(label,) for label in range(7)}


@pytest.mark.parametrize("n", [-1, 0, 301])
def test_number_of_rows_out_of_range_is_refused(n: int) -> None:
    with pytest.raises(DataError, match=rf"^n must be an integer from 1 to the 300 rows there are; got {n}\.$"):
        take_rows(THREE, n, seed=0)


@pytest.mark.parametrize("fraction", [-0.5, 0.0, 1.5, math.nan])
def test_fraction_out_of_range_is_refused(fraction: float) -> None:
    with pytest.raises(DataError, match=rf"^fraction must be a number in \(0, 1\]; got {fraction}\.$"):
        take_fraction(THREE, fraction, seed=0)


def test_k_shot_of_scores_is_refused() -> None:
    with pytest.raises(DataError, match="k rows per class need class labels"):
        take_k_shot(scores(5), 1, seed=0)


def test_negative_seed_is_refused() -> None:
    with pytest.raises(DataError, match=r"^seed must be an integer ≥ 0; got -1\.$"):
        take_rows(THREE, 3, seed=-1)


# Splits ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("available", "settings", "expected"),
    [
        (["train", "dev", "test"], {}, ("train", "dev", "test")),
        (["train", "validation", "test"], {}, ("train", "validation", "test")),
        (["train", "dev"], {}, ("train", None, "dev")),
        (["train", "test"], {}, ("train", None, "test")),
        (["train"], {}, ("train", None, None)),
        (["train", "dev"], {"dev_split": "dev"}, ("train", "dev", None)),
        (["train", "dev", "test"], {"test_split": "dev"}, ("train", None, "dev")),
        (["train", "dev", "test", "hard"], {"test_split": "hard"}, ("train", "dev", "hard")),
        (["train", "dev", "test"], {"train_split": "dev"}, ("dev", None, "test")),
    ],
)
def test_splits_are_resolved_by_name(available: list[str], settings: dict[str, str], expected: tuple[Any, ...]) -> None:
    assert resolve_splits(available, **settings) == expected


def test_named_split_that_is_missing_lists_those_there() -> None:
    with pytest.raises(DataError, match=r"^there is no split 'dve'; the splits are 'train', 'dev'\.$"):
        resolve_splits(["train", "dev"], dev_split="dve")


def test_one_split_cannot_serve_twice() -> None:
    with pytest.raises(DataError, match="train_split, dev_split and test_split must differ; got 'dev' twice"):
        resolve_splits(["train", "dev"], dev_split="dev", test_split="dev")


# Selection ------------------------------------------------------------------------------------------------------------


def test_published_splits_are_taken_as_they_are() -> None:
    dev, test = classes([0, 1], "dev"), classes([1, 2], "test")
    chosen = select(dataset(train=THREE, dev=dev, test=test))
    assert (chosen.train, chosen.dev, chosen.test, chosen.notes) == (THREE, dev, test, ())


def test_missing_dev_comes_from_unused_rows() -> None:
    test = classes([0, 1], "test")
    chosen = select(dataset(train=THREE, test=test), train_rows=30)
    assert len(chosen.train) == 30
    assert chosen.test is test
    assert len(chosen.dev) == 100  # max(100, 30)
    assert max(Counter(chosen.dev.labels).values()) - min(Counter(chosen.dev.labels).values()) <= 1
    assert not set(chosen.train.ids) & set(chosen.dev.ids)
    assert chosen.notes == ("dev: 100 unused rows of the training split, because there is no dev split to use",)


def repeating(pairs: bool = False) -> Examples:
    """120 rows of 40 texts; with pairs, the first texts are 4 and the second ones tell rows apart."""
    ids = tuple(map(str, range(120)))
    texts = tuple(f"text {index % (4 if pairs else 40)}" for index in range(120))
    return Examples(ids, texts, tuple(f"pair {i % 40}" for i in range(120)) if pairs else None, (0, 1, 2) * 40)


def contents(rows: Examples) -> list[tuple[str, str]]:
    return list(zip(rows.texts, rows.pairs or [""] * len(rows), strict=True))


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_rows_taken_from_unused_ones_hold_no_text_of_train(seed: int, pairs: bool) -> None:
    chosen = select(dataset(train=repeating(pairs)), train_rows=20, seed=seed)
    assert not set(contents(chosen.train)) & {*contents(chosen.dev), *contents(chosen.test)}


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_rows_taken_from_unused_ones_hold_no_text_twice(seed: int, pairs: bool) -> None:
    chosen = select(dataset(train=repeating(pairs)), train_rows=20, seed=seed)
    taken = contents(chosen.dev) + contents(chosen.test)
    assert len(chosen.dev) >= 10 and len(chosen.test) >= 10  # of 40 texts train holds at most 20
    assert len(set(taken)) == len(taken)


def asked(task: str, questions: int = 300, each: int = 3) -> Dataset:
    """Questions, several on one text one after the other."""
    ids = tuple(map(str, range(questions)))
    texts = tuple(f"text {place // each}" for place in range(questions))
    if task == "multiple_choice":
        rows = Examples(ids, texts, tuple((f"a {row}", f"b {row}") for row in ids), (0, 1) * (questions // 2))
    else:
        rows = Examples(ids, texts, tuple(f"question {row}" for row in ids), ((("text", 0),),) * questions)
    return Dataset("toy", task, (), {"train": rows}, None, "toy", ())  # type: ignore[arg-type]


ASKING = pytest.mark.parametrize("task", ["multiple_choice", "question_answering"])


@ASKING
@pytest.mark.parametrize("settings", [{"train_rows": 100}, {"train_rows": 180}, {"fraction": 0.1}, {}])
@pytest.mark.parametrize("seed", range(3))
def test_questions_on_one_text_never_stand_in_two_sets(settings: dict[str, Any], seed: int, task: str) -> None:
    chosen = select(asked(task), **settings, seed=seed)
    train, dev, test = (set(rows.texts) for rows in (chosen.train, chosen.dev, chosen.test))
    assert not train & dev and not train & test and not dev & test
    assert not any("repeat" in note for note in chosen.notes)


@ASKING
def test_of_questions_on_texts_that_do_not_train_dev_and_test_take_half_each(task: str) -> None:
    data = asked(task)
    chosen = select(data, train_rows=100)
    assert chosen.train == take_rows(data.splits["train"], 100, seed=0)
    free = [text for text in data.splits["train"].texts if text not in chosen.train.texts]
    assert len(free) > 20 and len(chosen.test) == len(free) // 2
    assert len(free) // 2 - 2 <= len(chosen.dev) <= len(free) // 2  # the last text of test may leave two questions


@ASKING
def test_a_tenth_of_the_questions_is_set_aside_with_all_that_is_asked_of_their_texts(task: str) -> None:
    chosen = select(asked(task))
    assert (len(chosen.test), len(chosen.dev)) == (30, 30)
    assert len(chosen.train) == 300 - 30 - 30
    assert set(Counter(chosen.test.texts).values()) == set(Counter(chosen.dev.texts).values()) == {3}


@ASKING
def test_few_long_texts_still_leave_one_for_each_set(task: str) -> None:
    for seed in range(5):
        chosen = select(asked(task, questions=30, each=10), seed=seed)
        assert [len(set(rows.texts)) for rows in (chosen.train, chosen.dev, chosen.test)] == [1, 1, 1]
    with pytest.raises(DataError, match="are too few to set any aside as test; name a test split"):
        select(asked(task, questions=20, each=10))


def test_questions_that_each_have_a_text_of_their_own_are_set_aside_as_rows_are() -> None:
    data = asked("question_answering", questions=40, each=1)
    plain = Dataset("toy", "regression", (), {"train": scores(40)}, None, "toy", ())
    found, expected = select(data, seed=4), select(plain, seed=4)
    assert (found.dev.ids, found.test.ids) == (expected.dev.ids, expected.test.ids)


@ASKING
def test_a_note_counts_questions_on_texts_that_train(task: str) -> None:
    rows = asked(task).splits["train"]
    data = dataset(train=rows.select(range(100)), dev=rows.select(range(98, 110)), test=rows.select([200]))
    chosen = select(replace(data, task=task, label_names=()))  # type: ignore[arg-type]
    assert chosen.notes == ("dev: 4 of 12 rows repeat the text of a training row",)


def test_the_place_of_the_right_choice_is_no_class() -> None:
    data = asked("multiple_choice")
    for draw in (lambda: select(data, k_shot=8), lambda: take_k_shot(data.splits["train"], 8, seed=0)):
        with pytest.raises(DataError, match=r"^k rows per class need class labels, one per row; take a number of rows"):
            draw()


def test_missing_test_makes_the_published_dev_the_test() -> None:
    dev = classes([0, 1], "dev")
    chosen = select(dataset(train=THREE, dev=dev), train_rows=150)
    assert chosen.test is dev
    assert len(chosen.dev) == 150  # all unused rows, not more than train
    assert chosen.notes[-1] == "test: the published split 'dev', because there is no test split"


def test_table_alone_gives_all_three() -> None:
    chosen = select(dataset(train=THREE), train_rows=60)
    assert (len(chosen.train), len(chosen.dev), len(chosen.test)) == (60, 100, 100)
    ids = [*chosen.train.ids, *chosen.dev.ids, *chosen.test.ids]
    assert len(set(ids)) == 260
    assert [note.split(":")[0] for note in chosen.notes] == ["test", "dev"]


def test_dev_and_test_share_a_small_rest() -> None:
    chosen = select(dataset(train=THREE), train_rows=281)
    assert (len(chosen.train), len(chosen.dev), len(chosen.test)) == (281, 9, 9)


def test_tenth_of_each_class_is_set_aside_when_all_rows_train() -> None:
    chosen = select(dataset(train=THREE))
    assert Counter(chosen.dev.labels) == Counter(chosen.test.labels) == {0: 10, 1: 10, 2: 10}
    assert Counter(chosen.train.labels) == {0: 80, 1: 80, 2: 80}
    assert set(chosen.train.ids) | set(chosen.dev.ids) | set(chosen.test.ids) == set(THREE.ids)
    assert chosen.notes[0] == "test: 30 training rows, which do not train, because there is no test split to use"


def test_last_row_of_a_class_is_never_set_aside() -> None:
    chosen = select(dataset(train=classes([0, 1, 1, 2, 2, 2])))
    assert set(chosen.train.labels or ()) == {0, 1, 2}
    assert sorted(chosen.test.labels or ()) == [1, 2]
    assert chosen.dev.labels == (2,)


def test_too_few_rows_to_set_any_aside_are_refused() -> None:
    with pytest.raises(DataError, match="the 3 training rows are too few to set any aside as test; name a test split"):
        select(dataset(train=classes([0, 1, 2])))


@given(st.sampled_from([{"train_rows": 20}, {"k_shot": 5}, {"fraction": 0.2}]), SEEDS)
def test_training_rows_do_not_depend_on_dev_and_test(setting: dict[str, Any], seed: int) -> None:
    dev, test = classes([0, 1, 2], "dev"), classes([0, 1, 2], "test")
    several = [
        select(dataset(train=THREE, dev=dev, test=test), **setting, seed=seed),
        select(dataset(train=THREE, dev=dev), **setting, seed=seed),
        select(dataset(train=THREE, test=test), **setting, eval_rows=2, seed=seed),
        select(dataset(train=THREE), **setting, eval_rows=7, seed=seed),
    ]
    assert len({selection.train.fingerprint() for selection in several}) == 1


def test_training_rows_are_those_of_the_plain_sample() -> None:
    data = dataset(train=THREE)
    assert select(data, train_rows=20, seed=5).train == take_rows(THREE, 20, seed=5)
    assert select(data, k_shot=4, seed=5).train == take_k_shot(THREE, 4, seed=5)
    assert select(data, fraction=0.3, seed=5).train == take_fraction(THREE, 0.3, seed=5)


def test_evaluation_rows_are_capped_and_stratified() -> None:
    chosen = select(dataset(train=THREE, dev=classes([0, 1, 2] * 9, "dev"), test=classes([0] * 4, "test")), eval_rows=6)
    assert Counter(chosen.dev.labels) == {0: 2, 1: 2, 2: 2}
    assert len(chosen.test) == 4
    assert chosen.notes == ("dev: 6 of 27 rows (eval_rows)",)


def test_the_content_of_a_row_is_both_texts_or_one_and_nothing() -> None:
    assert sampling.contents(Examples(("1",), ("a",), ("b",))) == [("a", "b")]
    assert sampling.contents(Examples(("1", "2"), ("a", "b"))) == [("a", ""), ("b", "")]


def test_regression_is_selected_without_classes() -> None:
    chosen = select(dataset("regression", train=scores(40)), train_rows=10)
    assert (len(chosen.train), len(chosen.dev), len(chosen.test)) == (10, 15, 15)


def test_notes_name_short_classes_absent_classes_and_repeated_texts() -> None:
    train = Examples(("1", "2", "3"), ("x", "y", "z"), None, (0, 0, 1))
    dev = Examples(("4",), ("x",), None, (0,))
    chosen = select(dataset(train=train, dev=dev, test=classes([1], "test")), k_shot=2)
    assert chosen.notes == (
        "train: no row of 1 of the 3 classes",
        "train: 1 classes have fewer than 2 rows",
        "dev: 1 of 1 rows repeat the text of a training row",
    )


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"train_rows": 5, "k_shot": 2},
            "give at most one of train_rows, k_shot and fraction; got train_rows and k_shot.",
        ),
        ({"train_rows": 301}, "train_rows must be an integer from 1 to the 300 rows there are; got 301."),
        ({"eval_rows": 0}, "eval_rows must be an integer ≥ 1; got 0."),
        ({"train_split": "tran"}, "there is no split 'tran'; the splits are 'train'."),
    ],
)
def test_setting_that_cannot_be_met_is_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DataError, match=f"^{re.escape(sentence)}$"):
        select(dataset(train=THREE), **settings)


def test_training_split_of_one_class_is_refused() -> None:
    with pytest.raises(DataError, match="all 4 labels of split 'train' are 'b'; training needs two classes"):
        select(dataset(train=classes([1] * 4)))


def test_training_split_without_labels_is_refused() -> None:
    with pytest.raises(DataError, match="split 'train' was read without labels; training needs them"):
        select(dataset(train=Examples(("1",), ("a",))))

"""Corruption: exact extents, the same for the same row and seed, and dev and test stay clean."""

import itertools
import math
import re
from collections import Counter
from dataclasses import replace
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadytune.data import DataError, Dataset, Examples, Selection, corrupt, flip_labels, noise_words, thin_classes
from tolerances import STANDARD_ERRORS

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=60)
SEEDS = st.integers(0, 2**31 - 1)
TEXTS = st.text(st.sampled_from("abcde \t\n") | st.characters(exclude_categories=["Cs"]), max_size=40)


def classes(labels: list[int]) -> Examples:
    ids = tuple(f"train-{index}" for index in range(len(labels)))
    return Examples(ids, tuple(f"text {row_id}" for row_id in ids), None, tuple(labels))


def scores(size: int) -> Examples:
    ids = tuple(map(str, range(size)))
    return Examples(ids, ids, None, tuple(float(index) for index in range(size)))


def rows_of_texts(*texts: str, pairs: tuple[str, ...] | None = None) -> Examples:
    return Examples(tuple(f"train-{index}" for index in range(len(texts))), texts, pairs, (0,) * len(texts))


def spread(n: int, share: float) -> float:
    """How far a count of n draws with this probability may be from its mean."""
    return STANDARD_ERRORS * math.sqrt(n * share * (1 - share))


# Label noise ----------------------------------------------------------------------------------------------------------


@given(LABELS, st.floats(0.01, 0.99), st.sampled_from(["uniform", "pair"]), SEEDS)
def test_label_noise_gives_exactly_its_share_of_rows_another_label(
    labels: list[int], fraction: float, kind: Literal["uniform", "pair"], seed: int
) -> None:
    expected = math.floor(fraction * len(labels) + 0.5)
    rows = classes(labels)
    if expected == 0:
        with pytest.raises(DataError, match=r"^label_noise .* training rows is no row; raise it or take more\.$"):
            flip_labels(rows, fraction, kind, 5, seed)
        return
    noised, note = flip_labels(rows, fraction, kind, 5, seed)
    assert sum(old != new for old, new in zip(labels, noised.labels or (), strict=True)) == expected
    assert replace(noised, labels=rows.labels) == rows
    assert note == (
        f"label_noise {fraction:g} ({kind}): {expected} of {len(labels)} training rows have the label of another class"
    )


def test_uniform_noise_takes_every_other_class_alike_with_or_without_rows() -> None:
    noised, _ = flip_labels(classes([0, 1] * 2000), 0.75, "uniform", 4, seed=3)
    for own in (0, 1):
        taken = Counter(new for new in (noised.labels or ())[own::2] if new != own)
        assert taken.keys() == {0, 1, 2, 3} - {own}
        assert all(abs(count - taken.total() / 3) < spread(taken.total(), 1 / 3) for count in taken.values())


def test_pair_noise_takes_the_next_class_and_the_first_after_the_last() -> None:
    labels = [0, 1, 2] * 30
    noised, _ = flip_labels(classes(labels), 0.5, "pair", 3, seed=0)
    moves = {(old, new) for old, new in zip(labels, noised.labels or (), strict=True) if old != new}
    assert moves == {(0, 1), (1, 2), (2, 0)}


def test_label_noise_hits_rows_whatever_their_class() -> None:
    noised, _ = flip_labels(classes([0] * 1000 + [1] * 3000), 0.5, "uniform", 2, seed=1)
    assert abs((noised.labels or ())[:1000].count(1) - 500) < spread(1000, 0.5)


@given(LABELS, st.floats(0.05, 0.95), st.floats(0.05, 0.95), SEEDS)
def test_a_larger_label_noise_does_all_that_a_smaller_one_does(
    labels: list[int], a: float, b: float, seed: int
) -> None:
    rows = classes([*labels, *labels, 0] * 4)  # so many that no share of them is less than a row
    few, many = (flip_labels(rows, fraction, "uniform", 5, seed)[0].labels or () for fraction in sorted((a, b)))
    assert all(new in (old, more) for old, new, more in zip(rows.labels or (), few, many, strict=True))


def test_the_wrong_label_of_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    rows = classes([0] * 200)
    part = rows.select(range(0, 200, 2))
    whole, less = (
        dict(zip(r.ids, flip_labels(r, 0.6, "uniform", 9, 5)[0].labels or (), strict=True)) for r in (rows, part)
    )
    both = [row_id for row_id in part.ids if whole[row_id] and less[row_id]]
    assert len(both) > 20
    assert [whole[row_id] for row_id in both] == [less[row_id] for row_id in both]


def test_corruption_of_a_seed_never_changes() -> None:
    """Frozen: another machine or version of NumPy must give the same rows."""
    assert flip_labels(classes([0, 1, 2, 3] * 2), 0.5, "uniform", 4, seed=7)[0].labels == FROZEN["labels"]
    assert noise_words(rows_of_texts(SENTENCE), 0.5, seed=7)[0].texts == FROZEN["texts"]
    assert thin_classes(classes([0, 1, 2] * 4), 4, seed=7)[0].ids == FROZEN["rows"]


SENTENCE = "the quick brown fox jumps over the lazy dog"
FROZEN: dict[str, tuple[Any, ...]] = {
    "labels": (0, 1, 2, 0, 1, 1, 1, 1),
    "texts": ("the quiick brown fox jumps ovre lazy dogg",),
    "rows": ("train-2", "train-5", "train-6", "train-7", "train-8", "train-10", "train-11"),
}


@pytest.mark.parametrize(
    "change",
    [
        lambda seed: flip_labels(classes([0, 1, 2] * 30), 0.3, "uniform", 3, seed)[0],
        lambda seed: noise_words(rows_of_texts(*[SENTENCE] * 5), 0.3, seed)[0],
        lambda seed: thin_classes(classes([0, 1, 2] * 30), 3, seed)[0],
    ],
    ids=["labels", "words", "classes"],
)
def test_one_seed_gives_one_corruption_and_another_seed_another(change: Any) -> None:
    assert change(0) == change(0)
    assert len({change(seed).fingerprint() for seed in range(5)}) == 5


@pytest.mark.parametrize("fraction", [-0.1, 0.0, 1.0, math.nan])
def test_label_noise_out_of_range_is_refused(fraction: float) -> None:
    with pytest.raises(DataError, match=rf"^label_noise must be a number in \(0, 1\); got {fraction:g}\.$"):
        flip_labels(classes([0, 1]), fraction, "uniform", 2, seed=0)


# Text noise -----------------------------------------------------------------------------------------------------------


def edits(word: str) -> set[str]:
    """Every word that one swap of unlike neighbors, one character less or one repeated makes of this one."""
    places = range(len(word))
    swaps = {word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in places[:-1]}
    less = {word[:i] + word[i + 1 :] for i in places if len(word) > 1}
    return (swaps | less | {word[:i] + word[i] + word[i:] for i in places}) - {word}


def reachable(old: list[str], new: list[str]) -> bool:
    """Whether each old word stays, becomes one of its edits or is dropped, and nothing else happens."""
    ends = {0}  # how many new words are accounted for
    for word in old:
        fits = edits(word) | {word}
        ends |= {end + 1 for end in ends if end < len(new) and new[end] in fits}
    return len(new) in ends


@given(st.lists(TEXTS, min_size=1, max_size=3), st.floats(0.01, 1.0), SEEDS)
def test_text_noise_changes_a_word_by_one_edit_or_drops_it(texts: list[str], probability: float, seed: int) -> None:
    noised, _ = noise_words(rows_of_texts(*texts), probability, seed)
    assert all(reachable(old.split(), new.split()) for old, new in zip(texts, noised.texts, strict=True))


@given(st.lists(TEXTS, min_size=1, max_size=3), st.floats(0.01, 1.0), SEEDS)
def test_text_noise_never_empties_a_text(texts: list[str], probability: float, seed: int) -> None:
    noised, _ = noise_words(rows_of_texts(*texts), probability, seed)
    assert [bool(new.strip()) for new in noised.texts] == [bool(old.strip()) for old in texts]


@given(st.lists(st.text("abcde", min_size=1, max_size=6), min_size=1, max_size=20), SEEDS)
def test_text_noise_of_one_changes_every_word(words: list[str], seed: int) -> None:
    rows = rows_of_texts(*words)  # the only word of a text is not dropped
    noised, _ = noise_words(rows, 1.0, seed)
    assert all(new in edits(old) for old, new in zip(words, noised.texts, strict=True))


@given(TEXTS, SEEDS)
def test_text_noise_keeps_the_white_space_between_the_words_that_stay(text: str, seed: int) -> None:
    noised, _ = noise_words(rows_of_texts(text), 0.5, seed)
    gaps, kept = (re.findall(r"\s+", t) for t in (text, noised.texts[0]))
    if len(noised.texts[0].split()) == len(text.split()):
        assert kept == gaps
    outer = [(t[: len(t) - len(t.lstrip())], t[len(t.rstrip()) :]) for t in (text, noised.texts[0])]
    assert outer[0] == outer[1]


def test_a_dropped_first_word_leaves_no_space_in_front() -> None:
    noised, _ = noise_words(rows_of_texts(*["one two three"] * 400), 0.3, seed=0)
    assert any(text.startswith("two") for text in noised.texts)
    assert not any(text.startswith(" ") or text.endswith(" ") for text in noised.texts)


def test_text_noise_hits_its_share_of_words_and_each_kind_alike() -> None:
    noised, _ = noise_words(rows_of_texts(*[" ".join(["abcdef"] * 10)] * 400), 0.25, seed=2)
    left = [word for text in noised.texts for word in text.split()]
    lengths = Counter(len(word) for word in left if word != "abcdef")
    kinds = [lengths[5], lengths[6], lengths[7], 4000 - len(left)]
    assert abs(sum(kinds) - 1000) < spread(4000, 0.25)
    assert all(abs(count - sum(kinds) / 4) < spread(sum(kinds), 0.25) for count in kinds)


def test_the_note_counts_what_was_done_to_the_words() -> None:
    rows = rows_of_texts(*[f"word{index}" for index in range(60)])
    noised, note = noise_words(rows, 0.5, seed=4)
    moved = [(old, new) for old, new in zip(rows.texts, noised.texts, strict=True) if old != new]
    growth = Counter(len(new) - len(old) for old, new in moved)
    assert note == (
        f"text_noise 0.5: {len(moved)} of 60 words changed in {len(moved)} of 60 training rows "
        f"({growth[0]} with a swap, {growth[-1]} shortened, {growth[1]} lengthened, 0 dropped)"
    )
    assert min(growth[0], growth[-1], growth[1]) > 0


def test_both_texts_of_a_pair_are_noised_each_with_its_own_draws() -> None:
    noised, _ = noise_words(rows_of_texts(*[SENTENCE] * 9, pairs=(SENTENCE,) * 9), 0.5, seed=0)
    assert noised.pairs is not None
    assert len({*noised.texts, *noised.pairs}) == 18


def test_the_noise_of_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    rows = rows_of_texts(*[SENTENCE] * 9)
    noised, _ = noise_words(rows, 0.4, seed=6)
    assert noise_words(rows.select([5]), 0.4, seed=6)[0] == noised.select([5])


def test_a_larger_text_noise_hits_all_words_that_a_smaller_one_hits() -> None:
    rows = rows_of_texts(*[f"word{index}" for index in range(200)])
    few, many = (noise_words(rows, probability, seed=1)[0].texts for probability in (0.2, 0.6))
    assert 20 < sum(old != new for old, new in zip(rows.texts, few, strict=True)) < 60
    assert all(new in (old, more) for old, new, more in zip(rows.texts, few, many, strict=True))


def test_text_noise_touches_neither_ids_nor_labels() -> None:
    rows = replace(classes([0, 1, 2]), texts=(SENTENCE,) * 3)
    noised, _ = noise_words(rows, 1.0, seed=0)
    assert (noised.ids, noised.pairs, noised.labels) == (rows.ids, None, rows.labels)


@pytest.mark.parametrize("probability", [-0.1, 0.0, 1.1, math.nan])
def test_text_noise_out_of_range_is_refused(probability: float) -> None:
    with pytest.raises(DataError, match=rf"^text_noise must be a number in \(0, 1\]; got {probability:g}\.$"):
        noise_words(rows_of_texts("a"), probability, seed=0)


# Imbalance ------------------------------------------------------------------------------------------------------------


def sizes(examples: Examples) -> list[int]:
    return sorted(Counter(examples.labels).values(), reverse=True)


def test_class_sizes_fall_geometrically() -> None:
    thinned, note = thin_classes(classes([0, 1, 2, 3] * 40), 8, seed=0)
    assert sizes(thinned) == [40, 20, 10, 5]  # 40 · 8^(-i/3)
    assert note == "imbalance 8: 75 of the 160 training rows drawn are kept, from 40 down to 5 per class"


@given(LABELS, st.floats(1.5, 50.0), SEEDS)
def test_largest_class_has_the_ratio_of_the_smallest_up_to_rounding(labels: list[int], ratio: float, seed: int) -> None:
    rows = classes([*labels, *range(5)] * 10)
    left = sizes(thin_classes(rows, ratio, seed)[0])
    largest, smallest = left[0], left[-1]
    assert len(left) == 5
    # largest = L ± 1/2 and smallest = L / ratio ± 1/2, or 1 where that is less
    assert smallest == 1 or (smallest - 0.5) * ratio - 0.5 <= largest <= (smallest + 0.5) * ratio + 0.5


@given(LABELS, st.floats(1.5, 50.0), SEEDS)
def test_some_class_keeps_all_its_rows_so_no_larger_profile_fits(labels: list[int], ratio: float, seed: int) -> None:
    rows = classes([*labels, *range(5)] * 10)
    before, after = Counter(rows.labels), Counter(thin_classes(rows, ratio, seed)[0].labels)
    assert any(after[label] == count for label, count in before.items())


@given(LABELS, SEEDS)
def test_thinned_rows_keep_their_order_and_come_once(labels: list[int], seed: int) -> None:
    rows = classes([*labels, *range(5)] * 10)
    thinned, _ = thin_classes(rows, 5, seed)
    places = [rows.ids.index(row_id) for row_id in thinned.ids]
    assert places == sorted(set(places))
    assert thinned == rows.select(places)


def test_every_class_keeps_a_row_whatever_the_ratio() -> None:
    assert sizes(thin_classes(classes([0, 1, 2] * 4), 1e6, seed=0)[0]) == [4, 1, 1]  # 4, 0.004, 0.000004


def test_ratio_of_one_makes_all_classes_as_large_as_the_smallest() -> None:
    assert sizes(thin_classes(classes([0] * 9 + [1] * 5 + [2] * 3), 1, seed=0)[0]) == [3, 3, 3]


@given(st.lists(st.integers(1, 20), min_size=2, max_size=4), st.floats(1.5, 50.0), SEEDS)
def test_no_order_of_the_classes_keeps_more_rows(counts: list[int], ratio: float, seed: int) -> None:
    labels = [label for label, count in enumerate(counts) for _ in range(4 * count)]
    steps = [ratio ** (-place / (len(counts) - 1)) for place in range(len(counts))]
    most = 0
    for order in itertools.permutations(counts):
        largest = min(4 * count / step for count, step in zip(order, steps, strict=True))
        most = max(most, sum(max(1, math.floor(largest * step + 0.5)) for step in steps))
    assert len(thin_classes(classes(labels), ratio, seed)[0]) == most


def test_the_seed_decides_which_of_the_classes_of_one_size_is_the_largest() -> None:
    largest = {Counter(thin_classes(classes([0, 1, 2] * 9), 9, s)[0].labels).most_common(1)[0][0] for s in range(40)}
    assert largest == {0, 1, 2}


def test_classes_without_rows_take_no_place_in_the_profile() -> None:
    assert sizes(thin_classes(classes([0, 7] * 20), 4, seed=0)[0]) == [20, 5]


@pytest.mark.parametrize("ratio", [-1.0, 0.5, math.inf, math.nan])
def test_imbalance_out_of_range_is_refused(ratio: float) -> None:
    with pytest.raises(DataError, match=rf"^imbalance must be a finite number ≥ 1; got {ratio:g}\.$"):
        thin_classes(classes([0, 1]), ratio, seed=0)


def test_imbalance_of_rows_too_few_to_thin_is_refused() -> None:
    expected = "imbalance 10 of 3 training rows leaves 1 to every one of the 3 classes; raise it or take more rows."
    with pytest.raises(DataError, match=f"^{re.escape(expected)}$"):
        thin_classes(classes([0, 1, 2]), 10, seed=0)


def test_imbalance_of_one_class_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"^imbalance needs training rows of two classes; there is one, so take more rows\.$"
    ):
        thin_classes(classes([3] * 9), 10, seed=0)


# All of it ------------------------------------------------------------------------------------------------------------


def selection(train: Examples) -> Selection:
    return Selection(train, classes([0, 1]), classes([1, 2]), ("as drawn",))


def dataset(task: Literal["classification", "regression"] = "classification") -> Dataset:
    return Dataset("toy", task, ("a", "b", "c") if task == "classification" else (), {}, None, "toy", ())


def test_dev_and_test_stay_clean() -> None:
    drawn = selection(classes([0, 1, 2] * 20))
    damaged = corrupt(dataset(), drawn, imbalance=4, label_noise=0.5, text_noise=0.5)
    assert (damaged.dev, damaged.test) == (drawn.dev, drawn.test)
    assert damaged.train != drawn.train


def test_without_settings_the_selection_is_as_drawn() -> None:
    drawn = selection(classes([0, 1, 2]))
    assert corrupt(dataset(), drawn) == drawn


def test_classes_are_thinned_by_true_labels_before_labels_and_words_are_noised() -> None:
    drawn = selection(classes([0, 1, 2] * 16))
    damaged = corrupt(dataset(), drawn, imbalance=4, label_noise=0.25, label_noise_kind="pair", text_noise=1, seed=9)
    thinned, first = thin_classes(drawn.train, 4, 9)
    flipped, second = flip_labels(thinned, 0.25, "pair", 3, 9)
    noised, third = noise_words(flipped, 1, 9)
    assert sizes(thinned) == [16, 8, 4]
    assert (damaged.train, damaged.notes) == (noised, ("as drawn", first, second, third))


def test_noised_labels_are_uniform_unless_said_otherwise() -> None:
    drawn = selection(classes([0, 1, 2] * 16))
    assert corrupt(dataset(), drawn, label_noise=0.5) == corrupt(
        dataset(), drawn, label_noise=0.5, label_noise_kind="uniform"
    )


@pytest.mark.parametrize("setting", [{"label_noise": 0.5}, {"imbalance": 2.0}])
def test_scores_have_no_classes_to_corrupt(setting: dict[str, float]) -> None:
    (name,) = setting
    expected = f"{name} needs rows with classes, and these have scores or no labels; leave it out."
    with pytest.raises(DataError, match=f"^{re.escape(expected)}$"):
        corrupt(dataset("regression"), selection(scores(8)), **setting)  # type: ignore[arg-type]


def test_texts_of_scores_can_be_noised() -> None:
    drawn = selection(replace(scores(8), texts=(SENTENCE,) * 8))
    damaged = corrupt(dataset("regression"), drawn, text_noise=0.5)
    assert damaged.train.labels == drawn.train.labels
    assert damaged.train.texts != drawn.train.texts


def test_a_kind_of_label_noise_without_label_noise_is_refused() -> None:
    with pytest.raises(DataError, match=r"^label_noise_kind has no effect without label_noise; got 'pair' with 0\.$"):
        corrupt(dataset(), selection(classes([0, 1, 2])), label_noise_kind="pair")

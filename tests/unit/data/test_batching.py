"""Batching: tokens as the tokenizer gives them, tensors without loss, and batch orders that keep their promises."""

import copy
import math
import pickle
import re
from collections import Counter
from typing import Any

import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from steadytune.data import (
    ClassBalancedBatches,
    Examples,
    LengthGroupedBatches,
    PaddingCollator,
)
from steadytune.tasks import Encoded, TaskError
from steadytune.tasks import encode_texts as encode

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c"]
PAD, CLS, SEP, A, B, C = 0, 2, 3, 4, 5, 6
INPUTS = ["input_ids", "token_type_ids", "attention_mask"]
LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=300)
SIZES = st.integers(1, 20)
SEEDS = st.integers(0, 2**32)


def tokenizer(**settings: Any) -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    if settings.pop("special", True):
        words.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
        )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        **{"tokenizer_object": words, "pad_token": "[PAD]", "unk_token": "[UNK]", "model_input_names": INPUTS}
        | settings
    )


def examples(*texts: str, pairs: tuple[str, ...] | None = None, labels: Any = None) -> Examples:
    return Examples(tuple(map(str, range(len(texts)))), texts, pairs, labels)


# Encoding -------------------------------------------------------------------------------------------------------------


def test_rows_are_tokenized_with_special_tokens() -> None:
    encoded = encode(examples("a b", "", labels=(1, 0)), tokenizer(), max_length=8)
    assert encoded[0] == {
        "input_ids": [CLS, A, B, SEP],
        "attention_mask": [1, 1, 1, 1],
        "token_type_ids": [0, 0, 0, 0],
        "labels": 1,
    }
    assert encoded[1]["input_ids"] == [CLS, SEP]
    assert (len(encoded), encoded.lengths, encoded.truncated_rows) == (2, [4, 2], 0)


def test_pairs_have_segments() -> None:
    encoded = encode(examples("a", pairs=("b c",)), tokenizer(), max_length=8)
    assert encoded[0]["input_ids"] == [CLS, A, SEP, B, C, SEP]
    assert encoded[0]["token_type_ids"] == [0, 0, 0, 1, 1, 1]
    assert "labels" not in encoded[0]


def test_segments_are_left_out_where_the_tokenizer_has_none() -> None:
    encoded = encode(examples("a"), tokenizer(model_input_names=["input_ids", "attention_mask"]), max_length=8)
    assert set(encoded[0]) == {"input_ids", "attention_mask"}


def test_cut_rows_are_counted() -> None:
    encoded = encode(examples("a b c a", "a b", "a a a a a"), tokenizer(), max_length=4)
    assert encoded.input_ids == [[CLS, A, B, SEP], [CLS, A, B, SEP], [CLS, A, A, SEP]]
    assert encoded.truncated_rows == 2


def test_long_sets_are_encoded_in_order() -> None:
    texts = [" ".join(["a"] * (1 + index % 5)) for index in range(2500)]
    assert encode(examples(*texts), tokenizer(), max_length=9).lengths == [3 + index % 5 for index in range(2500)]


def test_maximum_length_without_place_for_a_token_is_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("max_length must be an integer ≥ 4 with this tokenizer; got 3.")):
        encode(examples("a", pairs=("b",)), tokenizer(), max_length=3)


def test_row_without_tokens_is_refused() -> None:
    with pytest.raises(TaskError, match="row '1' gives no token with this tokenizer"):
        encode(examples("a", ""), tokenizer(special=False), max_length=3)


# Padding --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_batch_equals_that_of_the_tokenizer(side: str) -> None:
    words = tokenizer(padding_side=side)
    rows = examples("a b c", "a", pairs=("b", "c c"), labels=(0, 1))
    encoded = encode(rows, words, max_length=16)
    batch = PaddingCollator(words, torch.long)([encoded[0], encoded[1]])
    expected = words(list(rows.texts), list(rows.pairs or ()), padding=True, return_tensors="pt")
    assert set(batch) == {*expected, "labels"}
    assert all(torch.equal(batch[name], expected[name]) for name in expected)
    assert torch.equal(batch["labels"], torch.tensor([0, 1]))


def test_scores_become_float32() -> None:
    encoded = encode(examples("a", "b", labels=(0.5, 2.0)), tokenizer(), max_length=8)
    labels = PaddingCollator(tokenizer(), torch.float32)([encoded[0], encoded[1]])["labels"]
    assert labels.dtype == torch.float32
    assert labels.tolist() == [0.5, 2.0]


def test_tokenizer_without_padding_token_is_refused() -> None:
    with pytest.raises(ValueError, match="tokenizer must have a padding token; it has none"):
        PaddingCollator(tokenizer(pad_token=None), torch.long)


# Batches of like length -----------------------------------------------------------------------------------------------


@given(LENGTHS, SIZES, SEEDS)
def test_every_row_comes_once_per_epoch(lengths: list[int], batch_size: int, seed: int) -> None:
    batches = list(LengthGroupedBatches(lengths, batch_size, seed))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))


@given(LENGTHS, SIZES, SEEDS)
def test_all_batches_but_one_are_full(lengths: list[int], batch_size: int, seed: int) -> None:
    sampler = LengthGroupedBatches(lengths, batch_size, seed)
    sizes = [len(batch) for batch in sampler]
    assert len(sizes) == len(sampler) == math.ceil(len(lengths) / batch_size)
    assert sum(size != batch_size for size in sizes) <= 1


@given(LENGTHS, SIZES, SEEDS)
def test_most_padded_tokens_of_full_batches_come_first(lengths: list[int], batch_size: int, seed: int) -> None:
    batches = list(LengthGroupedBatches(lengths, batch_size, seed))
    full = [batch for batch in batches if len(batch) == batch_size] or batches
    costs = [batch_size * max(lengths[row] for row in batch) for batch in full]
    assert costs[0] == max(costs)


def test_a_short_batch_comes_last_even_if_it_has_most_padded_tokens() -> None:
    lengths = [1] * 100 + [60]  # two stretches of 50 batches; whichever holds the long row, it may be the short batch
    for seed in range(20):
        sizes = [len(batch) for batch in LengthGroupedBatches(lengths, 2, seed)]
        assert sizes == [2] * 50 + [1]


def test_rows_of_one_stretch_are_grouped_by_length() -> None:
    lengths = [1 + index % 2 * 39 for index in range(1600)]  # four stretches of 50 batches of 8
    mixed = [batch for batch in LengthGroupedBatches(lengths, 8, seed=0) if len({lengths[row] for row in batch}) > 1]
    assert len(mixed) <= 4  # at most where a stretch goes over from long to short


def test_grouping_saves_most_of_the_padding() -> None:
    lengths = [1 + (37 * index) % 100 for index in range(1000)]
    padded = sum(len(batch) * max(lengths[row] for row in batch) for batch in LengthGroupedBatches(lengths, 16, seed=0))
    assert padded < 1.1 * sum(lengths)  # batches of chance have 1.87 times


@pytest.mark.parametrize("rows", [64, 100, 320])
def test_a_small_set_meets_other_batches_in_every_epoch(rows: int) -> None:
    sampler = LengthGroupedBatches([1 + index % 30 for index in range(rows)], 16, seed=0)
    epochs = []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        epochs.append({frozenset(batch) for batch in sampler})
    assert all(not one & other for number, one in enumerate(epochs) for other in epochs[:number])


# Batches with several rows per class ----------------------------------------------------------------------------------

LABELS = st.lists(st.integers(0, 5), min_size=1, max_size=120)
PER_CLASS = st.integers(2, 5)


@st.composite
def balanced_cases(draw: st.DrawFn) -> tuple[list[int], int, int, int, int]:
    per_class = draw(PER_CLASS)
    return draw(LABELS), draw(st.integers(per_class, 24)), per_class, draw(SEEDS), draw(st.integers(0, 5))


def balanced(case: tuple[list[int], int, int, int, int]) -> tuple[ClassBalancedBatches, list[int]]:
    labels, batch_size, per_class, seed, epoch = case
    sampler = ClassBalancedBatches(labels, batch_size, per_class=per_class, seed=seed)
    sampler.set_epoch(epoch)
    return sampler, labels


@given(balanced_cases())
def test_class_in_a_batch_has_its_rows(case: tuple[list[int], int, int, int, int]) -> None:
    sampler, labels = balanced(case)
    size = Counter(labels)
    for batch in sampler:
        for label, count in Counter(labels[row] for row in batch).items():
            assert count >= min(sampler.per_class, size[label])


@given(balanced_cases())
def test_no_row_stands_twice_in_a_batch(case: tuple[list[int], int, int, int, int]) -> None:
    sampler, _ = balanced(case)
    assert all(len(set(batch)) == len(batch) for batch in sampler)


@given(balanced_cases())
def test_batch_is_full_unless_its_classes_are_used_up(case: tuple[list[int], int, int, int, int]) -> None:
    sampler, labels = balanced(case)
    size = Counter(labels)
    for batch in sampler:
        assert len(batch) == min(sampler.batch_size, sum(size[label] for label in {labels[row] for row in batch}))


@given(balanced_cases())
def test_epoch_has_as_many_batches_as_plain_batching(case: tuple[list[int], int, int, int, int]) -> None:
    sampler, labels = balanced(case)
    assert len(list(sampler)) == len(sampler) == math.ceil(len(labels) / sampler.batch_size)


@given(balanced_cases())
def test_rows_of_a_class_occur_equally_often(case: tuple[list[int], int, int, int, int]) -> None:
    sampler, labels = balanced(case)
    count = Counter(row for batch in sampler for row in batch)
    for label in set(labels):
        occurrences = [count[row] for row, own in enumerate(labels) if own == label]
        assert max(occurrences) - min(occurrences) <= 1


@given(st.integers(2, 4), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), SEEDS)
def test_balanced_set_that_divides_evenly_gives_every_row_once(
    per_class: int, visits: int, groups: int, rounds: int, seed: int
) -> None:
    batch_size, classes = per_class * visits, visits * rounds  # so that batch_size divides the number of rows
    labels = list(range(classes)) * (per_class * groups)
    rows = [row for batch in ClassBalancedBatches(labels, batch_size, per_class=per_class, seed=seed) for row in batch]
    assert sorted(rows) == list(range(len(labels)))


def test_classes_are_visited_in_proportion_to_their_size() -> None:
    labels = [0] * 60 + [1] * 30 + [2] * 10
    count = Counter(labels[row] for batch in ClassBalancedBatches(labels, 10, per_class=2, seed=0) for row in batch)
    assert count == {0: 60, 1: 30, 2: 10}


def test_two_equal_classes_meet_in_every_batch() -> None:
    labels = [0, 1] * 40
    for batch in ClassBalancedBatches(labels, 8, per_class=4, seed=0):
        assert Counter(labels[row] for row in batch) == {0: 4, 1: 4}


def test_rare_class_is_visited_if_there_are_visits_enough() -> None:
    labels = [0] * 99 + [1]
    assert any(99 in batch for batch in ClassBalancedBatches(labels, 20, per_class=4, seed=0))


# Both samplers --------------------------------------------------------------------------------------------------------

Batches = LengthGroupedBatches | ClassBalancedBatches


def both(seed: int = 0) -> list[Batches]:
    values = [1 + index % 7 for index in range(200)]
    return [LengthGroupedBatches(values, 8, seed), ClassBalancedBatches(values, 8, per_class=2, seed=seed)]


@pytest.mark.parametrize("kind", [0, 1])
def test_order_depends_on_seed_and_epoch_alone(kind: int) -> None:
    one, same, other = both()[kind], both()[kind], both(seed=1)[kind]
    first = list(one)
    assert first == list(one) == list(same)
    assert first != list(other)
    one.set_epoch(3)
    third = list(one)
    assert third != first
    one.set_epoch(0)
    assert list(one) == first
    same.set_epoch(3)
    assert list(same) == third


@pytest.mark.parametrize("epoch", [0, 1, 5])
@pytest.mark.parametrize("seed", range(5))
def test_the_short_batch_of_a_length_grouped_epoch_comes_last(seed: int, epoch: int) -> None:
    sampler = LengthGroupedBatches([1 + (37 * index) % 50 for index in range(83)], 8, seed)
    sampler.set_epoch(epoch)
    assert [len(batch) for batch in sampler] == [8] * 10 + [3]


@pytest.mark.parametrize("epoch", [0, 1, 5])
@pytest.mark.parametrize("seed", range(5))
def test_short_batches_of_a_class_balanced_epoch_come_last(seed: int, epoch: int) -> None:
    labels = [0] * 60 + [1, 2, 2, 3, 3, 3]  # a batch of small classes alone holds fewer than 8 rows
    sampler = ClassBalancedBatches(labels, 8, per_class=4, seed=seed)
    sampler.set_epoch(epoch)
    short = [len(batch) < 8 for batch in sampler]
    assert short == sorted(short)


def test_a_class_balanced_epoch_can_have_a_short_batch() -> None:
    batches = [list(ClassBalancedBatches([0] * 60 + [1, 2, 2, 3, 3, 3], 8, per_class=4, seed=s)) for s in range(20)]
    assert any(len(batch) < 8 for epoch in batches for batch in epoch)


@pytest.mark.parametrize("kind", [0, 1])
def test_order_survives_pickling_and_copying(kind: int) -> None:
    sampler = both()[kind]
    sampler.set_epoch(2)
    assert list(pickle.loads(pickle.dumps(sampler))) == list(copy.deepcopy(sampler)) == list(sampler)


@pytest.mark.parametrize("kind", [0, 1])
def test_accelerate_shares_batches_and_sets_the_epoch(kind: int) -> None:
    shards = []
    for process in range(2):
        loader: DataLoader[Any] = DataLoader(list(range(200)), batch_sampler=both()[kind], collate_fn=list)  # type: ignore[arg-type]
        shard = prepare_data_loader(loader, num_processes=2, process_index=process, put_on_device=False)
        shard.set_epoch(1)
        shards.append(list(shard.batch_sampler))
    whole = both()[kind]
    whole.set_epoch(1)
    expected = list(whole)
    assert shards[0][:12] == expected[0:24:2]
    assert shards[1][:12] == expected[1:24:2]


def test_order_of_a_seed_never_changes() -> None:
    """Frozen: another machine or version of NumPy must give the same order."""
    assert list(LengthGroupedBatches([5, 1, 4, 2, 3, 6], 2, seed=0)) == FROZEN["length"]
    assert list(ClassBalancedBatches([0, 1] * 4, 4, per_class=2, seed=0)) == FROZEN["class"]


FROZEN: dict[str, list[list[int]]] = {"length": [[5, 1], [0, 4], [2, 3]], "class": [[7, 5, 0, 6], [1, 3, 4, 2]]}


def test_no_rows_give_no_batches() -> None:
    assert list(LengthGroupedBatches([], 4, seed=0)) == list(ClassBalancedBatches([], 4, per_class=2, seed=0)) == []


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"per_class": 1}, "per_class must be an integer ≥ 2; got 1."),
        ({"per_class": 5}, "batch_size must be an integer ≥ per_class (5); got 4."),
        ({"seed": -1}, "seed must be an integer ≥ 0; got -1."),
    ],
)
def test_class_balanced_setting_out_of_range_is_refused(settings: dict[str, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        ClassBalancedBatches([0, 1], **{"batch_size": 4, "per_class": 2, "seed": 0} | settings)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"batch_size": 0}, "batch_size must be an integer ≥ 1; got 0."),
        ({"seed": -1}, "seed must be an integer ≥ 0; got -1."),
    ],
)
def test_length_grouped_setting_out_of_range_is_refused(settings: dict[str, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        LengthGroupedBatches([1, 2], **{"batch_size": 4, "seed": 0} | settings)


def test_loader_gives_padded_batches_of_all_rows() -> None:
    rows = examples(*("a " * (1 + index % 6) for index in range(30)), labels=tuple(index % 3 for index in range(30)))
    words = tokenizer()
    encoded: Encoded = encode(rows, words, max_length=8)
    sampler = LengthGroupedBatches(encoded.lengths, 4, seed=0)
    batches = list(DataLoader(encoded, batch_sampler=sampler, collate_fn=PaddingCollator(words, torch.long)))
    assert sum(len(batch["labels"]) for batch in batches) == 30
    assert sum(int(batch["attention_mask"].sum()) for batch in batches) == sum(encoded.lengths)

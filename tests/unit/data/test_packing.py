"""Packed sequences: no token is lost but the tail, the order is a permutation, masks are what they should be."""

import itertools
import tracemalloc
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertTokenizer

from steadytune.data.corpus import Piece
from steadytune.data.packing import (
    Masking,
    PackedSequences,
    Shuffled,
    ShuffledBatches,
    TokenFile,
    frame_of,
    open_tokens,
    sequences_in,
    stacked,
    write_tokens,
)
from steadytune.data.tables import DataError
from tolerances import STANDARD_ERRORS

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = tuple(f"w{index}" for index in range(95))
CLS, SEP, MASK = 2, 3, 4


@pytest.fixture(scope="module")
def tokenizer() -> BertTokenizer:
    return BertTokenizer(vocab={word: index for index, word in enumerate((*SPECIAL, *WORDS))})


def texts(count: int, words: int = 7) -> Iterator[str]:
    for number in range(count):
        yield " ".join(WORDS[(number + place) % len(WORDS)] for place in range(words))


def pieces(texts: Iterable[str]) -> Iterator[Piece]:
    return (Piece(text, True) for text in texts)


@pytest.fixture(scope="module")
def stream(tokenizer: BertTokenizer, tmp_path_factory: pytest.TempPathFactory) -> TokenFile:
    return write_tokens(pieces(texts(2500)), tokenizer, tmp_path_factory.mktemp("tokens") / "train.bin")


# -- packing ----------------------------------------------------------------------------------------------------------


def test_the_stream_holds_every_text_closed_by_a_separator(stream: TokenFile, tokenizer: BertTokenizer) -> None:
    expected = [t for text in texts(2500) for t in (*tokenizer(text, add_special_tokens=False)["input_ids"], SEP)]
    assert (stream.texts, stream.tokens) == (2500, 2500 * 8)
    assert stream.read(0, stream.tokens).tolist() == expected
    assert stream.path.stat().st_size == 2 * stream.tokens  # 100 tokens of vocabulary fit into 16 bits


def test_a_vocabulary_of_more_than_65536_tokens_takes_32_bits(tmp_path: Path) -> None:
    large = BertTokenizer(vocab={w: i for i, w in enumerate((*SPECIAL, *(f"w{i}" for i in range(65536))))})
    found = write_tokens(pieces(["w65535 w0"]), large, tmp_path / "large.bin")
    assert (found.dtype, found.read(0, 3).tolist()) == ("uint32", [65540, 5, SEP])


def test_sequences_are_consecutive_parts_of_the_stream_and_lose_its_tail_only(
    stream: TokenFile, tokenizer: BertTokenizer
) -> None:
    frame = frame_of(tokenizer)
    count = sequences_in(stream, frame, 33)
    rows = packed(stream, tokenizer, length=33, fraction=1e-9)
    assert (frame.before, frame.after, frame.size, count) == ((CLS,), (SEP,), 2, 20000 // 31)
    assert len(rows) == count
    items = [rows[i]["input_ids"].tolist() for i in range(count)]
    assert all(len(item) == 33 and (item[0], item[-1]) == (CLS, SEP) for item in items)
    inner = [token for item in items for token in item[1:-1]]
    assert inner == stream.read(0, stream.tokens).tolist()[: 31 * count]
    assert stream.tokens - len(inner) < 31


def test_a_text_without_a_token_leaves_no_separator(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    found = write_tokens(pieces(["w1", "\u200b", "w2"]), tokenizer, tmp_path / "a.bin")
    assert found.texts == 2 and found.tokens == 4


def test_a_text_in_several_pieces_counts_once(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    parts = [Piece("w1", True), Piece("w2", False), Piece("w3", True)]
    found = write_tokens(parts, tokenizer, tmp_path / "a.bin")
    assert found.texts == 2 and found.tokens == 6


@pytest.mark.parametrize("bytes_more", [-1, -2, 2])
def test_a_file_of_another_size_than_was_written_is_no_finished_one(
    bytes_more: int, tokenizer: BertTokenizer, tmp_path: Path
) -> None:
    found = write_tokens(pieces(texts(10)), tokenizer, tmp_path / "a.bin")
    assert open_tokens(found.path) == found
    before = found.path.read_bytes()
    found.path.write_bytes(before[:bytes_more] if bytes_more < 0 else before + bytes(bytes_more))
    assert open_tokens(found.path) is None
    found.path.unlink()
    assert open_tokens(found.path) is None


@pytest.mark.parametrize("description", ["[]", "{", '{"dtype": "word", "tokens": 1, "texts": 1}', "{}"])
def test_a_file_that_is_described_wrongly_is_no_finished_one(description: str, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"ab")
    (tmp_path / "a.json").write_text(description)
    assert open_tokens(tmp_path / "a.bin") is None


def test_a_finished_file_is_found_again_and_an_interrupted_one_is_not(
    stream: TokenFile, tokenizer: BertTokenizer, tmp_path: Path
) -> None:
    def broken() -> Iterator[Piece]:
        yield from pieces(texts(1500))
        raise KeyboardInterrupt

    assert open_tokens(stream.path) == stream
    with pytest.raises(KeyboardInterrupt):
        write_tokens(broken(), tokenizer, tmp_path / "b.bin")
    assert (tmp_path / "b.bin").exists() and open_tokens(tmp_path / "b.bin") is None
    again = write_tokens(pieces(texts(10)), tokenizer, tmp_path / "b.bin")
    assert open_tokens(tmp_path / "b.bin") == again and again.tokens == 80


def test_memory_does_not_follow_the_number_of_texts(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        found = write_tokens(pieces(texts(count)), tokenizer, tmp_path / f"{count}.bin")
        rows = packed(found, tokenizer)
        for batch in itertools.islice(ShuffledBatches(len(rows), 8, seed=0), 20):
            stacked([rows[where] for where in batch])
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert found.texts == count
        return most

    peak(3000)  # what the first call sets up does not count
    assert peak(40_000) < 1.2 * peak(3000)


def test_a_tokenizer_that_cannot_mask_is_refused() -> None:
    bare = BertTokenizer(vocab={word: index for index, word in enumerate((*SPECIAL, *WORDS))})
    bare.mask_token = None
    with pytest.raises(DataError, match="has no mask token"):
        frame_of(bare)


# -- order ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 7, 16, 17, 100, 1000, 4097])
def test_an_order_is_a_permutation(count: int) -> None:
    order = Shuffled(count, "any")
    assert sorted(order[place] for place in range(len(order))) == list(range(count))


def test_an_order_depends_on_its_key_and_on_nothing_else() -> None:
    one, same, other = ([Shuffled(500, *key)[i] for i in range(500)] for key in ((1, 0), (1, 0), (1, 1)))
    assert one == same and one != other


def test_every_number_may_stand_at_every_place() -> None:
    keys, count = 3000, 5
    seen = Counter((place, Shuffled(count, key)[place]) for key in range(keys) for place in range(count))
    expected, error = keys / count, (keys / count * (1 - 1 / count)) ** 0.5
    assert all(
        abs(seen[place, number] - expected) < STANDARD_ERRORS * error for place in range(5) for number in range(5)
    )


def test_neighbors_in_the_corpus_do_not_stay_neighbors() -> None:
    order = Shuffled(4000, 3)
    near = sum(abs(order[i] - order[i + 1]) < 40 for i in range(3999)) / 3999
    expected = 2 * 40 / 4000
    assert abs(near - expected) < STANDARD_ERRORS * (expected / 3999) ** 0.5


def test_a_place_outside_is_an_error() -> None:
    with pytest.raises(IndexError):
        Shuffled(3, 0)[3]


def test_batches_hold_every_sequence_once_per_epoch_and_each_epoch_has_its_own_order() -> None:
    batches = ShuffledBatches(21, 4, seed=5)
    orders = []
    for epoch in (0, 1, 0):
        batches.set_epoch(epoch)
        found = list(batches)
        assert [len(batch) for batch in found] == [4, 4, 4, 4, 4, 1] and len(batches) == 6
        assert {e for batch in found for e, _ in batch} == {epoch}
        orders.append([row for batch in found for _, row in batch])
        assert sorted(orders[-1]) == list(range(21))
    assert orders[0] == orders[2] != orders[1]


# -- masking ----------------------------------------------------------------------------------------------------------


def packed(
    stream: TokenFile,
    tokenizer: BertTokenizer,
    *,
    length: int = 34,
    fraction: float = 0.15,
    fixed_count: bool = False,
    seed: int = 0,
) -> PackedSequences:
    frame = frame_of(tokenizer)
    masking = Masking.of(tokenizer, fraction, fixed_count=fixed_count)
    return PackedSequences(stream, frame, length, masking, range(sequences_in(stream, frame, length)), (seed, "masks"))


def within(count: int, of: int, share: float) -> bool:
    return abs(count - of * share) < STANDARD_ERRORS * (of * share * (1 - share)) ** 0.5


def test_fifteen_percent_are_masked_and_of_those_80_10_10_are_hidden_replaced_and_kept(
    stream: TokenFile, tokenizer: BertTokenizer
) -> None:
    rows = packed(stream, tokenizer)
    plain = packed(stream, tokenizer, fraction=1e-9)
    counts: Counter[str] = Counter()
    replaced: Counter[int] = Counter()
    for epoch in range(10):
        for row in range(len(rows)):
            read, labels = (rows[epoch, row][name].numpy() for name in ("input_ids", "labels"))
            before = plain[row]["input_ids"].numpy()
            chosen, special = labels != -100, before < len(SPECIAL)
            assert not (chosen & special).any()
            assert (labels[chosen] == before[chosen]).all() and (read[~chosen] == before[~chosen]).all()
            hidden, kept = chosen & (read == MASK), chosen & (read == before)
            other = chosen & ~hidden & ~kept
            counts.update(free=int((~special).sum()), chosen=int(chosen.sum()), hidden=int(hidden.sum()))
            counts.update(kept=int(kept.sum()), other=int(other.sum()))
            replaced.update(read[other].tolist())
    assert counts["chosen"] > 20_000
    assert within(counts["chosen"], counts["free"], 0.15)
    assert within(counts["hidden"], counts["chosen"], 0.8)
    same = 0.1 / len(WORDS)  # a token that was drawn in its own place
    assert within(counts["kept"], counts["chosen"], 0.1 + same)
    assert within(counts["other"], counts["chosen"], 0.1 - same)
    assert set(replaced) == set(range(len(SPECIAL), len(SPECIAL) + len(WORDS)))


def test_a_fixed_count_masks_as_many_places_in_every_sequence(stream: TokenFile, tokenizer: BertTokenizer) -> None:
    rows = packed(stream, tokenizer, length=40, fixed_count=True)
    batch = stacked([rows[epoch, row] for epoch in (0, 1) for row in range(50)])
    masked = batch["labels"] != -100
    assert masked.sum(dim=1).tolist() == [6] * 100
    assert masked.any(dim=0)[1:-1].all() and not masked[:, [0, -1]].any()


def test_a_sequence_of_nothing_but_special_tokens_has_no_place_to_mask(tokenizer: BertTokenizer) -> None:
    for fixed_count in (False, True):
        read, labels = Masking.of(tokenizer, 0.5, fixed_count=fixed_count)(np.array([CLS, SEP, SEP]), 0)
        assert read.tolist() == [CLS, SEP, SEP] and labels.tolist() == [-100] * 3


def test_masks_change_from_epoch_to_epoch_and_with_the_seed_and_are_otherwise_the_same(
    stream: TokenFile, tokenizer: BertTokenizer
) -> None:
    rows, again, other = (packed(stream, tokenizer, seed=seed) for seed in (0, 0, 1))
    for name in ("input_ids", "labels"):
        assert torch.equal(rows[3, 5][name], again[3, 5][name])
        assert not torch.equal(rows[3, 5][name], rows[4, 5][name])
        assert not torch.equal(rows[3, 5][name], other[3, 5][name])
        assert torch.equal(rows[5][name], rows[0, 5][name])  # a row alone is that of epoch 0


def test_a_batch_has_no_padding_and_so_no_mask(stream: TokenFile, tokenizer: BertTokenizer) -> None:
    batch = stacked([packed(stream, tokenizer)[row] for row in range(3)])
    assert {name: tuple(value.shape) for name, value in batch.items()} == {"input_ids": (3, 34), "labels": (3, 34)}
    assert {value.dtype for value in batch.values()} == {torch.long}

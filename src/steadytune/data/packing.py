"""Packed sequences of a corpus on disk: their order, and which of their tokens are hidden.

Both are functions of (seed, epoch, sequence) alone, from raw words of `PCG64` that no version of NumPy changes. So
they are the same in every run of one seed, whatever it trains with them, and a resumed run needs no state of theirs.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler
from transformers import PreTrainedTokenizerBase

from steadytune.data.corpus import Piece
from steadytune.data.tables import DataError
from steadytune.functional import keyed_seed

_TEXTS_AT_ONCE, _CHARACTERS_AT_ONCE = 1000, 1_000_000
_MASKED, _REPLACED = 0.8, 0.1  # of the places to guess; the others keep their token (Devlin et al. 2019)
_ROUNDS = 6  # of the Feistel network


# Tokens on disk ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """What stands around the tokens of a sequence, and between two texts in it.

    Attributes:
        before: special tokens that a sequence begins with.
        after: those that it ends with.
        separator: closes every text.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    separator: int

    @property
    def size(self) -> int:
        """Tokens around those of the texts."""
        return len(self.before) + len(self.after)


def frame_of(tokenizer: PreTrainedTokenizerBase) -> Frame:
    """The special tokens that a tokenizer puts around a text.

    Args:
        tokenizer: of the model.
    Raises:
        DataError: it has none that could stand between two texts, or none to mask with.
    """
    if tokenizer.mask_token_id is None:
        raise DataError("the model's tokenizer has no mask token, so nothing can be masked; choose another model.")
    separator = tokenizer.eos_token_id if tokenizer.sep_token_id is None else tokenizer.sep_token_id
    if separator is None:
        raise DataError("the model's tokenizer has no token to part texts with; set its sep_token.")
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    place = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    return Frame(tuple(whole[:place]), tuple(whole[place + len(bare) :]), int(separator))


@dataclass(frozen=True)
class TokenFile:
    """The tokens of many texts in one file, each piece of a text closed by a separator; read part by part.

    Attributes:
        path: where it lies.
        dtype: of its numbers.
        tokens: how many, separators included.
        texts: how many; one in several pieces counts once.
    """

    path: Path
    dtype: str
    tokens: int
    texts: int

    def read(self, start: int, count: int) -> np.ndarray:
        """Some tokens, as int64.

        Args:
            start: first of them.
            count: how many.
        """
        offset = start * np.dtype(self.dtype).itemsize
        return np.fromfile(self.path, self.dtype, count, offset=offset).astype(np.int64)


def write_tokens(pieces: Iterable[Piece], tokenizer: PreTrainedTokenizerBase, path: Path) -> TokenFile:
    """Tokenize texts into a file, a few at a time; what an interrupted call left is replaced.

    Args:
        pieces: of the texts, in order.
        tokenizer: of the model.
        path: where to; beside it a `.json` says what it holds, and is written last.
    """
    separator = frame_of(tokenizer).separator
    dtype = "uint16" if len(tokenizer) <= 2**16 else "uint32"
    count = tokens = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    description = path.with_suffix(".json")
    description.unlink(missing_ok=True)
    with path.open("wb") as file:
        for batch in _batches(pieces):
            rows = tokenizer(
                [piece.text for piece in batch],
                add_special_tokens=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )["input_ids"]
            flat = np.array([token for row in rows if row for token in (*row, separator)], dtype=dtype)
            flat.tofile(file)
            count += sum(piece.begins for piece, row in zip(batch, rows, strict=True) if row)
            tokens += len(flat)
    written = TokenFile(path, dtype, tokens, count)
    aside = description.with_name(f".{description.name}.{os.getpid()}")
    aside.write_text(json.dumps({**asdict(written), "path": path.name}), encoding="utf-8")
    os.replace(aside, description)
    return written


def open_tokens(path: Path) -> TokenFile | None:
    """A file that `write_tokens` finished; None if there is no such file, or not all of it.

    Args:
        path: where it should lie.
    """
    try:
        found = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        written = TokenFile(path, found["dtype"], found["tokens"], found["texts"])
        whole = path.stat().st_size == written.tokens * np.dtype(written.dtype).itemsize
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return written if whole else None


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    held: list[Piece] = []
    size = 0
    for piece in pieces:
        held.append(piece)
        size += len(piece.text)
        if len(held) >= _TEXTS_AT_ONCE or size >= _CHARACTERS_AT_ONCE:
            yield held
            held, size = [], 0
    if held:
        yield held


# Masking -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Masking:
    """Which tokens are to be guessed, and what stands in their place: 80 % mask, 10 % another token, 10 % as it was.

    Attributes:
        fraction: of the tokens that are not special.
        fixed_count: exactly this share of a sequence's length, rounded, in every sequence; else each token by chance.
        mask_token: stands for a hidden token.
        special: by token, whether it is special and so never hidden nor put in place of another.

    Source: Devlin et al. 2019, §3.1; Liu et al. 2019 (RoBERTa) for masks that change with every epoch.
    """

    fraction: float
    fixed_count: bool
    mask_token: int
    special: np.ndarray

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, fraction: float, *, fixed_count: bool) -> "Masking":
        """Masking with the special tokens of a tokenizer.

        Args:
            tokenizer: of the model.
            fraction: see the attributes.
            fixed_count: see the attributes.
        """
        special = np.zeros(len(tokenizer), dtype=bool)
        special[[token for token in tokenizer.all_special_ids if token < len(special)]] = True
        return cls(fraction, fixed_count, int(tokenizer.mask_token_id), special)

    def __call__(self, tokens: np.ndarray, *key: int | str) -> tuple[np.ndarray, np.ndarray]:
        """A sequence as the model reads it, and its labels: the hidden token at places to guess, -100 elsewhere.

        Args:
            tokens: of one sequence, special ones included.
            key: names the draw; the same key gives the same places and replacements.
        """
        chance, kind, other = _fractions(3 * len(tokens), *key).reshape(3, -1)
        free = ~self.special[tokens]
        if self.fixed_count:
            wanted = max(1, math.floor(self.fraction * len(tokens) + 0.5))
            chosen = np.zeros(len(tokens), dtype=bool)
            chosen[np.argsort(np.where(free, chance, 2.0), kind="stable")[:wanted]] = True
            chosen &= free
        else:
            chosen = free & (chance < self.fraction)
        usual = np.flatnonzero(~self.special)
        replacement = usual[(other * len(usual)).astype(np.int64)]
        read = np.where(chosen & (kind < _MASKED), self.mask_token, tokens)
        read = np.where(chosen & (kind >= _MASKED) & (kind < _MASKED + _REPLACED), replacement, read)
        return read, np.where(chosen, tokens, -100)


def _fractions(count: int, *key: int | str) -> np.ndarray:
    """Numbers in [0, 1)."""
    words = np.random.PCG64(np.random.SeedSequence(keyed_seed(*key))).random_raw(count)
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


# Sequences -----------------------------------------------------------------------------------------------------------


class PackedSequences(TorchDataset[dict[str, Tensor]]):
    """Sequences of one length, cut from the stream of all texts with their separators, and masked.

    Only the tail of the stream that fills no sequence is left out. An item is asked for by (epoch, row); a row alone
    is that of epoch 0.

    Args:
        tokens: the stream.
        frame: special tokens around a sequence.
        length: tokens of a sequence, special ones included.
        masking: which of them are hidden.
        rows: numbers of the sequences in the stream, in order.
        key: names the draws of the masking.
    """

    def __init__(
        self,
        tokens: TokenFile,
        frame: Frame,
        length: int,
        masking: Masking,
        rows: Sequence[int],
        key: tuple[int | str, ...],
    ) -> None:
        self.tokens, self.frame, self.width = tokens, frame, length - frame.size
        self.masking, self.rows, self.key = masking, rows, key

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, where: int | tuple[int, int]) -> dict[str, Tensor]:
        epoch, row = where if isinstance(where, tuple) else (0, where)
        number = self.rows[row]
        inner = self.tokens.read(number * self.width, self.width)
        whole = np.concatenate([self.frame.before, inner, self.frame.after]).astype(np.int64)
        read, labels = self.masking(whole, *self.key, epoch, number)
        return {"input_ids": torch.from_numpy(read), "labels": torch.from_numpy(labels)}


def sequences_in(tokens: TokenFile, frame: Frame, length: int) -> int:
    """How many whole sequences a stream gives.

    Args:
        tokens: the stream.
        frame: special tokens around a sequence.
        length: tokens of a sequence, special ones included.
    """
    return tokens.tokens // (length - frame.size)


def stacked(items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Sequences of one length as a batch; nothing is padded, so it has no attention mask.

    Args:
        items: from `PackedSequences`.
    """
    return {name: torch.stack([item[name] for item in items]) for name in items[0]}


# Order ---------------------------------------------------------------------------------------------------------------


class Shuffled:
    """A permutation of 0 to count − 1 that is computed place by place and never held.

    A Feistel network permutes the numbers of the next larger power of four; what falls outside is sent through again.

    Args:
        count: how many numbers.
        key: names the permutation.
    """

    def __init__(self, count: int, *key: int | str) -> None:
        self._count = count
        self._half_bits = max(1, (max(count - 1, 1).bit_length() + 1) // 2)
        self._keys = [keyed_seed(*key, round_) for round_ in range(_ROUNDS)]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: int) -> int:
        if not 0 <= place < self._count:
            raise IndexError(place)
        value = self._permuted(place)
        while value >= self._count:
            value = self._permuted(value)
        return value

    def _permuted(self, value: int) -> int:
        mask = (1 << self._half_bits) - 1
        left, right = value >> self._half_bits, value & mask
        for key in self._keys:
            left, right = right, left ^ (_mixed(right ^ key) & mask)
        return (left << self._half_bits) | right


def _mixed(value: int) -> int:
    """All bits of a 64-bit number depend on all of its bits; the finalizer of SplitMix64 (Steele et al. 2014)."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return value ^ (value >> 31)


class ShuffledBatches(Sampler[list[tuple[int, int]]]):
    """Batches of all sequences once per epoch, in an order of the epoch's own; each item is (epoch, row).

    Args:
        count: sequences.
        batch_size: of one batch; the last one of an epoch may be smaller.
        seed: names the order.
    """

    drop_last = False  # accelerate reads this and `batch_size` when it shares batches among processes

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.epoch = 0

    @property
    def sampler(self) -> "ShuffledBatches":
        """This object: accelerate looks for `set_epoch` of a sharded batch sampler under this name."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self.count / self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = Shuffled(self.count, self.seed, "order of sequences", self.epoch)
        for start in range(0, self.count, self.batch_size):
            yield [(self.epoch, order[i]) for i in range(start, min(start + self.batch_size, self.count))]

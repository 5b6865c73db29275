"""Texts to learn a language from, read one by one however many there are."""

import codecs
import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from steadytune.data.examples import TEXT_COLUMNS, half_character
from steadytune.data.sources import DEV_NAMES
from steadytune.data.tables import DataError, listed, not_found

CORPUS_ENDINGS = {".txt": "txt", ".txt.gz": "txt", ".jsonl": "jsonl", ".jsonl.gz": "jsonl", ".parquet": "parquet"}
_PIECE_CHARACTERS = 100_000  # a longer text is cut, so that memory does not follow the longest one
_PART_BYTES = 1_000_000  # of a line of text, read at once
_JSON_BYTES = 64_000_000  # a longer row is refused, as JSON is read whole
_ROWS_AT_ONCE = 1000
_SPLIT = re.compile(rf"({'|'.join(('train', *DEV_NAMES, 'test'))})([-_.]?\d.*)?")


class Piece(NamedTuple):
    """A text, or a part of one that has more than 100,000 characters.

    Attributes:
        text: the part.
        begins: it is the first of its text.
    """

    text: str
    begins: bool


@dataclass(frozen=True)
class TextFile:
    """One file of texts, in the order in which they stand.

    In a `.txt` file blank lines part the texts, and the lines between them are joined; a file without a blank line
    between its lines holds one text per line. A row of a `.jsonl` file has at most 64 MB.

    Attributes:
        path: where it lies.
        column: of the text, for tables; None takes the first present of `TEXT_COLUMNS`.
        sha256: what its bytes must hash to; None if nobody said so.
    """

    path: Path
    column: str | None = None
    sha256: str | None = None

    @property
    def kind(self) -> str:
        """ "txt", "jsonl" or "parquet"; "" if it is none of them."""
        ending = next((e for e in CORPUS_ENDINGS if self.path.name.lower().endswith(e)), "")
        return CORPUS_ENDINGS.get(ending, "")

    def pieces(self) -> Iterator[Piece]:
        """Its texts in pieces, without the empty ones.

        Raises:
            DataError: the file cannot be read to its end, or has no such column.
        """
        try:
            found = {"txt": self._paragraphs, "jsonl": self._json_rows, "parquet": self._parquet_rows}[self.kind]()
            for text, begins in found:
                if text.strip():
                    yield from _pieces(text, begins)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{self.path} is not a whole gzip file ({error}); fetch or pack it again.") from error
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.path} cannot be read: {' '.join(str(error).split())}.") from error

    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of its bytes.

        Raises:
            DataError: they are not those that were promised.
        """
        try:
            with self.path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror}.") from error
        if self.sha256 not in (None, found):
            raise DataError(
                f"{self.path} has SHA-256 {found}, but dataset.json states {self.sha256}; fetch the file again."
            )
        return found

    @cached_property
    def has_blank_lines(self) -> bool:
        """Whether, in a text file, a blank line stands between two others, and so parts texts."""
        begun = blank = False
        for _, line, _ in self._lines():
            if not line.strip():
                blank = begun
            elif blank:
                return True
            else:
                begun = True
        return False

    def _lines(self, at_once: int = _PART_BYTES) -> Iterator[tuple[int, str, bool]]:
        """Number and text of every line, in parts if it has more bytes than these, and whether it ends here."""
        packed = self.path.name.lower().endswith(".gz")
        number, decoder = 1, codecs.getincrementaldecoder("utf-8")()
        with gzip.open(self.path) if packed else self.path.open("rb") as file:
            try:
                while raw := file.readline(at_once):
                    ends = raw.endswith(b"\n") or len(raw) < at_once
                    if number == 1:
                        raw = raw.removeprefix(codecs.BOM_UTF8)
                    yield number, decoder.decode(raw, final=ends), ends
                    number += ends
                decoder.decode(b"", final=True)
            except UnicodeDecodeError as error:
                raise DataError(f"{self.path}, line {number} is not UTF-8; save it as UTF-8.") from error

    def _paragraphs(self) -> Iterator[Piece]:
        begins = True
        if not self.has_blank_lines:
            for _, line, ends in self._lines():
                yield Piece(line, begins)
                begins = ends
            return
        held: list[str] = []
        size = 0
        for _, line, _ in self._lines():
            if (blank := not line.strip()) or size > _PIECE_CHARACTERS:
                yield Piece(" ".join(held), begins)
                held, size, begins = [], 0, blank
            if not blank:
                held.append(line.strip())
                size += len(line)
        yield Piece(" ".join(held), begins)

    def _json_rows(self) -> Iterator[Piece]:
        column = self.column
        for number, line, ends in self._lines(_JSON_BYTES):
            if not line.strip():
                continue
            where = f"{self.path}, line {number}"
            if not ends:
                raise DataError(f"{where} is longer than {_JSON_BYTES:,} bytes; split its text.")
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{where} is not valid JSON ({error}).") from error
            if not isinstance(row, dict):
                raise DataError(f"{where} must be one JSON object; got {type(row).__name__}.")
            column = self._column(row) if column is None else column
            if column not in row:
                raise self._no_column(column, row)
            yield Piece(_text(row[column], column, where), True)

    def _parquet_rows(self) -> Iterator[Piece]:
        with pq.ParquetFile(self.path, pre_buffer=False) as file:  # which would hold the file in memory
            names = file.schema_arrow.names
            column = self._column(names) if self.column is None else self.column
            if column not in names:
                raise self._no_column(column, names)
            row = 0
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=[column]):
                for value in batch.column(0).to_pylist():
                    row += 1
                    yield Piece(_text(value, column, f"{self.path}, row {row}"), True)

    def _column(self, names: Iterable[str]) -> str:
        there = list(names)
        found = next((name for name in TEXT_COLUMNS if name in there), None)
        if found is None:
            raise DataError(
                f"{self.path} has no text column that steadytune knows by name; its columns are {listed(there)}: name "
                "it with --text-column."
            )
        return found

    def _no_column(self, column: str, names: Iterable[str]) -> DataError:
        return DataError(f"{self.path} has no column {column!r}; its columns are {listed(names)}.")


@dataclass(frozen=True)
class Corpus:
    """Files to learn from, and files to be measured on.

    Attributes:
        train: in the order in which they are read.
        dev: empty if nobody named any.
        notes: what was inferred.
    """

    train: tuple[TextFile, ...]
    dev: tuple[TextFile, ...]
    notes: tuple[str, ...] = ()

    def fingerprints(self) -> dict[str, str]:
        """SHA-256 over the hashes of the files, in order, by split; a file that stands there twice is read once.

        Raises:
            DataError: a file is not the one that was promised, or is learned from and measured on.
        """
        hashes = {file: file.fingerprint() for file in dict.fromkeys((*self.train, *self.dev))}
        learned = {hashes[file]: file.path for file in self.train}
        for file in self.dev:
            if (path := learned.get(hashes[file])) is not None:
                other = "" if path == file.path else f" (as {path})"
                raise DataError(
                    f"{file.path} is both measured on and learned from{other}; leave it out of one of them."
                )
        return {
            name: hashlib.sha256("".join(hashes[file] for file in files).encode()).hexdigest()
            for name, files in (("train", self.train), ("dev", self.dev))
            if files
        }

    def readings(self, counts: Mapping[str, int]) -> list[str]:
        """How the texts of text files were told apart: one note per split that has such files.

        Args:
            counts: texts by split, of all its files.
        """
        notes = []
        for split, files in (("train", self.train), ("dev", self.dev)):
            texts = dict.fromkeys(file for file in files if file.kind == "txt")
            parted = [file.path.name for file in texts if file.has_blank_lines]
            if not texts:
                continue
            if len(parted) == len(texts):
                how = "blank lines part those of text files"
            else:
                how = f"blank lines part those of {listed(parted)}, and other" if parted else ""
                how = f"{how} text files hold one per line".strip()
            notes.append(f"{split}: {counts[split]:,} text{'s' * (counts[split] != 1)}; {how}")
        return notes


def open_corpus(inputs: Sequence[str], dev: str | None = None, column: str | None = None) -> Corpus:
    """The files of a corpus; none of their texts are read yet.

    Args:
        inputs: text, JSONL or Parquet files, or folders of them, in order. A folder gives its splits (by its
            `dataset.json`, or else its files by name) "train", with or without a number, as "train_0", or if there are
            none all that are not called dev, validation or test in the same way; its dev splits, or else its validation
            splits, are what the model is measured on.
        dev: a file or folder to be measured on, in place of those.
        column: of the text, for tables; None takes the usual names.
    Raises:
        DataError: there is nothing to read, or of no kind that can be read.
    """
    train: list[TextFile] = []
    measured: list[TextFile] = []
    notes = []
    opened = {given: _splits(Path(given).expanduser(), column) for given in (*inputs, *([] if dev is None else [dev]))}
    for given in inputs:
        splits = opened[given]
        chosen = _called("train", splits) or [name for name in splits if not _SPLIT.fullmatch(name)]
        if not chosen:
            raise DataError(f"{given} has no split to learn from; its splits are {listed(splits)}.")
        train += [splits[name] for name in chosen]
        if dev is None and (found := _to_measure(splits)):
            measured += [splits[name] for name in found]
            which = f"split {listed(found)} is" if len(found) == 1 else f"splits {listed(found)} are"
            notes.append(f"{given}: {which} what the model is measured on")
    if dev is not None:
        measured = [opened[dev][name] for name in _to_measure(opened[dev]) or opened[dev]]
    for given, splits in opened.items():
        if left := [name for name, file in splits.items() if file not in (*train, *measured)]:
            notes.append(f"{given}: {listed(left)} {'is' if len(left) == 1 else 'are'} left out")
    return Corpus(tuple(train), tuple(dict.fromkeys(measured)), tuple(dict.fromkeys(notes)))


def _called(kind: str, splits: Iterable[str]) -> list[str]:
    """Splits of this name, with or without a number."""
    return [name for name in splits if (found := _SPLIT.fullmatch(name)) and found[1] == kind]


def _to_measure(splits: Collection[str]) -> list[str]:
    return next((found for kind in DEV_NAMES if (found := _called(kind, splits))), [])


def _splits(path: Path, column: str | None) -> dict[str, TextFile]:
    """Files by the name of their split; a single file is "train"."""
    if path.is_file():
        return {"train": _checked(TextFile(path, column))}
    if (path / "dataset.json").is_file():
        return _described(path, column)
    if path.is_dir():
        files = [TextFile(entry, column) for entry in sorted(path.iterdir()) if entry.is_file()]
        found: dict[str, TextFile] = {}
        for file in files:
            if file.kind and (other := found.setdefault(_stem(file.path.name), file)) is not file:
                raise DataError(
                    f"{path} holds {other.path.name!r} and {file.path.name!r}, which are one split by their names; "
                    "rename or remove one of them."
                )
        if not found:
            raise DataError(f"{path} holds no texts: no dataset.json and no file ending in {listed(CORPUS_ENDINGS)}.")
        return found
    raise not_found(path)


def _described(folder: Path, column: str | None) -> dict[str, TextFile]:
    place = folder / "dataset.json"
    try:
        splits = json.loads(place.read_text(encoding="utf-8"))["splits"]
        return {
            name: _checked(TextFile(folder / Path(one["file"]).name, column or "text", one.get("sha256")))
            for name, one in splits.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{place} is malformed: it must map `splits` to files; got {error!r}.") from error


def _checked(file: TextFile) -> TextFile:
    if not file.path.is_file():
        raise not_found(file.path)
    if not file.kind:
        raise DataError(f"{file.path} is of no type that texts are read from; save it as {listed(CORPUS_ENDINGS)}.")
    return file


def _stem(name: str) -> str:
    return next(name[: -len(ending)] for ending in CORPUS_ENDINGS if name.lower().endswith(ending))


def _text(value: object, column: str, where: str) -> str:
    if not isinstance(value, str):
        got = "nothing" if value is None else f"{value!r:.40}"
        raise DataError(f"{where}: {column!r} must be a text; got {got}.")
    if half := half_character(value):
        letter = f"\\u{ord(half):04x}"
        raise DataError(f"{where}: {column!r} holds {letter}, half a character; mend or remove the row.")
    return value


def _pieces(text: str, begins: bool) -> Iterator[Piece]:
    for start in range(0, len(text), _PIECE_CHARACTERS):
        yield Piece(text[start : start + _PIECE_CHARACTERS], begins and start == 0)

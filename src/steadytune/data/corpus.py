"""Texts to learn a language from, read one by one however many there are."""

import codecs
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from steadytune.data.examples import TEXT_COLUMNS
from steadytune.data.sources import DEV_NAMES
from steadytune.data.tables import DataError, listed, not_found

CORPUS_ENDINGS = {".txt": "txt", ".txt.gz": "txt", ".jsonl": "jsonl", ".jsonl.gz": "jsonl", ".parquet": "parquet"}
_PIECE_CHARACTERS = 100_000  # a longer text is cut, so that memory does not follow the longest one
_LINE_BYTES = 1_000_000  # read at once
_ROWS_AT_ONCE = 1000


@dataclass(frozen=True)
class TextFile:
    """One file of texts, in the order in which they stand.

    In a `.txt` file blank lines part the texts, and the lines between them are joined; a file without a blank line
    between its lines holds one text per line.

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

    def texts(self) -> Iterator[str]:
        """Its texts, without the empty ones.

        Raises:
            DataError: the file cannot be read to its end, or has no such column.
        """
        try:
            found = {"txt": self._paragraphs, "jsonl": self._json_rows, "parquet": self._parquet_rows}[self.kind]()
            for text in found:
                if text.strip():
                    yield from _pieces(text)
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

    def _lines(self) -> Iterator[tuple[int, str]]:
        """Number and text of every line; one that is too long to be held comes in several parts."""
        packed = self.path.name.lower().endswith(".gz")
        with gzip.open(self.path) if packed else self.path.open("rb") as file:
            number, decoder = 1, codecs.getincrementaldecoder("utf-8")()
            while raw := file.readline(_LINE_BYTES):
                if number == 1:
                    raw = raw.removeprefix(codecs.BOM_UTF8)
                ends = raw.endswith(b"\n")
                try:
                    line = decoder.decode(raw, final=ends)
                except UnicodeDecodeError as error:
                    raise DataError(f"{self.path}, line {number} is not UTF-8; save it as UTF-8.") from error
                yield number, line
                number += ends

    def _paragraphs(self) -> Iterator[str]:
        if not self._has_blank_lines():
            yield from (line for _, line in self._lines())
            return
        held: list[str] = []
        size = 0
        for _, line in self._lines():
            if (blank := not line.strip()) or size > _PIECE_CHARACTERS:
                yield " ".join(held)
                held, size = [], 0
            if not blank:
                held.append(line.strip())
                size += len(line)
        yield " ".join(held)

    def _has_blank_lines(self) -> bool:
        """Whether a blank line stands between two others."""
        begun = blank = False
        for _, line in self._lines():
            if not line.strip():
                blank = begun
            elif blank:
                return True
            else:
                begun = True
        return False

    def _json_rows(self) -> Iterator[str]:
        column = self.column
        for number, line in self._lines():
            if not line.strip():
                continue
            where = f"{self.path}, line {number}"
            if len(line) >= _LINE_BYTES and not line.endswith("\n"):
                raise DataError(f"{where} is longer than {_LINE_BYTES:,} bytes; split its text.")
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{where} is not valid JSON ({error}).") from error
            if not isinstance(row, dict):
                raise DataError(f"{where} must be one JSON object; got {type(row).__name__}.")
            column = self._column(row) if column is None else column
            if column not in row:
                raise self._no_column(column, row)
            yield _text(row[column], column, where)

    def _parquet_rows(self) -> Iterator[str]:
        with pq.ParquetFile(self.path) as file:
            names = file.schema_arrow.names
            column = self._column(names) if self.column is None else self.column
            if column not in names:
                raise self._no_column(column, names)
            row = 0
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=[column]):
                for value in batch.column(0).to_pylist():
                    row += 1
                    yield _text(value, column, f"{self.path}, row {row}")

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
            DataError: a file is not the one that was promised.
        """
        hashes = {file: file.fingerprint() for file in dict.fromkeys((*self.train, *self.dev))}
        return {
            name: hashlib.sha256("".join(hashes[file] for file in files).encode()).hexdigest()
            for name, files in (("train", self.train), ("dev", self.dev))
            if files
        }


def open_corpus(inputs: Sequence[str], dev: str | None = None, column: str | None = None) -> Corpus:
    """The files of a corpus; none of their texts are read yet.

    Args:
        inputs: text, JSONL or Parquet files, or folders of them, in order. A folder gives the splits (by its
            `dataset.json`, or else its files by name) that begin with "train", or if there are none all that do not
            begin with dev, validation or test; its dev or validation split is what the model is measured on.
        dev: a file or folder to be measured on, in place of those.
        column: of the text, for tables; None takes the usual names.
    Raises:
        DataError: there is nothing to read, or of no kind that can be read.
    """
    train: list[TextFile] = []
    found_dev: list[TextFile] = []
    notes = []
    for given in inputs:
        splits = _splits(Path(given).expanduser(), column)
        chosen = [name for name in splits if name.startswith("train")]
        chosen = chosen or [name for name in splits if not name.startswith((*DEV_NAMES, "test"))]
        if not chosen:
            raise DataError(f"{given} has no split to learn from; its splits are {listed(splits)}.")
        train += [splits[name] for name in chosen]
        measured = next((name for name in DEV_NAMES if name in splits), None)
        if measured is not None and dev is None:
            found_dev.append(splits[measured])
            notes.append(f"{given}: split {measured!r} is what the model is measured on")
    if dev is not None:
        splits = _splits(Path(dev).expanduser(), column)
        named = [name for name in DEV_NAMES if name in splits]
        found_dev = [splits[name] for name in named[:1]] or list(splits.values())
    return Corpus(tuple(train), tuple(dict.fromkeys(found_dev)), tuple(dict.fromkeys(notes)))


def _splits(path: Path, column: str | None) -> dict[str, TextFile]:
    """Files by the name of their split; a single file is "train"."""
    if path.is_file():
        return {"train": _checked(TextFile(path, column))}
    if (path / "dataset.json").is_file():
        return _described(path, column)
    if path.is_dir():
        files = [TextFile(entry, column) for entry in sorted(path.iterdir()) if entry.is_file()]
        found = {file.path.name: file for file in files if file.kind}
        if not found:
            raise DataError(f"{path} holds no texts: no dataset.json and no file ending in {listed(CORPUS_ENDINGS)}.")
        return {_stem(name): file for name, file in found.items()}
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
    return value


def _pieces(text: str) -> Iterator[str]:
    for start in range(0, len(text), _PIECE_CHARACTERS):
        yield text[start : start + _PIECE_CHARACTERS]

"""One file as rows: CSV, TSV, JSON Lines and Parquet, with the place of every fault."""

import codecs
import csv
import difflib
import gzip
import hashlib
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ENDINGS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".parquet": "parquet"}
ENDINGS |= {f"{ending}.gz": ENDINGS[ending] for ending in (".csv", ".tsv", ".jsonl")}


class DataError(ValueError):
    """Data that cannot be used as given: one sentence with the place, the fault and the remedy."""


@dataclass(frozen=True)
class Table:
    """Rows as read, and how to name one of them in a message.

    Attributes:
        where: name of the file, for messages.
        columns: names, in order.
        rows: values by column.
        lines: line of the file in which each row starts; empty for a file without lines.
        class_names: by column, the names behind its integers.
    """

    where: str
    columns: tuple[str, ...]
    rows: list[dict[str, Any]]
    lines: tuple[int, ...] = ()
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def at(self, index: int) -> str:
        """Name of one row, with its line if the file has lines."""
        line = f" (line {self.lines[index]})" if self.lines else ""
        return f"{self.where}, row {index + 1}{line}"


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Rows of one table file, as they stand in it; the values of CSV and TSV are strings.

    Args:
        path: a CSV, TSV, JSONL or Parquet file, or one of the first three gzipped.
    Returns:
        One dictionary per row, keyed by column.
    """
    return read_table(Path(path).expanduser()).rows


def split_ending(path: Path) -> tuple[str, str]:
    """Name without its ending, and the kind of table; an empty kind if it is none."""
    ending = next((e for e in ENDINGS if path.name.lower().endswith(e)), "")
    return (path.name[: -len(ending)], ENDINGS[ending]) if ending else (path.stem, "")


def read_table(path: Path, sha256: str | None = None) -> Table:
    """The rows of one file, at least one.

    Args:
        path: its ending says what it is, see `ENDINGS`.
        sha256: what its bytes must hash to.
    Raises:
        DataError: the file is missing, unreadable, empty or malformed.
    """
    kind = split_ending(path)[1]
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise not_found(path) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    if not kind:
        raise DataError(f"{path} is of no type steadytune reads; save it as {listed(ENDINGS)}.")
    if sha256 is not None and (found := hashlib.sha256(raw).hexdigest()) != sha256:
        raise DataError(f"{path} has SHA-256 {found}, but dataset.json states {sha256}; fetch the file again.")
    if not raw:
        raise DataError(f"{path} is empty (0 bytes).")
    if path.name.lower().endswith(".gz"):
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path} is not a whole gzip file ({error}); fetch or pack it again.") from error
    if kind == "parquet":
        table = _parse_parquet(str(path), raw)
    elif kind == "jsonl":
        table = _parse_jsonl(str(path), _decode(str(path), raw))
    else:
        table = _parse_csv(str(path), _decode(str(path), raw), "," if kind == "csv" else "\t")
    if not table.rows:
        raise DataError(f"{path} has no rows{', only a header' if table.columns else ''}.")
    return table


def _decode(where: str, raw: bytes) -> str:
    mark = len(codecs.BOM_UTF8) if raw.startswith(codecs.BOM_UTF8) else 0
    try:
        return raw[mark:].decode("utf-8")
    except UnicodeDecodeError as error:
        at = mark + error.start
        line = raw.count(b"\n", 0, at) + 1
        raise DataError(f"{where}: byte {at} (line {line}) is not UTF-8; save it as UTF-8.") from error


def _parse_csv(where: str, text: str, delimiter: str) -> Table:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    records: list[list[str]] = []
    lines: list[int] = []
    line = 1
    limit = csv.field_size_limit(len(text) + 1)  # the usual limit would hide how long a field is
    try:
        for record in reader:
            if record:
                records.append(record)
                lines.append(line)
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{where}: the row that starts in line {line} has broken quotes ({error}).") from error
    finally:
        csv.field_size_limit(limit)
    columns = records[0] if records else []
    _check_distinct(where, columns)
    rows = [dict(zip(columns, record, strict=False)) for record in records[1:]]
    table = Table(where, tuple(columns), rows, tuple(lines[1:]))
    for index, record in enumerate(records[1:]):
        if len(record) != len(columns):
            fields = f"{len(record)} fields where the header has {len(columns)}"
            raise DataError(f"{table.at(index)} has {fields}; put a text that holds {delimiter!r} in double quotes.")
    return table


def _parse_jsonl(where: str, text: str) -> Table:
    rows: list[dict[str, Any]] = []
    lines: list[int] = []

    def distinct(items: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(items)
        if len(row) < len(items):
            _check_distinct(f"{where}, line {line}", [key for key, _ in items])
        return row

    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            row = json.loads(content, object_pairs_hook=distinct)
        except DataError:
            raise
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}, line {line} is not valid JSON ({error}).") from error
        if not isinstance(row, dict):
            raise DataError(f"{where}, line {line} must be one JSON object; got {type(row).__name__}.")
        rows.append(row)
        lines.append(line)
    return Table(where, tuple(dict.fromkeys(key for row in rows for key in row)), rows, tuple(lines))


def _parse_parquet(where: str, raw: bytes) -> Table:
    try:
        file = pq.ParquetFile(pa.BufferReader(raw))
        _check_distinct(where, file.schema_arrow.names)
        content = file.read()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{where} is not a readable Parquet file ({' '.join(str(error).split())}).") from error
    return Table(where, tuple(content.column_names), content.to_pylist())


def _check_distinct(where: str, columns: Sequence[str]) -> None:
    twice = [name for name, count in Counter(columns).items() if count > 1]
    if twice:
        raise DataError(f"{where} has the column {twice[0]!r} more than once; rename or remove one.")


# Words for messages --------------------------------------------------------------------------------------------------


def listed(names: Iterable[str]) -> str:
    """Up to twenty names, quoted."""
    shown = [repr(name) for name in names]
    return ", ".join(shown[:20]) + (f" and {len(shown) - 20} more" if len(shown) > 20 else "")


def not_found(path: Path) -> DataError:
    """The error for a path at which there is nothing, with a name near it if there is one."""
    return DataError(f"{path} does not exist{near_files(path)}.")


def near_files(path: Path) -> str:
    """A question after the file of nearly this name, or an empty text."""
    entries = list(path.parent.iterdir()) if path.parent.is_dir() else []
    here = {split_ending(entry)[0]: entry for entry in entries} | {entry.name: entry for entry in entries}
    if path.parent == Path():
        here["sample"] = Path("sample")  # the bundled set is asked for by this name
    near = difflib.get_close_matches(path.name, here, n=1)
    return f" (did you mean {here[near[0]]}?)" if near else ""

"""Write records whole or not at all."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel


def config_hash(*parts: Mapping[str, Any]) -> str:
    """Content hash of plain values, independent of key order.

    Args:
        parts: JSON-like mappings.
    Returns:
        16 hexadecimal digits.
    """
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A file beside `path` that takes its place when the block ends well, and is removed when it does not.

    Args:
        path: where the whole file shall appear.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file aside and rename it into place.

    Args:
        path: where to.
        value: what.
    """
    with written_aside(path) as aside:
        aside.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def write_record(path: Path, record: BaseModel) -> None:
    """Write a record; a value that is not a finite number becomes null.

    Args:
        path: where to.
        record: what.
    """
    write_json(path, _finite(record.model_dump(mode="json")))


def write_predictions(
    path: Path, ids: Sequence[str], splits: Sequence[str], columns: Mapping[str, Sequence[Any]]
) -> None:
    """Write what was predicted for every row as Parquet: id, split, and the columns of the task. Texts are not stored.

    Args:
        path: where to.
        ids: row ids.
        splits: split of each row.
        columns: by name, the label of each row and what was predicted; "logits" are kept in single precision.
    """
    table = {"id": pa.array(ids, pa.string()), "split": pa.array(splits, pa.string()).dictionary_encode()}
    for name, values in columns.items():
        table[name] = pa.array(values, pa.list_(pa.float32()) if name == "logits" else None)
    _write_table(path, table)


def write_pooled(path: Path, ids: Sequence[str], labels: Any, vectors: np.ndarray) -> None:
    """Write one vector per example as Parquet: id, label, vector in half precision.

    Args:
        path: where to.
        ids: row ids.
        labels: true label of each row.
        vectors: (rows, dim).
    """
    columns = {
        "id": pa.array(ids, pa.string()),
        "label": pa.array(np.asarray(labels)),
        "vector": pa.array(list(vectors.astype(np.float16)), pa.list_(pa.float16())),
    }
    _write_table(path, columns)


def write_texts(path: Path, texts: Mapping[str, tuple[str, str]]) -> None:
    """Write texts as Parquet: id, text, pair.

    Args:
        path: where to.
        texts: text and second text of each row, by its id.
    """
    columns = {"id": list(texts), "text": [text for text, _ in texts.values()], "pair": [p for _, p in texts.values()]}
    _write_table(path, {name: pa.array(values, pa.string()) for name, values in columns.items()})


def _write_table(path: Path, columns: Mapping[str, pa.Array]) -> None:
    with written_aside(path) as aside:
        pq.write_table(pa.table(dict(columns)), aside, compression="zstd")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value

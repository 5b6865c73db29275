"""A corpus: what stands in its files, one text after the other, and what cannot be read."""

import gzip
import hashlib
import json
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from steadytune.data.corpus import TextFile, open_corpus
from steadytune.data.tables import DataError


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def texts(path: Path, column: str | None = None) -> list[str]:
    return [text.strip() for text in TextFile(path, column).texts()]


def names(files: tuple[TextFile, ...]) -> list[str]:
    return [file.path.name for file in files]


# -- what stands in a file --------------------------------------------------------------------------------------------


def test_a_text_file_without_blank_lines_holds_one_text_per_line(tmp_path: Path) -> None:
    assert texts(write(tmp_path / "a.txt", "one\ntwo words\r\nthree")) == ["one", "two words", "three"]


def test_blank_lines_part_texts_and_the_lines_between_them_are_joined(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\n\none\nand more\n \t\n\ntwo\n")
    assert texts(path) == ["one and more", "two"]


def test_blank_lines_at_the_ends_part_nothing(tmp_path: Path) -> None:
    assert texts(write(tmp_path / "a.txt", "\none\ntwo\n\n")) == ["one", "two"]


def test_json_lines_give_the_column_of_texts(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"id": 1, "text": "one", "body": "x"}\n\n{"text": "two", "body": "y"}\n')
    assert texts(path) == ["one", "two"] and texts(path, "body") == ["x", "y"]


def test_a_packed_file_reads_like_the_plain_one(tmp_path: Path) -> None:
    packed = write(tmp_path / "a.jsonl.gz", gzip.compress(b'{"text": "one"}\n{"text": ""}\n{"text": "two"}'))
    assert texts(packed) == ["one", "two"]
    assert texts(write(tmp_path / "a.txt.gz", gzip.compress("\ufeffone\ntwö".encode()))) == ["one", "twö"]


def test_parquet_gives_the_column_of_texts(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": range(2500), "sentence": [f"s{i}" for i in range(2500)]}), tmp_path / "a.parquet")
    assert texts(tmp_path / "a.parquet") == [f"s{i}" for i in range(2500)]


def test_a_very_long_text_comes_in_pieces_that_lose_nothing(tmp_path: Path) -> None:
    long = "äb " * 200_000  # one line of 800 kB
    for path in (
        write(tmp_path / "a.txt", long),
        write(tmp_path / "b.txt", f"first\n\n{long}\nlast"),
        write(tmp_path / "a.jsonl", json.dumps({"text": long}, ensure_ascii=False)),
    ):
        pieces = list(TextFile(path).texts())
        assert max(map(len, pieces)) <= 100_000 and len(pieces) > 5
        assert "".join(pieces).count("ä") == 200_000


# -- several files ----------------------------------------------------------------------------------------------------


def folder_of(path: Path) -> Path:
    for name in ("train_1", "train_0", "dev", "test"):
        write(path / f"{name}.jsonl", json.dumps({"text": name}))
    return path


def test_a_folder_gives_its_training_files_in_order_and_its_dev_file_to_measure_on(tmp_path: Path) -> None:
    corpus = open_corpus([str(folder_of(tmp_path))])
    assert names(corpus.train) == ["train_0.jsonl", "train_1.jsonl"] and names(corpus.dev) == ["dev.jsonl"]
    assert corpus.notes == (f"{tmp_path}: split 'dev' is what the model is measured on",)


def test_a_folder_without_training_files_gives_all_but_those_for_measuring(tmp_path: Path) -> None:
    for name in ("austen", "brontë", "test", "dev"):
        write(tmp_path / f"{name}.txt", "a")
    write(tmp_path / "notes.md", "not read")
    assert names(open_corpus([str(tmp_path)]).train) == ["austen.txt", "brontë.txt"]


def test_a_described_folder_gives_the_files_that_it_names_in_its_order(tmp_path: Path) -> None:
    folder_of(tmp_path)
    order = {name: {"file": f"{name}.jsonl"} for name in ("train_1", "train_0", "validation")}
    write(tmp_path / "validation.jsonl", "{}")
    write(tmp_path / "dataset.json", json.dumps({"task": "language_modeling", "splits": order}))
    corpus = open_corpus([str(tmp_path)])
    assert names(corpus.train) == ["train_1.jsonl", "train_0.jsonl"] and names(corpus.dev) == ["validation.jsonl"]
    assert corpus.train[0].column == "text"


def test_inputs_keep_their_order_and_may_stand_twice(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one.txt", "a"), write(tmp_path / "two.txt", "b")
    corpus = open_corpus([str(two), str(one), str(two)], dev=str(one))
    assert names(corpus.train) == ["two.txt", "one.txt", "two.txt"] and names(corpus.dev) == ["one.txt"]


def test_a_fingerprint_is_that_of_the_bytes_in_their_order(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one.txt", "a"), write(tmp_path / "two.txt", "b")

    def of(*paths: Path) -> dict[str, str]:
        return open_corpus([str(path) for path in paths]).fingerprints()

    before = of(one, two)
    assert set(before) == {"train"} and before == of(one, two) != of(two, one)
    write(one, "c")
    assert of(one, two) != before


def test_memory_does_not_follow_the_number_of_texts(tmp_path: Path) -> None:
    small, large = (write(tmp_path / f"{n}.jsonl", '{"text": "some words of a text"}\n' * n) for n in (2000, 40_000))

    def peak(path: Path) -> int:
        tracemalloc.start()
        count = sum(1 for _ in TextFile(path).texts())
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert count == int(path.stem)
        return most

    peak(small)  # what the first reading imports does not count
    assert peak(large) < 1.5 * peak(small)


# -- what cannot be read ----------------------------------------------------------------------------------------------

BAD = {
    "no_such.txt": (None, "no_such.txt does not exist"),
    "a.csv": ("text\none\n", "is of no type that texts are read from; save it as '.txt'"),
    "empty_folder": ("", "holds no texts: no dataset.json and no file ending in"),
    "latin.txt": ("one\ntw\xf6\n".encode("latin-1"), "line 2 is not UTF-8; save it as UTF-8."),
    "cut.txt.gz": (gzip.compress(b"one two three " * 100)[:-9], "is not a whole gzip file"),
    "false.txt.gz": (b"plain", "is not a whole gzip file"),
    "broken.jsonl": ('{"text": "a"}\n{"text": \n', "line 2 is not valid JSON"),
    "list.jsonl": ("[1]\n", "line 1 must be one JSON object; got list."),
    "number.jsonl": ('{"text": 3}\n', "line 1: 'text' must be a text; got 3."),
    "null.jsonl": ('{"text": null}\n', "line 1: 'text' must be a text; got nothing."),
    "unnamed.jsonl": ('{"body": "a"}\n', "has no text column that steadytune knows by name; its columns are 'body'"),
    "later.jsonl": ('{"text": "a"}\n{"body": "b"}\n', "has no column 'text'; its columns are 'body'."),
    "false.parquet": (b"plain", "cannot be read"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_said_in_one_sentence_with_its_place(name: str, tmp_path: Path) -> None:
    content, words = BAD[name]
    path = tmp_path / name
    if name == "empty_folder":
        path.mkdir()
    elif content is not None:
        write(path, content)
    with pytest.raises(DataError) as caught:
        list(open_corpus([str(path)]).train[0].texts())
    assert words in str(caught.value) and name in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_column_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "a", "title": "b"}')
    with pytest.raises(DataError, match=r"has no column 'body'; its columns are 'text', 'title'\.$"):
        texts(path, "body")


def test_a_file_that_is_not_the_promised_one_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "a")
    assert TextFile(path, sha256=hashlib.sha256(b"a").hexdigest()).fingerprint()
    with pytest.raises(DataError, match=r"but dataset\.json states"):
        TextFile(path, sha256="0" * 64).fingerprint()


@pytest.mark.parametrize("content", ["{", "[]", '{"splits": {"train": {}}}', '{"splits": {"train": {"file": 3}}}'])
def test_a_malformed_description_is_refused(content: str, tmp_path: Path) -> None:
    write(tmp_path / "dataset.json", content)
    with pytest.raises(DataError, match=r"dataset\.json is malformed: it must map `splits` to files"):
        open_corpus([str(tmp_path)])

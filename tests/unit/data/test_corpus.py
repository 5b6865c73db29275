"""A corpus: what stands in its files, one text after the other, and what cannot be read."""

import gzip
import hashlib
import json
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from steadytune.data import corpus as corpus_module
from steadytune.data.corpus import TextFile, open_corpus
from steadytune.data.tables import DataError


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def texts(path: Path, column: str | None = None) -> list[str]:
    return [piece.text.strip() for piece in TextFile(path, column).pieces()]


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
        pieces = [piece.text for piece in TextFile(path).pieces()]
        assert max(map(len, pieces)) <= 100_000 and len(pieces) > 5
        assert "".join(pieces).count("ä") == 200_000


def test_a_text_in_many_pieces_is_one_text(tmp_path: Path) -> None:
    long = "äb " * 800_000  # one line of 3.2 MB
    for name, content, count in (
        ("a.txt", f"{long}\nlast", 2),
        ("b.txt", f"first\n\n{long}\n{long}\n\nlast", 3),
        ("c.jsonl", json.dumps({"text": long}, ensure_ascii=False), 1),
    ):
        pieces = list(TextFile(write(tmp_path / name, content)).pieces())
        assert sum(piece.begins for piece in pieces) == count < len(pieces) and pieces[0].begins


def test_a_row_of_json_may_be_a_whole_book(tmp_path: Path) -> None:
    book = "ж" * 1_500_000  # 3 MB
    path = write(tmp_path / "a.jsonl", json.dumps({"text": book}, ensure_ascii=False) + '\n{"text": "two"}')
    assert "".join(texts(path)) == f"{book}two"


def test_a_row_of_json_that_memory_may_not_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_module, "_JSON_BYTES", 100)
    path = write(tmp_path / "a.jsonl", json.dumps({"text": "short"}) + '\n{"text": "' + "ж" * 60 + '"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl, line 2 is longer than 100 bytes; split its text\.$"):
        texts(path)


# -- several files ----------------------------------------------------------------------------------------------------


def folder_of(path: Path) -> Path:
    for name in ("train_1", "train_0", "dev", "test"):
        write(path / f"{name}.jsonl", json.dumps({"text": name}))
    return path


def test_a_folder_gives_its_training_files_in_order_and_its_dev_file_to_measure_on(tmp_path: Path) -> None:
    corpus = open_corpus([str(folder_of(tmp_path))])
    assert names(corpus.train) == ["train_0.jsonl", "train_1.jsonl"] and names(corpus.dev) == ["dev.jsonl"]
    assert corpus.notes == (
        f"{tmp_path}: split 'dev' is what the model is measured on",
        f"{tmp_path}: 'test' is left out",
    )


@pytest.mark.parametrize(
    ("there", "train", "dev", "left_out"),
    [
        (["devils", "testament_of_youth", "training", "validation_of_x"], 4, [], []),
        (["train", "trainspotting", "train_of_thought"], 1, [], ["train_of_thought", "trainspotting"]),
        (["train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001"], 2, [2], []),
        (["dev_0", "dev_1", "train.0", "validation"], 1, [0, 1], ["validation"]),
        (["dev1", "test2", "train1"], 1, [0], ["test2"]),
    ],
)
def test_a_split_is_told_by_its_whole_name_and_number_and_what_is_left_out_is_said(
    there: list[str], train: int, dev: list[int], left_out: list[str], tmp_path: Path
) -> None:
    for name in there:
        write(tmp_path / f"{name}.txt", name)
    corpus = open_corpus([str(tmp_path)])
    assert len(corpus.train) == train and names(corpus.dev) == [f"{there[i]}.txt" for i in dev]
    said = [note for note in corpus.notes if "left out" in note]
    listed = ", ".join(map(repr, left_out))
    assert said == ([f"{tmp_path}: {listed} {'is' if len(left_out) == 1 else 'are'} left out"] if left_out else [])


def test_a_named_folder_to_be_measured_on_gives_its_dev_splits_or_else_all(tmp_path: Path) -> None:
    for name in ("some/dev-0", "some/dev-1", "some/train", "all/austen", "all/brontë", "one"):
        write(tmp_path / f"{name}.txt", name)
    for folder, expected, notes in (
        ("some", ["dev-0.txt", "dev-1.txt"], (f"{tmp_path / 'some'}: 'train' is left out",)),
        ("all", ["austen.txt", "brontë.txt"], ()),
    ):
        corpus = open_corpus([str(tmp_path / "one.txt")], dev=str(tmp_path / folder))
        assert names(corpus.dev) == expected and corpus.notes == notes


def test_files_of_the_same_split_by_name_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "part.jsonl", '{"text": "a"}')
    write(tmp_path / "part.txt", "b")
    with pytest.raises(DataError, match=r"holds 'part\.jsonl' and 'part\.txt', which are one split by their names"):
        open_corpus([str(tmp_path)])


def test_a_text_to_be_measured_on_may_not_be_learned_from(tmp_path: Path) -> None:
    one, same = write(tmp_path / "one.txt", "a"), write(tmp_path / "same.txt", "a")
    for dev, words in (
        (one, r"one\.txt is both measured on and learned from;"),
        (same, r"learned from \(as .*one\.txt"),
    ):
        with pytest.raises(DataError, match=words):
            open_corpus([str(one)], dev=str(dev)).fingerprints()


def test_how_the_texts_of_text_files_were_told_apart_is_said(tmp_path: Path) -> None:
    lines, parted = write(tmp_path / "lines.txt", "a\nb\nc\n"), write(tmp_path / "parted.txt", "a\n\nb\nc\n")
    table = write(tmp_path / "a.jsonl", "{}")

    def said(*files: Path, dev: Path | None = None) -> list[str]:
        corpus = open_corpus([str(file) for file in files], dev=None if dev is None else str(dev))
        return corpus.readings({"train": 1000, "dev": 1})

    assert said(lines, table) == ["train: 1,000 texts; text files hold one per line"]
    assert said(parted, parted) == ["train: 1,000 texts; blank lines part those of text files"]
    assert said(parted, lines) == [
        "train: 1,000 texts; blank lines part those of 'parted.txt', and other text files hold one per line"
    ]
    assert said(table) == []
    assert said(table, dev=lines) == ["dev: 1 text; text files hold one per line"]


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
    assert names(open_corpus([str(two), str(one), str(two)]).train) == ["two.txt", "one.txt", "two.txt"]


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
        count = sum(1 for _ in TextFile(path).pieces())
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert count == int(path.stem)
        return most

    peak(small)  # what the first reading imports does not count
    assert peak(large) < 1.5 * peak(small)


def test_memory_does_not_follow_the_size_of_a_parquet_file(tmp_path: Path) -> None:
    group = pa.table({"text": ["some words of a text " * 10] * 1000})

    def peak(groups: int) -> int:
        path = tmp_path / f"{groups}.parquet"
        with pq.ParquetWriter(path, group.schema, compression="none", use_dictionary=False) as file:
            for _ in range(groups):
                file.write_table(group)
        before = pa.total_allocated_bytes()
        return max(pa.total_allocated_bytes() - before for _ in TextFile(path).pieces())

    assert peak(40) < 1.5 * peak(4)


# -- what cannot be read ----------------------------------------------------------------------------------------------

BAD = {
    "no_such.txt": (None, "no_such.txt does not exist"),
    "a.csv": ("text\none\n", "is of no type that texts are read from; save it as '.txt'"),
    "empty_folder": ("", "holds no texts: no dataset.json and no file ending in"),
    "latin.txt": ("one\ntw\xf6\n".encode("latin-1"), "line 2 is not UTF-8; save it as UTF-8."),
    "half.txt": ("one\ntwö".encode()[:-1], "line 2 is not UTF-8; save it as UTF-8."),
    "surrogate.jsonl": ('{"text": "a \\ud83d b"}\n', r"line 1: 'text' holds \ud83d, half a character; mend or remove"),
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
        list(open_corpus([str(path)]).train[0].pieces())
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

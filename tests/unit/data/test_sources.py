"""Sources: what is read, what is inferred, and one clear sentence for whatever cannot be used."""

import gzip
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from steadytune.data import DataError, Examples, available_splits, load_dataset, read_rows

SHARED = Path(os.environ.get("STEADYTUNE_DATA", Path(__file__).parents[4] / "shared" / "data"))
ROWS = [{"text": "good", "label": "pos"}, {"text": "bad", "label": "neg"}, {"text": "fine", "label": "pos"}]


def write_csv(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_parquet(path: Path, columns: dict[str, list[Any]]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def write_described(folder: Path, rows: list[dict[str, Any]], **changes: Any) -> Path:
    """A folder with dataset.json and one split; `changes` replace entries, those named split_* of the split."""
    folder.mkdir(exist_ok=True)
    path = write_jsonl(folder / "train.jsonl", rows)
    split: dict[str, Any] = {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    split |= {key[6:]: changes.pop(key) for key in list(changes) if key.startswith("split_")}
    entries = {"name": "toy", "task": "classification", "label_names": ["neg", "pos"], "splits": {"train": split}}
    (folder / "dataset.json").write_text(json.dumps(entries | changes))
    return folder


INDEXED = [{"id": "a", "text": "bad", "label": 0}, {"id": "b", "text": "good", "label": 1}]


# What is read ---------------------------------------------------------------------------------------------------------


def in_csv(folder: Path) -> Path:
    return write_csv(folder / "t.csv", "text,label\ngood,pos\nbad,neg\nfine,pos\n")


def in_csv_with_mark_and_crlf(folder: Path) -> Path:
    return write_csv(folder / "t.csv", '\ufefftext,label\r\n"good",pos\r\n\r\nbad,neg\r\nfine,pos\r\n')


def in_tsv(folder: Path) -> Path:
    return write_csv(folder / "t.tsv", "text\tlabel\ngood\tpos\nbad\tneg\nfine\tpos\n")


def in_jsonl(folder: Path) -> Path:
    return write_jsonl(folder / "t.jsonl", ROWS)


def in_parquet(folder: Path) -> Path:
    return write_parquet(folder / "t.parquet", {key: [row[key] for row in ROWS] for key in ("text", "label")})


def in_gzipped_csv(folder: Path) -> Path:
    path = folder / "t.csv.gz"
    path.write_bytes(gzip.compress(in_csv(folder).read_bytes()))
    return path


def in_gzipped_jsonl(folder: Path) -> Path:
    path = folder / "t.jsonl.gz"
    path.write_bytes(gzip.compress(in_jsonl(folder).read_bytes()))
    return path


FORMATS = [
    in_csv,
    in_csv_with_mark_and_crlf,
    in_tsv,
    in_jsonl,
    in_parquet,
    in_gzipped_csv,
    in_gzipped_jsonl,
]


@pytest.mark.parametrize("write", FORMATS)
def test_every_format_gives_the_same_examples(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    dataset = load_dataset(write(tmp_path))
    assert dataset.name == "t"
    assert dataset.label_names == ("neg", "pos")
    assert dataset.splits == {
        "train": Examples(("train-0", "train-1", "train-2"), ("good", "bad", "fine"), None, (1, 0, 1))
    }


@pytest.mark.parametrize("write", FORMATS)
def test_read_rows_gives_rows_as_they_stand(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    assert read_rows(write(tmp_path)) == ROWS


def test_quoted_field_may_hold_separator_and_line_break(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", 'text,label\n"one, two\nthree",a\nfour,b\n')
    assert load_dataset(path).splits["train"].texts == ("one, two\nthree", "four")


def test_numeric_labels_sort_as_numbers(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", "text,label\na,10\nb,9\nc,1\n")
    assert load_dataset(path).label_names == ("1", "9", "10")


@pytest.mark.parametrize(
    ("header", "text", "pair", "label"),
    [
        ("Text,Label", "0", None, "2"),
        ("label,sentence", "1", None, "0"),
        ("sentence1,sentence2,target", "0", "1", "2"),
        ("premise,hypothesis,label", "0", "1", "2"),
        ("hypothesis,premise,label", "1", "0", "2"),
        ("question1,question2,class", "0", "1", "2"),
        ("query,intent", "0", None, "1"),
        ("Sentence1,Sentence2,Label", "0", "1", "2"),
        ("PREMISE, Hypothesis,label", "0", "1", "2"),
    ],
)
def test_columns_are_found_by_name(tmp_path: Path, header: str, text: str, pair: str | None, label: str) -> None:
    width = header.count(",") + 1
    cells = [[f"{row}{column}" for column in range(width)] for row in range(2)]
    dataset = load_dataset(write_csv(tmp_path / "t.csv", "\n".join([header, *map(",".join, cells)])))
    rows = dataset.splits["train"]
    place = header.split(",")
    assert rows.texts[0] == f"0{text}"
    assert (rows.pairs and rows.pairs[0]) == (pair and f"0{pair}")
    found = next(i for i, name in enumerate(place) if name.lower() in ("label", "target", "class", "intent"))
    assert dataset.label_names == (f"0{found}", f"1{found}")


def test_spaces_around_a_label_are_no_part_of_its_name(tmp_path: Path) -> None:
    dataset = load_dataset(write_csv(tmp_path / "t.csv", "text,label\na, pos\nb,neg \nc,pos\n"))
    assert (dataset.label_names, dataset.splits["train"].labels) == (("neg", "pos"), (1, 0, 1))


def test_whole_floats_are_named_like_integers(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "t.parquet", {"text": ["a", "b", "c"], "label": [0.0, 10.0, 2.0]})
    dataset = load_dataset(path)
    assert (dataset.task, dataset.label_names) == ("classification", ("0", "2", "10"))


def test_a_score_that_means_no_label_is_refused(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", "text,score\na,0.5\nb,-100\n")
    with pytest.raises(DataError, match=r"row 2 \(line 3\): a score of -100 means 'no label' in training; rescale"):
        load_dataset(path)


def test_named_columns_win_over_inferred_ones(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", "text,text_pair,label,mood\na,x,0,sad\nb,y,0,glad\n")
    dataset = load_dataset(path, text_column="text_pair", pair_column="", label_column="mood")
    assert dataset.splits["train"] == Examples(("train-0", "train-1"), ("x", "y"), None, (1, 0))


def test_fractional_labels_mean_regression_and_a_note_says_so(tmp_path: Path) -> None:
    dataset = load_dataset(write_csv(tmp_path / "t.csv", "text,score\na,1\nb,2.5\n"))
    assert (dataset.task, dataset.label_names, dataset.splits["train"].labels) == ("regression", (), (1.0, 2.5))
    assert any("regression" in note for note in dataset.notes)


def test_integer_labels_are_classes_unless_regression_is_asked_for(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", "text,label\na,1\nb,2\n")
    assert load_dataset(path).task == "classification"
    assert load_dataset(path, task="regression").splits["train"].labels == (1.0, 2.0)


def test_empty_texts_are_kept_and_counted(tmp_path: Path) -> None:
    dataset = load_dataset(write_csv(tmp_path / "t.csv", "text,label\n,a\nx,b\n"))
    assert dataset.splits["train"].texts == ("", "x")
    assert "split 'train': 1 empty texts, kept" in dataset.notes


def test_folder_of_tables_gives_a_split_per_file(tmp_path: Path) -> None:
    for name in ("train", "validation", "test", "other"):
        write_jsonl(tmp_path / f"{name}.jsonl", ROWS)
    assert available_splits(tmp_path) == ("other", "test", "train", "validation")
    assert tuple(load_dataset(tmp_path).splits) == ("train", "validation", "test")
    assert tuple(load_dataset(tmp_path, splits=["other"]).splits) == ("other",)


def test_labels_of_other_splits_follow_the_training_split(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    write_jsonl(tmp_path / "test.jsonl", ROWS[:1])
    assert load_dataset(tmp_path).splits["test"].labels == (1,)


def test_only_the_splits_asked_for_are_read(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    (tmp_path / "test.jsonl").write_text("not json")
    assert tuple(load_dataset(tmp_path, splits=["train"]).splits) == ("train",)


def test_described_folder_gives_names_metric_and_notes(tmp_path: Path) -> None:
    folder = write_described(tmp_path, INDEXED, metric="f1", warning="research only", split_role="the first half")
    dataset = load_dataset(folder)
    assert (dataset.name, dataset.task, dataset.metric, dataset.source) == ("toy", "classification", "f1", str(folder))
    assert dataset.splits["train"] == Examples(("a", "b"), ("bad", "good"), None, (0, 1))
    assert dataset.notes == ("split 'train': the first half", "warning of the data set: research only")


def test_split_may_have_label_names_of_its_own(tmp_path: Path) -> None:
    folder = write_described(tmp_path, INDEXED, split_label_names=["no", "yes"])
    assert load_dataset(folder).label_names == ("no", "yes")


def test_labels_are_matched_to_given_names_by_name(tmp_path: Path) -> None:
    dataset = load_dataset(write_described(tmp_path, INDEXED[:1]), label_names=["pos", "neutral", "neg"])
    assert dataset.splits["train"].labels == (2,)


def test_described_regression_gives_floats(tmp_path: Path) -> None:
    rows = [{"text": "a", "text_pair": "b", "label": 3}, {"text": "c", "text_pair": "d", "label": 0.5}]
    dataset = load_dataset(write_described(tmp_path, rows, task="pair_regression", label_names=None))
    assert dataset.splits["train"] == Examples(("train-0", "train-1"), ("a", "c"), ("b", "d"), (3.0, 0.5))
    assert all(isinstance(label, float) for label in dataset.splits["train"].labels or ())


def test_another_column_of_a_described_folder_can_be_the_label(tmp_path: Path) -> None:
    rows = [row | {"relatedness": 1.5 * index} for index, row in enumerate(INDEXED)]
    dataset = load_dataset(write_described(tmp_path, rows), label_column="relatedness")
    assert (dataset.task, dataset.splits["train"].labels) == ("regression", (0.0, 1.5))


def test_rows_without_labels_are_read_when_labels_are_not_required(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", "text,category\na,\nb,only\n")
    assert load_dataset(path, require_labels=False).splits["train"].labels is None


def test_sample_is_a_bundled_classification_set() -> None:
    dataset = load_dataset("sample")
    assert dataset.task == "classification"
    assert set(dataset.splits) == {"train", "dev", "test"}


def test_hub_set_gives_its_class_names_and_leaves_hidden_labels_out(monkeypatch: pytest.MonkeyPatch) -> None:
    features = datasets.Features({"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["b", "a"])})
    labels = {"train": [0, 1], "validation": [1, 1], "test": [-1, -1]}
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name, config: list(labels))
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda name, config, split: datasets.Dataset.from_dict(
            {"sentence": ["x", "y"], "label": labels[split]}, features
        ),
    )
    dataset = load_dataset("owner/set:config")
    assert dataset.label_names == ("b", "a")
    assert {name: rows.labels for name, rows in dataset.splits.items()} == {"train": (0, 1), "validation": (1, 1)}
    assert any("'test' left out" in note for note in dataset.notes)


# Examples -------------------------------------------------------------------------------------------------------------


def test_fingerprint_sees_every_field() -> None:
    one = Examples(("1", "2"), ("a", "b"), ("c", "d"), (0, 1))
    others = [
        Examples(("1", "3"), one.texts, one.pairs, one.labels),
        Examples(one.ids, ("a", "c"), one.pairs, one.labels),
        Examples(one.ids, one.texts, None, one.labels),
        Examples(one.ids, one.texts, one.pairs, (0, 0)),
        Examples(one.ids, one.texts, one.pairs, None),
        one.select([1, 0]),
    ]
    assert len({rows.fingerprint() for rows in (one, *others)}) == 7
    assert one.select([0, 1]).fingerprint() == one.fingerprint()


def test_fingerprint_is_the_documented_hash() -> None:
    content = b'[["1"],["\\u00e9"],null,[0]]'
    assert Examples(("1",), ("é",), None, (0,)).fingerprint() == hashlib.sha256(content).hexdigest()


def test_columns_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("texts must have one entry per id (2); got 1.")):
        Examples(("1", "2"), ("a",))


# What cannot be used --------------------------------------------------------------------------------------------------


def bad_bytes(content: bytes, name: str = "t.csv") -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


def bad_lines(*rows: dict[str, Any]) -> Callable[[Path], Path]:
    return lambda folder: write_jsonl(folder / "t.jsonl", list(rows))


def bad_described(**changes: Any) -> Callable[[Path], Path]:
    return lambda folder: write_described(folder, changes.pop("rows", INDEXED), **changes)


def bad_description(content: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / "dataset.json").write_text(content)
        return folder

    return write


def duplicated_parquet(folder: Path) -> Path:
    pq.write_table(pa.table([["a"], ["b"]], names=["text", "text"]), folder / "t.parquet")
    return folder / "t.parquet"


def two_files(folder: Path) -> Path:
    in_csv(folder)
    in_jsonl(folder)
    return folder


def unknown_in_test(folder: Path) -> Path:
    write_jsonl(folder / "train.jsonl", ROWS)
    write_jsonl(folder / "test.jsonl", [ROWS[0], {"text": "x", "label": "poss"}])
    return folder


def no_label_in_test(folder: Path) -> Path:
    write_jsonl(folder / "train.jsonl", ROWS)
    write_jsonl(folder / "test.jsonl", [{"text": "x"}])
    return folder


def near_name(folder: Path) -> Path:
    in_csv(folder)
    return folder / "tt.csv"


def only_other_splits(folder: Path) -> Path:
    write_jsonl(folder / "books.jsonl", ROWS)
    return folder


LONG = "x" * 1_000_001
FAULTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "file not found": (near_name, r"tt\.csv does not exist \(did you mean .*/t\.csv\?\)\."),
    "folder without data": (
        lambda folder: folder,
        r"holds no data: no dataset\.json and no file ending in '\.csv', .*",
    ),
    "two files for one split": (two_files, r"holds two files for split 't', t\.csv and t\.jsonl; keep one\."),
    "no usual split": (only_other_splits, r"no split named train, dev or test, so name one; its splits are 'books'\."),
    "empty file": (bad_bytes(b""), r"t\.csv is empty \(0 bytes\)\."),
    "empty lines only": (bad_bytes(b"\n\n", "t.jsonl"), r"t\.jsonl has no rows\."),
    "header only": (bad_bytes(b"text,label\n"), r"t\.csv has no rows, only a header\."),
    "parquet without rows": (
        lambda folder: write_parquet(folder / "t.parquet", {"text": [], "label": []}),
        r"t\.parquet has no rows, only a header\.",
    ),
    "no text column": (
        bad_bytes(b"body,label\na,b\n"),
        r"no text column that steadytune knows by name; its columns are 'body', 'label': name it with --text-column\.",
    ),
    "no label column": (
        bad_bytes(b"text,kind\na,b\n"),
        r"no label column .*; its columns are 'text', 'kind': name it with --label-column\.",
    ),
    "semicolons": (bad_bytes(b"text;label\na;b\n"), r"seems to be separated by ';', so save it with commas"),
    "no label column in test": (no_label_in_test, r"test\.jsonl has no column 'label'; its columns are 'text': .*"),
    "duplicated column": (bad_bytes(b"text,label,text\na,b,c\n"), r"t\.csv has the column 'text' more than once; .*"),
    "duplicated key": (bad_bytes(b'\n{"text": "a", "text": "b"}\n', "t.jsonl"), r"line 2 has the column 'text' more"),
    "duplicated parquet column": (duplicated_parquet, r"has the column 'text' more than once"),
    "wrong encoding": (
        bad_bytes("text,label\nok,a\ncafé,b\n".encode("latin-1")),
        r"t\.csv: byte 19 \(line 3\) is not UTF-8; save it as UTF-8\.",
    ),
    "utf-16": (bad_bytes("text,label\na,b\n".encode("utf-16")), r"byte 0 \(line 1\) is not UTF-8"),
    "malformed JSON": (
        bad_bytes(b'{"text": "a"}\n{"text": \n', "t.jsonl"),
        r"t\.jsonl, line 2 is not valid JSON \(.*\)",
    ),
    "JSON that is no object": (bad_bytes(b"[1]\n", "t.jsonl"), r"line 1 must be one JSON object; got list\."),
    "too many fields": (
        bad_bytes(b"text,label\na,b\n\nc,d,e\n"),
        r"t\.csv, row 2 \(line 4\) has 3 fields where the header has 2; put .* in double quotes\.",
    ),
    "too few fields": (bad_bytes(b"text,label\na\n"), r"row 1 \(line 2\) has 1 fields where the header has 2"),
    "open quote": (
        bad_bytes(b'text,label\na,b\n"c,d\ne,f\n'),
        r"the row that starts in line 3 has broken quotes \(.*\)",
    ),
    "empty label": (bad_bytes(b"text,label\na,b\nc,\n"), r"row 2 \(line 3\): the label in 'label' is missing; fill"),
    "NaN label": (bad_bytes(b"text,label\na,b\nc,nan\n"), r"row 2 \(line 3\): the label in 'label' is missing"),
    "null label": (bad_lines({"text": "a", "label": None}), r"row 1 \(line 1\): the label in 'label' is missing"),
    "NaN label in parquet": (
        lambda folder: write_parquet(folder / "t.parquet", {"text": ["a", "b"], "label": [1.0, float("nan")]}),
        r"t\.parquet, row 2: the label in 'label' is missing",
    ),
    "list as label": (
        bad_lines({"text": "a", "label": [1, 2]}, *ROWS),
        r"must be one string or number; got \[1, 2\]\.",
    ),
    "null text": (bad_lines({"text": None, "label": 1}, *ROWS), r"row 1 .*: 'text' must be a text; got nothing\."),
    "number as text": (bad_lines({"text": 3, "label": 1}, *ROWS), r"'text' must be a text; got 3\."),
    "half a character": (bad_lines({"text": "\ud800", "label": 1}, *ROWS), r"holds half a character"),
    "very long text": (
        bad_lines({"text": "a", "label": 1}, {"text": LONG, "label": 2}),
        r"row 2 \(line 2\): 'text' has 1,000,001 characters, over 1,000,000; split or shorten this text\.",
    ),
    "very long text in CSV": (
        bad_bytes(f"text,label\n{LONG},a\nb,b\n".encode()),
        r"row 1 \(line 2\): 'text' has 1,000,001",
    ),
    "one class": (bad_bytes(b"text,label\na,x\nb,x\n"), r"all 2 labels of split 'train' are 'x'; training needs two"),
    "unknown label in test": (
        unknown_in_test,
        r"test\.jsonl, row 2 \(line 2\): unknown label 'poss'; did you mean 'pos'\?",
    ),
    "duplicate ids": (
        bad_bytes(b"id,text,label\n7,a,b\n8,c,d\n7,e,f\n"),
        r"row 3 \(line 4\) repeats the id '7' of row 1",
    ),
    "missing id": (bad_bytes(b"id,text,label\n,a,b\n1,c,d\n"), r"row 1 \(line 2\) has no id"),
    "unknown type": (bad_bytes(b"x", "t.xlsx"), r"t\.xlsx is of no type steadytune reads; save it as '\.csv'"),
    "corrupt gzip": (
        bad_bytes(b"x", "t.csv.gz"),
        r"t\.csv\.gz is not a whole gzip file \(.*\); fetch or pack it again\.",
    ),
    "cut gzip": (bad_bytes(gzip.compress(b"text,label\n" * 9)[:-9], "t.csv.gz"), r"is not a whole gzip file"),
    "corrupt parquet": (bad_bytes(b"PAR1 x", "t.parquet"), r"t\.parquet is not a readable Parquet file \(.*\)\."),
    "hash mismatch": (
        bad_described(split_sha256="0" * 64),
        r"has SHA-256 \w{64}, but dataset\.json states 0{64}; fetch",
    ),
    "row mismatch": (bad_described(split_rows=3), r"train\.jsonl has 2 rows where dataset\.json states 3\."),
    "file of a split missing": (bad_described(split_file="gone.jsonl"), r"gone\.jsonl does not exist"),
    "file outside the folder": (bad_described(split_file="../x.jsonl"), r"splits\.train\.file must be a file name in"),
    "index out of range": (
        bad_described(rows=[{"text": "a", "label": 2}]),
        r"row 1 \(line 1\): the label in 'label' must be an integer from 0 to 1; got 2\.",
    ),
    "truth value as index": (bad_described(rows=[{"text": "a", "label": True}]), r"must be an integer .*; got True\."),
    "repeated label names": (bad_described(label_names=["a", "a"]), r"label_names must be distinct; got 'a', 'a'\."),
    "one class in a described set": (bad_described(rows=INDEXED[:1]), r"all 1 labels of split 'train' are 'neg'"),
    "score that is no number": (
        bad_described(task="regression", rows=[{"text": "a", "label": "high"}]),
        r"row 1 \(line 1\): the score in 'label' must be a finite number; got 'high'\.",
    ),
    "infinite score": (
        bad_described(task="regression", rows=[{"text": "a", "label": 1e999}]),
        r"finite number; got 'inf'",
    ),
    "task of another kind": (
        bad_described(task="language_modeling"),
        r"dataset\.json: steadytune cannot train on task 'language_modeling' yet, only on 'classification', .*",
    ),
    "description that is no JSON": (bad_description("{"), r"dataset\.json is malformed: the file: Invalid JSON: .*"),
    "description without task": (
        bad_description('{"splits": {"train": {"file": "x"}}}'),
        r"malformed: task: Field req",
    ),
    "description without splits": (bad_description('{"task": "regression", "splits": {}}'), r"malformed: splits: .*"),
    "split without file": (bad_described(split_file=None), r"malformed: splits\.train\.file: .* valid string\."),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_gives_one_sentence(tmp_path: Path, fault: str) -> None:
    write, sentence = FAULTS[fault]
    path = write(tmp_path)
    with pytest.raises(DataError, match=sentence) as caught:
        load_dataset(path)
    message = str(caught.value)
    assert message.startswith(str(tmp_path))  # the place comes first
    assert "\n" not in message
    assert message.endswith((".", "?"))


def test_named_column_that_is_missing_is_named_with_those_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no column 'mood'; its columns are 'text', 'label': name it with --label-col"):
        load_dataset(in_csv(tmp_path), label_column="mood")


def test_score_that_is_no_number_is_refused_in_a_table(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 1 \(line 2\): the score in 'label' must be a finite number; got 'pos'\."):
        load_dataset(in_csv(tmp_path), task="regression")


def test_unknown_split_is_named_with_those_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no split 'dve'; its splits are 'train'\."):
        load_dataset(in_csv(tmp_path), splits=["dve"])


def test_label_that_a_trained_model_does_not_know_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 1 \(line 2\): unknown label 'pos'; the classes are 'yes', 'no'\."):
        load_dataset(in_csv(tmp_path), label_names=["yes", "no"])


def test_unreachable_hub_set_gives_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object) -> None:
        raise ConnectionError("Couldn't reach the Hub\n(offline)")

    monkeypatch.setattr(datasets, "get_dataset_split_names", unreachable)
    with pytest.raises(DataError) as caught:
        load_dataset("no-such-owner/no-such-set")
    reason = "nor readable from the hub: Couldn't reach the Hub (offline)."
    assert str(caught.value) == f"'no-such-owner/no-such-set' is neither a file or folder here {reason}"


def test_misspelt_sample_is_suggested() -> None:
    with pytest.raises(DataError, match=r"sampel does not exist \(did you mean sample\?\); a set on the hub is named"):
        load_dataset("sampel")


def test_file_named_without_its_ending_is_suggested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_csv(tmp_path).rename(tmp_path / "reviews.csv.gz")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"reviews does not exist \(did you mean reviews\.csv\.gz\?\); a set on"):
        load_dataset("reviews")


def test_path_is_never_looked_up_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *_: pytest.fail("asked the hub"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for path in ("./gone", "gone.csv", "/gone/away", "a/b/c", "gone", "folder/gone"):
        with pytest.raises(DataError, match="does not exist"):
            load_dataset(path)


# The shared data sets -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["glue_rte", "superglue_cb", "trec", "glue_stsb", "cr"])
def test_shared_set_reads_as_described(name: str) -> None:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    described = json.loads((folder / "dataset.json").read_text())
    for split, entry in described["splits"].items():
        dataset = load_dataset(folder, splits=[split])
        rows = dataset.splits[split]
        assert len(rows) == entry["rows"]
        if "label_counts" in entry:
            assert Counter(dataset.label_names[int(label)] for label in rows.labels or ()) == entry["label_counts"]

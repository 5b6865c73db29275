"""Robustness sets: labels matched by name, rows told apart as their authors do, originals found for their revisions."""

import json
from pathlib import Path
from typing import Any

import pytest

from steadytune.data import DataError, Examples
from steadytune.data.pairing import paired_rows
from steadytune.data.robustness import RobustnessRows, RobustnessSet, match_labels, read_robustness_sets

NLI = ("entailment", "neutral", "contradiction")


def write_set(folder: Path, splits: dict[str, list[dict[str, Any]]], **labels: list[str]) -> Path:
    """A folder with dataset.json; `labels` name the classes by split, "" those of the others."""
    folder.mkdir(exist_ok=True)
    described: dict[str, Any] = {}
    for name, rows in splits.items():
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps({"id": f"{name}-{n}", **row}) + "\n" for n, row in enumerate(rows))
        )
        described[name] = {"file": f"{name}.jsonl", "label_names": labels.get(name, labels.get("all"))}
    (folder / "dataset.json").write_text(json.dumps({"task": "classification", "name": "toy", "splits": described}))
    return folder


def read(wanted: RobustnessSet | str, classes: tuple[str, ...], *, pairs: bool = False) -> RobustnessRows:
    given = RobustnessSet.parse(wanted) if isinstance(wanted, str) else wanted
    return read_robustness_sets([given], classes, pairs=pairs)[0]


# -- labels -----------------------------------------------------------------------------------------------------------


def test_labels_match_by_name_whatever_their_order_and_case() -> None:
    found = match_labels(("negative", "positive"), ("Positive", "NEG"), {}, "set")
    assert (found.classes, found.labels) == (("negative", "positive"), ("positive", "negative"))
    assert found.notes == ()


def test_neutral_and_contradiction_of_the_model_are_merged_for_hans() -> None:
    found = match_labels(NLI, ("entailment", "non-entailment"), {}, "hans")
    assert found.classes == ("entailment", "non-entailment", "non-entailment")
    assert found.labels == ("entailment", "non-entailment")
    assert found.notes == (
        "class 'neutral' counts as 'non-entailment'",
        "class 'contradiction' counts as 'non-entailment'",
    )


def test_neutral_and_contradiction_of_the_set_are_merged_for_a_model_with_two_classes() -> None:
    found = match_labels(("entailment", "not_entailment"), NLI, {}, "anli")
    assert found.classes == ("entailment", "not_entailment")
    assert found.labels == ("entailment", "not_entailment", "not_entailment")
    assert found.notes[0] == "label 'neutral' counts as 'not_entailment'"


def test_two_spellings_of_non_entailment_are_one_class() -> None:
    found = match_labels(("entailment", "not_entailment"), ("entailment", "non-entailment"), {}, "hans")
    assert found.labels == ("entailment", "not_entailment")


def test_neutral_rows_are_left_out_for_a_model_without_such_a_class() -> None:
    assert match_labels(("negative", "positive"), ("negative", "neutral", "positive"), {}, "set").labels == (
        *("negative", None),
        "positive",
    )
    assert match_labels(("neg", "mixed", "pos"), ("mixed", "pos"), {}, "set").labels == ("mixed", "pos")


def test_a_given_class_comes_before_any_rule() -> None:
    given = {"neutral": "negative", "great": "positive", "odd": None}
    found = match_labels(("negative", "positive"), ("neutral", "great", "odd"), given, "set")
    assert found.labels == ("negative", "positive", None)


@pytest.mark.parametrize(
    ("labels", "given", "sentence"),
    [
        (("negative", "odd"), {}, "set: the label 'odd' is none of the model's classes, 'negative', 'positive'; "),
        (("negative",), {"none": "negative"}, "set: `labels` names 'none', which is no label there; "),
        (("odd",), {"odd": "even"}, "set: `labels` names the class 'even'; the model's are 'negative', 'positive'."),
    ],
)
def test_what_cannot_be_matched_is_refused(
    labels: tuple[str, ...], given: dict[str, str | None], sentence: str
) -> None:
    with pytest.raises(DataError) as caught:
        match_labels(("negative", "positive"), labels, given, "set")
    assert str(caught.value).startswith(sentence)


# -- rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "source", "split"),
    [
        ("advglue:sst2", "advglue", "sst2"),
        ("cad:test_original+test_revised", "cad", "test_original+test_revised"),
        ("own.csv", "own.csv", None),
        ("owner/name:config:test", "owner/name:config", "test"),
    ],
)
def test_a_set_is_named_by_source_and_split(text: str, source: str, split: str | None) -> None:
    assert RobustnessSet.parse(text) == RobustnessSet(source=source, split=split)


def test_a_folder_with_a_colon_in_its_name_is_no_split(tmp_path: Path) -> None:
    (tmp_path / "a:b").mkdir()
    assert RobustnessSet.parse(str(tmp_path / "a:b")).split is None


def test_a_split_with_labels_of_its_own_is_read_with_them(tmp_path: Path) -> None:
    splits = {"one": [{"text": "a", "label": 1}], "two": [{"text": "b", "label": 1}]}
    folder = write_set(tmp_path / "set", splits, all=["negative", "positive"], two=["positive", "negative"])
    found = read(f"{folder}:two", ("negative", "positive"))
    assert (found.name, found.labels, found.rows.texts, found.rows.labels) == ("toy:two", ("negative",), ("b",), None)


def test_without_a_split_it_is_the_test_split(tmp_path: Path) -> None:
    splits = {"train": [{"text": "a", "label": 0}, {"text": "c", "label": 1}], "test": [{"text": "b", "label": 0}]}
    assert read(str(write_set(tmp_path / "set", splits, all=["x", "y"])), ("x", "y")).name == "toy:test"


def test_rows_of_a_class_that_the_model_lacks_are_counted_and_named(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": 0}, {"text": "b", "label": 1}, {"text": "c", "label": 2}, {"text": "d", "label": 1}]
    folder = write_set(tmp_path / "set", {"test": rows}, all=["negative", "neutral", "positive"])
    found = read(str(folder), ("negative", "positive"))
    assert (found.rows.texts, found.labels, found.left_out) == (("a", "c"), ("negative", "positive"), 2)
    assert found.notes == ("2 rows labelled 'neutral' are left out: the model has no such class",)


def test_known_columns_tell_rows_apart_and_a_heuristic_also_by_label(tmp_path: Path) -> None:
    rows = [
        {"text": text, "label": label, "heuristic": "overlap", "subcase": f"s{label}", "other": 1}
        for text, label in (("a", 0), ("b", 1), ("c", 0), ("d", 1))
    ]
    found = read(str(write_set(tmp_path / "set", {"test": rows}, all=["no", "yes"])), ("no", "yes"))
    assert found.slices == {
        "heuristic and label": ("overlap, no", "overlap, yes") * 2,
        "subcase": ("s0", "s1", "s0", "s1"),
    }
    assert found.notes == ()


@pytest.mark.parametrize(
    ("column", "values", "reason"),
    [
        ("original", ("the film was fine",) * 4, "its values are not yes and no"),
        ("original", (1, 2, 1, 2), "its values are not yes and no"),
        ("test", ("a film", "a song", "a meal", "a film"), "it has 3 values in 4 rows"),
    ],
)
def test_a_known_column_that_names_no_groups_is_not_scored_apart(
    column: str, values: tuple[Any, ...], reason: str, tmp_path: Path
) -> None:
    rows = [{"text": f"t{value}", "label": 0, column: value} for value in values]
    folder = str(write_set(tmp_path / "set", {"test": rows}, all=["no", "yes"]))
    found = read(folder, ("no", "yes"))
    assert (found.slices, found.notes) == (
        *({}, (f"{column!r} is not scored apart, since {reason}; name it in `slices` if it should be",)),
    )
    named = read(RobustnessSet(source=folder, slices=[column]), ("no", "yes"))
    assert (named.slices, named.notes) == ({column: tuple(map(str, values))}, ())


@pytest.mark.parametrize("values", [(True, False, False), ("True", "false", "False"), ("yes", "no", "no"), (1, 0, 0)])
def test_originals_are_scored_apart_where_a_column_says_yes_or_no(values: tuple[Any, ...], tmp_path: Path) -> None:
    rows = [{"text": "a", "label": 0, "original": value} for value in values]
    found = read(str(write_set(tmp_path / "set", {"test": rows}, all=["no", "yes"])), ("no", "yes"))
    assert list(found.slices) == ["original"]


def test_a_plan_may_name_the_columns(tmp_path: Path) -> None:
    rows = [
        {"text": "a", "label": 0, "source": "news", "pair": 1},
        {"text": "b", "label": 1, "source": "web", "pair": 1},
    ]
    folder = write_set(tmp_path / "set", {"test": rows}, all=["no", "yes"])
    found = read(RobustnessSet(source=str(folder), slices=["source"], sets="pair", name="mine"), ("no", "yes"))
    assert (found.name, found.slices, found.sets) == ("mine", {"source": ("news", "web")}, ("1", "1"))


def test_a_column_of_groups_names_the_contrast_sets(tmp_path: Path) -> None:
    rows = [{"text": text, "label": 0, "group": group, "original": group == 1} for text, group in ("a1", "b1", "c2")]
    rows = [{**row, "original": place == 0} for place, row in enumerate(rows)]
    found = read(str(write_set(tmp_path / "set", {"test": rows}, all=["no", "yes"])), ("no", "yes"))
    assert found.sets == ("1", "1", "2")
    assert found.slices == {"original": ("yes", "no", "no")}


@pytest.mark.parametrize("sets", [None, "group"])
@pytest.mark.parametrize("nothing", [None, "", " "])
def test_a_row_without_a_group_belongs_to_no_contrast_set(nothing: Any, sets: str | None, tmp_path: Path) -> None:
    rows = [{"text": "a", "label": 0, "group": group} for group in ("g", nothing, nothing, "g")]
    folder = write_set(tmp_path / "set", {"test": rows}, all=["no", "yes"])
    assert read(RobustnessSet(source=str(folder), sets=sets), ("no", "yes")).sets == ("g", None, None, "g")


def test_a_contrast_set_counts_only_with_all_of_its_rows(tmp_path: Path) -> None:
    rows = [
        {"text": "a", "label": label, "group": group}
        for label, group in ((0, "x"), (1, "x"), (0, "y"), (2, "y"), (1, None), (0, None))
    ]
    folder = write_set(tmp_path / "set", {"test": rows}, all=["negative", "neutral", "positive"])
    found = read(str(folder), ("negative", "positive"))
    assert (found.left_out, found.sets) == (2, (None, "y", "y", None))
    assert found.notes[-1] == "1 contrast sets are not counted: a row of each is left out"


def test_of_joined_splits_an_original_without_its_revision_is_no_contrast_set(tmp_path: Path) -> None:
    originals = [{"text": "red apple pie", "label": 0}, {"text": "blue berry jam", "label": 2}]
    revised = [{"text": "red apple cake", "label": 1}, {"text": "blue berry tea", "label": 0}]
    folder = write_set(tmp_path / "set", {"o": originals, "r": revised}, all=["negative", "neutral", "positive"])
    found = read(f"{folder}:o+r", ("negative", "positive"))
    assert (found.rows.texts, found.sets) == (
        ("red apple pie", "blue berry jam", "blue berry tea"),
        (None, "1", "1"),
    )


@pytest.mark.parametrize("described", [True, False])
def test_a_set_may_be_a_training_split_of_one_class(described: bool, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    if described:
        write_set(folder, {"train": [{"text": "a", "label": 1}, {"text": "b", "label": 1}]}, all=["no", "yes"])
    else:
        folder.mkdir()
        (folder / "train.csv").write_text("text,label\na,yes\nb,yes\n")
    assert read(f"{folder}:train", ("no", "yes")).labels == ("yes", "yes")


def test_a_table_is_read_like_the_tables_of_the_task(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text("said,meant\na,no\n")
    wanted = RobustnessSet.parse(str(path)).like({"text_column": "said", "label_column": "meant"})
    found = read(wanted, ("no", "yes"))
    assert (found.name, found.rows.texts, found.labels) == ("own", ("a",), ("no",))


@pytest.mark.parametrize(
    ("rows", "wanted", "sentence"),
    [
        ([{"text": "a", "label": 0}], {"split": "none"}, "has no split 'none'; its splits are 'test'."),
        ([{"text": "a", "text_pair": "b", "label": 0}], {}, "trained on rows of one text, and a row here has two."),
        ([{"text": "a", "label": 0}], {"slices": ["kind"]}, "has no column 'kind'; its columns are 'id', "),
        ([{"text": "a", "label": 0}], {"labels": {"no": None}}, "toy:test: no row has a label that the model knows"),
        ([{"text": "a", "label": 0}], {"split": "test+test"}, "it is not clear which row of 'test' belongs to which"),
    ],
)
def test_a_set_that_does_not_fit_is_refused(
    rows: list[dict[str, Any]], wanted: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    if wanted.get("split") == "test+test":
        rows = [*rows, {"text": "a", "label": 1}]  # twice the same row: either may be the original
    folder = write_set(tmp_path / "set", {"test": rows}, all=["no", "yes"])
    with pytest.raises(DataError) as caught:
        read(RobustnessSet(source=str(folder), **wanted), ("no", "yes"))
    assert sentence in str(caught.value)


def test_two_sets_of_one_name_are_refused(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", {"test": [{"text": "a", "label": 0}]}, all=["no", "yes"])
    both = [RobustnessSet(source=str(folder)), RobustnessSet(source=str(folder), split="test")]
    with pytest.raises(DataError, match="two robustness sets have the name 'toy:test'"):
        read_robustness_sets(both, ("no", "yes"), pairs=False)


def test_scores_are_no_classes(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text("text,label\na,0.5\nb,1.5\n")
    with pytest.raises(DataError, match="a robustness set has classes as labels; split 'train' is for regression"):
        read(str(path), ("no", "yes"))


# -- pairs ------------------------------------------------------------------------------------------------------------


def examples(*texts: str | tuple[str, str]) -> Examples:
    ids = tuple(str(place) for place in range(len(texts)))
    if isinstance(texts[0], str):
        return Examples(ids, texts)
    return Examples(ids, tuple(text[0] for text in texts), tuple(text[1] for text in texts))


def test_two_revisions_of_each_pair_of_texts_follow_their_originals() -> None:
    originals = examples(("a man runs", "he moves"), ("a dog sleeps", "it rests"))
    revised = examples(
        ("a man sits", "he moves"), ("a man naps", "he moves"), ("a dog runs", "it rests"), ("a dog eats", "it rests")
    )
    assert paired_rows([originals, revised], ["o", "r"], "set") == [[0, 1], [0, 0, 1, 1]]


def test_revisions_in_another_order_go_to_the_text_with_which_they_share_most_words() -> None:
    originals = examples("a long and dull film about cats", "the finest dinner in this town", "one more song")
    revised = examples("the worst dinner in this town", "a long and lovely film about cats")
    assert paired_rows([originals, revised], ["o", "r"], "set") == [[0, 1, None], [1, 0]]


def test_an_original_belongs_to_a_set_only_if_every_split_revises_it() -> None:
    originals = examples("red apple pie", "blue berry jam")
    both, one = examples("red apple cake", "blue berry tea"), examples("blue berry bun")
    assert paired_rows([originals, both, one], ["o", "b", "r"], "set") == [[None, 1], [None, 1], [1]]


def test_rows_without_a_clear_original_are_refused() -> None:
    with pytest.raises(DataError, match="set: it is not clear which row of 'r' belongs to which of 'o'"):
        paired_rows([examples("a film", "a song"), examples("a meal")], ["o", "r"], "set")

"""What predictions on a robustness set come to, against sums made by hand."""

import pytest

from steadytune.data import Examples
from steadytune.data.robustness import RobustnessRows, RobustnessSet
from steadytune.encoders.bundled import AFFECTED_SETS, met_texts
from steadytune.tasks import Classification, Regression
from steadytune.training.loading import RunError
from steadytune.training.robustness import robustness_rows, tally

NOTHING: tuple[list[int], list[int]] = ([], [])


def asked(
    labels: list[str],
    classes: tuple[str, ...],
    slices: dict[str, tuple[str, ...]] | None = None,
    sets: tuple[str | None, ...] | None = None,
) -> RobustnessRows:
    ids = tuple(str(place) for place in range(len(labels)))
    rows = Examples(ids, ids)
    return RobustnessRows("set:test", "set", rows, tuple(labels), classes, slices or {}, sets, 0, ("a note",))


def test_hans_takes_neutral_and_contradiction_for_non_entailment() -> None:
    hans = asked(["entailment", "non", "non", "non"], ("entailment", "non", "non"))  # of entailment, neutral, contra...
    found = tally(hans, [0, 1, 2, 0], NOTHING)
    assert (found.rows, found.accuracy, found.majority) == (4, 3 / 4, 3 / 4)


def test_own_rows_are_scored_with_the_same_merger() -> None:
    hans = asked(["entailment"], ("entailment", "non", "non"))
    assert tally(hans, [0], ([0, 1, 2, 0], [0, 2, 1, 1])).own_accuracy == 3 / 4  # 1/4 with three classes
    assert tally(hans, [0], NOTHING).own_accuracy is None


def test_every_value_of_a_column_has_its_accuracy_and_so_its_failure_rate() -> None:
    capability = ("Negation", "Vocabulary", "Negation", "Negation")
    checklist = asked(["no", "yes", "no", "yes"], ("no", "yes"), {"capability": capability})
    found = tally(checklist, [0, 1, 1, 0], NOTHING)
    assert {(group.name, group.rows, group.accuracy) for group in found.groups} == {
        ("Negation", 3, 1 / 3),  # only the first of three is right
        ("Vocabulary", 1, 1.0),
    }
    assert {group.column for group in found.groups} == {"capability"}


def test_a_contrast_set_counts_if_all_its_rows_are_right() -> None:
    contrast = asked(["no", "yes", "no", "yes", "yes", "no"], ("no", "yes"), sets=("1", "1", "2", "2", "2", None))
    found = tally(contrast, [0, 1, 0, 0, 1, 1], NOTHING)  # right: both of set 1, two of three of set 2
    assert (found.sets, found.consistency) == (2, 1 / 2)
    assert found.accuracy == 4 / 6


def test_rows_that_stand_alone_have_no_consistency() -> None:
    found = tally(asked(["no"], ("no", "yes")), [0], NOTHING)
    assert (found.sets, found.consistency, found.groups, found.notes) == (None, None, [], ["a note"])


def test_predictions_alone_do_not_say_which_rows_were_trained_on() -> None:
    assert tally(asked(["no"], ("no", "yes")), [0], NOTHING).met is None


def test_only_the_bundled_encoder_is_known_to_have_met_texts() -> None:
    affected = sorted(AFFECTED_SETS)[0]
    assert met_texts("bundled", affected) == [f"the bundled encoder has met texts of {affected} in its own training"]
    assert met_texts("bundled", "reviews") == met_texts("owner/name", affected) == met_texts(None, affected) == []


def test_other_labels_are_another_fingerprint() -> None:
    one, other = asked(["no"], ("no", "yes")), asked(["yes"], ("no", "yes"))
    assert tally(one, [0], NOTHING).fingerprint != tally(other, [0], NOTHING).fingerprint


def test_only_classification_has_robustness_sets() -> None:
    rows = Examples(("1",), ("a",))
    assert robustness_rows([], Regression(), rows) == []
    with pytest.raises(RunError, match="robustness sets are for classification; this is regression"):
        robustness_rows([RobustnessSet(source="x")], Regression(), rows)
    assert robustness_rows([], Classification(("a", "b")), rows) == []

"""The gradient of an optimizer step does not depend on how its batch is split."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import pytest
import torch
from torch import Tensor

from dummies import LogitPenalty
from steadytune.functional import supcon_loss
from steadytune.methods import SCL
from steadytune.methods.contract import Method
from steadytune.objective import RegularizedModel, StepOutput
from tiny import FAMILIES, gradients, inputs_of, rows_of, tiny_batch, tiny_model

SPLITS = [[4, 4, 4, 4], [8, 8], [7, 5, 4]]
TASKS = [pytest.param(False, id="classification"), pytest.param(True, id="regression")]


def batch_and_model(
    family: str, methods: Sequence[Method] = (), *, regression: bool = False, dropout: float = 0.0
) -> tuple[dict[str, Tensor], RegularizedModel]:
    model = tiny_model(family, num_labels=1 if regression else 3, dropout=dropout, depth=2, dtype=torch.float64)
    return tiny_batch(family, rows=16, regression=regression), RegularizedModel(model, methods)


def back_propagated(outputs: Iterator[StepOutput]) -> float:
    """Sum of the losses of a group, each back-propagated."""
    total = 0.0
    for output in outputs:
        output.loss.backward()
        total += output.loss.item()
    return total


def assert_close(ours: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float = 1e-10) -> None:
    assert ours.keys() == expected.keys() and expected
    for name, gradient in expected.items():
        torch.testing.assert_close(ours[name], gradient, rtol=tolerance, atol=tolerance, msg=name)


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Largest relative difference over all parameters together."""
    a, b = (torch.cat([g[name].flatten() for name in one]) for g in (one, other))
    return float((a - b).norm() / b.norm())


# -- terms that are means over examples ----------------------------------------------------------------------------


@pytest.mark.parametrize("regression", TASKS)
@pytest.mark.parametrize("methods", [[], [LogitPenalty()]], ids=["plain", "mean penalty"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_split_batch_has_the_gradient_of_the_whole(family: str, methods: Sequence[Method], regression: bool) -> None:
    batch, model = batch_and_model(family, methods, regression=regression)
    whole = model(**batch)
    whole.loss.backward()
    expected = gradients(model)
    for split in SPLITS:
        model.zero_grad()
        total = back_propagated(model.accumulate(rows_of(batch, split)))
        assert total == pytest.approx(whole.loss.item(), abs=1e-10), split
        assert_close(gradients(model), expected)


def test_examples_without_a_label_do_not_count() -> None:
    batch, model = batch_and_model("bert")
    batch["labels"][[0, 1, 2, 9]] = -100
    model(**batch).loss.backward()
    expected = gradients(model)
    model.zero_grad()
    back_propagated(model.accumulate(rows_of(batch, [7, 5, 4])))
    assert_close(gradients(model), expected)


def test_a_part_without_any_label_adds_nothing() -> None:
    batch, model = batch_and_model("bert")
    batch["labels"][:4] = -100
    model(**batch).loss.backward()
    expected = gradients(model)
    model.zero_grad()
    back_propagated(model.accumulate(rows_of(batch, [4, 8, 4])))
    assert_close(gradients(model), expected)


# -- a contrast over all rows --------------------------------------------------------------------------------------


@pytest.mark.parametrize("regularizer", [SCL(weight=0.9, gather_across_accumulation=True), None], ids=["SCL", "stack"])
@pytest.mark.parametrize("source", ["cls", "label_input"])
@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_a_gathered_contrast_over_parts_has_the_gradient_of_the_whole(
    split: list[int], source: str, regularizer: Method | None
) -> None:
    methods = [SCL(weight=0.9, gather_across_accumulation=True, pooled_source=source)]
    if regularizer is None:
        methods.append(LogitPenalty())
    batch, model = batch_and_model("bert", methods)
    whole = model(**batch)
    whole.loss.backward()
    expected = gradients(model)
    model.zero_grad()
    total = back_propagated(model.accumulate(rows_of(batch, split)))
    assert total == pytest.approx(whole.loss.item(), abs=1e-10)
    assert_close(gradients(model), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gathered_contrast_is_exact_for_every_family(family: str) -> None:
    batch, model = batch_and_model(family, [SCL(weight=0.9, gather_across_accumulation=True)])
    model(**batch).loss.backward()
    expected = gradients(model)
    model.zero_grad()
    back_propagated(model.accumulate(rows_of(batch, [7, 5, 4])))
    assert_close(gradients(model), expected)


def joined_gradient(model: RegularizedModel, parts: Sequence[dict[str, Tensor]], weight: float) -> dict[str, Tensor]:
    """Each part in a pass of its own, then cross-entropy and contrast over the vectors of all of them."""
    vectors, logits = [], []
    for part in parts:
        states = model.model.bert(**inputs_of(part))
        vectors.append(states.last_hidden_state[:, 0])
        logits.append(model.model.classifier(model.model.dropout(states.pooler_output)))
    labels = torch.cat([part["labels"] for part in parts])
    task = torch.nn.functional.cross_entropy(torch.cat(logits), labels)
    contrast = supcon_loss(torch.cat(vectors), labels, temperature=0.3)
    ((1 - weight) * task + weight * contrast).backward()
    found = gradients(model)
    model.zero_grad()
    return found


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_with_dropout_a_gathered_contrast_has_the_gradient_of_the_joined_vectors(split: list[int]) -> None:
    batch, model = batch_and_model("bert", [SCL(weight=0.9, gather_across_accumulation=True)], dropout=0.2)
    parts = rows_of(batch, split)
    torch.manual_seed(6)
    expected = joined_gradient(model, parts, 0.9)
    torch.manual_seed(6)
    back_propagated(model.accumulate(parts))
    assert_close(gradients(model), expected)


def test_priming_leaves_the_main_stream_where_a_group_without_it_does() -> None:
    ends = []
    for gathered in (True, False):
        batch, model = batch_and_model("bert", [SCL(gather_across_accumulation=gathered)], dropout=0.2)
        torch.manual_seed(6)
        back_propagated(model.accumulate(rows_of(batch, [7, 5, 4])))
        ends.append(torch.get_rng_state())
    assert torch.equal(*ends)


def test_the_passes_of_priming_are_counted() -> None:
    batch, model = batch_and_model("bert", [SCL(gather_across_accumulation=True)])
    counts = [output.passes for output in model.accumulate(rows_of(batch, [8, 8]))]
    assert [(c.forward, c.activation_gradient, c.weight_gradient) for c in counts] == [(2, 1, 1), (2, 1, 1)]


def test_a_group_of_one_batch_costs_no_extra_pass() -> None:
    batch, model = batch_and_model("bert", [SCL(gather_across_accumulation=True)])
    assert [output.passes.forward for output in model.accumulate([batch])] == [1]


def test_without_gathering_a_split_contrast_is_another_objective() -> None:
    batch, model = batch_and_model("bert", [SCL(weight=0.9)])
    model(**batch).loss.backward()
    expected = gradients(model)
    model.zero_grad()
    back_propagated(model.accumulate(rows_of(batch, [4, 4, 4, 4])))
    assert distance(gradients(model), expected) > 0.05


def test_without_gathering_the_reported_contrast_is_that_of_the_part_alone() -> None:
    """Four rows of scl.md T14: pairs inside a part only, so two parts of unlike classes have none."""
    batch, model = batch_and_model("bert", [SCL(weight=0.9)])
    batch = {name: value[:4] for name, value in batch.items()}
    batch["labels"] = torch.tensor([0, 1, 0, 1])
    terms = [output.terms["scl"].item() for output in model.accumulate(rows_of(batch, [2, 2]))]
    assert terms == [0.0, 0.0] and model(**batch).terms["scl"].item() > 0


def test_a_part_too_small_to_pair_says_so() -> None:
    batch, model = batch_and_model("bert", [SCL(weight=0.9)])
    list(model.accumulate(rows_of(batch, [2] * 8)))
    assert [notice for notice in model.notices if notice.startswith("scl has 2 row(s) to pair")]


# -- order of a primed group ---------------------------------------------------------------------------------------


def swapped(parts: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    return [parts[1], parts[0]]


def same_labels_other_texts(parts: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    return [{**parts[0], "input_ids": parts[1]["input_ids"]}, parts[1]]


def one_text_more(parts: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    return [{**parts[0], "token_type_ids": torch.zeros_like(parts[0]["input_ids"])}, parts[1]]


@pytest.mark.parametrize("change", [swapped, same_labels_other_texts, one_text_more])
def test_another_batch_than_the_primed_one_is_refused(
    change: Callable[[list[dict[str, Tensor]]], list[dict[str, Tensor]]],
) -> None:
    batch, model = batch_and_model("bert", [SCL(gather_across_accumulation=True)])
    parts = rows_of(batch, [8, 8])
    model.prime(parts)
    with pytest.raises(RuntimeError, match=r"another batch than the one given to prime\(\) at this place"):
        model(**change(parts)[0], num_items_in_batch=16)


def test_after_a_refused_batch_the_next_one_trains_alone() -> None:
    batch, model = batch_and_model("bert", [SCL(gather_across_accumulation=True)])
    parts = rows_of(batch, [8, 8])
    expected = model(**parts[1]).loss.item()
    model.prime(parts)
    with pytest.raises(RuntimeError):
        model(**parts[1], num_items_in_batch=16)
    assert model(**parts[1]).loss.item() == expected


def test_a_group_that_was_left_halfway_is_forgotten() -> None:
    batch, model = batch_and_model("bert", [SCL(gather_across_accumulation=True)])
    parts = rows_of(batch, [8, 8])
    expected = model(**parts[1]).loss.item()
    for _ in model.accumulate(parts):
        break
    assert model(**parts[1]).loss.item() == expected

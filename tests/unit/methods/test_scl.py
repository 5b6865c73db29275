"""SCL inside the step: where it refuses, what it reports and what it says."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from steadytune import SCL, RegularizedModel
from steadytune.encoders import SiteUnavailable
from steadytune.functional import supcon_loss
from steadytune.methods import MethodError
from steadytune.tasks import Classification
from tiny import inputs_of, tiny_batch, tiny_model
from tolerances import ROUNDED, SAME

EXACT = SAME[torch.float32]


def batch_with(labels: list[int]) -> dict[str, Tensor]:
    return {**tiny_batch("bert", rows=len(labels)), "labels": torch.tensor(labels)}


def step(labels: list[int], **settings: Any) -> Any:
    return RegularizedModel(tiny_model("bert", dropout=0.0), [SCL(**settings)])(**batch_with(labels))


def telemetry(labels: list[int], name: str, **settings: Any) -> float:
    return float(step(labels, **settings).telemetry[f"scl/{name}"])


# -- where it cannot act ----------------------------------------------------------------------------------------------


def test_regression_is_refused() -> None:
    with pytest.raises(MethodError, match=r"^scl cannot act on a regression task: it pairs examples of equal class,"):
        RegularizedModel(tiny_model("bert", num_labels=1), [SCL()])


def test_a_frozen_encoder_is_refused() -> None:
    model: Any = tiny_model("bert")
    model.bert.requires_grad_(False)
    with pytest.raises(MethodError, match=r"^scl cannot act on a frozen encoder: its term trains only what lies below"):
        RegularizedModel(model, [SCL()])


def test_a_partly_frozen_encoder_is_accepted() -> None:
    model: Any = tiny_model("bert")
    model.bert.embeddings.requires_grad_(False)
    RegularizedModel(model, [SCL()])(**tiny_batch("bert")).loss.backward()
    assert float(model.bert.encoder.layer[0].output.dense.weight.grad.norm()) > 0


def headless() -> nn.Module:
    model: Any = tiny_model("bert")
    model.classifier = nn.Identity()
    return model


def test_the_vector_before_the_label_map_is_refused_where_there_is_no_such_map() -> None:
    with pytest.raises(SiteUnavailable) as caught:
        RegularizedModel(headless(), [SCL(pooled_source="label_input")], task=Classification(("a", "b")))
    assert str(caught.value) == (
        "scl needs the site 'pooled', which bert lacks: the model has no linear map to labels."
    )


def test_a_refused_model_can_be_wrapped_again() -> None:
    model = tiny_model("bert", num_labels=1)
    with pytest.raises(MethodError):
        RegularizedModel(model, [SCL()])
    RegularizedModel(model, [])


# -- what it contrasts ------------------------------------------------------------------------------------------------


def test_it_contrasts_the_final_state_of_the_first_token_before_any_pooler() -> None:
    model: Any = tiny_model("bert", dropout=0.0)
    data = tiny_batch("bert")
    with torch.no_grad():
        states = model.bert(**inputs_of(data)).last_hidden_state
    expected = supcon_loss(states[:, 0], data["labels"], temperature=0.3)
    found = RegularizedModel(model, [SCL()])(**data).terms["scl"]
    assert float(found) == pytest.approx(float(expected), rel=EXACT)


def test_it_contrasts_the_vector_that_enters_the_label_map_on_request() -> None:
    model: Any = tiny_model("bert", dropout=0.0)
    data = tiny_batch("bert")
    with torch.no_grad():
        vector = model.bert(**inputs_of(data)).pooler_output
    expected = supcon_loss(vector, data["labels"], temperature=0.3)
    found = RegularizedModel(model, [SCL(pooled_source="label_input")])(**data).terms["scl"]
    assert float(found) == pytest.approx(float(expected), rel=EXACT)


def test_it_contrasts_the_last_token_of_xlnet() -> None:
    model: Any = tiny_model("xlnet", dropout=0.0)
    data = tiny_batch("xlnet")
    with torch.no_grad():
        states = model.transformer(**inputs_of(data)).last_hidden_state
    expected = supcon_loss(states[:, -1], data["labels"], temperature=0.3)
    found = RegularizedModel(model, [SCL()])(**data).terms["scl"]
    assert float(found) == pytest.approx(float(expected), rel=EXACT)


@pytest.mark.parametrize("reduction", ["mean", "sum", "mean_valid"])
def test_reduction_and_temperature_reach_the_loss(reduction: Any) -> None:
    model: Any = tiny_model("bert", dropout=0.0)
    data = batch_with([0, 0, 1, 1, 2])
    with torch.no_grad():
        vector = model.bert(**inputs_of(data)).last_hidden_state[:, 0]
    expected = supcon_loss(vector, data["labels"], temperature=0.7, reduction=reduction)
    found = RegularizedModel(model, [SCL(temperature=0.7, reduction=reduction)])(**data).terms["scl"]
    assert float(found) == pytest.approx(float(expected), rel=EXACT)


def test_under_autocast_the_vectors_are_contrasted_in_float32() -> None:
    model: Any = tiny_model("bert", dropout=0.0)
    data, kept = batch_with([0, 0, 1, 1, 2]), []
    model.bert.register_forward_hook(lambda module, args, output: kept.append(output[0][:, 0].detach()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = RegularizedModel(model, [SCL()])(**data).terms["scl"]
    expected = supcon_loss(kept[0].double(), data["labels"], temperature=0.3)
    assert float(found) == pytest.approx(float(expected), rel=ROUNDED[torch.bfloat16])


def test_it_costs_no_pass_of_its_own() -> None:
    passes = step([0, 1, 0, 1]).passes
    assert (passes.forward, passes.activation_gradient, passes.weight_gradient) == (1, 1, 1)


# -- telemetry --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "share"),
    [([0, 0, 1, 2], 2 / 4), ([0, 0, 1, 1], 1.0), ([0, 1, 2], 0.0), ([0, 0, 1, -100], 2 / 3), ([-100, -100, -100], 0.0)],
)
def test_share_of_anchors_with_a_positive_is_over_the_labelled_rows(labels: list[int], share: float) -> None:
    assert telemetry(labels, "anchors_with_positive_fraction") == pytest.approx(share, rel=EXACT)


@pytest.mark.parametrize(
    ("labels", "mean"),
    [([0, 0, 0, 1, 2], (2 + 2 + 2) / 5), ([0, 0, 1, 1], 1.0), ([0, 1, 2], 0.0), ([0, 0, 1, -100], 2 / 3)],
)
def test_positives_per_anchor_is_a_mean_over_the_labelled_rows(labels: list[int], mean: float) -> None:
    assert telemetry(labels, "positives_per_anchor") == pytest.approx(mean, rel=EXACT)


@pytest.mark.parametrize(
    ("reduction", "floor"),
    [  # labels 0 0 0 1 1 2 and one ignored: three anchors with 2 positives, two with 1, one with none
        ("sum", 3 * math.log(2)),
        ("mean", 3 * math.log(2) / 6),
        ("mean_valid", 3 * math.log(2) / 5),
    ],
)
def test_above_floor_is_the_term_less_the_logarithms_of_the_numbers_of_positives(reduction: Any, floor: float) -> None:
    out = step([0, 0, 0, 1, 1, 2, -100], reduction=reduction)
    expected = float(out.terms["scl"]) - floor
    assert float(out.telemetry["scl/above_floor"]) == pytest.approx(expected, rel=EXACT)


def test_above_floor_of_a_batch_without_pairs_is_zero() -> None:
    assert telemetry([0, 1, 2], "above_floor") == 0.0


# -- notices ----------------------------------------------------------------------------------------------------------


def notices(batches: list[list[int]]) -> list[str]:
    wrapper = RegularizedModel(tiny_model("bert"), [SCL()])
    for labels in batches:
        wrapper(**batch_with(labels))
    return wrapper.notices


@pytest.mark.parametrize("labels", [[0], [0, 0]])
def test_fewer_than_three_rows_to_pair_are_said_with_their_number(labels: list[int]) -> None:
    (text,) = notices([labels])
    assert text == (
        f"scl has {len(labels)} row(s) to pair, which gives a loss of 0; use a larger batch per device, "
        "or gather_across_devices or gather_across_accumulation."
    )


def test_too_few_rows_are_said_once() -> None:
    assert len(notices([[0, 0], [0], [0, 0]])) == 1


def test_three_rows_to_pair_are_not_spoken_about() -> None:
    assert notices([[0, 0, 1]]) == []


def test_rows_gathered_over_accumulated_batches_count() -> None:
    wrapper = RegularizedModel(tiny_model("bert"), [SCL(gather_across_accumulation=True)])
    for out in wrapper.accumulate([batch_with([0, 0]), batch_with([1, 0])]):
        out.loss.backward()
    assert wrapper.notices == []


STARVING = (
    "scl: only 0% of the anchors have a positive in their batch, so most of its term pushes apart and pulls nothing "
    "together; use the class-balanced sampler (run.examples_per_class: 2 or more), a larger batch, or a smaller weight."
)


def test_starving_batches_are_spoken_about_after_eight_steps() -> None:
    assert notices([[0, 1, 2]] * 7) == []
    assert notices([[0, 1, 2]] * 8) == [STARVING]


def test_starving_batches_are_spoken_about_when_the_telemetry_is_read() -> None:
    wrapper = RegularizedModel(tiny_model("bert"), [SCL()])
    wrapper(**batch_with([0, 1, 2]))
    assert wrapper.drain_telemetry()["scl/anchors_with_positive_fraction"] == 0.0
    assert wrapper.notices == [STARVING]


def test_starving_batches_are_spoken_about_once_even_if_the_share_changes() -> None:
    wrapper = RegularizedModel(tiny_model("bert"), [SCL()])
    for labels in ([0, 1, 2, 0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 0, 1, 2, -100]):
        wrapper(**batch_with(labels))
    wrapper.drain_telemetry()  # a share of (1 + 0 + 0 + 1/2) / 4
    wrapper(**batch_with([0, 1, 2]))
    wrapper.drain_telemetry()
    assert [text[:22] for text in wrapper.notices] == ["scl: only 38% of the a"]


@pytest.mark.parametrize(("share", "sentences"), [(0.0, 1), (0.49, 1), (0.5, 0), (1.0, 0)])
def test_half_of_the_anchors_with_a_positive_are_enough(share: float, sentences: int) -> None:
    assert len(SCL().judge({"anchors_with_positive_fraction": share})) == sentences


def test_telemetry_starts_anew_after_it_is_read() -> None:
    wrapper = RegularizedModel(tiny_model("bert"), [SCL()])
    wrapper(**batch_with([0, 1, 2]))
    wrapper.drain_telemetry()
    wrapper(**batch_with([0, 0, 0]))
    assert wrapper.drain_telemetry()["scl/anchors_with_positive_fraction"] == 1.0

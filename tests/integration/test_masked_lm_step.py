"""A training step of masked-LM has the gradient of the plain model, and methods see masked places only."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from steadytune import ASA, RegularizedModel
from steadytune.functional import keyed_seed
from steadytune.methods import Method
from tiny import gradients, inputs_of, rows_of
from tinylm import FAMILIES, masked_batch, tiny_masked_model
from tolerances import SAME

EXACT: dict[str, float] = {"rtol": SAME[torch.float64], "atol": SAME[torch.float64]}


def own_gradients(model: nn.Module, batch: dict[str, Tensor], methods: tuple[Method, ...] = ()) -> dict[str, Tensor]:
    """Of one step of ours."""
    wrapper = RegularizedModel(model, methods)
    wrapper(**batch).loss.backward()
    wrapper.close()
    return gradients(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_is_that_of_the_plain_model_with_scores_everywhere(family: str) -> None:
    ours = tiny_masked_model(family, dropout=0.0, dtype=torch.float64)
    theirs: Any = tiny_masked_model(family, dropout=0.0, dtype=torch.float64)
    batch = masked_batch(family)
    scores = theirs(**inputs_of(batch)).logits  # some families round their own loss to float32
    cross_entropy(scores.flatten(0, 1), batch["labels"].flatten(), ignore_index=-100).backward()
    found, expected = own_gradients(ours, batch), gradients(theirs)
    assert found.keys() == expected.keys() and found
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], **EXACT, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("methods", [(), (ASA(temperature=0.1),)], ids=["plain", "asa"])
def test_the_gradient_does_not_depend_on_how_a_batch_is_split(methods: tuple[Method, ...]) -> None:
    whole = masked_batch("bert", rows=8)

    def of_parts(sizes: list[int]) -> dict[str, Tensor]:
        model = tiny_masked_model("bert", dropout=0.0, dtype=torch.float64)
        wrapper = RegularizedModel(model, methods)
        for output in wrapper.accumulate(rows_of(whole, sizes)):
            output.loss.backward()
            assert all(term > 0 for term in output.terms.values())
        wrapper.close()
        return gradients(model)

    one, three = of_parts([8]), of_parts([1, 4, 3])
    for name, gradient in one.items():
        torch.testing.assert_close(three[name], gradient, **EXACT, msg=lambda text, name=name: f"{name}: {text}")


def test_the_divergence_of_two_passes_is_taken_over_the_masked_places() -> None:
    model, batch = tiny_masked_model("bert", dtype=torch.float64), masked_batch("bert")
    masked = batch["labels"] != -100
    scores = []
    for seed in (7, keyed_seed(0, "dropout", "asa", 0, 0)):
        torch.manual_seed(seed)
        scores.append(model(**inputs_of(batch)).logits[masked].log_softmax(dim=-1))
    one, other = scores
    per_place = 0.5 * ((one.exp() - other.exp()) * (one - other)).sum(dim=-1)
    torch.manual_seed(7)
    wrapper = RegularizedModel(model, [ASA(adversary="none")])
    term = wrapper(**batch).terms["asa"]
    wrapper.close()
    assert per_place.shape == (6,) and float(per_place.mean().detach()) > 0
    torch.testing.assert_close(term, per_place.mean().detach(), **EXACT)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra", "deberta-v2", "modernbert"])
def test_an_adversary_masks_and_learns(family: str) -> None:
    model, batch = tiny_masked_model(family), masked_batch(family, padded=False)
    del batch["attention_mask"]  # packed sequences have none
    wrapper = RegularizedModel(model, [ASA(temperature=0.1)])
    output = wrapper(**batch)
    output.loss.backward()
    assert 0 < output.telemetry["asa/keep_rate"] < 1 and output.terms["asa"] > 0
    learned = [p.grad for p in wrapper.method_modules.parameters()]
    assert all(gradient is not None for gradient in learned) and any(gradient.abs().sum() > 0 for gradient in learned)
    wrapper.close()

"""Masked-LM: loss, divergence and scores are means over the masked places."""

import math

import pytest
import torch

from steadytune.tasks import MaskedLM, TaskError, infer_task
from tinylm import FAMILIES, masked_batch, tiny_masked_model
from tolerances import SAME

CLOSE = {"rel": SAME[torch.float64]}
LOGITS = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
OTHER = torch.tensor([[0.0, 2.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
LABELS = torch.tensor([0, 2])


def test_items_are_the_masked_places_in_order_and_the_head_reads_no_others() -> None:
    batch = {"labels": torch.tensor([[-100, 5, -100], [6, -100, 7]])}
    items = MaskedLM().items(batch)
    assert "labels" not in batch
    assert items.labels.tolist() == [5, 6, 7]
    assert items.head_reads is not None and items.head_reads.tolist() == [[False, True, False], [True, False, True]]


def test_the_loss_is_the_mean_surprise_over_the_masked_places() -> None:
    first = math.log(math.exp(2) + 2) - 2
    second = math.log(math.e + 2)
    assert float(MaskedLM().loss(LOGITS, LABELS)) == pytest.approx((first + second) / 2, **CLOSE)


def test_a_batch_without_a_masked_place_has_no_loss() -> None:
    empty = MaskedLM().loss(LOGITS[:0].requires_grad_(), LABELS[:0])
    assert empty.item() == 0 and empty.requires_grad


def test_the_divergence_is_the_mean_of_both_directions_over_the_masked_places() -> None:
    p = torch.tensor([math.exp(2), 1, 1], dtype=torch.float64) / (math.exp(2) + 2)
    q = p[[1, 0, 2]]
    both = 0.5 * (p * (p / q).log()).sum() + 0.5 * (q * (q / p).log()).sum()
    assert float(MaskedLM().divergence(LOGITS, OTHER)) == pytest.approx(float(both) / 2, **CLOSE)
    assert float(MaskedLM().divergence(LOGITS, OTHER, "sum")) == pytest.approx(float(both), **CLOSE)
    assert float(MaskedLM().divergence(LOGITS, OTHER, "directed")) == pytest.approx(
        float((p * (p / q).log()).sum()) / 2, **CLOSE
    )


def test_scores_are_the_share_of_right_tokens_the_mean_surprise_and_its_exponential() -> None:
    task = MaskedLM()
    scores = task.scores(task.judged(LOGITS, LABELS), LABELS.tolist())
    loss = float(task.loss(LOGITS, LABELS))
    assert scores == {"accuracy": 0.5, "loss": pytest.approx(loss), "perplexity": pytest.approx(math.exp(loss))}
    assert task.decode(task.judged(LOGITS, LABELS)) == [{"token": 0}, {"token": 1}]


def test_one_label_per_text_is_refused() -> None:
    with pytest.raises(TaskError, match=r"^masked_lm takes one integer per token, \(batch, tokens\); got torch.int64"):
        MaskedLM().items({"labels": LABELS})


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_with_such_a_head_says_so(family: str) -> None:
    assert isinstance(infer_task(tiny_masked_model(family)), MaskedLM)
    assert MaskedLM().items(masked_batch(family)).labels.shape == (6,)

"""Texts of several labels and tagged words in training: gradients do not depend on how a batch is split, and without
methods it is the stock Trainer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from transformers import Trainer

from steadytune import ASA, LNSR, R3F, HyPe, RDrop, RegularizedTrainer
from steadytune.data import PaddingCollator
from steadytune.methods.contract import Method
from steadytune.objective import RegularizedModel
from steadytune.tasks import Encoded, Task, infer_task
from steadytune.training.inference import predict
from tiny import PAD, gradients, rows_of, tiny_batch, tiny_model
from tinytrainer import EXACT, trained, weights_of
from tolerances import SAME

pytestmark = pytest.mark.usefixtures("imports_stay_out_of_garbage_collection")

TASKS = ("multi_label", "token_classification")
SPLITS = [[4, 4, 4, 4], [8, 8], [7, 5, 4], [1, 15]]
CLASSES = 3


def model_of(task: str, *, dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> Any:
    """A tiny BERT with the head of the task."""
    usual = tiny_model(
        "bert", num_labels=CLASSES, dropout=dropout, depth=2, dtype=dtype, problem_type="multi_label_classification"
    )
    if task == "multi_label":
        return usual
    config: Any = usual.config
    config.problem_type = None
    tagger = transformers.AutoModelForTokenClassification.from_config(config)
    tagger.load_state_dict({name: value for name, value in usual.state_dict().items() if "pooler" not in name})
    return tagger.to(dtype).train()


def batch_of(task: str, rows: int = 16) -> dict[str, Tensor]:
    """Texts of several lengths. In each but the first, which has none, from one to all words are tagged."""
    batch, draw = tiny_batch("bert", rows=rows), torch.Generator().manual_seed(7)
    if task == "multi_label":
        return {**batch, "labels": torch.randint(2, (rows, CLASSES), generator=draw).double()}
    shape = batch["input_ids"].shape
    tags = torch.randint(CLASSES, shape, generator=draw)
    share = torch.arange(rows)[:, None] % 5 / 4  # of the words of a text
    tagged = (torch.rand(shape, generator=draw) <= share) & (batch["input_ids"] != PAD)
    tagged[:, 1] = True
    tagged[:, 0] = tagged[0] = False
    return {**batch, "labels": torch.where(tagged, tags, -100)}


# -- splits of a batch ------------------------------------------------------------------------------------------------


def noise_of_the_states(states: Tensor, scale: float, *_: object) -> Tensor:
    """In place of a draw: the same noise for the same states, in whichever batch they stand."""
    return scale * torch.sin(1e3 * states.detach())


class ReplayedDropout(nn.Module):
    """Drops what the states say, another part of them in every second pass."""

    p = 0.0  # of the attention, which draws for itself

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.passes = 0
        model.base_model.register_forward_pre_hook(self._count)  # type: ignore[operator, union-attr]

    def _count(self, module: nn.Module, args: object) -> None:
        self.passes += 1

    def forward(self, states: Tensor) -> Tensor:
        return states * (torch.sin(1e3 * states.detach() + self.passes % 2) > -0.8)


def with_replayed_dropout(model: nn.Module) -> nn.Module:
    replayed = ReplayedDropout(model)
    for module in [module for module in model.modules() if type(module) is not ReplayedDropout]:
        for name, part in module.named_children():
            if isinstance(part, nn.Dropout):
                setattr(module, name, replayed)
    return model


METHODS: Mapping[str, Method | None] = {
    "plain": None,
    "hype": HyPe(noise_std=1e-2),
    "rdrop": RDrop(weight=0.5),
    "asa": ASA(weight=0.7),
    "lnsr": LNSR(weight=2.0),
    "r3f": R3F(weight=1.0, noise_std=1e-2),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("task", TASKS)
def test_a_split_batch_has_the_gradient_of_the_whole(task: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("hype", "lnsr", "r3f"):
        monkeypatch.setattr(f"steadytune.methods.{module}.draw_noise", noise_of_the_states)
    plain, method = model_of(task), METHODS[name]
    if name == "rdrop":
        plain = with_replayed_dropout(plain)
    batch = batch_of(task)
    model = RegularizedModel(plain, [] if method is None else [method])
    whole = model(**batch)
    whole.loss.backward()
    expected = gradients(model)
    assert method is None or name == "hype" or whole.terms[name] > 0
    for split in SPLITS:
        model.zero_grad()
        total = 0.0
        for output in model.accumulate(rows_of(batch, split)):
            output.loss.backward()
            total += output.loss.item()
        assert total == pytest.approx(whole.loss.item(), abs=SAME[torch.float64]), split
        found = gradients(model)
        assert found.keys() == expected.keys()
        for key, gradient in expected.items():
            torch.testing.assert_close(found[key], gradient, **EXACT, msg=f"{split} {key}")


def test_where_words_are_tagged_a_term_that_is_a_mean_over_texts_counts_them_by_their_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("steadytune.methods.lnsr.draw_noise", noise_of_the_states)
    batch = {name: value[:4] for name, value in batch_of("token_classification").items()}
    model = RegularizedModel(model_of("token_classification"), [LNSR()])
    each = torch.stack([model(**one).terms["lnsr"] for one in rows_of(batch, [1] * 4)])
    words = (batch["labels"] != -100).sum(dim=1)
    assert words[0] == 0 and words[1] != words[2]
    expected = (words[1:] * each[1:]).sum() / words.sum()
    torch.testing.assert_close(model(**batch).terms["lnsr"], expected, **EXACT)


# -- the stock Trainer ------------------------------------------------------------------------------------------------


def mean_over_the_group(task: str) -> Any:
    """What the stock Trainer must be told, which else sums the means of the parts."""

    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        if task == "multi_label":
            return binary_cross_entropy_with_logits(outputs.logits, labels, reduction="sum") / num_items_in_batch
        return cross_entropy(outputs.logits.flatten(0, 1), labels.flatten(), reduction="sum") / num_items_in_batch

    return loss


def assert_close_weights(one: nn.Module, other: nn.Module) -> None:
    found, expected = weights_of(one), weights_of(other)
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, **EXACT, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("task", TASKS)
def test_without_methods_training_is_that_of_the_stock_trainer(task: str, accumulation: int, tmp_path: Path) -> None:
    rows, models = batch_of(task), []
    for kind in (Trainer, RegularizedTrainer):
        model = model_of(task, dropout=0.1)
        models.append(model)
        own = {"compute_loss_func": mean_over_the_group(task)} if kind is Trainer and accumulation > 1 else {}
        trained(
            tmp_path,
            kind=kind,
            of={"model": model, "rows": rows, **own},
            max_steps=5,
            gradient_accumulation_steps=accumulation,
            train_sampling_strategy="random",
        )
    assert_close_weights(*models)
    untrained = weights_of(model_of(task))
    assert not torch.equal(untrained["classifier.weight"], models[0].classifier.weight)


# -- prediction -------------------------------------------------------------------------------------------------------


def encoded(task: Task, batch: Mapping[str, Tensor]) -> Encoded:
    """The rows of a batch, without padding; every token is a word."""
    tokens = [ids[ids != PAD].tolist() for ids in batch["input_ids"]]
    places = [list(range(len(row))) for row in tokens] if task.labels_by_token else None
    return Encoded(tuple(map(str, range(len(tokens)))), tokens, None, None, 0, places=places)


@pytest.mark.parametrize("name", TASKS)
def test_predictions_do_not_depend_on_the_texts_beside(name: str) -> None:
    model = model_of(name)
    task = infer_task(model)
    rows = encoded(task, batch_of(name))
    words: Any = transformers.BertTokenizer(vocab={str(i): i for i in range(40)}, pad_token="1")
    collator = PaddingCollator(words, task.label_dtype, labels_by_token=task.labels_by_token)
    alone = predict(model, task, rows, collator, batch_size=1).rows
    together = predict(model, task, rows, collator, batch_size=16).rows
    if name == "token_classification":
        assert alone == together
        assert [len(row) for row in alone] == rows.lengths
    else:
        np.testing.assert_allclose(together, alone, rtol=SAME[torch.float32], atol=SAME[torch.float32])

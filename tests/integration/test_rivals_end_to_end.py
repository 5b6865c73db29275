"""Whole runs of the rivals: what is exported is plain and was scored; a stopped run ends like an unbroken one."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from steadytune.records import RunRecord
from steadytune.training import fit as fit_module
from steadytune.training.fit import Progress, fit
from tolerances import SAME
from toyrun import recipe_of, run_of, write_data, write_model

pytestmark = pytest.mark.usefixtures("imports_stay_out_of_garbage_collection")

RECIPES = (
    *("rdrop", "r3f", "r4f", "fgm", "pgd", "freelb", "smart", "vat", "mixout", "child_tuning", "child-tuning-f"),
    *("reinit", "l2sp", "l2sp-penalty", "llrd", "averaging", "swa", "label_smoothing", "neftune", "noisytune", "topk"),
    *("recadam", "sam", "asam", "tmix", "lora", "strong", "lora+averaging"),
)
WITH_MEMORY = ("r4f", "smart", "mixout", "child_tuning", "l2sp", "recadam", "swa", "lora+averaging", "strong", "reinit")
"""Those that carry something from step to step, or change the model before the first one."""


def settings_of(name: str) -> dict[str, Any]:
    return {"topk__layers": 1} if name == "topk" else {}  # the toy model has two


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("toy")
    return write_data(folder / "data"), write_model(folder / "encoder")


def config_of(name: str, where: tuple[Path, Path], **run: Any) -> Any:
    return run_of(*where, recipe_of(name, **settings_of(name)), **{"min_steps": 8, "epochs": 0.5, **run})


def stopped(config: Any, output: Path, step: int) -> None:
    def watch(progress: Progress) -> None:
        if progress.phase == "train" and progress.step == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(config, output, watch=watch)


@pytest.mark.parametrize("name", RECIPES)
def test_the_exported_model_is_plain_and_gives_the_recorded_scores(
    name: str, where: tuple[Path, Path], tmp_path: Path
) -> None:
    record = fit(config_of(name, where), tmp_path / "run")
    assert record.status == "done"
    table = pd.read_parquet(tmp_path / "run" / "predictions.parquet").query("split == 'test'")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model").eval()
    plain = AutoModelForSequenceClassification.from_pretrained(where[1], num_labels=3)
    assert model.state_dict().keys() == plain.state_dict().keys()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    texts = pd.read_csv(where[0] / "test.csv")["text"].tolist()
    with torch.no_grad():
        found = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    recorded = torch.tensor(np.stack(table["logits"].to_numpy()))
    torch.testing.assert_close(found, recorded, rtol=SAME[torch.float32], atol=SAME[torch.float32])


@pytest.mark.parametrize("name", WITH_MEMORY)
def test_a_stopped_run_ends_with_the_weights_of_an_unbroken_one(
    name: str, where: tuple[Path, Path], tmp_path: Path
) -> None:
    config = config_of(name, where)
    fit(config, tmp_path / "whole")
    stopped(config, tmp_path / "broken", 6)
    record = fit(config, tmp_path / "broken")
    assert record.resumed_from_step == 4
    whole, broken = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("whole", "broken"))
    assert [tensor for tensor in whole if not torch.equal(whole[tensor], broken[tensor])] == []


def test_the_strong_baseline_takes_three_times_the_steps(where: tuple[Path, Path], tmp_path: Path) -> None:
    record = fit(config_of("strong", where), tmp_path / "run")
    assert record.cost is not None and record.cost.optimizer_steps == 24


@pytest.mark.parametrize(
    ("averaged", "last", "kept"), [(0.6, 0.5, "averaged"), (0.5, 0.6, "last"), (0.5, 0.5, "averaged")]
)
def test_validation_chooses_between_the_last_weights_and_their_average(
    averaged: float, last: float, kept: str, where: tuple[Path, Path], tmp_path: Path
) -> None:
    record, trainer = with_scores([averaged, last], config_of("averaging", where), tmp_path / "run")
    assert [text for text in record.notices if text.startswith("validation accuracy")] == [
        f"validation accuracy is {averaged:.3f} with averaged and {last:.3f} with the last weights; the {kept} weights "
        "are kept."
    ]
    exported = load_file(tmp_path / "run" / "model" / "model.safetensors")["classifier.weight"]
    in_buffer = next(value for name, value in trainer.state.items() if name.endswith("classifier/weight"))
    assert not torch.equal(exported, in_buffer)  # what is not kept lies in the buffer
    assert torch.equal(trainer.average if kept == "averaged" else trainer.last, exported)


class Spied:
    """What the wrapper held when training ended."""

    average: torch.Tensor
    last: torch.Tensor
    state: dict[str, torch.Tensor]


def with_scores(scores: list[float], config: Any, output: Path) -> tuple[RunRecord, Spied]:
    """A run in which the first two validations have these scores."""
    spied, left, choose = Spied(), list(scores), fit_module._choose_weights

    def choosing(config: Any, ready: Any, trainer: Any) -> None:
        spied.average = ready.model.classifier.weight.detach().clone()
        trainer.regularized_model.swap_averages()
        spied.last = ready.model.classifier.weight.detach().clone()
        trainer.regularized_model.swap_averages()
        real = ready.task.scores
        with patch.object(ready.task, "scores", lambda *_: {**real(*_), "accuracy": left.pop(0)}):
            choose(config, ready, trainer)
        spied.state = dict(trainer.regularized_model.method_modules.state_dict())

    with patch.object(fit_module, "_choose_weights", choosing):
        return fit(config, output), spied

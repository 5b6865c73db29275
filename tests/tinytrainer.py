"""A tiny `Trainer`: rows, arguments, and a spy on what its steps did."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from steadytune import RegularizedTrainer
from steadytune.methods.contract import Method
from tiny import gradients, tiny_batch, tiny_model
from tolerances import SAME

SPLITS = {"16 x 1": (16, 1), "4 x 4": (4, 4), "2 x 8": (2, 8)}
"""Rows of a batch, and batches of a step."""

EXACT: dict[str, float] = {"rtol": SAME[torch.float64], "atol": SAME[torch.float64]}
CLOSE: dict[str, float] = {"rel": SAME[torch.float32], "abs": SAME[torch.float32]}


class Rows(Dataset[dict[str, Tensor]]):
    """The rows of one tiny batch."""

    def __init__(self, batch: Mapping[str, Tensor]) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return len(self.batch["labels"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: value[index] for name, value in self.batch.items()}


class Spy(TrainerCallback):
    """Keeps the gradients and the weights of every step, and every model that a callback was given."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, Tensor]] = []
        self.weights: list[dict[str, Tensor]] = []
        self.models: list[nn.Module] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.models.append(model)
        self.gradients.append(gradients(model))

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.models.append(model)
        self.weights.append(weights_of(model))

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.models.append(model)

    def on_log(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.models.append(model)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.models.append(model)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_weights(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys() and one
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def differ(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return any(not torch.equal(one[name], other[name]) for name in one)


def assert_close_gradients(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys() and one
    for name, gradient in one.items():
        torch.testing.assert_close(gradient, other[name], **EXACT, msg=lambda text, name=name: f"{name}: {text}")


def arguments(folder: Path, **given: Any) -> TrainingArguments:
    usual: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "max_grad_norm": 1e9,
        "logging_steps": 1,
        "save_strategy": "no",
        "train_sampling_strategy": "sequential",
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "report_to": "none",
        "disable_tqdm": True,
    }
    return TrainingArguments(**{**usual, **given})


def trainer_of(
    kind: type[Trainer],
    folder: Path,
    model: nn.Module | None,
    rows: Mapping[str, Tensor],
    *,
    of: Any = None,
    **given: Any,
) -> Trainer:
    """A trainer over these rows; `of` holds what goes to the trainer itself, the rest goes to its arguments."""
    trainer = kind(model=model, args=arguments(folder, **given), train_dataset=Rows(rows), **(of or {}))
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def one_step(
    kind: type[Trainer], folder: Path, model: nn.Module, rows: Mapping[str, Tensor], split: str, **of: Any
) -> tuple[dict[str, Tensor], float]:
    """Gradients and logged loss of one step at learning rate 0, so that the model can be used again."""
    batch, groups = SPLITS[split]
    spy = Spy()
    trainer = trainer_of(
        kind,
        folder,
        model,
        rows,
        of={**of, "callbacks": [spy]},
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=groups,
        max_steps=1,
        learning_rate=0.0,
    )
    trainer.train()
    return spy.gradients[0], trainer.state.log_history[0]["loss"]


def trained(
    folder: Path, methods: Sequence[Method] = (), *, kind: Any = RegularizedTrainer, of: Any = None, **given: Any
) -> tuple[Trainer, Spy]:
    """A tiny BERT with dropout after a few steps."""
    spy, own = Spy(), {**(of or {})}
    model, rows = own.pop("model", None), own.pop("rows", tiny_batch("bert", rows=16))
    if model is None and "model_init" not in own:
        model = tiny_model("bert")
    if kind is RegularizedTrainer:
        own["methods"] = methods
    own["callbacks"] = [spy, *own.get("callbacks", ())]
    trainer = trainer_of(kind, folder, model, rows, of=own, **{"max_steps": 6, **given})
    trainer.train()
    return trainer, spy

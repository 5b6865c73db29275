"""Tiny random models that choose among answers or find them in a text, and batches for them."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn

from steadytune.tasks import MultipleChoice, QuestionAnswering
from tiny import tiny_batch, tiny_model

AnswerTask = Literal["multiple_choice", "question_answering"]
TASKS: tuple[AnswerTask, ...] = ("multiple_choice", "question_answering")
UNEQUAL = (3, 2, 4, 2, 3, 4, 2, 3)
"""Choices of eight rows."""


def answer_model(
    family: str, task: AnswerTask, *, dropout: float = 0.0, dtype: torch.dtype = torch.float64, depth: int = 3
) -> nn.Module:
    """A random model with the head of a task, in training mode; the same weights for the same arguments."""
    kind = MultipleChoice if task == "multiple_choice" else QuestionAnswering
    outputs = kind().head_config()["num_labels"]
    config: Any = tiny_model(family, num_labels=outputs, dropout=dropout, depth=depth).config
    for name in ("qa_dropout", "summary_last_dropout"):  # rates that some heads have beside the encoder's
        if hasattr(config, name):
            setattr(config, name, dropout)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model: nn.Module = getattr(transformers, kind.model_class).from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.15 * torch.randn_like(parameter))
    return model.to(dtype).train()


def choice_batch(family: str, choices: Sequence[int] = (3,) * 8, *, padded: bool = True) -> dict[str, Tensor]:
    """Rows with so many choices; one with fewer than others is filled up with other tokens, and marked -100."""
    rows, most = len(choices), max(choices)
    batch = tiny_batch(family, rows=rows * most, padded=padded)
    inputs = {name: value.unflatten(0, (rows, most)) for name, value in batch.items() if name != "labels"}
    labels = torch.zeros(rows, most, dtype=torch.long)
    for row, count in enumerate(choices):
        labels[row, row % count] = 1
        labels[row, count:] = -100
    return {**inputs, "labels": labels}


def place_batch(family: str, rows: int = 8, *, padded: bool = True) -> dict[str, Tensor]:
    """Texts with the start and the end of their answers, some at the token that means "no answer"."""
    batch = tiny_batch(family, rows=rows, padded=padded)
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    places = [(0, 0) if row % 4 == 3 else (1 + row % 3, min(2 + row % 5, size - 1)) for row, size in enumerate(lengths)]
    return {**batch, "labels": torch.tensor(places)}


def answer_batch(family: str, task: AnswerTask) -> dict[str, Tensor]:
    """Eight rows with padding, which differ in their number of choices."""
    return choice_batch(family, UNEQUAL) if task == "multiple_choice" else place_batch(family)


def alone(batch: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    """One row as transformers takes it: its own choices, no padding, and labels under its names."""
    one = {name: value[row : row + 1] for name, value in batch.items()}
    labels = one.pop("labels")[0]
    if one["input_ids"].ndim == 2:
        inputs = {name: value[:, one["attention_mask"][0].bool()] for name, value in one.items()}
        return {**inputs, "start_positions": labels[:1], "end_positions": labels[1:]}
    return {**{name: value[:, labels != -100] for name, value in one.items()}, "labels": labels.argmax()[None]}

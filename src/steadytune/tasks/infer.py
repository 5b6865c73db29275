"""Which task a model stands for."""

from typing import Any

from torch import nn

from steadytune.tasks.classification import Classification
from steadytune.tasks.regression import Regression
from steadytune.tasks.task import Task, TaskError


def infer_task(model: nn.Module) -> Task:
    """The task that a model's head and configuration stand for.

    Args:
        model: a Hugging Face model for sequence classification.
    Raises:
        TaskError: the head is of another kind.
    """
    outer: Any = model
    inner = outer.get_base_model() if hasattr(outer, "get_base_model") else outer  # PEFT
    config = inner.config
    kind = type(inner).__name__
    if not kind.endswith("ForSequenceClassification"):
        raise TaskError(
            f"steadytune cannot infer the task of {kind}; give task=, or use a model for sequence classification."
        )
    problem = config.problem_type or ("regression" if config.num_labels == 1 else "single_label_classification")
    if problem == "regression" and config.num_labels == 1:
        return Regression()
    if problem == "single_label_classification":
        return Classification(tuple(config.id2label[i] for i in range(config.num_labels)))
    raise TaskError(f"steadytune has no task for problem_type {problem!r} with {config.num_labels} outputs yet.")

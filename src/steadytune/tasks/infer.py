"""Which task a model or a name stands for."""

from typing import Any

from torch import nn

from steadytune.tasks.classification import Classification
from steadytune.tasks.features import TaskError
from steadytune.tasks.masked_lm import MaskedLM
from steadytune.tasks.multi_label import MultiLabel
from steadytune.tasks.multiple_choice import MultipleChoice
from steadytune.tasks.question_answering import QuestionAnswering
from steadytune.tasks.regression import Regression
from steadytune.tasks.task import Task
from steadytune.tasks.token_classification import TokenClassification


def infer_task(model: nn.Module) -> Task:
    """The task that a model's head and configuration stand for.

    Args:
        model: a Hugging Face model with a task head.
    Raises:
        TaskError: the head is of another kind.
    """
    outer: Any = model
    inner = outer.get_base_model() if hasattr(outer, "get_base_model") else outer  # PEFT
    config = inner.config
    kind = type(inner).__name__
    names = tuple(config.id2label[i] for i in range(config.num_labels))
    if kind.endswith("ForTokenClassification"):
        return TokenClassification(names)
    if kind.endswith("ForMultipleChoice"):
        return MultipleChoice()
    if kind.endswith("ForMaskedLM"):
        return MaskedLM()
    if "ForQuestionAnswering" in kind:
        return QuestionAnswering(getattr(config, "allow_empty_answer", False))
    if not kind.endswith("ForSequenceClassification"):
        raise TaskError(
            f"steadytune cannot infer the task of {kind}; give task=, or use a model for classification of texts or "
            "tokens, multiple choice, question answering or masked tokens."
        )
    problem = config.problem_type or ("regression" if config.num_labels == 1 else "single_label_classification")
    if problem == "regression" and config.num_labels == 1:
        return Regression()
    if problem == "single_label_classification":
        return Classification(names)
    if problem == "multi_label_classification":
        return MultiLabel(names)
    raise TaskError(f"steadytune has no task for problem_type {problem!r} with {config.num_labels} outputs.")


def task_of(kind: str, label_names: tuple[str, ...], metric: str | None, *, allow_empty: bool = False) -> Task:
    """The task of a data set.

    Args:
        kind: name of the task.
        label_names: names of the classes or tags.
        metric: what the data set's authors report, in their words.
        allow_empty: some questions have no answer.
    """
    words = (metric or "").lower()
    if kind == Regression.name:
        return Regression()
    if kind == MultiLabel.name:
        return MultiLabel(label_names)
    if kind == TokenClassification.name:
        return TokenClassification(label_names)
    if kind == MultipleChoice.name:
        return MultipleChoice()
    if kind == QuestionAnswering.name:
        return QuestionAnswering(allow_empty)
    if words.startswith("matthews"):
        return Classification(label_names, metric="matthews")
    return Classification(label_names, metric="macro_f1" if words.startswith("macro f1") else "accuracy")

"""Which task a model stands for is read from its head and its configuration."""

from typing import Any

import pytest
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForMultipleChoice,
    AutoModelForNextSentencePrediction,
    AutoModelForQuestionAnswering,
    AutoModelForTokenClassification,
)

from steadytune.tasks import (
    Classification,
    MultiLabel,
    MultipleChoice,
    QuestionAnswering,
    Regression,
    TaskError,
    TokenClassification,
    infer_task,
)
from tiny import tiny_model


def test_one_output_is_regression() -> None:
    assert isinstance(infer_task(tiny_model("bert", num_labels=1, depth=1)), Regression)


def test_several_outputs_are_classes_with_the_names_of_the_model() -> None:
    model = tiny_model("bert", num_labels=3, depth=1)
    model.config.id2label = {0: "bad", 1: "fair", 2: "good"}
    task = infer_task(model)
    assert isinstance(task, Classification) and task.label_names == ("bad", "fair", "good")


@pytest.mark.parametrize(
    ("problem", "outputs", "task"),
    [
        ("regression", 1, Regression),
        ("single_label_classification", 2, Classification),
        ("multi_label_classification", 3, MultiLabel),
    ],
)
def test_a_problem_type_that_is_written_down_is_followed(problem: str, outputs: int, task: type) -> None:
    assert isinstance(infer_task(tiny_model("bert", num_labels=outputs, problem_type=problem, depth=1)), task)


def test_a_problem_without_a_task_is_refused() -> None:
    with pytest.raises(TaskError) as caught:
        infer_task(tiny_model("bert", num_labels=3, problem_type="regression", depth=1))
    assert str(caught.value) == "steadytune has no task for problem_type 'regression' with 3 outputs."


@pytest.mark.parametrize(
    ("load", "task"),
    [
        (AutoModelForTokenClassification, TokenClassification),
        (AutoModelForMultipleChoice, MultipleChoice),
        (AutoModelForQuestionAnswering, QuestionAnswering),
    ],
)
def test_a_head_of_another_kind_says_its_task(load: Any, task: type) -> None:
    assert isinstance(infer_task(load.from_config(tiny_model("bert", depth=1).config)), task)


def test_whether_an_answer_may_be_empty_stands_in_the_configuration() -> None:
    config = tiny_model("bert", depth=1).config
    config.allow_empty_answer = True
    task = infer_task(AutoModelForQuestionAnswering.from_config(config))
    assert isinstance(task, QuestionAnswering) and task.allow_empty


def test_one_class_alone_is_refused() -> None:
    with pytest.raises(TaskError, match="classification needs at least two classes"):
        infer_task(tiny_model("bert", num_labels=1, problem_type="single_label_classification", depth=1))


@pytest.mark.parametrize(
    ("load", "name"), [(AutoModel, "BertModel"), (AutoModelForNextSentencePrediction, "BertForNextSentencePrediction")]
)
def test_another_head_is_refused_by_its_name(load: type, name: str) -> None:
    model: nn.Module = load.from_config(tiny_model("bert", depth=1).config)  # type: ignore[attr-defined]
    with pytest.raises(TaskError, match=f"^steadytune cannot infer the task of {name}; give task="):
        infer_task(model)

"""Tasks: tokens, loss, metrics and decoding, one module each."""

from steadytune.tasks.classification import Classification
from steadytune.tasks.features import Encoded, TaskError, encode_texts
from steadytune.tasks.infer import infer_task, task_of
from steadytune.tasks.masked_lm import MaskedLM
from steadytune.tasks.multi_label import MultiLabel
from steadytune.tasks.multiple_choice import MultipleChoice
from steadytune.tasks.question_answering import QuestionAnswering
from steadytune.tasks.regression import Regression
from steadytune.tasks.task import Items, Task
from steadytune.tasks.token_classification import TokenClassification

__all__ = [
    "Classification",
    "Encoded",
    "Items",
    "MaskedLM",
    "MultiLabel",
    "MultipleChoice",
    "QuestionAnswering",
    "Regression",
    "Task",
    "TaskError",
    "TokenClassification",
    "encode_texts",
    "infer_task",
    "task_of",
]

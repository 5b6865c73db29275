"""Tasks: loss, metrics and decoding, one module each."""

from steadytune.tasks.classification import Classification
from steadytune.tasks.infer import infer_task
from steadytune.tasks.regression import Regression
from steadytune.tasks.task import Task, TaskError

__all__ = ["Classification", "Regression", "Task", "TaskError", "infer_task"]

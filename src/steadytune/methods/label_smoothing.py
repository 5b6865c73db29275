"""Targets that leave a share of their mass to all classes. Card: label_smoothing.md."""

import copy
from dataclasses import dataclass
from typing import ClassVar

from steadytune.encoders import Edits
from steadytune.methods.contract import Method, MethodError, Pass, setting
from steadytune.tasks import Classification, Task


@dataclass(frozen=True, kw_only=True)
class LabelSmoothing(Method):
    """Cross-entropy with soft targets, in every pass that carries the label loss (Szegedy et al. 2016)."""

    key: ClassVar[str] = "label_smoothing"

    amount: float = setting(
        0.1, "s, share of the target mass that is spread evenly over all classes; below 1", low=0, source="Szegedy 2016"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.amount >= 1:
            raise MethodError(
                f"label_smoothing.amount must be a number >= 0 and below 1, or nothing is left of the labels; got "
                f"{self.amount!r}."
            )

    @property
    def active(self) -> bool:
        """Whether the targets are smoothed."""
        return self.amount > 0

    def training_task(self, task: Task) -> Task:
        """The same classification with smoothed targets.

        Args:
            task: what is trained.
        Raises:
            MethodError: a text does not have one class, or the task has a loss of its own or smoothed targets.
        """
        if not isinstance(task, Classification):
            raise MethodError(
                f"label_smoothing cannot act on a {task.name} task: it softens the class of a text, and here a text "
                "does not have one class; leave it out."
            )
        if task.label_smoothing > 0:
            raise MethodError(
                f"label_smoothing finds a task whose targets are smoothed by {task.label_smoothing:g} already; set it "
                "in one place."
            )
        if getattr(task.loss, "__func__", None) is not Classification.loss:
            raise MethodError(
                "label_smoothing cannot reach into a loss function of your own; smooth there, or leave it out."
            )
        smoothed = copy.copy(task)
        smoothed.label_smoothing = self.amount
        return smoothed

    def edits(self, now: Pass) -> Edits | None:
        """None; telemetry keeps the amount beside the task loss, which is not comparable across amounts.

        Args:
            now: the pass that is about to run.
        """
        now.report("amount", self.amount)
        return None

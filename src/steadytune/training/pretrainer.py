"""The training loop of a pre-training run: a budget of steps or of time, and what happens at its shares."""

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback

from steadytune.data.packing import PackedSequences, stacked
from steadytune.encoders import describe, states_at
from steadytune.methods import Method
from steadytune.tasks import MaskedLM
from steadytune.training.fit import Progress, Watch
from steadytune.training.loading import RunError
from steadytune.training.trainer import RegularizedTrainer

STATE_FILE = "pretraining_state.json"
NEVER = 2**62  # training passes
CHECKPOINT_SECONDS = 300.0  # of training at most between two checkpoints, where the budget is time


class Clock:
    """Seconds of training: it stands still while the model is measured or saved."""

    def __init__(self) -> None:
        self._spent = 0.0
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """So far."""
        return self._spent + (0.0 if self._since is None else time.monotonic() - self._since)

    def start(self) -> None:
        """Go on; nothing happens if it runs."""
        if self._since is None:
            self._since = time.monotonic()

    def stop(self) -> None:
        """Stand still."""
        self._spent, self._since = self.seconds, None

    def set(self, seconds: float) -> None:
        """Show other seconds, as after a resumed run.

        Args:
            seconds: to show.
        """
        self._spent, self._since = seconds, None


@dataclasses.dataclass(frozen=True)
class Phases:
    """Where in its budget a run does what.

    Attributes:
        steps: of the optimizer, in all; None where time is the budget.
        seconds: of training, in all; None where steps are the budget.
        warmup: share with a rising learning rate.
        head: share in which only the head learns.
        plain: share before methods that begin later do.
        points: how many times a measurement parts the budget.
    """

    steps: int | None
    seconds: float | None
    warmup: float
    head: float
    plain: float
    points: int

    def share(self, step: int, seconds: float) -> float:
        """How much of the budget is used, from 0 to 1.

        Args:
            step: optimizer steps done.
            seconds: of training done.
        """
        if self.steps is not None:
            return min(step / self.steps, 1.0)
        assert self.seconds is not None
        return min(seconds / self.seconds, 1.0)

    def rate(self, step: int, seconds: float) -> float:
        """The learning rate of the next step in units of its peak: linear up, then linear down to 0 at the end.

        It rises with the share that the step ends at, so that the first step learns; nobody knows beforehand when a
        step ends in time, so there the first one does not.

        Args:
            step: optimizer steps done.
            seconds: of training done.
        """
        share = self.share(step, seconds)
        if share < self.warmup:
            return min(self.share(step + 1, seconds) / self.warmup, 1.0)
        return (1 - share) / (1 - self.warmup)


def can_begin_later(method: Method) -> bool:
    """Whether a method knows a beginning.

    Args:
        method: any.
    """
    return hasattr(method, "start_step")


def beginning_at(methods: Sequence[Method], start_step: int, chosen: frozenset[str]) -> tuple[Method, ...]:
    """Methods, of which those that can begin later do.

    Args:
        methods: in the order of application.
        start_step: training passes before.
        chosen: keys of those whose recipe says itself when they begin.
    """
    later: dict[str, Any] = {"start_step": start_step}
    return tuple(
        dataclasses.replace(method, **later) if can_begin_later(method) and method.key not in chosen else method
        for method in methods
    )


class Pretrainer(RegularizedTrainer):
    """A `RegularizedTrainer` whose schedule follows a budget of steps or of time.

    Args:
        phases: of the run.
        measured: the fixed masked set.
        eval_batch_size: sequences of one forward pass on it.
        chosen: keys of the methods whose recipe says itself when they begin.
        watch: told about progress.
        kwargs: as for `RegularizedTrainer`, by keyword.
    """

    def __init__(
        self,
        *,
        phases: Phases,
        measured: PackedSequences,
        eval_batch_size: int,
        chosen: frozenset[str],
        watch: Watch,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.phases, self.measured, self.eval_batch_size = phases, measured, eval_batch_size
        self.chosen, self.watch = chosen, watch
        self.clock = Clock()
        self.begun_at: int | None = None
        self.add_callback(_Conductor(self))

    @property
    def share(self) -> float:
        """How much of the budget is used, from 0 to 1."""
        return self.phases.share(self.state.global_step, self.clock.seconds)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """A schedule that ends when the budget ends; see `RegularizedTrainer.create_scheduler`.

        Args:
            num_training_steps: as in `Trainer`.
            optimizer: as in `Trainer`.
        """
        found: Any = optimizer or self.optimizer
        phases, clock = self.phases, self.clock
        self.lr_scheduler = LambdaLR(found, lambda step: phases.rate(step, clock.seconds))
        return super().create_scheduler(num_training_steps, optimizer)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """As in `RegularizedTrainer`; here the clock goes on.

        Args:
            args: as there.
            kwargs: as there.
        """
        self.clock.start()
        return super().get_batch_samples(*args, **kwargs)

    def measure(self) -> dict[str, float]:
        """Scores of the clean model on the fixed masked set; they go to the history too."""
        finish_queued(self.args.device)
        self.clock.stop()
        scores = masked_scores(self.model, self.measured, self.eval_batch_size, self.autocast_smart_context_manager)
        units, wanted = self.regularized_model.spent.units, self.control.should_log
        self.log({**{f"dev_{k}": v for k, v in scores.items()}, "seconds": self.clock.seconds, "pass_units": units})
        self.control.should_log = wanted  # the line of the training that may be due is not this one
        return scores

    def begin_methods_if_due(self, share: float) -> None:
        """Let the methods that begin later do so if the plain share of the budget is over.

        Args:
            share: of the budget that is used.
        """
        if self.begun_at is not None or share < self.phases.plain:
            return
        if share < 1:
            self.begin_methods(self.regularized_model.micro_steps)
            return
        for method in self.regularized_model.methods:
            if can_begin_later(method) and method.key not in self.chosen:
                self.regularized_model.notice(
                    f"{method.key} never acted: the plain share of the budget took every step; lower "
                    "run.plain_fraction or raise the budget."
                )

    def say_who_does_not_wait(self) -> None:
        """A notice on methods that know no beginning, where there is a plain share of the budget."""
        at_once = [method.key for method in self.regularized_model.methods if not can_begin_later(method)]
        if at_once and self.phases.plain:
            acts = "acts" if len(at_once) == 1 else "act"
            self.regularized_model.notice(
                f"run.plain_fraction does not hold back {', '.join(at_once)}, which {acts} from the first step on."
            )

    def begin_methods(self, start_step: int) -> None:
        """Let the methods that begin later do so.

        Args:
            start_step: training passes before.
        """
        wrapper = self.regularized_model
        wrapper.methods = beginning_at(wrapper.methods, start_step, self.chosen)
        self.begun_at = start_step

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            state = {"seconds": self.clock.seconds, "begun_at": self.begun_at}
            (Path(output_dir) / STATE_FILE).write_text(json.dumps(state), encoding="utf-8")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        try:
            state = json.loads((Path(checkpoint) / STATE_FILE).read_text(encoding="utf-8"))
            self.clock.set(float(state["seconds"]))
        except (OSError, ValueError, KeyError) as error:
            raise RunError(
                f"checkpoint {checkpoint} has no {STATE_FILE} that can be read; remove that folder to go on from an "
                "earlier one."
            ) from error
        if state["begun_at"] is not None:
            self.begin_methods(int(state["begun_at"]))


class _Conductor(TrainerCallback):
    """What happens between the steps of a pre-training run."""

    def __init__(self, trainer: Pretrainer) -> None:
        self._trainer = trainer
        self._loss: float | None = None
        self._measured = 0  # times
        self._saved = 0.0  # seconds of training at the last checkpoint

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trainer = self._trainer
        self._measured = sum("dev_loss" in line for line in state.log_history)
        self._saved = trainer.clock.seconds
        if state.global_step == 0:
            trainer.say_who_does_not_wait()
            trainer.begin_methods_if_due(0.0)
            trainer.measure()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        found = logs or {}
        self._loss = found.get("loss", self._loss)
        self._measured += "dev_loss" in found

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trainer = self._trainer
        if trainer.share < trainer.phases.head:
            wrapped: Any = trainer.model
            for parameter in describe(wrapped).base.parameters():
                parameter.grad = None  # the optimizer then leaves it alone, its decay included

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        trainer, step = self._trainer, state.global_step
        phases, seconds = trainer.phases, trainer.clock.seconds
        share = phases.share(step, seconds)
        trainer.begin_methods_if_due(share)
        if share >= 1:
            control.should_training_stop, control.should_save = True, False
        elif phases.steps is None and seconds - self._saved >= CHECKPOINT_SECONDS:
            control.should_save = True
        if control.should_save:
            control.should_log, self._saved = True, seconds  # a checkpoint holds no half of a line
        if share < 1 and share >= self._measured / phases.points:  # the first one came before the first step
            trainer.measure()
        if control.should_log or control.should_save or control.should_training_stop:
            finish_queued(args.device)
        trainer.clock.stop()
        total = phases.steps or max(step, round(step / share)) if share else 0
        trainer.watch(Progress("train", step, total, self._loss))
        return control


def masked_scores(
    model: Any,
    rows: PackedSequences,
    batch_size: int,
    autocast: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
) -> dict[str, float]:
    """Metrics of a model without dropout on a masked set; scores exist at masked places only.

    Args:
        model: a Hugging Face model with a masked-LM head; its mode is put back afterwards.
        rows: the set.
        batch_size: sequences of one forward pass.
        autocast: context for the forward computation.
    """
    task, device = MaskedLM(), next(model.parameters()).device
    found: list[np.ndarray] = []
    labels: list[Tensor] = []
    places: list[Tensor] = []
    was_training = model.training
    handle = describe(model).base.register_forward_hook(lambda module, args, output: states_at(output, places[-1]))
    model.eval()
    try:
        with torch.inference_mode():
            for start in range(0, len(rows), batch_size):
                batch: dict[str, Any] = {
                    name: value.to(device)
                    for name, value in stacked(
                        [rows[i] for i in range(start, min(start + batch_size, len(rows)))]
                    ).items()
                }
                items = task.items(batch)
                assert items.head_reads is not None
                places.append(items.head_reads)
                with autocast():
                    output = model(**batch)
                found.append(task.judged(items.scores(output), items.labels))
                labels.append(items.labels.cpu())
    finally:
        handle.remove()
        model.train(was_training)
    return task.scores(np.concatenate(found), torch.cat(labels).tolist())


def finish_queued(device: torch.device) -> None:
    """Wait until a device has done what it was told, so that a clock counts it.

    Args:
        device: any; only CUDA runs behind.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def processes() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))

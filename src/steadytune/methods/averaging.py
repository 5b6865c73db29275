"""Averages of the weights along training: EMA and SWA. Card: averaging.md."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from steadytune.methods.buffers import buffer_name, parameter_name
from steadytune.methods.contract import Context, Method, MethodError, Update, setting

Kind = Literal["ema", "swa"]
_DECAY, _START = 0.99, 0.5


def warmed_decay(decay: float, averaged: int) -> float:
    """Decay of an exponential average that is still short: min(b, (1 + n) / (10 + n)).

    Args:
        decay: b, its limit.
        averaged: n, iterates in the average so far.

    Source: the warm-up of TensorFlow's ExponentialMovingAverage (`num_updates`), recalled, not re-read.
    """
    return min(decay, (1 + averaged) / (10 + averaged))


@dataclass(frozen=True, kw_only=True)
class Averaging(Method):
    """Averaged weights beside the trained ones (EMA; SWA: Izmailov et al. 2018, Lu et al. 2022)."""

    key: ClassVar[str] = "averaging"
    reads_updates: ClassVar[bool] = True
    average_is_optional: ClassVar[bool] = True

    kind: Kind = setting("ema", "exponential average of all, or equal weights from `start` on", source="derived")
    decay: float = setting(
        _DECAY, "b, what an EMA keeps of itself", low=0, high=0.99999, open_low=True, source="derived, short runs"
    )
    start: float = setting(
        _START, "share of training before an SWA begins", low=0, high=0.9, source="derived; early, as Lu et al. 2022"
    )
    every: int = setting(1, "optimizer steps from one averaged iterate to the next", low=1, source="derived")

    @property
    def needs_total(self) -> bool:
        """SWA begins at a share of training, so it must know how long that is."""
        return self.kind == "swa"

    def check(self, context: Context) -> None:
        """Refuse a setting that this kind of average has no use for.

        Args:
            context: model, task and processes.
        Raises:
            MethodError: with the setting and the kind.
        """
        name, default = ("start", _START) if self.kind == "ema" else ("decay", _DECAY)
        if getattr(self, name) != default:
            raise MethodError(
                f"averaging.{name} does nothing with kind {self.kind!r}; leave it out, or choose the other kind."
            )

    def setup(self, context: Context) -> nn.Module:
        """One buffer per trainable parameter of the model, and how many iterates they hold.

        Args:
            context: model, task and processes.
        """
        state = nn.Module()
        for name, parameter in context.model.named_parameters():
            if parameter.requires_grad:
                state.register_buffer(buffer_name(name), parameter.detach().clone())
        state.register_buffer("averaged", torch.zeros((), dtype=torch.long))
        return state

    def after_update(self, now: Update, state: nn.Module | None) -> None:
        """Take the weights into the average, every `every` steps from the start on.

        Args:
            now: parameters, number of this step and of all.
            state: the average.
        """
        assert state is not None
        done = now.number - self._skipped(now)
        if now.number == 0:
            self._say_if_too_short(now)
        averaged, rest = divmod(done, self.every)  # of the iterates, as many are in the average
        if done < 0 or rest:
            now.report("averaged", max(0, averaged + 1))
            return
        buffers = dict(state.named_buffers())
        kept = [buffers[buffer_name(name)] for name in now.parameters]
        wide = kept[0].dtype
        last = [parameter.detach().to(wide) for parameter in now.parameters.values()]
        self._take_in(kept, last, averaged)
        buffers["averaged"].fill_(averaged + 1)
        now.report("averaged", averaged + 1)
        now.report("distance", _relative_distance(kept, last))

    def averages(self, state: nn.Module | None) -> Mapping[str, Tensor]:
        """The average of each parameter, by name; empty while it holds fewer than two iterates.

        Args:
            state: the average.
        """
        assert state is not None
        buffers = dict(state.named_buffers())
        if int(buffers.pop("averaged")) < 2:
            return {}
        return {parameter_name(name): mean for name, mean in buffers.items()}

    def _take_in(self, kept: list[Tensor], last: list[Tensor], averaged: int) -> None:
        if averaged == 0:
            torch._foreach_copy_(kept, last)
            return
        make: Any = get_swa_multi_avg_fn if self.kind == "swa" else get_ema_multi_avg_fn  # untyped
        update = make() if self.kind == "swa" else make(warmed_decay(self.decay, averaged))
        update(kept, last, averaged)

    def _skipped(self, now: Update) -> int:
        """Optimizer steps before the first averaged one."""
        return 0 if self.kind == "ema" or now.total is None else math.floor(self.start * now.total)

    def _say_if_too_short(self, now: Update) -> None:
        if now.total is not None and now.total - self._skipped(now) <= self.every:
            now.notice(
                f"averaging: in {now.total} optimizer steps the average would hold one iterate only, which is no "
                "average; lower averaging.every or averaging.start, or train longer."
            )


def _relative_distance(kept: list[Tensor], last: list[Tensor]) -> Tensor:
    """Euclidean distance of the average from the weights, in units of the weights' norm."""
    apart = torch.stack([(mean - weight).norm() for mean, weight in zip(kept, last, strict=True)]).norm()
    size = torch.stack([weight.norm() for weight in last]).norm()
    return torch.div(apart, size)

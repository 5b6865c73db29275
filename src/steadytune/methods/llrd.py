"""Learning rates that shrink from the top of the encoder to its embeddings. Card: llrd.md."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from steadytune.encoders import Anatomy
from steadytune.methods.contract import Context, Method, MethodError, ParameterRule, Update, setting

Start = Literal["top", "below"]


@dataclass(frozen=True, kw_only=True)
class LLRD(Method):
    """The learning rate of a block is that of the block above, times a factor (Howard and Ruder 2018)."""

    key: ClassVar[str] = "llrd"

    decay: float = setting(
        0.95, "ξ, factor from one block to the one below", low=0, high=1, open_low=True, source="Zhang 2021, script"
    )
    start: Start = setting(
        "top", "the first block with a factor: the top one, or the one below it", source="Zhang 2021, code"
    )

    @property
    def active(self) -> bool:
        """Whether learning rates differ."""
        return self.decay < 1

    def check(self, context: Context) -> None:
        """Refuse a frozen encoder.

        Args:
            context: model, task and processes.
        Raises:
            MethodError: there is no learning rate to change.
        """
        if not context.trainable:
            raise MethodError("llrd cannot act on a frozen encoder: only its head is trained, at one learning rate.")

    def parameter_rules(self, context: Context) -> Mapping[str, ParameterRule]:
        """One factor per trained parameter of the encoder; what lies above its layers has none.

        Args:
            context: model, task and processes.
        """
        depths = _steps_below_the_head(context.anatomy)
        free = 0 if self.start == "top" else 1
        found = {name: depths.get(id(p), 0) - free for name, p in context.model.named_parameters() if p.requires_grad}
        return {name: ParameterRule(self.decay**steps) for name, steps in found.items() if steps > 0}

    def before_update(self, now: Update, state: nn.Module | None) -> None:
        """Report the smallest learning rate and its share of the largest one.

        Args:
            now: learning rates in force.
            state: nothing.
        """
        rates = now.learning_rates.values()
        lowest, highest = min(rates, default=0.0), max(rates, default=0.0)
        now.report("lowest_learning_rate", lowest)
        if highest > 0:
            now.report("lowest_learning_rate_factor", lowest / highest)


def _steps_below_the_head(parts: Anatomy) -> dict[int, int]:
    """By `id` of a parameter of the encoder: 1 in the top block, n in the lowest, n + 1 in the embeddings."""
    lowest = len(parts.layers)  # of distinct blocks: one that is called many times counts once
    steps = {id(parameter): lowest + 1 for parameter in parts.base.parameters()}
    for number, layer in enumerate(parts.layers):
        steps |= {id(parameter): lowest - number for parameter in layer.parameters()}
    for module in (parts.final_norm, parts.pooler):
        steps |= {id(parameter): 0 for parameter in (module.parameters() if module is not None else ())}
    return steps

"""An optimizer step that fades in while a pull towards the pre-trained weights fades out. Card: recadam.md."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from steadytune.methods.anchors import HALF, Anchors, trained_weights
from steadytune.methods.contract import Context, Method, MethodError, ParameterRule, Update, setting

_AT_ONCE, _AT_LAST = 0.99, 0.9


def annealed_share(step: float, k: float, middle: float) -> float:
    """λ = sigmoid(k (t − t₀)), the share of the task in a step; the pull has the rest.

    Args:
        step: t, optimizer steps up to and with this one.
        k: steepness.
        middle: t₀, the step at which both have one half.

    Source: Chen et al. 2020 (RecAdam).
    """
    return 0.5 * (1 + math.tanh(k * (step - middle) / 2))  # no overflow, however far from the middle


class Recalled(Anchors):
    """Where the weights of the encoder began, and during an optimizer step where they were right before it.

    Args:
        anchored: weights that existed in the pre-trained model, by name.
    """

    def __init__(self, anchored: Mapping[str, nn.Parameter]) -> None:
        super().__init__(anchored)
        self.before: dict[str, Tensor] = {}


@dataclass(frozen=True, kw_only=True)
class RecAdam(Method):
    """The optimizer's step weighed with λ, a pull to the pre-trained weights with 1 − λ (Chen et al. 2020)."""

    key: ClassVar[str] = "recadam"

    gamma: float = setting(
        5000.0, "γ, strength of the pull; 0 leaves the annealed step alone", low=0, source="Chen 2020"
    )
    k: float = setting(
        0.1, "k, steepness of the annealing per optimizer step", low=0, open_low=True, source="Chen 2020, of the grid"
    )
    t0: float = setting(
        0.1,
        "t₀, middle of the annealing as a share of all optimizer steps",
        low=0,
        high=0.9,
        source="Chen 2020, scaled",
    )

    @property
    def needs_total(self) -> bool:
        """The middle is a share of training, so it must know how long that is."""
        return True

    def check(self, context: Context) -> None:
        """Refuse models without a pre-trained weight to train, and weights that round the pull away.

        Args:
            context: model, task and processes.
        Raises:
            MethodError: with the reason.
        """
        if hasattr(context.model, "peft_config"):
            raise MethodError("recadam cannot act on a model with adapters: they have no pre-trained value.")
        anchored, _ = trained_weights(context)
        if not anchored:
            raise MethodError("recadam cannot act on a frozen encoder: it anneals the steps of what is trained there.")
        if any(p.dtype in HALF for p in anchored.values()):
            raise MethodError(
                "recadam is rounded away by 16-bit weights; use float32 weights, with autocast if need be."
            )

    def setup(self, context: Context) -> nn.Module:
        """The pre-trained values.

        Args:
            context: model, task and processes.
        """
        anchored, _ = trained_weights(context)
        return Recalled(anchored)

    def parameter_rules(self, context: Context) -> Mapping[str, ParameterRule]:
        """No ordinary weight decay in the encoder: it would be annealed, and pull to another place.

        Args:
            context: model, task and processes.
        """
        anchored, _ = trained_weights(context)
        return dict.fromkeys(anchored, ParameterRule(weight_decay=0.0))

    def before_update(self, now: Update, state: nn.Module | None) -> None:
        """Keep the weights until the optimizer has changed them.

        Args:
            now: parameters.
            state: the pre-trained values.
        """
        assert isinstance(state, Recalled)
        state.before = {name: p.detach().clone() for name, p in now.parameters.items() if name in state.anchored}

    def after_update(self, now: Update, state: nn.Module | None) -> None:
        """w ← w_before + λ (w − w_before), then w ← w − η (1 − λ) γ (w − w₀), η the parameter's own learning rate.

        Args:
            now: parameters, learning rates, number of this step and of all.
            state: the pre-trained values and those of before the step.
        """
        assert isinstance(state, Recalled) and now.total is not None
        share = annealed_share(now.number + 1, self.k, self.t0 * now.total)
        if now.number == 0:
            self._say_if_out_of_scale(now, now.total)
        squares, strongest = [], 0.0
        for name, before in state.before.items():
            weight, pull = now.parameters[name], now.learning_rates[name] * (1 - share) * self.gamma
            weight.copy_(torch.lerp(before, weight, share))
            weight.lerp_(state.anchor(name), min(pull, 1.0))
            strongest = max(strongest, pull)
            squares.append(state.distance(name).square().sum())
        state.before = {}
        now.report("lambda", share)
        if not squares:
            now.notice("recadam anneals nothing: the optimizer trains none of the encoder's weights.")
            return
        now.report("distance", torch.stack(squares).sum().sqrt())
        if strongest >= 1:
            now.notice(
                f"recadam: learning rate times gamma times 1 − λ is {strongest:.1f} in step {now.number + 1}; from 1 "
                "on the pull would carry weights past their pre-trained values, so it ends there and nothing of such a "
                "step is left. Lower recadam.gamma or the learning rate."
            )

    def _say_if_out_of_scale(self, now: Update, total: int) -> None:
        first, last = (annealed_share(step, self.k, self.t0 * total) for step in (1, total))
        if first > _AT_ONCE:
            now.notice(
                f"recadam anneals next to nothing: λ is {first:.3f} in the first of {total} optimizer steps; raise "
                "recadam.t0 or lower recadam.k."
            )
        elif last < _AT_LAST:
            now.notice(
                f"recadam is still annealing when training ends: λ is {last:.3f} in the last of {total} optimizer "
                "steps; raise recadam.k, lower recadam.t0 or train longer."
            )

"""A pull of every weight matrix towards its pre-trained value. Card: l2sp.md."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steadytune.methods.anchors import HALF, Anchors, trained_weights
from steadytune.methods.contract import Context, Method, MethodError, Mix, ParameterRule, Step, Update, setting

Form = Literal["decoupled", "penalty"]
_LITTLE = 0.01  # sum of η α over a run


class Pulled(Anchors):
    """Where the matrices of the encoder began, and which matrices are new.

    Args:
        anchored: matrices that existed in the pre-trained model, by name.
        new: matrices of the head, by name.
    """

    def __init__(self, anchored: Mapping[str, nn.Parameter], new: Mapping[str, nn.Parameter]) -> None:
        super().__init__(anchored)
        self.new = dict(new)
        self.register_buffer("pulled", torch.zeros(()))  # sum of η α over the steps
        self.pulled: Tensor


@dataclass(frozen=True, kw_only=True)
class L2SP(Method):
    """Weight decay towards the starting point for the encoder, towards zero for the head (Li et al. 2018)."""

    key: ClassVar[str] = "l2sp"
    mix: ClassVar[Mix] = "additive"

    form: Form = setting("decoupled", "after the optimizer step, or as a term of the loss", source="derived, for AdamW")
    weight: float = setting(0.01, "α, pull towards the pre-trained value", low=0, source="bottom of a grid")
    head_weight: float = setting(
        0.01,
        "β, pull of new matrices towards 0; 0 leaves them to the run's weight decay",
        low=0,
        source="Li 2018, code",
    )

    @property
    def acts_on_updates(self) -> bool:
        """In the decoupled form only."""
        return self.form == "decoupled"

    @property
    def active(self) -> bool:
        """Whether anything is pulled."""
        return self.weight > 0

    @property
    def coefficient(self) -> float:
        """α as a penalty; decoupled there is no term."""
        return self.weight if self.form == "penalty" else 0.0

    def check(self, context: Context) -> None:
        """Refuse models without a pre-trained matrix to train, and weights that round the pull away.

        Args:
            context: model, task and processes.
        Raises:
            MethodError: with the reason.
        """
        if hasattr(context.model, "peft_config"):
            raise MethodError("l2sp cannot act on a model with adapters: they have no pre-trained value.")
        anchored, _ = _matrices(context)
        if not anchored:
            raise MethodError("l2sp cannot act on a frozen encoder: it pulls back what training moves.")
        if self.form == "decoupled" and any(p.dtype in HALF for p in anchored.values()):
            raise MethodError(
                "l2sp with form 'decoupled' is rounded away by 16-bit weights; use float32 weights, with autocast if "
                "need be, or form 'penalty'."
            )

    def setup(self, context: Context) -> nn.Module:
        """The pre-trained values.

        Args:
            context: model, task and processes.
        """
        return Pulled(*_matrices(context))

    def parameter_rules(self, context: Context) -> Mapping[str, ParameterRule]:
        """No ordinary weight decay where this method pulls.

        Args:
            context: model, task and processes.
        """
        anchored, new = _matrices(context)
        pulled = [*anchored, *(new if self.head_weight > 0 else ())]
        return dict.fromkeys(pulled, ParameterRule(weight_decay=0.0))

    def loss(self, step: Step, state: nn.Module | None) -> Float[Tensor, ""] | None:
        """½ ‖w − w₀‖² + ½ (β/α) ‖w_new‖², to be weighed by α; None in the decoupled form.

        Args:
            step: gives the weights; takes telemetry.
            state: the pre-trained values.
        """
        if self.form == "decoupled":
            return None
        assert isinstance(state, Pulled)
        squares = torch.stack([state.distance(name, step.weight(name)).square().sum() for name in state.anchored]).sum()
        step.report("distance", squares.detach().sqrt())
        if state.new and self.head_weight > 0:
            of_new = torch.stack([step.weight(name).to(squares.dtype).square().sum() for name in state.new]).sum()
            squares = squares + self.head_weight / self.weight * of_new
        return squares / 2

    def after_update(self, now: Update, state: nn.Module | None) -> None:
        """w ← w − η α (w − w₀), and w ← w − η β w for new matrices, η the parameter's own learning rate.

        Args:
            now: parameters and learning rates.
            state: the pre-trained values.
        """
        if self.form == "penalty":
            return
        assert isinstance(state, Pulled)
        squares = []
        for name, rate in now.learning_rates.items():
            weight = now.parameters[name]
            if name in state.anchored:
                apart = state.distance(name)
                weight.sub_(apart, alpha=rate * self.weight)
                squares.append((1 - rate * self.weight) ** 2 * apart.square().sum())
            elif name in state.new:
                weight.mul_(1 - rate * self.head_weight)
        if not squares:
            now.notice("l2sp pulls nothing: the optimizer trains none of the encoder's matrices.")
            return
        now.report("distance", torch.stack(squares).sum().sqrt())
        state.pulled += self.weight * max(rate for name, rate in now.learning_rates.items() if name in state.anchored)
        if now.number + 1 == now.total and float(state.pulled) < _LITTLE:
            now.notice(
                f"l2sp: all {now.total} pulls together took away {float(state.pulled):.1g} of the distance to the "
                "pre-trained weights, which is next to nothing; raise l2sp.weight."
            )


def _matrices(context: Context) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """Trained matrices of the encoder, and those of the head, by name; tied ones once."""
    old, new = trained_weights(context)
    return {name: p for name, p in old.items() if p.ndim > 1}, {name: p for name, p in new.items() if p.ndim > 1}

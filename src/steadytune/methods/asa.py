"""A second pass whose attention is masked by a learned adversary. Card: asa.md."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from steadytune.encoders import Edits
from steadytune.functional import reversed_mask
from steadytune.methods.contract import Context, Method, MethodError, Mix, OwnOptimizer, Step, setting

Units = dict[int, tuple[Tensor, Tensor]]
"""By layer: free units of each example, and how many of them were kept."""

_STEERING = 0.1  # κ: how fast the price follows the distance to target_mask_fraction
_FAR = 3.0  # times the price, or a part of it: the share has been off for long


class Adversaries(nn.Module):
    """Bilinear scorers: s = (h W_q + b_q)(h W_k + b_k)ᵀ / √rank + s₀.

    Args:
        count: how many.
        width: of the hidden states.
        rank: columns of W_q and W_k.
        keep_bias: s₀, added to every score.
    """

    log_multiplier: Tensor

    def __init__(self, count: int, width: int, rank: int, keep_bias: float) -> None:
        super().__init__()
        self.query = nn.ModuleList(nn.Linear(width, rank) for _ in range(count))
        self.key = nn.ModuleList(nn.Linear(width, rank) for _ in range(count))
        self.keep_bias = keep_bias
        self.register_buffer("log_multiplier", torch.zeros(()))  # of the price
        for name, parameter in self.named_parameters():
            nn.init.normal_(parameter, std=0.02) if name.endswith("weight") else nn.init.zeros_(parameter)

    def forward(self, place: int, states: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens tokens"]:
        """Scores of all units (query, key), in the precision of the scorer; no gradient flows into the states.

        Args:
            place: which scorer.
            states: what the attention reads.
        """
        with torch.autocast(states.device.type, enabled=False):
            states = states.detach().to(self.log_multiplier.dtype)
            query, key = self.query[place](states), self.key[place](states)
            scores: Tensor = query @ key.mT / query.shape[-1] ** 0.5 + self.keep_bias
        return scores


@dataclass(frozen=True, kw_only=True)
class ASA(Method):
    """Agree with a pass in which an adversary hides attention units at a price (Wu et al. 2023)."""

    key: ClassVar[str] = "asa"
    mix: ClassVar[Mix] = "additive"
    early_gradient: ClassVar[bool] = True

    weight: float = setting(1.0, "w, factor of divergence and price", low=0, source="released code")
    temperature: float = setting(0.5, "τ, masking costs τ²", low=0, source="released code")
    gain: float = setting(1e4, "G, gain of the adversary's gradient", low=0, open_low=True, source="released code")
    parameterization: Literal["paper", "normalized"] = setting(
        "paper", "τ² is the price of one unit, or of all units of an example", source="released code"
    )
    protect: Literal["self", "cls_col", "none"] = setting(
        "self", "units that stay: the diagonal, the column of the head's token, none", source="derived"
    )
    adversary: Literal["learned", "random", "none"] = setting(
        "learned", "who masks; random and none are controls", source="Wu 2023"
    )
    mask_fraction: float | None = setting(None, "share masked by adversary: random", low=0, high=1, source="derived")
    target_mask_fraction: float | None = setting(
        None, "share of units that the price is steered to", low=0, high=1, source="derived"
    )
    keep_bias: float = setting(0.0, "s₀, added to every score", source="released code")
    rank: int | None = setting(None, "columns of W_q and W_k; the width if null", low=1, source="released code")
    shared: bool = setting(False, "one adversary for all layers", source="released code")
    layers: tuple[int, ...] | None = setting(None, "layers attacked; all if null", source="released code")
    share_dropout: bool = setting(False, "both passes draw the same dropout", source="released code")
    start_step: int = setting(0, "training passes before the adversary begins", low=0, source="derived")
    learning_rate_scale: float = setting(
        1.0, "learning rate of the adversary over the encoder's", low=0, open_low=True, source="released code"
    )

    def check(self, context: Context) -> None:
        """Refuse models without the attention site, and settings that would do nothing.

        Args:
            context: model, task and processes.
        """
        if self.adversary != "none":
            context.anatomy.require("attention", "asa")
        depth = context.anatomy.depth
        if self.layers is not None and (not self.layers or not all(0 <= i < depth for i in self.layers)):
            raise MethodError(
                f"asa.layers must name layers from 0 to {depth - 1}, or be null for all; got {list(self.layers)}."
            )
        if (self.adversary == "random") != (self.mask_fraction is not None):
            raise MethodError("asa.mask_fraction must be given with adversary: random, and only with it.")
        if self.target_mask_fraction is not None and (self.adversary != "learned" or self.temperature == 0):
            raise MethodError(
                "asa.target_mask_fraction steers the price of a learned adversary; temperature must be > 0."
            )
        if not context.trainable:
            raise MethodError("asa cannot act on a frozen encoder: its two passes differ only below the head.")

    def setup(self, context: Context) -> nn.Module | None:
        """The adversaries.

        Args:
            context: model, task and processes.
        """
        if self.adversary != "learned":
            return None
        count = 1 if self.shared else len(self._attacked(context.anatomy.depth))
        width = context.anatomy.width
        return Adversaries(count, width, self.rank or width, self.keep_bias)

    def own_optimizer(self) -> OwnOptimizer:
        """Without weight decay, at a learning rate of its own."""
        return OwnOptimizer(self.learning_rate_scale, 0.0)

    def loss(self, step: Step, state: nn.Module | None) -> Float[Tensor, ""]:
        """Divergence of the clean and the masked pass; the price is in the gradient only.

        Args:
            step: gives the passes.
            state: the adversaries.
        """
        clean = step.clean
        assert clean.logits is not None
        if step.number < self.start_step:
            return _nothing(clean.logits, state)
        if self.adversary != "none":
            step.anatomy.require("attention", "asa")  # the model may have been changed since the start
        units: Units = {}
        edits = None if self.adversary == "none" else Edits(attention=partial(self._bias, step, state, units))
        masked = step.run("asa", edits=edits, dropout="as clean" if self.share_dropout else "fresh")
        assert masked.logits is not None
        divergence = step.task.divergence(clean.logits, masked.logits)
        step.report("divergence", divergence)
        if not units:
            return divergence
        price = self._price(step, state, units)
        return divergence + (price - price.detach())

    def _attacked(self, depth: int) -> list[int]:
        return sorted(set(range(depth) if self.layers is None else self.layers))

    def _bias(
        self, step: Step, state: nn.Module | None, units: Units, layer: int, states: Tensor, mask: Tensor | None
    ) -> Tensor | None:
        """What is added to the attention scores of one layer."""
        attacked = self._attacked(step.anatomy.depth)
        if layer not in attacked:
            return None
        visible, free = self._visible_and_free(step, states, mask)
        if isinstance(state, Adversaries):
            scores: Tensor = state(0 if self.shared else attacked.index(layer), states)
        else:
            assert self.mask_fraction is not None
            draw = torch.empty(free.shape, dtype=torch.promote_types(states.dtype, torch.float32), device=free.device)
            draw.uniform_(generator=step.generator("mask", layer))
            scores = (draw >= self.mask_fraction).to(draw.dtype) - 0.5
        left = visible & ~(free & (scores <= 0))
        free = free & left.any(dim=-1, keepdim=True)  # a row without any unit has no meaning: it stays as it was
        bias, kept = reversed_mask(scores, free, gain=self.gain)
        units[layer] = free.sum(dim=(1, 2)).to(kept.dtype), kept.sum(dim=(1, 2))
        step.report(f"keep_rate_layer_{layer}", _keep_rate(*units[layer]))
        return bias.to(states.dtype)

    def _visible_and_free(
        self, step: Step, states: Tensor, mask: Tensor | None
    ) -> tuple[Bool[Tensor, "batch tokens tokens"], Bool[Tensor, "batch tokens tokens"]]:
        """Units that the model's attention sees; and those that may be masked: of real queries, not protected."""
        rows, tokens = states.shape[:2]
        real = step.inputs.get("attention_mask")
        real = torch.ones(rows, tokens, device=states.device).bool() if real is None else real.bool()
        visible = real[:, None, :].expand(rows, tokens, tokens)
        if mask is not None and not mask.is_floating_point():  # (batch, 1, tokens, tokens); windows too
            visible = visible & mask[:, 0].bool()
        free = visible & real[:, :, None]
        place = torch.arange(tokens, device=states.device)
        if self.protect == "self":
            free = free & (place[:, None] != place)
        elif self.protect == "cls_col":
            free = free & (place != step.anatomy.sentence_token)
        return visible, free

    def _price(self, step: Step, state: nn.Module | None, units: Units) -> Float[Tensor, ""]:
        """What the adversary gets for the units that it keeps, mean over the batch: what masking costs it."""
        free, kept = (torch.stack(part).sum(dim=0) for part in zip(*units.values(), strict=True))
        rate = _keep_rate(free, kept.detach())
        step.report("keep_rate", rate)
        if not isinstance(state, Adversaries):
            return rate.new_zeros(())
        each = self.temperature**2 * state.log_multiplier.exp()
        prices = kept * (each / free.clamp(min=1) if self.parameterization == "normalized" else each)
        price = prices.mean() if (shares := step.text_shares) is None else (shares * prices).sum()
        step.report("price", price)
        if self.target_mask_fraction is not None and not step.rehearsal:
            state.log_multiplier.add_(_STEERING * (1 - step.over_processes(rate) - self.target_mask_fraction))
            step.report("price_multiplier", state.log_multiplier.exp())
        return price

    def judge(self, telemetry: Mapping[str, float]) -> list[str]:
        """Say when there is no adversary left, or no difference at all.

        Args:
            telemetry: means by name.
        """
        said = []
        kept = telemetry.get("keep_rate")
        if kept is not None and kept > 0.999 and self.mask_fraction != 0:
            said.append(
                f"asa: the adversary keeps {kept:.1%} of the attention units, so this run is consistency between two "
                "dropout draws at twice the cost; use a smaller asa.temperature or target_mask_fraction."
            )
        multiplier, target = telemetry.get("price_multiplier", 1.0), self.target_mask_fraction
        ran_ahead = not 1 / _FAR <= multiplier <= _FAR
        if kept is not None and target is not None and ran_ahead and abs(1 - kept - target) > target / 2:
            said.append(
                f"asa: the price was steered to {multiplier:.2g} times its start, and {1 - kept:.1%} of the attention "
                f"units are masked where {target:.0%} are asked for; the adversary answers late, so read its keep rate "
                "over the whole run."
            )
        if telemetry.get("divergence") == 0:
            said.append("asa: the two passes agree exactly, so its term is 0; switch dropout on or mask something.")
        return said


def _keep_rate(free: Tensor, kept: Tensor) -> Float[Tensor, ""]:
    """Share of the free units that were kept; 1 if none was free."""
    free, kept = free.sum(), kept.sum()
    return torch.where(free > 0, kept / free.clamp(min=1), 1.0)


def _nothing(logits: Tensor, state: nn.Module | None) -> Float[Tensor, ""]:
    """0, connected to every own parameter, so that processes that wait for their gradients do not hang."""
    zero = logits.new_zeros((), dtype=torch.promote_types(logits.dtype, torch.float32))
    return zero + sum(p.flatten()[:0].sum() for p in (state.parameters() if state is not None else ()))

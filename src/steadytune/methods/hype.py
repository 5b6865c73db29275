"""Noise on the hidden states between layers. Card: hype.md."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from steadytune.encoders import Edits
from steadytune.functional import Distribution, draw_noise
from steadytune.methods.contract import Context, Method, MethodError, Pass, setting
from steadytune.methods.precision import check_noise

Place = Literal["between", "inside", "both"]


@dataclass(frozen=True, kw_only=True)
class HyPe(Method):
    """Fresh zero-mean noise on the states that enter every layer (Yuan et al. 2023)."""

    key: ClassVar[str] = "hype"

    noise_std: float = setting(
        1e-5, "σ, standard deviation (normal) or half-width (uniform) of the noise", low=0, source="Yuan 2023, Table 8"
    )
    distribution: Distribution = setting("normal", "law of the noise", source="Yuan 2023, eq. 1")
    relative: bool = setting(False, "σ in units of each token's root mean square", source="derived")
    layers: tuple[int, ...] | None = setting(None, "layers whose input is perturbed; all if null", source="Yuan 2023")
    place: Place = setting("between", "layer inputs, inputs of the feed-forward blocks, or both", source="Yuan 2023")

    @property
    def active(self) -> bool:
        """Whether there is any noise."""
        return self.noise_std > 0

    def check(self, context: Context) -> None:
        """Refuse layers and sites that the model lacks.

        Args:
            context: model, task and processes.
        """
        depth = context.anatomy.depth
        unknown = [layer for layer in self.layers or () if not 0 <= layer < depth]
        if unknown or self.layers == ():
            raise MethodError(
                f"hype.layers must name layers from 0 to {depth - 1}, or be null for all; "
                f"got {list(self.layers or ())}."
            )
        if self.place != "between":
            context.anatomy.require("inside", "hype")

    def edits(self, now: Pass) -> Edits | None:
        """Noise in every pass that carries a loss; none in a pass that only finds a direction.

        Args:
            now: the pass that is about to run.
        """
        if now.kind == "probe":
            return None
        return Edits(
            hidden=(lambda index, states: self._perturb(now, index, states, "between"))
            if self.place != "inside"
            else None,
            inside=(lambda index, states: self._perturb(now, index, states, "inside"))
            if self.place != "between"
            else None,
        )

    def _perturb(
        self, now: Pass, layer: int, states: Float[Tensor, "batch tokens dim"], place: str
    ) -> Float[Tensor, "batch tokens dim"]:
        if self.layers is not None and layer not in self.layers:
            return states
        noise = draw_noise(states, self.noise_std, self.distribution, now.generator(place, layer))
        if self.relative:
            noise *= states.detach().to(noise.dtype).square().mean(dim=-1, keepdim=True).sqrt()
        if now.first:
            check_noise(now, "hype.noise_std", self.noise_std, "hidden states", states.detach(), noise)
        if layer == min(self.layers or (0,)):
            self._report(now, states.detach()[:1], noise[:1])
        return noise.add_(states).to(states.dtype)

    def _report(self, now: Pass, states: Tensor, noise: Tensor) -> None:
        realized = (states.to(noise.dtype) + noise).to(states.dtype).to(noise.dtype) - states.to(noise.dtype)
        now.report("realized_noise_std", realized.std())
        now.report("relative_noise", realized.norm() / states.to(noise.dtype).norm())

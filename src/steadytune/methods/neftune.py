"""Uniform noise on the word embeddings, scaled by the length of the text. Card: neftune.md."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from steadytune.encoders import Edits
from steadytune.functional import draw_noise
from steadytune.methods.contract import Method, MethodError, Pass, setting
from steadytune.methods.precision import check_noise

_LARGE = 1.0  # noise as large as the embeddings


@dataclass(frozen=True, kw_only=True)
class NEFTune(Method):
    """Noise α/√(length · width) on the word embeddings of every pass that carries a loss (Jain et al. 2024)."""

    key: ClassVar[str] = "neftune"

    alpha: float = setting(1.0, "α, half-width times √(length · width); search 0.1 to 5", low=0, source="derived")
    scale_by: Literal["real", "padded"] = setting(
        "real", "length of each text, or of the padded batch as in transformers", source="Jain 2024, released code"
    )

    @property
    def active(self) -> bool:
        """Whether there is any noise."""
        return self.alpha > 0

    def edits(self, now: Pass) -> Edits | None:
        """Noise in every pass that carries a loss; none in one that finds a direction or is compared with.

        Args:
            now: the pass that is about to run.
        Raises:
            MethodError: the batch brings its own embeddings.
        """
        if now.inputs.get("input_ids") is None:
            raise MethodError(
                "neftune needs input_ids: its noise is added to word embeddings, which inputs_embeds bypass."
            )
        if now.kind not in ("label", "auxiliary"):
            return None
        return Edits(embedding=partial(self._noised, now))

    def _noised(self, now: Pass, states: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        noise = draw_noise(states, 1.0, "uniform", now.generator("noise"))
        rows, tokens, width = states.shape
        mask = now.inputs.get("attention_mask")
        real = mask.bool() if mask is not None and mask.ndim == 2 else noise.new_ones(rows, tokens, dtype=torch.bool)
        counted = real if self.scale_by == "real" else torch.ones_like(real)
        bounds = self.alpha / (counted.sum(dim=1).clamp(min=1) * width).to(noise.dtype).sqrt()
        noise *= (bounds[:, None] * real)[..., None]
        still = states.detach().to(noise.dtype) * real[..., None]
        if now.first:
            check_noise(now, "neftune.alpha", self.alpha, "embeddings", still.to(states.dtype), noise)
        now.report("half_width", bounds.mean())
        now.report("relative_noise", noise.norm() / still.norm())
        return noise.add_(states).to(states.dtype)

    def judge(self, telemetry: Mapping[str, float]) -> list[str]:
        """Say when the noise drowns the embeddings, as the published α does on short texts.

        Args:
            telemetry: means by name.
        """
        noise = telemetry.get("relative_noise", 0.0)
        if noise <= _LARGE:
            return []
        return [
            f"neftune: the noise is {noise:.1f} times as large as the word embeddings; texts this short want a smaller "
            "neftune.alpha."
        ]

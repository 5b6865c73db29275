"""Noise on the pre-trained matrices, once before training. Card: noisytune.md."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from steadytune.encoders import Edits
from steadytune.methods.contract import Context, Method, Pass, setting


@dataclass(frozen=True, kw_only=True)
class NoisyTune(Method):
    """Uniform noise in proportion to each matrix's spread, added before training (Wu et al. 2022)."""

    key: ClassVar[str] = "noisytune"
    setup_order: ClassVar[int] = 1

    noise: float = setting(
        0.15, "λ, width of the noise in standard deviations of its matrix", low=0, source="independent ports of Wu 2022"
    )
    head: bool = setting(False, "also the matrices outside the pre-trained encoder", source="derived; they are random")

    @property
    def active(self) -> bool:
        """Whether there is any noise."""
        return self.noise > 0

    def setup(self, context: Context) -> None:
        """Add the noise, in place.

        Args:
            context: model, task and processes.
        """
        rows = {
            id(m.weight): m.padding_idx
            for m in context.model.modules()
            if isinstance(m, nn.Embedding) and m.padding_idx is not None
        }
        noised = context.model if self.head else context.anatomy.base
        for matrix in noised.parameters():  # a tied one comes once
            if matrix.ndim > 1 and matrix.numel() > 1:
                self._disturb(matrix, rows.get(id(matrix)))

    def edits(self, now: Pass) -> Edits | None:
        """None; reports the deviation of the noise in units of each matrix's own.

        Args:
            now: the pass that is about to run.
        """
        now.report("relative_noise", self.noise / math.sqrt(12))
        return None

    @torch.no_grad()
    def _disturb(self, matrix: Tensor, padding_row: int | None) -> None:
        wide = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
        noise = torch.empty_like(wide).uniform_(-self.noise / 2, self.noise / 2) * wide.std()
        if padding_row is not None:
            noise[padding_row] = 0
        matrix.copy_(wide + noise)

"""Pure tensor mathematics that methods share; usable in any loop, without the engine."""

from steadytune.functional.ascent import (
    Ball,
    Norm,
    ascent_step,
    by_token,
    end_tokens,
    real_tokens,
    relative_size,
)
from steadytune.functional.contrast import Reduction, nt_xent_loss, positives, supcon_loss
from steadytune.functional.divergence import directed_kl, symmetric_kl
from steadytune.functional.masking import reversed_mask
from steadytune.functional.noise import Distribution, draw_noise, keyed_generator, keyed_seed, realized_noise

__all__ = [
    "Ball",
    "Distribution",
    "Norm",
    "Reduction",
    "ascent_step",
    "by_token",
    "directed_kl",
    "draw_noise",
    "end_tokens",
    "keyed_generator",
    "keyed_seed",
    "nt_xent_loss",
    "positives",
    "real_tokens",
    "realized_noise",
    "relative_size",
    "reversed_mask",
    "supcon_loss",
    "symmetric_kl",
]

"""Pure tensor mathematics that methods share; usable in any loop, without the engine."""

from steadytune.functional.ascent import Norm, ascent_step, by_token
from steadytune.functional.contrast import Reduction, nt_xent_loss, positives, supcon_loss
from steadytune.functional.divergence import directed_kl, symmetric_kl
from steadytune.functional.masking import reversed_mask
from steadytune.functional.noise import Distribution, draw_noise, keyed_generator, keyed_seed, realized_noise

__all__ = [
    "Distribution",
    "Norm",
    "Reduction",
    "ascent_step",
    "by_token",
    "directed_kl",
    "draw_noise",
    "keyed_generator",
    "keyed_seed",
    "nt_xent_loss",
    "positives",
    "realized_noise",
    "reversed_mask",
    "supcon_loss",
    "symmetric_kl",
]

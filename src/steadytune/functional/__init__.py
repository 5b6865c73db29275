"""Pure tensor mathematics that methods share; usable in any loop, without the engine."""

from steadytune.functional.contrast import Reduction, positives, supcon_loss
from steadytune.functional.noise import Distribution, draw_noise, keyed_generator, keyed_seed, realized_noise

__all__ = [
    "Distribution",
    "Reduction",
    "draw_noise",
    "keyed_generator",
    "keyed_seed",
    "positives",
    "realized_noise",
    "supcon_loss",
]

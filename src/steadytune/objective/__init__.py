"""The objective: one training step over named passes, and the model wrapper that runs it."""

from steadytune.objective.coefficients import Coefficients
from steadytune.objective.model import STATE_FILE, WEIGHTS_FILE, RegularizedModel
from steadytune.objective.step import PassCount, StepOutput

__all__ = ["STATE_FILE", "WEIGHTS_FILE", "Coefficients", "PassCount", "RegularizedModel", "StepOutput"]

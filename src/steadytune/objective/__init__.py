"""The objective: one training step over named passes, and the model wrapper that runs it."""

from steadytune.objective.coefficients import Coefficients
from steadytune.objective.model import RegularizedModel
from steadytune.objective.state import STATE_FILE, WEIGHTS_FILE
from steadytune.objective.step import PassCount, StepOutput

__all__ = ["STATE_FILE", "WEIGHTS_FILE", "Coefficients", "PassCount", "RegularizedModel", "StepOutput"]

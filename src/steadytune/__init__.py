"""Regularized fine-tuning of pre-trained Transformer encoders."""

import importlib
from typing import TYPE_CHECKING, Any

from steadytune.methods import METHODS

if TYPE_CHECKING:
    from steadytune.methods.asa import ASA
    from steadytune.methods.cat import CAT
    from steadytune.methods.hype import HyPe
    from steadytune.methods.lnsr import LNSR
    from steadytune.methods.scl import SCL
    from steadytune.objective import RegularizedModel, StepOutput
    from steadytune.training.trainer import RegularizedTrainer

__version__ = "0.1.0"

_HOMES = {
    "RegularizedModel": "steadytune.objective",
    "RegularizedTrainer": "steadytune.training.trainer",
    "StepOutput": "steadytune.objective",
} | {name: f"steadytune.methods.{key}" for key, name in METHODS.items()}

__all__ = ["ASA", "CAT", "LNSR", "SCL", "HyPe", "RegularizedModel", "RegularizedTrainer", "StepOutput", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'steadytune' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

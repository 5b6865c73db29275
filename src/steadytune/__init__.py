"""Regularized fine-tuning of pre-trained Transformer encoders."""

import importlib
from typing import TYPE_CHECKING, Any

from steadytune.methods import METHODS

if TYPE_CHECKING:
    from steadytune.methods.asa import ASA
    from steadytune.methods.averaging import Averaging
    from steadytune.methods.cat import CAT
    from steadytune.methods.child_tuning import ChildTuning
    from steadytune.methods.freelb import FreeLB
    from steadytune.methods.hype import HyPe
    from steadytune.methods.l2sp import L2SP
    from steadytune.methods.label_smoothing import LabelSmoothing
    from steadytune.methods.llrd import LLRD
    from steadytune.methods.lnsr import LNSR
    from steadytune.methods.lora import LoRA
    from steadytune.methods.mixout import Mixout
    from steadytune.methods.neftune import NEFTune
    from steadytune.methods.noisytune import NoisyTune
    from steadytune.methods.pgd import PGD
    from steadytune.methods.r3f import R3F
    from steadytune.methods.rdrop import RDrop
    from steadytune.methods.recadam import RecAdam
    from steadytune.methods.reinit import ReInit
    from steadytune.methods.sam import SAM
    from steadytune.methods.scl import SCL
    from steadytune.methods.smart import SMART
    from steadytune.methods.tmix import TMix
    from steadytune.methods.topk import TopK
    from steadytune.objective import RegularizedModel, StepOutput
    from steadytune.training.trainer import RegularizedTrainer

__version__ = "0.1.0"

_HOMES = {
    "RegularizedModel": "steadytune.objective",
    "RegularizedTrainer": "steadytune.training.trainer",
    "StepOutput": "steadytune.objective",
} | {name: f"steadytune.methods.{key}" for key, name in METHODS.items()}

__all__ = [
    "ASA",
    "CAT",
    "L2SP",
    "LLRD",
    "LNSR",
    "PGD",
    "R3F",
    "SAM",
    "SCL",
    "SMART",
    "Averaging",
    "ChildTuning",
    "FreeLB",
    "HyPe",
    "LabelSmoothing",
    "LoRA",
    "Mixout",
    "NEFTune",
    "NoisyTune",
    "RDrop",
    "ReInit",
    "RecAdam",
    "RegularizedModel",
    "RegularizedTrainer",
    "StepOutput",
    "TMix",
    "TopK",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'steadytune' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

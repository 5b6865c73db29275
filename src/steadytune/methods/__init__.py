"""The list of methods. A method's key is the name of its module, its card and its recipe."""

import importlib
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steadytune.methods.asa import ASA
    from steadytune.methods.averaging import Averaging
    from steadytune.methods.cat import CAT
    from steadytune.methods.child_tuning import ChildTuning
    from steadytune.methods.contract import (
        Context,
        Method,
        MethodError,
        Mixture,
        OwnOptimizer,
        ParameterRule,
        Pass,
        Step,
        Update,
        setting,
    )
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

METHODS: dict[str, str] = {
    "asa": "ASA",
    "averaging": "Averaging",
    "cat": "CAT",
    "child_tuning": "ChildTuning",
    "freelb": "FreeLB",
    "hype": "HyPe",
    "l2sp": "L2SP",
    "label_smoothing": "LabelSmoothing",
    "llrd": "LLRD",
    "lnsr": "LNSR",
    "lora": "LoRA",
    "mixout": "Mixout",
    "neftune": "NEFTune",
    "noisytune": "NoisyTune",
    "pgd": "PGD",
    "r3f": "R3F",
    "rdrop": "RDrop",
    "recadam": "RecAdam",
    "reinit": "ReInit",
    "sam": "SAM",
    "scl": "SCL",
    "smart": "SMART",
    "tmix": "TMix",
    "topk": "TopK",
}
_CONTRACT = (
    *("Context", "Method", "MethodError", "Mixture", "OwnOptimizer", "ParameterRule", "Pass", "Step"),
    "Update",
    "setting",
)
_HOMES = {name: key for key, name in METHODS.items()} | dict.fromkeys(_CONTRACT, "contract")

__all__ = [
    "ASA",
    "CAT",
    "L2SP",
    "LLRD",
    "LNSR",
    "METHODS",
    "PGD",
    "R3F",
    "SAM",
    "SCL",
    "SMART",
    "Averaging",
    "ChildTuning",
    "Context",
    "FreeLB",
    "HyPe",
    "LabelSmoothing",
    "LoRA",
    "Method",
    "MethodError",
    "Mixout",
    "Mixture",
    "NEFTune",
    "NoisyTune",
    "OwnOptimizer",
    "ParameterRule",
    "Pass",
    "RDrop",
    "ReInit",
    "RecAdam",
    "Step",
    "TMix",
    "TopK",
    "Update",
    "method_class",
    "setting",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def method_class(key: str) -> "type[Method]":
    """The class of a method, built in or added through the entry-point group `steadytune.methods`.

    Args:
        key: its name, e.g. "scl".
    Raises:
        KeyError: there is no such method.
    """
    if key in METHODS:
        found: type[Method] = __getattr__(METHODS[key])
        return found
    for point in entry_points(group="steadytune.methods"):
        if point.name == key:
            loaded: type[Method] = point.load()
            return loaded
    raise KeyError(key)

"""The list of methods. A method's key is the name of its module, its card and its recipe."""

import importlib
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steadytune.methods.asa import ASA
    from steadytune.methods.cat import CAT
    from steadytune.methods.contract import (
        Context,
        Method,
        MethodError,
        OwnOptimizer,
        ParameterRule,
        Pass,
        Step,
        Update,
        setting,
    )
    from steadytune.methods.hype import HyPe
    from steadytune.methods.lnsr import LNSR
    from steadytune.methods.scl import SCL

METHODS: dict[str, str] = {
    "asa": "ASA",
    "cat": "CAT",
    "hype": "HyPe",
    "lnsr": "LNSR",
    "scl": "SCL",
}
_CONTRACT = (
    *("Context", "Method", "MethodError", "OwnOptimizer", "ParameterRule", "Pass", "Step", "Update"),
    "setting",
)
_HOMES = {name: key for key, name in METHODS.items()} | dict.fromkeys(_CONTRACT, "contract")

__all__ = [
    "ASA",
    "CAT",
    "LNSR",
    "METHODS",
    "SCL",
    "Context",
    "HyPe",
    "Method",
    "MethodError",
    "OwnOptimizer",
    "ParameterRule",
    "Pass",
    "Step",
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

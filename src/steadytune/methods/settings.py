"""A setting of a method: its range, its words, where its default comes from."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin


class MethodError(ValueError):
    """A setting is out of range, or a method cannot act here."""


def setting(
    default: Any,
    description: str,
    *,
    low: float | None = None,
    high: float | None = None,
    open_low: bool = False,
    source: str,
) -> Any:
    """A field of a method that a user may set.

    Args:
        default: value if none is given.
        description: symbol and meaning, for cards and help.
        low: smallest allowed number.
        high: largest allowed number.
        open_low: `low` itself is not allowed.
        source: where the default comes from.
    """
    limits = {"description": description, "low": low, "high": high, "open_low": open_low, "source": source}
    return dataclasses.field(default=default, metadata=limits)


def plain(value: Any) -> Any:
    """A setting as YAML and JSON write it.

    Args:
        value: of the setting.
    """
    return list(value) if isinstance(value, tuple) else value


def lists_integers(hint: Any) -> bool:
    """Whether a setting is a list of integers.

    Args:
        hint: its type.
    """
    return tuple[int, ...] in (hint, *get_args(hint))


def check(path: str, value: Any, hint: Any, limits: Mapping[str, Any]) -> None:
    """Refuse a value of the wrong kind or out of range.

    Args:
        path: "method.setting", for the message.
        value: what came.
        hint: type of the setting.
        limits: its metadata, see `setting`.
    Raises:
        MethodError: with what is allowed and what came.
    """
    optional = type(None) in get_args(hint)
    if optional and value is None:
        return
    kind = next(part for part in get_args(hint) if part is not type(None)) if optional else hint
    if not _fits(value, kind, limits):
        raise MethodError(f"{path} must be {_wanted(kind, limits)}{' or null' if optional else ''}; got {value!r}.")


def _wanted(kind: Any, limits: Mapping[str, Any]) -> str:
    """What is allowed, in words."""
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(repr, get_args(kind)))}"
    if kind is bool:
        return "true or false"
    if lists_integers(kind):
        return "a list of integers"
    low, high = limits.get("low"), limits.get("high")
    bounds = [] if low is None else [f"{'>' if limits.get('open_low') else '>='} {low:g}"]
    bounds += [] if high is None else [f"<= {high:g}"]
    return " ".join(["an integer" if kind is int else "a number", " and ".join(bounds)]).strip()


def _fits(value: Any, kind: Any, limits: Mapping[str, Any]) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if kind is bool:
        return isinstance(value, bool)
    if lists_integers(kind):
        return isinstance(value, tuple) and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
    if kind not in (int, float):
        return True  # a kind of its own, which the method checks itself
    if not isinstance(value, int if kind is int else (int, float)) or isinstance(value, bool):
        return False
    low, high = limits.get("low"), limits.get("high")
    below = low is not None and (value <= low if limits.get("open_low") else value < low)
    return math.isfinite(value) and not below and not (high is not None and value > high)

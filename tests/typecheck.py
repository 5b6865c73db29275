"""How signatures are checked while the tests run; named in the Makefile, `--jaxtyping-packages`."""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int may stand for a float, as in all Python typing


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its signature enforced; but settings of methods check themselves, in one sentence."""
    own_check = function.__name__ == "__init__" and function.__module__.startswith("steadytune.methods.")
    return function if own_check else _beartype(function)

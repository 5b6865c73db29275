"""Whether additive noise survives the precision in which it is stored and computed with."""

import torch
from torch import Tensor

from steadytune.functional import realized_noise
from steadytune.methods.contract import MethodError, Pass, Step

FAITHFUL = 0.9
"""Smallest correlation of intended and realized noise at which the noise still is what was asked for."""

_SMALLEST_SCALE = {torch.bfloat16: 1e-2, torch.float16: 1e-3, torch.float32: 1e-6}


def check_noise(now: Pass | Step, setting: str, value: float, site: str, states: Tensor, noise: Tensor) -> None:
    """Refuse noise that its site rounds away, and say where a product under autocast does; it waits for the device.

    Args:
        now: the pass or step in which it is added.
        setting: that sets its size, as "hype.noise_std".
        value: of that setting.
        site: what it is added to, as "hidden states".
        states: the values before the noise, without graph.
        noise: of the shape of `states`, float32 or wider.
    Raises:
        MethodError: the dtype of the states leaves something else of the noise.
    """
    dtype = states.dtype
    if now.compute_dtype is not None and dtype == torch.float32:
        dtype = now.compute_dtype
    if dtype not in _SMALLEST_SCALE:
        return
    correlation, moved = (float(part) for part in realized_noise(states, noise, dtype))
    if correlation >= FAITHFUL:
        return
    name, usable = str(dtype).removeprefix("torch."), _SMALLEST_SCALE[dtype]
    left = f"correlation of intended and effective noise {correlation:.2f}, {moved:.1%} of the entries move"
    enough = f"{usable:g} times the root mean square of the {site}"
    if states.dtype == dtype:
        raise MethodError(
            f"{setting} {value:g} is rounded away by the {name} {site} ({left}); use float32 weights, or noise of at "
            f"least {enough}."
        )
    key = setting.split(".")[0]
    now.notice(f"{key}: autocast to {name} rounds noise of this size away ({left}); use at least {enough}.")

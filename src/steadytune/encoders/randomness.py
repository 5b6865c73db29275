"""The global random stream that dropout draws from: capture it, put it back, or start a named one."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RandomState:
    """State of the global generators at one moment; on an accelerator its current device counts too.

    Attributes:
        device: device of the model.
        cpu: state of the CPU generator.
        accelerator: state of the device's generator, None on a CPU.
    """

    device: torch.device
    cpu: Tensor
    accelerator: Tensor | None

    @classmethod
    def capture(cls, device: torch.device) -> "RandomState":
        """The state now.

        Args:
            device: where the model runs.
        """
        module = None if device.type == "cpu" else torch.get_device_module(device)
        return cls(device, torch.get_rng_state(), None if module is None else module.get_rng_state(device))

    def restore(self) -> None:
        """Put this state back."""
        torch.set_rng_state(self.cpu)
        if self.accelerator is not None:
            torch.get_device_module(self.device).set_rng_state(self.accelerator, self.device)


@contextmanager
def borrowed_stream(device: torch.device, start: RandomState | int | None) -> Iterator[None]:
    """Draw from another stream inside the block; afterwards the main stream is where it was.

    Args:
        device: where the model runs.
        start: a captured state to replay, a seed to start from, or None to stay on the main stream.
    """
    if start is None:
        yield
        return
    before = RandomState.capture(device)
    try:
        if isinstance(start, RandomState):
            start.restore()
        else:
            torch.default_generator.manual_seed(start)
            if device.type != "cpu":
                torch.get_device_module(device).manual_seed(start)
        yield
    finally:
        before.restore()

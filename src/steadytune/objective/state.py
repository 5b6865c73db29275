"""What a stopped training keeps of its methods beside model and optimizer."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from steadytune.methods.contract import MethodError

STATE_FILE, WEIGHTS_FILE = "steadytune_state.json", "steadytune_methods.safetensors"


def write_state(folder: Path, counters: Mapping[str, Any], modules: nn.Module) -> None:
    """Save counters and the methods' parameters and buffers.

    Args:
        folder: an existing one.
        counters: plain values; "methods" names the methods.
        modules: what the methods own.
    """
    if tensors := {name: tensor.contiguous() for name, tensor in modules.state_dict().items()}:
        save_file(tensors, folder / WEIGHTS_FILE)
    (folder / STATE_FILE).write_text(json.dumps(counters, indent=1))


def read_state(folder: Path, methods: Sequence[str], modules: nn.Module) -> dict[str, Any]:
    """Load what `write_state` saved: parameters and buffers in place.

    Args:
        folder: where it lies.
        methods: keys of those that go on.
        modules: what they own.
    Returns:
        The counters.
    Raises:
        MethodError: the state is missing, or was saved with other methods or settings.
    """
    path = folder / STATE_FILE
    if not path.exists():
        raise MethodError(f"{path} is missing, so the methods cannot resume; was this saved without them?")
    counters: dict[str, Any] = json.loads(path.read_text())
    if counters["methods"] != list(methods):
        raise MethodError(f"{path} was saved with methods {counters['methods']}; this run has {list(methods)}.")
    if modules.state_dict():
        try:
            modules.load_state_dict(load_file(folder / WEIGHTS_FILE))
        except (RuntimeError, OSError, SafetensorError):
            raise MethodError(
                f"{folder / WEIGHTS_FILE} does not hold the parameters of these methods; resume with the settings that "
                "it was saved with."
            ) from None
    return counters

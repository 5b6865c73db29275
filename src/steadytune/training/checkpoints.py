"""Which checkpoint of an interrupted run can be trusted."""

import json
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

from steadytune.objective import STATE_FILE, WEIGHTS_FILE


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end, or None.

    `trainer_state.json` is the last file of a checkpoint, so one without it was cut short and is passed over.

    Args:
        folder: holds `checkpoint-N` folders.
    Raises:
        ValueError: the newest whole checkpoint cannot be read.
    """
    found = [path for path in folder.glob("checkpoint-*") if path.name.split("-")[-1].isdigit()]
    for path in sorted(found, key=lambda item: int(item.name.split("-")[-1]), reverse=True):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        _check_readable(path)
        return path
    return None


def _check_readable(path: Path) -> None:
    remedy = "remove that folder to go on from an earlier one."
    random_states = sorted(item.name for item in path.glob("rng_state*.pth")) or ["rng_state.pth"]
    methods = [WEIGHTS_FILE] if (path / WEIGHTS_FILE).is_file() else []
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", *random_states, STATE_FILE, *methods):
        if not (path / name).is_file():
            raise ValueError(f"checkpoint {path} lacks {name}; {remedy}")
        if not _is_whole(path / name):
            raise ValueError(f"checkpoint {path} is corrupt ({name} cannot be read); {remedy}")


def _is_whole(file: Path) -> bool:
    try:
        match file.suffix:
            case ".safetensors":
                with safe_open(file, framework="pt") as weights:
                    weights.keys()
            case ".json":
                json.loads(file.read_text(encoding="utf-8"))
            case _:  # torch writes a zip archive, whose directory comes last
                return zipfile.is_zipfile(file)
    except (OSError, ValueError, SafetensorError):
        return False
    return True

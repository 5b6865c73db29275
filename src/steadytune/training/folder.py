"""The folder of a run: whether it may be used, and whether the run in it may go on."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from steadytune.training.checkpoints import last_complete_checkpoint
from steadytune.training.loading import RunError

RUN_FILE, INPUTS_FILE = "run.yaml", "inputs.json"


def open_folder(output: Path, is_this_run: Callable[[Path], bool]) -> Path | None:
    """The checkpoint that a run in this folder goes on from, or None for a fresh start.

    Args:
        output: folder of the run.
        is_this_run: whether a `run.yaml` says what the run that is about to start would do.
    Raises:
        RunError: the folder holds something else, or a checkpoint is corrupt.
    """
    if output.exists() and not output.is_dir():
        raise RunError(f"--output {output} is a file; name a folder.")
    if not any(path.is_file() and not path.name.startswith(".") for path in output.rglob("*")):
        return None  # a refused run leaves empty folders, a killed one perhaps a file that was being written aside
    if (output / "record.json").exists():
        raise RunError(f"--output {output} already holds a finished run; name another folder or remove it.")
    if not (output / RUN_FILE).exists():
        raise RunError(f"--output {output} is not empty and holds no run; name another folder.")
    if not is_this_run(output / RUN_FILE):
        raise RunError(f"--output {output} holds another run that is not finished; repeat its settings or remove it.")
    try:
        return last_complete_checkpoint(output / "checkpoints")
    except ValueError as error:
        raise RunError(str(error)) from None


@contextmanager
def no_empty_folders(output: Path) -> Iterator[None]:
    """A run that is refused inside the block leaves no folders behind, which would look like something else's.

    Args:
        output: folder of the run.
    """
    new = [path for path in (output / "checkpoints", output, *output.parents) if not path.exists()]
    try:
        yield
    except ValueError:
        for path in new:
            with suppress(OSError):  # removes empty folders only
                path.rmdir()
        raise


def check_unchanged(output: Path, inputs: Mapping[str, Any]) -> None:
    """A checkpoint goes on only with the rows and weights that it began with.

    Args:
        output: folder of the run.
        inputs: what a run begins with, by name.
    Raises:
        RunError: something of it changed.
    """
    try:
        before = json.loads((output / INPUTS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise RunError(f"{output / INPUTS_FILE} cannot be read; remove {output} to start again.") from None
    changed = [name for name in inputs if inputs[name] != before.get(name)]
    if changed:
        raise RunError(
            f"the {' and the '.join(changed)} changed since the run in {output} was interrupted; put back what it "
            "began with, or remove the folder to start again."
        )

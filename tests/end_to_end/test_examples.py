"""The examples run as they stand, from an empty directory, and learn."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
CHANCE = 1 / 12


@pytest.mark.slow  # the script of the README runs in test_runnable_blocks.py
@pytest.mark.parametrize("name", ["bare_loop.py", "trainer.py"])
def test_an_example_runs_and_beats_chance_by_far(name: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, EXAMPLES / name], cwd=tmp_path, capture_output=True, text=True, check=True)
    accuracy = float(re.findall(r"\d\.\d+", done.stdout)[-1])
    assert accuracy > 4 * CHANCE

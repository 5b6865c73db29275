"""The first minute: fine-tune on the bundled sample, plain and regularized, then ask the model."""

import json
import subprocess
import sys
from pathlib import Path

RECIPE = "hype"
TEXTS = (
    "my parcel was supposed to be here last friday",
    "please take the money off a different card, this one keeps getting refused",
    "can I talk to a real person",
)


def run(*words: str) -> None:
    """Show a command, then run it."""
    print(f"\n$ steadytune {' '.join(repr(word) if ' ' in word else word for word in words)}", flush=True)
    subprocess.run([sys.executable, "-m", "steadytune", *words], check=True)


def fresh(recipe: str) -> Path:
    """A run folder that does not exist yet."""
    return next(path for number in range(1, 1000) if not (path := Path("runs/demo") / f"{recipe}-{number}").exists())


def main() -> None:
    """Train twice, compare, predict."""
    folders = {recipe: fresh(recipe) for recipe in ("plain", RECIPE)}
    for recipe, folder in folders.items():
        run("train", "sample", "--recipe", recipe, "--output", str(folder))
    records = {recipe: json.loads((folder / "record.json").read_text()) for recipe, folder in folders.items()}
    print()
    for recipe, record in records.items():
        print(f"test accuracy, {recipe:5} {record['scores']['test']['accuracy']:.1%}")
    print(f"one seed each: no verdict.   record: {folders[RECIPE] / 'record.json'}", flush=True)
    run("predict", str(folders[RECIPE]), *(word for text in TEXTS for word in ("--text", text)))


if __name__ == "__main__":
    main()

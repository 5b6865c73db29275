"""Choose the defaults of the bundled recipes on validation data, with the same budget for every method.

    STEADYTUNE_DATA=../shared/data python benchmarks/search_defaults.py --output benchmarks/results/search_defaults

Every candidate meets the same sets, rows, seeds and batches. Only validation scores are kept. A run that is on file is
not repeated. The chosen value of a method is the candidate with the best mean difference to plain over the sets.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from steadytune.recipes import DataSettings, Recipe, RunConfig, RunSettings
from steadytune.recipes.recipe import Dropout
from steadytune.training.fit import fit


@dataclass(frozen=True)
class Candidate:
    """One setting of one method."""

    method: str
    settings: Mapping[str, Any]
    hidden_dropout: float | None = None

    @property
    def name(self) -> str:
        """For tables."""
        parts = [f"{key} {value:g}" for key, value in self.settings.items()]
        if self.hidden_dropout is not None:
            parts.append(f"hidden dropout {self.hidden_dropout:g}")
        return f"{self.method} ({', '.join(parts)})" if parts else self.method

    def recipe(self) -> Recipe:
        """As a recipe."""
        methods = {} if self.method in ("plain", "hype-control") else {self.method: dict(self.settings)}
        return Recipe(name=self.method, methods=methods, dropout=Dropout(hidden=self.hidden_dropout))


CANDIDATES = (
    Candidate("plain", {}),
    Candidate("hype-control", {}, 0.0),
    *(Candidate("hype", {"noise_std": std}, 0.0) for std in (1e-5, 1e-2, 1e-1)),
    *(Candidate("scl", {"weight": weight, "temperature": 0.3}) for weight in (0.1, 0.3, 0.5)),
)
SETS = {
    "trec": {"train_rows": 100},
    "glue_sst2": {"train_rows": 200},
    "hwu64": {"train_split": "train_5shot"},
}
SEEDS = (0, 1)


def run(candidate: Candidate, data: str, seed: int, root: Path) -> dict[str, Any]:
    """One run; its validation score and what it took."""
    config = RunConfig(
        data=DataSettings(source=str(root / data), eval_rows=500, **SETS[data]),
        recipe=candidate.recipe(),
        run=RunSettings(max_length=64),
        seed=seed,
    )
    folder = Path(tempfile.mkdtemp())
    try:
        record = fit(config, folder / "run")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "candidate": candidate.name,
        "method": candidate.method,
        "data": data,
        "seed": seed,
        "dev_rows": record.data_rows["dev"],
        "dev_score": record.scores["dev"][record.metric],
        "metric": record.metric,
        "steps": record.cost.optimizer_steps if record.cost else None,
        "data_fingerprints": {name: record.data_fingerprints[name] for name in ("train", "dev")},
        "notices": record.notices,
    }


def as_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Mean paired difference to plain on each set, in points of the validation score."""
    score = {(row["candidate"], row["data"], row["seed"]): 100 * row["dev_score"] for row in rows}
    lines = [
        "# Search for the defaults of the bundled recipes",
        "",
        f"Bundled encoder, {len(SEEDS)} seeds, at least 150 steps, validation accuracy (at most 500 rows), plain in "
        "percent, the others as mean paired difference to plain ± standard deviation over seeds. Chosen on these "
        "numbers, so they are no evidence that a method helps. Records of candidates that are not listed were not run "
        "on every cell.",
        "",
        "| candidate | " + " | ".join(SETS) + " | mean |",
        "|---|" + "---|" * (len(SETS) + 1),
    ]
    for candidate in CANDIDATES:
        cells, means = [], []
        for data in SETS:
            own = [score.get((candidate.name, data, seed)) for seed in SEEDS]
            base = [score.get(("plain", data, seed)) for seed in SEEDS]
            if None in own or None in base:
                cells.append("not run")
                continue
            differences = own if candidate.method == "plain" else [a - b for a, b in zip(own, base, strict=True)]
            means.append(statistics.mean(differences))
            sign = "" if candidate.method == "plain" else "+"
            cells.append(f"{means[-1]:{sign}.1f} ± {statistics.stdev(differences):.1f}")
        mean = f"{statistics.mean(means):+.1f}" if len(means) == len(SETS) and candidate.method != "plain" else ""
        lines.append(f"| {candidate.name} | " + " | ".join(cells) + f" | {mean} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing, then write `records.jsonl` and `README.md`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/search_defaults"))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    root = Path(os.environ.get("STEADYTUNE_DATA", "../shared/data"))
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "records.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(row["candidate"], row["data"], row["seed"]) for row in rows}
    for seed in SEEDS:
        for data in SETS:
            for candidate in CANDIDATES:
                if (candidate.name, data, seed) in done:
                    continue
                rows.append(run(candidate, data, seed, root))
                with file.open("a") as out:
                    out.write(json.dumps(rows[-1]) + "\n")
                (options.output / "README.md").write_text(as_table(rows))
    (options.output / "README.md").write_text(as_table(rows))
    print(as_table(rows))


if __name__ == "__main__":
    main()

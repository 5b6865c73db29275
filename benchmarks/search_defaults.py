"""Choose the defaults of the bundled recipes on validation data, with the same budget for every method.

    STEADYTUNE_DATA=../shared/data python benchmarks/search_defaults.py --output benchmarks/results/search_defaults

Every candidate meets the same sets, rows and batches with the first seed; the better one of each method, plain and the
control meet the further seeds too. Only validation scores are kept, and a run that is on file is not repeated. The
chosen value of a method is the candidate with the best mean difference to plain over the sets, or a published value
where the two differ by less than half a point.
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
    """One setting of one method, or of the strong baseline: its parts as "method.setting", and `longer`."""

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
        methods: dict[str, dict[str, Any]] = {}
        longer = 1.0
        for name, value in self.settings.items():
            method, _, own = name.rpartition(".")
            if name == "longer":
                longer = value
            else:
                methods.setdefault(method or self.method, {})[own] = value
        return Recipe(name=self.method, methods=methods, dropout=Dropout(hidden=self.hidden_dropout), longer=longer)


CANDIDATES = (
    Candidate("plain", {}),
    Candidate("hype-control", {}, 0.0),
    *(Candidate("hype", {"noise_std": std}, 0.0) for std in (1e-2, 1e-1)),
    *(Candidate("scl", {"weight": weight, "temperature": 0.3}) for weight in (0.1, 0.3)),
    *(Candidate("cat", {"weight": weight, "temperature": 0.5, "epsilon": 1.0}) for weight in (0.03, 0.1)),
    *(Candidate("lnsr", {"weight": weight, "noise_std": 0.05}) for weight in (1.0, 10.0)),
    *(
        Candidate("strong", {"llrd.decay": decay, "averaging.decay": 0.97, "longer": longer})
        for decay, longer in ((0.95, 2.0), (0.9, 2.0), (0.95, 3.0))
    ),
    Candidate("asa", {"temperature": 0.5}),
    Candidate("asa", {"temperature": 0.5, "target_mask_fraction": 0.1}),
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
        "telemetry": last_telemetry(record.history),
        "steps": record.cost.optimizer_steps if record.cost else None,
        "data_fingerprints": {name: record.data_fingerprints[name] for name in ("train", "dev")},
        "notices": record.notices,
    }


def last_telemetry(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What the methods reported last, without the values per layer."""
    lines = [line for line in history if "loss" in line]
    return {k: v for k, v in (lines[-1] if lines else {}).items() if "/" in k and "_layer_" not in k}


def as_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Mean paired difference to plain on each set, in points of the validation score."""
    score = {key(row): 100 * row["dev_score"] for row in rows}
    lines = [
        "# Search for the defaults of the bundled recipes",
        "",
        "Bundled encoder, at least 150 steps, validation accuracy (at most 500 rows). plain in percent, the others as "
        "paired difference to plain, with standard deviation where there are several seeds. Chosen on these numbers, "
        "so they are no evidence that a method helps.",
        "",
        "| candidate | seeds | " + " | ".join(SETS) + " | mean |",
        "|---|---|" + "---|" * (len(SETS) + 1),
    ]
    for candidate in CANDIDATES:
        seeds = [seed for seed in SEEDS if all((candidate.name, data, seed) in score for data in SETS)]
        if not seeds:
            continue
        cells, means = [], []
        for data in SETS:
            own = [score[candidate.name, data, seed] for seed in seeds]
            base = [score["plain", data, seed] for seed in seeds]
            values = own if candidate.method == "plain" else [a - b for a, b in zip(own, base, strict=True)]
            means.append(statistics.mean(values))
            sign = "" if candidate.method == "plain" else "+"
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{means[-1]:{sign}.1f}{spread}")
        mean = "" if candidate.method == "plain" else f"{statistics.mean(means):+.1f}"
        lines.append(f"| {candidate.name} | {len(seeds)} | " + " | ".join(cells) + f" | {mean} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing, then write `records.jsonl` and `README.md`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/search_defaults"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=list(SETS), nargs="+", default=list(SETS), help="share the work")
    parser.add_argument("--method", help="only the candidates of this method, with the first seed")
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    root = Path(os.environ.get("STEADYTUNE_DATA", "../shared/data"))
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "records.jsonl"
    for number, seed in enumerate(SEEDS[:1] if options.method else SEEDS):
        candidates = finalists(read(file)) if number else CANDIDATES
        candidates = [found for found in candidates if options.method in (None, found.method)]
        for data in options.only:
            for candidate in candidates:
                if (candidate.name, data, seed) in {key(row) for row in read(file)}:
                    continue
                row = run(candidate, data, seed, root)
                with file.open("a") as out:
                    out.write(json.dumps(row) + "\n")
    (options.output / "README.md").write_text(as_table(read(file)))
    print(as_table(read(file)))


def read(file: Path) -> list[dict[str, Any]]:
    """The records on file; another process may be adding some."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def key(row: Mapping[str, Any]) -> tuple[str, str, int]:
    """Which run a record is of."""
    return row["candidate"], row["data"], row["seed"]


def finalists(rows: Sequence[Mapping[str, Any]]) -> list[Candidate]:
    """Of each method the candidate with the best mean score with the first seed; none if a score is missing yet."""
    score = {key(row): row["dev_score"] for row in rows}
    best: dict[str, tuple[float, Candidate]] = {}
    for candidate in CANDIDATES:
        own = [score.get((candidate.name, data, SEEDS[0])) for data in SETS]
        if None in own:
            raise SystemExit(f"{candidate.name} has not met seed {SEEDS[0]} everywhere; repeat this when it has.")
        mean = statistics.mean(value for value in own if value is not None)
        if candidate.method not in best or mean > best[candidate.method][0]:
            best[candidate.method] = (mean, candidate)
    return [candidate for _, candidate in best.values()]


if __name__ == "__main__":
    main()

"""A study's folder, made without any training: seeded numbers in the files that a study leaves."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from steadytune.records import Cost, RunRecord, StudyStore, config_hash, write_pooled, write_predictions, write_record

SCRIPT = "<script>alert(1)</script>"
ARMS = {"plain": "baseline", "scl": "recipe", "hype": "recipe", "hype-control": "control"}
GAINS = {"plain": 0.0, "scl": 1.1, "hype": 0.1, "hype-control": 0.0}
CLASSES = {"shop": [SCRIPT, "refund $x_1$", "where & when"]}
SEEDS = range(6)
ROWS = 60
STEPS = range(10, 110, 10)


def make_study(
    folder: Path,
    tasks: Iterable[str] = ("shop", "similarity"),
    arms: dict[str, str] = ARMS,
    seeds: Iterable[int] = SEEDS,
) -> Path:
    """Two tasks, a classification and a regression; one failed run and one that was never started.

    The failed run is hype with seed 3 on the first task; the missing one is scl with seed 5 there.
    """
    store, cells = StudyStore(folder), []
    tasks, seeds = list(tasks), list(seeds)
    (folder / "records").mkdir(parents=True)
    for task in tasks:
        for recipe, role in arms.items():
            for seed in seeds:
                cell = {"task": task, "protocol": "100 rows", "recipe": recipe, "role": role, "budget": "steps"}
                cells.append({**cell, "seed": seed})
                if (task, recipe, seed) != (tasks[0], "scl", 5):
                    failed = (task, recipe, seed) == (tasks[0], "hype", 3)
                    write_run(store, cells[-1], failed=failed)
                if role == "control":
                    cells[-1] = {**cells[-1], "isolates": ["hype"]}
    about = {
        "command": "steadytune study plan.yaml",
        "name": f"made {SCRIPT}",
        "model": "bundled",
        "budget": "equal-steps",
    }
    about |= {"cells": cells, "data": [data_of(task) for task in tasks]}
    (folder / "study.json").write_text(json.dumps(about))
    (folder / "plan.yaml").write_text(yaml.safe_dump({"name": "made", "recipes": list(arms), "seeds": len(seeds)}))
    store.write_texts(tasks[0], {f"row-{index}": (f"secret text {index} <b>", "") for index in range(ROWS)})
    return folder


def write_run(store: StudyStore, cell: dict[str, Any], *, failed: bool = False) -> str:
    """One run's record and tables; its id."""
    run_id = config_hash(cell)
    names = CLASSES.get(cell["task"], [])
    random = np.random.default_rng([cell["seed"], sorted(ARMS).index(cell["recipe"]), len(cell["task"])])
    score = None
    if not failed:
        artifacts = store.artifact_folder(run_id)
        artifacts.mkdir(parents=True)
        labels, logits = answers(random, names, GAINS[cell["recipe"]])
        ids, splits = [f"row-{index}" for index in range(ROWS)], ["test"] * ROWS
        dev_labels, dev_logits = answers(random, names, GAINS[cell["recipe"]])
        write_predictions(
            artifacts / "predictions.parquet",
            [*ids, *(f"dev-{index}" for index in range(ROWS))],
            [*splits, *["dev"] * ROWS],
            {"label": [*labels.tolist(), *dev_labels.tolist()], "logits": list(np.concatenate([logits, dev_logits]))},
        )
        vectors = random.normal(size=(ROWS, 8)) + 3 * np.round(labels)[:, None]
        write_pooled(artifacts / "pooled.parquet", ids, labels, vectors)
        if cell["recipe"] == "hype":
            write_layers(store, run_id, random)
        if names:
            score = float((logits.argmax(axis=1) == labels).mean())
        else:
            score = float(np.corrcoef(logits[:, 0], labels)[0, 1])
    write_record(store.record_path(run_id), record_of(run_id, cell, names, score, random))
    return run_id


def answers(random: np.random.Generator, names: list[str], gain: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels, the same for all, and logits that know more of them the larger the gain."""
    if not names:
        labels = np.linspace(0, 5, ROWS)
        return labels, (labels + random.normal(size=ROWS) * 1.5 / (1 + gain))[:, None]
    labels = np.arange(ROWS) % len(names)
    return labels, random.normal(size=(ROWS, len(names))) + (1.0 + gain) * np.eye(len(names))[labels]


def record_of(
    run_id: str, cell: dict[str, Any], names: list[str], score: float | None, random: np.random.Generator
) -> RunRecord:
    metric = "accuracy" if names else "pearson_spearman"
    seconds = float(20 + random.random())
    cost = Cost(
        optimizer_steps=100, forward_passes=100, pass_units=300 + 100 * GAINS[cell["recipe"]], tokens=5000,
        train_seconds=seconds, peak_memory_bytes=2**30,
    )  # fmt: skip
    return RunRecord(
        run_id=run_id,
        config={},
        task="" if score is None else "classification" if names else "regression",
        metric="" if score is None else metric,
        label_names=names,
        data_fingerprints={} if score is None else {"train": f"{cell['seed']:064x}", "test": "f" * 64},
        data_rows={} if score is None else {"train": 100, "test": ROWS},
        data_notes=[],
        model_name="tiny",
        model_revision="1" * 40,
        dropout={"hidden": 0.1},
        learning_rate=1e-4,
        coefficients={"task": 1.0},
        status="failed" if score is None else "done",
        failure="ValueError: loss is not finite (step.py)" if score is None else None,
        scores={} if score is None else {"dev": {metric: score}, "test": {metric: score}},
        history=[] if score is None else history_of(cell["recipe"], random),
        notices=["scl: few anchors have a positive."] if cell["recipe"] == "scl" else [],
        cost=None if score is None else cost,
        versions={"python": "3.11", "steadytune": "0.1.0"},
        hardware={"processor": "x86_64", "cores": 2},
        cell={name: value for name, value in cell.items() if name != "isolates"},
    )


def history_of(recipe: str, random: np.random.Generator) -> list[dict[str, float | None]]:
    entries: list[dict[str, float | None]] = []
    for step in STEPS:
        loss = 2 / (1 + step / 30) + 0.1 * float(random.random())
        entries.append({"loss": loss, "task_loss": loss * 0.9, "grad_norm": 1.0, "step": float(step), "epoch": 1.0})
        if recipe == "scl":
            entries[-1] |= {"scl/term": loss / 2, "scl/anchors_with_positive_fraction": 0.6}
        if recipe.startswith("hype"):
            entries[-1] |= {"hype/relative_noise": 0.02 + 0.002 * float(random.random()), "hype/gap": None}
    return [*entries, {"train_runtime": 20.0, "train_loss": 1.0, "step": 100.0, "epoch": 1.0}]


def write_layers(store: StudyStore, run_id: str, random: np.random.Generator) -> None:
    tokens = ["[CLS]", "secret", "word", "[SEP]"]
    weights = random.dirichlet(np.ones(4), size=4)
    keep = (random.random((4, 4)) > 0.3).astype(float)
    attention = {"id": "row-0", "weights": weights.tolist(), "layer": 2, "keep": keep.tolist()}
    layers = {"stability": [0.05, None, 0.02], "probing": {"layers": [0, 1, 2], "accuracy": [0.4, 0.6, 0.7]}}
    path = store.artifact_folder(run_id) / "layers.json"
    path.write_text(json.dumps({**layers, "attention": [attention]}))
    (store.folder / "texts").mkdir(exist_ok=True)
    (store.folder / "texts" / f"{run_id}-tokens.json").write_text(json.dumps({"row-0": tokens}))


def data_of(task: str) -> dict[str, Any]:
    words = {"min": 1.0, "lower": 3.0, "median": 5.0, "upper": 8.0, "max": 20.0}
    names = CLASSES.get(task)
    split = {
        "rows": ROWS,
        "labels": {name: ROWS // len(names) for name in names} if names else None,
        "unseen_labels": [],
        "scores": None if names else words,
        "words": words,
        "empty_texts": 0,
    }
    repeats = [{"split": "test", "other": "train", "rows": 2, "other_rows": 1, "ids": [["row-1", "t-7"]]}]
    report = {"splits": {"train": split, "test": split}, "repeats": repeats}
    return {"task": task, "protocol": "100 rows", "report": report, "notes": ["2 rows of 'test' stand in 'train' too"]}

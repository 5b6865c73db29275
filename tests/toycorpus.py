"""A small pre-training run that needs no download: texts of few words, and a tiny BERT that knows them."""

import random
from pathlib import Path
from typing import Any

from steadytune.recipes import PretrainConfig, load_pretrain_recipe
from steadytune.recipes.pretraining import PretrainSettings, TextSettings
from toyrun import FILLERS, WORDS

VOCABULARY = (*FILLERS, *(word for group in WORDS.values() for word in group))


def write_texts(path: Path, count: int = 120, seed: int = 3) -> Path:
    """One text per line, of 5 to 20 words."""
    draw = random.Random(seed)
    lines = [" ".join(draw.choice(VOCABULARY) for _ in range(draw.randint(5, 20))) for _ in range(count)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def pretraining_of(
    texts: str | Path, model: str | Path, recipe: str = "plain", *, seed: int = 0, dev: Path | None = None, **run: Any
) -> PretrainConfig:
    """A short run: 12 steps of 4 sequences of 16 tokens, a checkpoint every 4 steps, measured 4 times and at the end.

    Settings of the recipe are given as `method__setting`.
    """
    loaded = load_pretrain_recipe(recipe)
    for path in [name for name in run if "__" in name]:
        loaded = loaded.with_setting(*path.split("__"), run.pop(path))
    usual: dict[str, Any] = {
        "steps": None if "minutes" in run else 12,
        "batch_size": 4,
        "learning_rate": 5e-3,
        "checkpoint_steps": 4,
        "logging_steps": 2,
        "max_length": 16,
        "eval_points": 4,
        "eval_rows": 10,
        "vocabulary": 100,
    }
    return PretrainConfig(
        texts=TextSettings(train=(str(texts),), dev=None if dev is None else str(dev)),
        model=str(model),
        recipe=loaded,
        run=PretrainSettings(**{**usual, **run}),
        seed=seed,
    )

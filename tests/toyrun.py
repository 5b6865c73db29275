"""A small run that needs no download: a table with a rule to learn, and a tiny BERT with its word list."""

import csv
import random
from pathlib import Path
from typing import Any

import torch
import transformers

from steadytune.recipes import DataSettings, Recipe, RunConfig, RunSettings, load_recipe

LABELS = ("bad", "fair", "good")
WORDS = {"bad": ("awful", "poor", "dull"), "fair": ("plain", "usual", "mild"), "good": ("fine", "bright", "superb")}
FILLERS = ("the", "a", "film", "book", "song", "was", "is", "very", "and", "to", "me", "today")


def write_table(path: Path, rows: int = 48, seed: int = 5) -> Path:
    """A CSV with texts of several lengths, each with one word that gives its label away."""
    draw = random.Random(seed)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["text", "label"])
        for row in range(rows):
            label = LABELS[row % len(LABELS)]
            words = [draw.choice(FILLERS) for _ in range(draw.randint(2, 9))]
            words.insert(draw.randrange(len(words)), draw.choice(WORDS[label]))
            table.writerow([" ".join(words), label])
    return path


def write_data(folder: Path) -> Path:
    """A folder with 48 rows to train and 12 each to choose and to test with."""
    folder.mkdir()
    for seed, (split, rows) in enumerate({"train": 48, "dev": 12, "test": 12}.items()):
        write_table(folder / f"{split}.csv", rows, seed)
    return folder


def write_model(folder: Path, seed: int = 0) -> Path:
    """A random two-layer BERT, with dropout, and a tokenizer that knows every word of the table."""
    words = [*FILLERS, *(word for group in WORDS.values() for word in group)]
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])}
    tokenizer = transformers.BertTokenizer(vocab=vocabulary)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformers.BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def recipe_of(name: str, **settings: Any) -> Recipe:
    """A bundled recipe with settings given as `method__setting`."""
    recipe = load_recipe(name)
    for path, value in settings.items():
        recipe = recipe.with_setting(*path.split("__"), value)
    return recipe


def run_of(source: str | Path, model: str | Path, recipe: Recipe, *, seed: int = 0, **run: Any) -> RunConfig:
    """A short run: batches of 4, a checkpoint every 4 steps, 20 steps."""
    usual: dict[str, Any] = {
        "epochs": 1,
        "min_steps": 20,
        "batch_size": 4,
        "learning_rate": 5e-3,
        "checkpoint_steps": 4,
        "logging_steps": 2,
        "max_length": 16,
    }
    settings = RunSettings(**{**usual, **run})
    return RunConfig(data=DataSettings(source=str(source)), model=str(model), recipe=recipe, run=settings, seed=seed)

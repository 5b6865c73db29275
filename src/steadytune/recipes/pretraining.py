"""One pre-training run, complete: texts, model, recipe and the settings that all recipes share."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from steadytune.recipes.recipe import Recipe, RecipeError, load_recipe, read_text, read_yaml, validated
from steadytune.recipes.run import save_yaml

NEW_MODEL = "new:"
_FOLDER = Path(__file__).parent / "pretrain"


class TextSettings(BaseModel):
    """Which texts.

    Attributes:
        train: files and folders to learn from, in order.
        dev: file or folder to be measured on; if null, the dev splits of the folders, or else the end of the texts.
        column: of the text, for tables; inferred if null.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: tuple[str, ...] = Field(min_length=1)
    dev: str | None = None
    column: str | None = None


class PretrainSettings(BaseModel):
    """The `run` block of a pre-training run: the same for every recipe of a comparison.

    The budget is `steps` or `minutes`. Where a share of it is meant, it is counted in what the budget is given in.

    Attributes:
        steps: optimizer steps; a recipe that trains `longer` multiplies them.
        minutes: time of training; reading, measuring and saving do not count.
        batch_size: sequences of one forward pass in one process.
        accumulation_steps: forward passes of one optimizer step.
        learning_rate: peak; if null, 1e-3 for a new model and 1e-4 for others.
        warmup_fraction: share of the budget with a rising learning rate; then it falls linearly to 0 at its end.
        head_fraction: share of the budget in which only the new head of a trained encoder learns; no effect on models
            that have a head, nor on new ones.
        plain_fraction: share of the budget that is plain, before methods that begin later (ASA and its controls) do.
        weight_decay: of AdamW.
        adam_beta2: of AdamW.
        max_grad_norm: clipping; 0 switches it off.
        max_length: tokens of a sequence.
        mask_fraction: share of the tokens to guess.
        fixed_count: the same number of masked places in every sequence.
        vocabulary: most tokens of the vocabulary that a new model learns.
        eval_rows: most sequences to be measured on.
        eval_points: how many times the budget is parted by a measurement; the first comes before the first step.
        eval_batch_size: sequences of one forward pass in measurements.
        precision: "float32", or "bfloat16" autocast.
        gradient_checkpointing: trade time for memory.
        checkpoint_steps: optimizer steps between two checkpoints.
        logging_steps: optimizer steps between two lines of the history.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    steps: int | None = Field(None, ge=1)
    minutes: float | None = Field(None, gt=0)
    batch_size: int = Field(32, ge=1)
    accumulation_steps: int = Field(1, ge=1)
    learning_rate: float | None = Field(None, gt=0)
    warmup_fraction: float = Field(0.06, ge=0, lt=1)
    head_fraction: float = Field(0.1, ge=0, lt=1)
    plain_fraction: float = Field(0.2, ge=0, lt=1)
    weight_decay: float = Field(0.01, ge=0)
    adam_beta2: float = Field(0.98, ge=0, lt=1)
    max_grad_norm: float = Field(1.0, ge=0)
    max_length: int = Field(128, ge=8)
    mask_fraction: float = Field(0.15, gt=0, lt=1)
    fixed_count: bool = False
    vocabulary: int = Field(8192, ge=64)
    eval_rows: int = Field(256, ge=1)
    eval_points: int = Field(10, ge=1)
    eval_batch_size: int = Field(32, ge=1)
    precision: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    checkpoint_steps: int = Field(200, ge=1)
    logging_steps: int = Field(10, ge=1)

    @model_validator(mode="after")
    def _has_one_budget(self) -> "PretrainSettings":
        if (self.steps is None) == (self.minutes is None):
            given = "both" if self.steps else "neither"
            raise ValueError(f"a run needs a budget: give either steps or minutes; got {given}.")
        return self


class PretrainConfig(BaseModel):
    """Everything that a pre-training run needs; its YAML form repeats the run.

    Attributes:
        texts: which texts.
        model: "bundled", a local folder, a hub name, "new:LAYERSxWIDTH" or "new:" and the path of a `config.json`.
        recipe: methods, settings, dropout.
        run: the shared settings.
        seed: names every random stream of the run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    texts: TextSettings
    model: str = "bundled"
    recipe: Recipe
    run: PretrainSettings
    seed: int = Field(0, ge=0, lt=2**31)

    @model_validator(mode="after")
    def _fits_together(self) -> "PretrainConfig":
        if self.recipe.model not in (None, self.model):
            raise ValueError(
                f"recipe {self.recipe.name!r} starts from {self.recipe.model}, and the run from {self.model}; name the "
                "same model with --model."
            )
        if self.run.minutes is not None and self.recipe.longer != 1:
            raise ValueError(
                f"recipe {self.recipe.name!r} trains longer by steps; with minutes every recipe has the same time, so "
                "take 'plain'."
            )
        return self

    def essence(self) -> dict[str, Any]:
        """What a run does, as plain values; see `RunConfig.essence`."""
        return self.model_dump(mode="json", exclude_defaults=True, exclude={"recipe": {"title", "origin"}})

    @property
    def is_new(self) -> bool:
        """The model begins with nothing."""
        return self.model.startswith(NEW_MODEL)

    @property
    def learning_rate(self) -> float:
        """The peak learning rate in force."""
        if self.run.learning_rate is not None:
            return self.run.learning_rate
        return 1e-3 if self.is_new else 1e-4

    @property
    def total_steps(self) -> int | None:
        """Optimizer steps in all; None where time is the budget."""
        return None if self.run.steps is None else round(self.recipe.longer * self.run.steps)


def load_pretrain_recipe(name: str) -> Recipe:
    """A recipe for pre-training: of a bundled name, the one that was made for pre-training if there is one.

    Args:
        name: "asa", "asa+hype" or "my.yaml"; see `load_recipe`.
    Raises:
        RecipeError: see `load_recipe`.
    """
    parts = [part.strip() for part in name.split("+")]
    return load_recipe("+".join(f"pretrain/{part}" if (_FOLDER / f"{part}.yaml").is_file() else part for part in parts))


def load_pretrain(path: str | Path) -> PretrainConfig:
    """A pre-training run from its YAML file.

    Args:
        path: a `run.yaml`.
    Raises:
        RecipeError: missing or wrong.
    """
    file = Path(path)
    if not file.is_file():
        raise RecipeError(f"run file {path} does not exist.")
    return validated(PretrainConfig, read_yaml(read_text(file), str(path)), str(path))


def save_pretrain(config: PretrainConfig, path: str | Path) -> None:
    """Write a pre-training run as YAML, aside and renamed into place.

    Args:
        config: the run.
        path: where to.
    """
    save_yaml(config, path, "pretrain")

"""One run, complete: data, model, recipe and the settings that all recipes of a comparison share."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator

from steadytune.recipes.recipe import Recipe, RecipeError, read_text, read_yaml, validated, without_null

BUNDLED_LEARNING_RATE = 1e-4
OTHER_LEARNING_RATE = 2e-5
_PROTOCOL = (
    *("train_rows", "k_shot", "fraction", "eval_rows"),
    *("imbalance", "label_noise", "label_noise_kind", "text_noise"),
)


class DataSettings(BaseModel):
    """Which rows, and what is done to those that train.

    With the seed this is the protocol of a run, saved in its `run.yaml`; `protocol_hash` says whether two are the same.

    Attributes:
        source: file, folder, hub name or "sample".
        text_column: for tables; inferred if null.
        pair_column: for tables; inferred if null.
        label_column: for tables; inferred if null.
        task: name of the task; inferred if null.
        train_split: name of the training split.
        dev_split: name of the validation split; "dev" or "validation" if null.
        test_split: name of the test split; "test" if null.
        train_rows: training rows in total, stratified.
        k_shot: training rows per class.
        fraction: share of the training rows, per class.
        eval_rows: at most so many rows of validation and of test.
        imbalance: training rows of the largest class over those of the smallest, geometric in between; rows go.
        label_noise: share of the training rows that get the label of another class.
        label_noise_kind: "uniform", any other class; "pair", the next class; "uniform" if null.
        text_noise: probability that a word of a training text is misspelt or dropped.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    source: str
    text_column: str | None = None
    pair_column: str | None = None
    label_column: str | None = None
    task: (
        Literal[
            "classification",
            "regression",
            "multi_label",
            "token_classification",
            "multiple_choice",
            "question_answering",
        ]
        | None
    ) = None
    train_split: str = "train"
    dev_split: str | None = None
    test_split: str | None = None
    train_rows: int | None = Field(None, ge=1)
    k_shot: int | None = Field(None, ge=1)
    fraction: float | None = Field(None, gt=0, le=1)
    eval_rows: int | None = Field(None, ge=1)
    imbalance: float | None = Field(None, ge=1)
    label_noise: float = Field(0.0, ge=0, lt=1)
    label_noise_kind: Literal["uniform", "pair"] | None = None
    text_noise: float = Field(0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _fits_together(self) -> "DataSettings":
        if self.label_noise_kind is not None and self.label_noise == 0:
            raise ValueError(
                f"data.label_noise_kind needs a data.label_noise above 0; got {self.label_noise_kind!r} with 0."
            )
        return self


class RunSettings(BaseModel):
    """The `run` block: optimizer, schedule and batches, the same for every recipe of a comparison.

    Attributes:
        epochs: passes over the training rows.
        min_steps: smallest number of optimizer steps, however few the rows.
        steps: exact number of optimizer steps, in place of `epochs` and `min_steps`; null to follow them. A recipe that
            trains `longer` multiplies either.
        batch_size: rows of one forward pass in one process.
        accumulation_steps: forward passes of one optimizer step.
        learning_rate: peak; if null, 1e-4 for the bundled encoder and 2e-5 for others.
        warmup_fraction: share of the steps with a rising learning rate; then it falls linearly to 0.
        weight_decay: of AdamW.
        max_grad_norm: clipping; 0 switches it off.
        max_length: tokens of an example.
        eval_batch_size: rows of one forward pass in evaluation.
        examples_per_class: if given, each batch holds at least so many examples of every class that is in it.
        precision: "float32", or "bfloat16" autocast.
        gradient_checkpointing: trade time for memory.
        checkpoint_steps: optimizer steps between two checkpoints.
        logging_steps: optimizer steps between two lines of the history.
        head_seed: draws the new classification head; if null, the run's seed. Runs of several seeds with one head seed
            begin with the same head, so that their weights can be averaged (`steadytune soup`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    epochs: float = Field(10.0, gt=0)
    min_steps: int = Field(150, ge=1)
    steps: int | None = Field(None, ge=1)
    batch_size: int = Field(16, ge=1)
    accumulation_steps: int = Field(1, ge=1)
    learning_rate: float | None = Field(None, gt=0)
    warmup_fraction: float = Field(0.1, ge=0, lt=1)
    weight_decay: float = Field(0.01, ge=0)
    max_grad_norm: float = Field(1.0, ge=0)
    max_length: int = Field(128, ge=4)
    eval_batch_size: int = Field(64, ge=1)
    examples_per_class: int | None = Field(None, ge=2)
    precision: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    checkpoint_steps: int = Field(200, ge=1)
    logging_steps: int = Field(10, ge=1)
    head_seed: int | None = Field(None, ge=0, lt=2**31)

    @model_serializer(mode="wrap")
    def _without_null_head_seed(self, dump: Callable[[Any], Any]) -> dict[str, Any]:
        """Where the head follows the run's seed, run ids are those of before it could not."""
        return without_null(dump(self), "head_seed")


class RunConfig(BaseModel):
    """Everything that a run needs; its YAML form repeats the run.

    Attributes:
        data: which rows.
        model: "bundled", a local folder or a hub name; that of the recipe if it names one.
        recipe: methods, settings, dropout.
        run: the shared settings.
        seed: names every random stream of the run, but for that of the head if `run.head_seed` is given.
        after: rows on which the same recipe trains the model first, as in sequential transfer; null for none. The
            classification head goes on too if both have the same labels; else it begins anew.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    data: DataSettings
    model: str = "bundled"
    recipe: Recipe
    run: RunSettings = RunSettings()
    seed: int = Field(0, ge=0, lt=2**31)
    after: DataSettings | None = None

    def with_run_setting(self, name: str, value: Any) -> "RunConfig":
        """This run with one setting of the `run` block changed.

        Args:
            name: the setting.
            value: its new value.
        Raises:
            RecipeError: no such setting, or out of range.
        """
        block = validated(RunSettings, {**self.run.model_dump(), name: value}, "", path=lambda _: f"run.{name}")
        return self.model_copy(update={"run": block})

    @model_validator(mode="before")
    @classmethod
    def _starts_from_the_model_of_the_recipe(cls, values: Any) -> Any:
        recipe = values.get("recipe") if isinstance(values, dict) else None
        own = recipe.model if isinstance(recipe, Recipe) else recipe.get("model") if isinstance(recipe, dict) else None
        return values if own is None else {"model": own, **values}

    @model_validator(mode="after")
    def _fits_together(self) -> "RunConfig":
        if self.recipe.model not in (None, self.model):
            raise ValueError(
                f"recipe {self.recipe.name!r} starts from {self.recipe.model}, and the run from {self.model}; leave "
                "out one of the two."
            )
        per_class, rows = self.run.examples_per_class, self.run.batch_size
        if per_class is not None and per_class > rows:
            raise ValueError(f"run.examples_per_class must be at most run.batch_size, {rows}; got {per_class}.")
        return self

    def essence(self) -> dict[str, Any]:
        """What a run does, as plain values: two runs with the same essence give the same scores.

        A recipe's title and the origins of its values do not count, nor does a setting at its default, so that one
        which a later version adds changes nothing.
        """
        return self.model_dump(mode="json", exclude_defaults=True, exclude={"recipe": {"title", "origin"}})

    @property
    def first(self) -> "RunConfig":
        """The run whose model this one starts from.

        Raises:
            RecipeError: this run starts from no other.
        """
        if self.after is None:
            raise RecipeError("the run has no `after`, so none comes before it.")
        return self.model_copy(update={"data": self.after, "after": None})

    @property
    def head_seed(self) -> int:
        """The seed in force for a new classification head."""
        return self.seed if self.run.head_seed is None else self.run.head_seed

    @property
    def learning_rate(self) -> float:
        """The peak learning rate in force."""
        if self.run.learning_rate is not None:
            return self.run.learning_rate
        return BUNDLED_LEARNING_RATE if self.model == "bundled" else OTHER_LEARNING_RATE


def protocol_hash(data: DataSettings, fingerprints: Mapping[str, str]) -> str:
    """Content hash of a protocol: how rows are drawn and changed, and the rows that this gave.

    Two runs with the same hash drew and changed rows by the same rule and got the same rows, wherever these lie. A
    setting at its default does not count, so one that a later version adds changes no hash.

    Args:
        data: the settings of the run.
        fingerprints: SHA-256 of the rows by split, as `RunRecord.data_fingerprints`; they also pin the seed.
    Returns:
        16 hexadecimal digits.
    """
    settings = data.model_dump(mode="json", include=set(_PROTOCOL), exclude_defaults=True)
    if data.label_noise:
        settings["label_noise_kind"] = data.label_noise_kind or "uniform"
    content = json.dumps([settings, dict(fingerprints)], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def load_run(path: str | Path) -> RunConfig:
    """A run from its YAML file.

    Args:
        path: a `run.yaml`.
    Raises:
        RecipeError: missing or wrong.
    """
    file = Path(path)
    if not file.is_file():
        raise RecipeError(f"run file {path} does not exist.")
    return validated(RunConfig, read_yaml(read_text(file), str(path)), str(path))


def save_run(config: RunConfig, path: str | Path) -> None:
    """Write a run as YAML, aside and renamed into place.

    Args:
        config: the run.
        path: where to.
    """
    save_yaml(config, path, "train")


def save_yaml(config: BaseModel, path: str | Path, command: str) -> None:
    """Write the settings of a command as YAML, aside and renamed into place.

    Args:
        config: the settings.
        path: where to.
        command: that repeats them.
    """
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    place = Path(path)
    aside = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        aside.write_text(f"# Repeat this run: steadytune {command} --config {place.name} --output DIR\n{text}", "utf-8")
        os.replace(aside, place)
    finally:
        aside.unlink(missing_ok=True)

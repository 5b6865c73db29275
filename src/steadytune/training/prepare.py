"""What a run needs before its first step: rows, task, tokens, model."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from steadytune.data import Dataset, PaddingCollator, Selection, available_splits, corrupt, load_dataset, select
from steadytune.data.checks import repeated_rows
from steadytune.encoders.bundled import met_texts
from steadytune.encoders.families import dropout_settings, longest_input
from steadytune.functional import keyed_seed
from steadytune.methods import Method
from steadytune.objective import Coefficients
from steadytune.recipes import RunConfig
from steadytune.tasks import Encoded, QuestionAnswering, Task, task_of
from steadytune.training.loading import (
    ModelSource,
    RunError,
    load_config,
    load_model,
    load_tokenizer,
    locate_model,
)


@dataclass(frozen=True)
class Prepared:
    """Everything before the first step.

    Attributes:
        task: what is trained.
        dataset: all rows.
        selection: those of the run.
        tokenizer: of the model.
        model: with the head of the task, at the recipe's dropout.
        source: where the model came from.
        rows: tokenized, by split.
        collator: pads a batch.
        notes: what was inferred or noticed in the data.
    """

    task: Task
    dataset: Dataset
    selection: Selection
    tokenizer: Any
    model: Any
    source: ModelSource
    rows: dict[str, Encoded]
    collator: PaddingCollator
    notes: list[str]


def methods_of(config: RunConfig) -> tuple[Method, ...]:
    """The methods of a run.

    Args:
        config: the run.
    Raises:
        RunError: they leave the classification head untrained.
    """
    methods = config.recipe.build()
    if Coefficients.of([method for method in methods if method.active]).task == 0:
        raise RunError("a weight of 1 leaves the classification head untrained; lower it, or use RegularizedModel.")
    return methods


def dataset_of(config: RunConfig) -> Dataset:
    """The data set of a run.

    Args:
        config: the run.
    Raises:
        DataError: the data cannot be read.
    """
    data = config.data
    return load_dataset(
        data.source,
        splits=_splits(config),
        text_column=data.text_column,
        pair_column=data.pair_column,
        label_column=data.label_column,
        task=data.task,
    )


def selection_of(config: RunConfig, dataset: Dataset) -> Selection:
    """The rows that a run trains and is scored on, those of training damaged if asked for.

    Args:
        config: the run.
        dataset: its data set.
    Raises:
        DataError: the data set does not hold what is asked for.
    """
    data = config.data
    selection = select(
        dataset,
        train_split=data.train_split,
        dev_split=data.dev_split,
        test_split=data.test_split,
        train_rows=data.train_rows,
        k_shot=data.k_shot,
        fraction=data.fraction,
        eval_rows=data.eval_rows,
        seed=config.seed,
    )
    return corrupt(
        dataset,
        selection,
        imbalance=data.imbalance,
        label_noise=data.label_noise,
        label_noise_kind=data.label_noise_kind,
        text_noise=data.text_noise,
        seed=config.seed,
    )


def prepare(config: RunConfig, start: Path | None = None) -> Prepared:
    """Read and tokenize the rows of a run, and load its model.

    Args:
        config: the run.
        start: folder of the finished run whose model this one starts from; by default the model that `config` names.
    Raises:
        RunError: the model cannot be had or does not fit.
        DataError: the data cannot be used.
    """
    dataset = dataset_of(config)
    selection = selection_of(config, dataset)
    empty = dataset.task == QuestionAnswering.name and not all(selection.train.labels or ())
    task = task_of(dataset.task, dataset.label_names, dataset.metric, allow_empty=empty)
    found = locate_model(config.model if start is None else str(start))
    tokenizer = load_tokenizer(found)
    limit = longest_input(load_config(found))
    if limit is not None and config.run.max_length > limit:
        raise RunError(f"run.max_length must be at most {limit} with model {found.given}; got {config.run.max_length}.")
    dropout = config.recipe.dropout
    settings = dropout_settings(load_config(found), hidden=dropout.hidden, attention=dropout.attention)
    torch.manual_seed(keyed_seed(config.head_seed, "head"))
    model = load_model(found, task.model_class, **task.head_config(), **settings)
    rows = {
        name: task.encode(getattr(selection, name), tokenizer, config.run.max_length)
        for name in ("train", "dev", "test")
    }
    notes = [*dataset.notes, *selection.notes]
    for name, split in rows.items():
        if split.truncated_rows:
            notes.append(f"split {name!r}: {split.truncated_rows} rows cut to {config.run.max_length} tokens")
        if len(split) > len(split.ids):
            notes.append(f"split {name!r}: {len(split.ids)} rows read as {len(split)} overlapping windows")
        if split.unheld_answers:
            learnt = ", which are learnt as if they had none" if name == "train" else ""
            notes.append(f"split {name!r}: no window holds the answer of {split.unheld_answers} rows{learnt}")
    notes += met_texts(config.model, dataset.name)
    if start is not None:
        found = replace(found, name=f"{locate_model(config.model).name} after {config.first.data.source}")
        notes += _met_before(config, selection)
    collator = PaddingCollator(tokenizer, task.label_dtype, labels_by_token=task.labels_by_token)
    return Prepared(task, dataset, selection, tokenizer, model, found, rows, collator, notes)


def _met_before(config: RunConfig, selection: Selection) -> list[str]:
    """What the model has trained on before, and how much of it is asked again."""
    first = selection_of(config.first, dataset_of(config.first)).train
    known = repeated_rows(selection.test, first)
    note = f"the model was trained before on {len(first)} rows of {config.first.data.source}"
    return [note, f"{known} test rows stand among those, but for case and white space"] if known else [note]


def _splits(config: RunConfig) -> list[str] | None:
    """The splits to read: those named and the usual ones where present; None, if nobody named one."""
    data, there = config.data, available_splits(config.data.source)
    if (data.train_split, data.dev_split, data.test_split) == ("train", None, None) and "train" in there:
        return None  # leaves out those whose labels the hub hides
    usual = [[name for name in names if name in there][:1] for names in (("dev", "validation"), ("test",))]
    wanted = [[data.train_split], [data.dev_split] if data.dev_split else usual[0]]
    wanted += [[data.test_split] if data.test_split else usual[1]]
    return list(dict.fromkeys(name for group in wanted for name in group))

"""One run, end to end: rows in, plain model and record out."""

import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from steadytune.data.batching import ClassBalancedBatches, LengthGroupedBatches
from steadytune.data.robustness import RobustnessSet
from steadytune.encoders.families import describe
from steadytune.functional import keyed_seed
from steadytune.recipes import RunConfig, RunSettings, load_run, protocol_hash, save_run
from steadytune.records import Cost, RunRecord, config_hash, write_json, write_pooled, write_predictions, write_record
from steadytune.training import surroundings
from steadytune.training.export import export_model, run_card
from steadytune.training.folder import INPUTS_FILE, check_unchanged, no_empty_folders, open_folder
from steadytune.training.inference import Predicted, predict, predict_with_pooled
from steadytune.training.layers import measured_layers, shown_tokens
from steadytune.training.loading import RunError, revision
from steadytune.training.prepare import Prepared, methods_of, prepare
from steadytune.training.robustness import robustness_rows, score_run
from steadytune.training.trainer import RegularizedTrainer

logger = logging.getLogger("steadytune")

_POOLED_ROWS = 500  # enough for a figure of the vectors


@dataclass(frozen=True)
class Progress:
    """Where a run is.

    Attributes:
        phase: "data", "train" or "evaluate".
        step: optimizer steps done.
        total: optimizer steps in all.
        loss: last logged training loss.
    """

    phase: str
    step: int = 0
    total: int = 0
    loss: float | None = None


Watch = Callable[[Progress], None]


def fit(
    config: RunConfig,
    output: Path,
    *,
    watch: Watch = lambda progress: None,
    export: bool = True,
    pooled: bool = False,
    splits: Sequence[str] = ("dev", "test"),
    start: Path | None = None,
    layers: bool = False,
    robustness: Sequence[RobustnessSet] = (),
) -> RunRecord:
    """Train, evaluate and save one run; a run that was killed goes on from its last complete checkpoint.

    Args:
        config: what to run.
        output: folder of the run: `model/`, `record.json`, `predictions.parquet`, `run.yaml`. It must be new, empty, or
            hold the same run unfinished.
        watch: told about progress.
        export: save the model.
        pooled: save the vectors that enter the label map, of at most 500 test rows.
        splits: what the trained model is scored on; a run that helps to choose settings leaves "test" closed.
        start: folder of the finished run that `config.after` asks for; by default it is run first, in `output/first`.
        layers: also measure what happens inside the trained model, if it is scored on "test": `layers.json`, and
            `layers_tokens.json` with the texts of the rows that it shows.
        robustness: further sets that the trained model is scored on, for the record; they choose nothing.
    Returns:
        The record; its status is "failed" if training diverged.
    Raises:
        RunError: the folder holds something else, or a checkpoint is corrupt.
        DataError: the data cannot be used.
        MethodError: a method cannot act here.
    """
    checkpoint = open_folder(output, lambda file: load_run(file).essence() == config.essence())
    if config.after is not None and start is None:
        start = _first_run(config, output, watch)
    watch(Progress("data"))
    with no_empty_folders(output):
        ready = prepare(config, start)
        sets = robustness_rows(robustness, ready.task, ready.selection.train)
        inputs = _inputs(ready)
        if checkpoint is not None:
            check_unchanged(output, inputs)
        trainer = _trainer(config, ready, output / "checkpoints", watch)
    output.mkdir(parents=True, exist_ok=True)
    save_run(config, output / "run.yaml")
    write_json(output / INPUTS_FILE, inputs)
    rank = trainer.args.process_index
    torch.manual_seed(keyed_seed(config.seed, "dropout", rank))
    if checkpoint is not None:
        logger.warning("resuming from step %s of the unfinished run in %s.", checkpoint.name.split("-")[-1], output)
    surroundings.reset_peak_memory()
    started = time.perf_counter()
    trainer.choose_weights = lambda: _choose_weights(config, ready, trainer)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    seconds = time.perf_counter() - started
    watch(Progress("evaluate", trainer.state.max_steps, trainer.state.max_steps))
    started = time.perf_counter()
    predicted, vectors = _score(config, ready, splits, pooled)
    evaluate_seconds = time.perf_counter() - started
    record = _record(config, ready, inputs, trainer, predicted, (seconds, evaluate_seconds), checkpoint)
    if record.status == "done":
        record = record.model_copy(update={"robustness": score_run(sets, config, ready, predicted.get("test"))})
    if trainer.is_world_process_zero():
        if vectors is not None:
            rows = ready.rows["test"].first(_POOLED_ROWS)
            write_pooled(output / "pooled.parquet", rows.ids, rows.labels, vectors[:_POOLED_ROWS])
        if layers and "test" in predicted and ready.task.whole_text and record.status == "done":
            _write_layers(output, config, ready, trainer)
        _write(output, record, ready, predicted, export)
    return record


def _first_run(config: RunConfig, output: Path, watch: Watch) -> Path:
    """Folder of the run that comes before, which is done here unless it is there."""
    folder = output / "first"
    if not (folder / "record.json").exists():
        prepare(config)  # what would be refused afterwards is refused now
        output.mkdir(parents=True, exist_ok=True)
        save_run(config, output / "run.yaml")
        fit(config.first, folder, watch=watch)
    return folder


def _choose_weights(config: RunConfig, ready: Prepared, trainer: RegularizedTrainer) -> None:
    """Where the last weights are as good a result as their average, keep what scores better on validation."""
    wrapper = trainer.regularized_model
    if not any(method.average_is_optional for method in wrapper.methods):
        return
    rows, metric = ready.rows["dev"], ready.task.metric

    def score() -> float:
        found = predict(ready.model, ready.task, rows, ready.collator, config.run.eval_batch_size)
        return ready.task.scores(found.rows, rows.labels or ())[metric] if found.finite else -math.inf

    averaged = score()
    wrapper.swap_averages()
    last = score()
    if averaged >= last:
        wrapper.swap_averages()
    kept = "averaged" if averaged >= last else "last"
    wrapper.notice(
        f"validation {metric} is {averaged:.3f} with averaged and {last:.3f} with the last weights; the {kept} weights "
        "are kept."
    )


def _score(
    config: RunConfig, ready: Prepared, splits: Sequence[str], pooled: bool
) -> tuple[dict[str, Predicted], np.ndarray | None]:
    """Predictions by split, and the pooled vectors of the test rows if they are wanted and there are any."""
    predicted: dict[str, Predicted] = {}
    vectors = None
    has_vectors = ready.task.whole_text and describe(ready.model).label_linear is not None
    for name in splits:
        given = (ready.model, ready.task, ready.rows[name], ready.collator, config.run.eval_batch_size)
        if name == "test" and pooled and has_vectors:
            predicted[name], vectors = predict_with_pooled(*given)
        else:
            predicted[name] = predict(*given)
    return predicted, vectors


def _inputs(ready: Prepared) -> dict[str, Any]:
    """What a run begins with: rows by split, weights."""
    return {"data": ready.selection.fingerprints(), "model": revision(ready.source, ready.model.config)}


def planned_steps(run: RunSettings, batches: int, longer: float) -> int:
    """Optimizer steps of a run.

    Args:
        run: its settings.
        batches: batches of an epoch, over all processes.
        longer: factor of the recipe.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    steps_per_epoch = math.ceil(batches / (run.accumulation_steps * world))
    return round(longer * (run.steps or max(math.ceil(run.epochs * steps_per_epoch), run.min_steps)))


def _trainer(config: RunConfig, ready: Prepared, checkpoints: Path, watch: Watch) -> RegularizedTrainer:
    run, train = config.run, ready.rows["train"]
    batches: Any
    labels: Any = train.labels
    if run.examples_per_class is not None:
        if not ready.task.has_classes:
            raise RunError(f"run.examples_per_class has no meaning for a {ready.task.name} task.")
        seed = keyed_seed(config.seed, "data order") % 2**32
        batches = ClassBalancedBatches(labels, run.batch_size, per_class=run.examples_per_class, seed=seed)
    else:
        batches = LengthGroupedBatches(
            train.lengths, run.batch_size, seed=keyed_seed(config.seed, "data order") % 2**32
        )
    steps = planned_steps(run, len(batches), config.recipe.longer)
    on_cpu = not torch.cuda.is_available()
    methods = methods_of(config)
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        per_device_train_batch_size=run.batch_size,
        gradient_accumulation_steps=run.accumulation_steps,
        max_steps=steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=run.warmup_fraction,
        weight_decay=run.weight_decay,
        max_grad_norm=run.max_grad_norm,
        optim="adamw_torch_fused",
        bf16=run.precision == "bfloat16",
        logging_steps=run.logging_steps,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=run.checkpoint_steps,
        save_total_limit=2,
        seed=config.seed,
        use_cpu=on_cpu,
        dataloader_pin_memory=not on_cpu,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
    )
    if arguments.n_gpu > 1:  # one process drives one device; torchrun starts one process per device
        logger.warning("training on one of %d devices; torchrun uses them all.", arguments.n_gpu)
        arguments._n_gpu = 1
    if run.gradient_checkpointing:
        ready.model.activation_checkpointing_enable()
    trainer = RegularizedTrainer(
        model=ready.model,
        args=arguments,
        train_dataset=train,
        data_collator=ready.collator,
        processing_class=ready.tokenizer,
        methods=methods,
        task=ready.task,
        train_batch_sampler=batches,
        callbacks=[_Reporter(watch)],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


class _Reporter(TrainerCallback):
    """Passes progress on; skips the checkpoint that would follow the last step."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._loss: float | None = None

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        self._loss = (logs or {}).get("loss", self._loss)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        if state.global_step >= state.max_steps:
            control.should_save = False
        self._watch(Progress("train", state.global_step, state.max_steps, self._loss))
        return control


def _record(
    config: RunConfig,
    ready: Prepared,
    inputs: dict[str, Any],
    trainer: RegularizedTrainer,
    predicted: dict[str, Predicted],
    seconds: tuple[float, float],
    checkpoint: Path | None,
) -> RunRecord:
    wrapper = trainer.regularized_model
    finite = all(found.finite for found in predicted.values())
    scores = {}
    if finite:
        scores = {name: ready.task.scores(one.rows, ready.rows[name].labels or ()) for name, one in predicted.items()}
    splits = {name: getattr(ready.selection, name) for name in ("train", "dev", "test")}
    settings = config.model_dump(mode="json")
    coefficients = {"task": wrapper.coefficients.task, **wrapper.coefficients.terms}
    return RunRecord(
        run_id=config_hash(settings, inputs["data"]),
        config=settings,
        task=ready.task.name,
        metric=ready.task.metric,
        label_names=list(getattr(ready.task, "label_names", ())),
        data_fingerprints=inputs["data"],
        protocol_hash=protocol_hash(config.data, inputs["data"]),
        data_rows={name: len(rows) for name, rows in splits.items()},
        data_notes=ready.notes,
        model_name=ready.source.name,
        model_revision=inputs["model"],
        dropout=describe(ready.model).dropout,
        learning_rate=config.learning_rate,
        coefficients=coefficients,
        status="done" if finite else "failed",
        failure=None if finite else "training diverged: the trained model gives scores that are not finite",
        resumed_from_step=None if checkpoint is None else int(checkpoint.name.split("-")[-1]),
        scores=scores,
        history=[
            {k: float(v) for k, v in line.items() if isinstance(v, int | float)} for line in trainer.state.log_history
        ],
        notices=list(wrapper.notices),
        cost=Cost(
            optimizer_steps=trainer.state.global_step,
            forward_passes=wrapper.spent.forward,
            pass_units=wrapper.spent.units,
            tokens=wrapper.tokens,
            train_seconds=seconds[0],
            evaluate_seconds=seconds[1],
            peak_memory_bytes=surroundings.peak_memory_bytes(),
        ),
        versions=surroundings.versions(),
        hardware=surroundings.hardware(),
        commit=surroundings.commit(),
    )


def _write_layers(output: Path, config: RunConfig, ready: Prepared, trainer: RegularizedTrainer) -> None:
    """A look inside the model; where it fails, the run is none the worse for it."""
    try:
        found = measured_layers(trainer.regularized_model, ready.rows, ready.collator, config.run.eval_batch_size)
    except (ValueError, RuntimeError) as reason:
        logger.warning("no look inside the layers of %s: %s", config.recipe.name, reason)
        return
    write_json(output / "layers.json", found)
    write_json(output / "layers_tokens.json", shown_tokens(found, ready.rows["test"], ready.tokenizer))


def _write(output: Path, record: RunRecord, ready: Prepared, predicted: dict[str, Predicted], export: bool) -> None:
    """Everything that a finished run leaves; the record comes last and says that the rest is there."""
    ids = [row for name in predicted for row in ready.rows[name].ids]
    names = [name for name in predicted for _ in ready.rows[name].ids]
    kept: dict[str, list[Any]] = {}
    for name, found in predicted.items():
        for column, values in ready.task.columns(found.rows, ready.rows[name].labels or ()).items():
            kept.setdefault(column, []).extend(values)
    write_predictions(output / "predictions.parquet", ids, names, kept)
    if export and record.status == "done":
        export_model(ready.model, ready.tokenizer, output / "model", run_card(record))
    write_record(output / "record.json", record)
    (output / INPUTS_FILE).unlink(missing_ok=True)
    shutil.rmtree(output / "checkpoints", ignore_errors=True)

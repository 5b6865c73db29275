"""One pre-training run, end to end: texts in, plain model with a masked-LM head and record out."""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PrinterCallback, TrainingArguments

from steadytune.data.packing import ShuffledBatches, stacked
from steadytune.encoders import describe
from steadytune.functional import keyed_seed
from steadytune.methods import Method
from steadytune.objective import Coefficients
from steadytune.recipes import PretrainConfig, RecipeError, load_pretrain
from steadytune.recipes.pretraining import NEW_MODEL
from steadytune.records import Cost, Point, PretrainRecord, config_hash, write_record
from steadytune.records.pretraining import is_pretraining
from steadytune.tasks import MaskedLM
from steadytune.training import surroundings
from steadytune.training.export import export_model
from steadytune.training.fit import Progress, Watch
from steadytune.training.folder import INPUTS_FILE, RUN_FILE, no_empty_folders, open_folder
from steadytune.training.loading import RunError
from steadytune.training.pretrain_card import pretraining_card
from steadytune.training.pretrain_inputs import PretrainInputs, discard_inputs, pretrain_inputs
from steadytune.training.pretrainer import NEVER, Phases, Pretrainer, beginning_at, processes

logger = logging.getLogger("steadytune")

_UNLIMITED = 10**9  # steps of a run whose budget is time


def pretrain(config: PretrainConfig, output: Path, *, watch: Watch = lambda progress: None) -> PretrainRecord:
    """Train a masked language model, measure and save it; a killed run goes on from its last complete checkpoint.

    With a budget of steps a resumed run ends with the weights of an unbroken one (CPU, bit for bit). With a budget of
    time it goes on with the time that is left, and ends where the machine gets in it.

    Args:
        config: what to run.
        output: folder of the run: `model/`, `record.json`, `run.yaml`. It must be new, empty, or hold the same run
            unfinished.
        watch: told about progress.
    Returns:
        The record; its status is "failed" if training diverged.
    Raises:
        RunError: the folder holds something else, the model cannot be had, or the texts do not suffice.
        DataError: the texts cannot be read.
        MethodError: a method cannot act here.
    """
    if is_pretraining(output):  # perhaps stopped between its record and the removal of what led there
        _remove_traces(output)
    checkpoint = open_folder(output, lambda file: _is_same(file, config))
    surroundings.reset_peak_memory()
    watch(Progress("data"))
    arguments = _arguments(config, output / "checkpoints")
    with no_empty_folders(output), _nothing_left(output):
        methods = _methods(config)
        with arguments.main_process_first(desc="reading texts"):
            ready = pretrain_inputs(config, output, resumes=checkpoint is not None)
        trainer = _trainer(config, ready, arguments, methods, watch)
    torch.manual_seed(keyed_seed(config.seed, "dropout", arguments.process_index))
    if checkpoint is not None:
        logger.warning("resuming from step %s of the unfinished run in %s.", checkpoint.name.split("-")[-1], output)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    watch(Progress("evaluate", trainer.state.global_step, trainer.state.global_step))
    started = time.perf_counter()
    scores = trainer.measure()
    record = _record(config, ready, trainer, scores, time.perf_counter() - started, checkpoint)
    if trainer.is_world_process_zero():
        _write(output, record, ready)
    return record


def _is_same(file: Path, config: PretrainConfig) -> bool:
    try:
        return load_pretrain(file).essence() == config.essence()
    except RecipeError:  # of another command, as `train`
        return False


@contextmanager
def _nothing_left(output: Path) -> Iterator[None]:
    """A fresh run that is refused inside the block takes with it what it has written."""
    fresh = not (output / RUN_FILE).exists()
    try:
        yield
    except ValueError:
        if fresh:
            discard_inputs(output)
            for file in (INPUTS_FILE, RUN_FILE):
                (output / file).unlink(missing_ok=True)
        raise


def _arguments(config: PretrainConfig, checkpoints: Path) -> TrainingArguments:
    run = config.run
    if run.minutes is not None and processes() > 1:
        raise RunError("a budget of minutes is for one process, as the clocks of several differ; give --steps.")
    on_cpu = not torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        per_device_train_batch_size=run.batch_size,
        gradient_accumulation_steps=run.accumulation_steps,
        max_steps=config.total_steps or _UNLIMITED,
        learning_rate=config.learning_rate,
        weight_decay=run.weight_decay,
        adam_beta2=run.adam_beta2,
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
    return arguments


def _methods(config: PretrainConfig) -> tuple[Method, ...]:
    """The methods of the recipe; those that can begin later wait until the plain share of the budget is over."""
    methods = config.recipe.build()
    active = [method for method in methods if method.active]
    if Coefficients.of(active).task == 0:
        raise RunError("a weight of 1 leaves the masked-LM head untrained; lower it.")
    if config.total_steps is None:
        for method in active:
            if method.needs_total:
                raise RunError(f"{method.key} must know the number of steps beforehand; give --steps, not --minutes.")
    return beginning_at(methods, NEVER, _chosen(config))


def _chosen(config: PretrainConfig) -> frozenset[str]:
    """Keys of the methods whose recipe says itself when they begin."""
    return frozenset(key for key, settings in config.recipe.methods.items() if "start_step" in settings)


def _trainer(
    config: PretrainConfig,
    ready: PretrainInputs,
    arguments: TrainingArguments,
    methods: tuple[Method, ...],
    watch: Watch,
) -> Pretrainer:
    run = config.run
    phases = Phases(
        steps=config.total_steps,
        seconds=None if run.minutes is None else 60 * run.minutes,
        warmup=run.warmup_fraction,
        head=run.head_fraction if ready.new_head else 0.0,
        plain=run.plain_fraction,
        points=run.eval_points,
    )
    order = keyed_seed(config.seed, "data order")
    trainer = Pretrainer(
        phases=phases,
        measured=ready.dev,
        eval_batch_size=run.eval_batch_size,
        chosen=_chosen(config),
        watch=watch,
        model=ready.model,
        args=arguments,
        train_dataset=ready.train,
        data_collator=stacked,
        processing_class=ready.tokenizer,
        methods=methods,
        task=MaskedLM(),
        train_batch_sampler=ShuffledBatches(len(ready.train), run.batch_size, order),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _record(
    config: PretrainConfig,
    ready: PretrainInputs,
    trainer: Pretrainer,
    scores: dict[str, float],
    evaluate_seconds: float,
    checkpoint: Path | None,
) -> PretrainRecord:
    wrapper, history = trainer.regularized_model, trainer.state.log_history
    settings = config.model_dump(mode="json")
    finite = bool(np.isfinite(scores["loss"]))
    lines = [{k: float(v) for k, v in line.items() if isinstance(v, int | float)} for line in history]
    return PretrainRecord(
        run_id=config_hash(settings, ready.fingerprints),
        config=settings,
        metric=MaskedLM.metric,
        data_fingerprints=ready.fingerprints["texts"],
        data=ready.data,
        data_notes=ready.notes,
        model_name=_shape_name(config.model) if ready.source is None else ready.source.name,
        model_revision=ready.fingerprints["model"],
        vocabulary=len(ready.tokenizer),
        tokenizer=_tokenizer_hash(ready.tokenizer),
        parameters=sum(parameter.numel() for parameter in ready.model.parameters()),
        dropout=describe(ready.model).dropout,
        learning_rate=config.learning_rate,
        coefficients={"task": wrapper.coefficients.task, **wrapper.coefficients.terms},
        status="done" if finite else "failed",
        failure=None if finite else "training diverged: the trained model gives scores that are not finite",
        resumed_from_step=None if checkpoint is None else int(checkpoint.name.split("-")[-1]),
        scores={"dev": scores},
        curve=[
            Point(
                step=int(line["step"]),
                seconds=line["seconds"],
                pass_units=line["pass_units"],
                loss=line["dev_loss"],
                accuracy=line["dev_accuracy"],
            )
            for line in lines
            if "dev_loss" in line
        ],
        history=[line for line in lines if "loss" in line],
        notices=list(wrapper.notices),
        cost=Cost(
            optimizer_steps=trainer.state.global_step,
            forward_passes=wrapper.spent.forward,
            pass_units=wrapper.spent.units,
            tokens=wrapper.tokens,
            train_seconds=trainer.clock.seconds,
            evaluate_seconds=evaluate_seconds,
            peak_memory_bytes=surroundings.peak_memory_bytes(),
        ),
        versions=surroundings.versions(),
        hardware=surroundings.hardware(),
        commit=surroundings.commit(),
    )


def _shape_name(given: str) -> str:
    """A new model as others may read it, without the place of its file."""
    return NEW_MODEL + Path(given.removeprefix(NEW_MODEL)).name


def _tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 over what decides about the tokens of a text."""
    does = tokenizer.get_vocab()
    if tokenizer.is_fast:
        does = json.loads(tokenizer.backend_tokenizer.to_str())
        for passing in ("truncation", "padding"):  # of the last call
            does.pop(passing, None)
    return hashlib.sha256(json.dumps(does, sort_keys=True).encode()).hexdigest()


def _write(output: Path, record: PretrainRecord, ready: PretrainInputs) -> None:
    """Everything that a finished run leaves; the record comes last and says that the rest is there."""
    if record.status == "done":
        export_model(ready.model, ready.tokenizer, output / "model", pretraining_card(record))
    write_record(output / "record.json", record)
    _remove_traces(output)


def _remove_traces(output: Path) -> None:
    """Only the results of a finished run stay."""
    (output / INPUTS_FILE).unlink(missing_ok=True)
    shutil.rmtree(output / "checkpoints", ignore_errors=True)
    discard_inputs(output)

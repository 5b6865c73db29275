"""The Hugging Face Trainer with regularizers; everything else is as in `Trainer`."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import datasets
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer
from transformers.modeling_outputs import SequenceClassifierOutput

from steadytune.encoders import RandomState, borrowed_stream
from steadytune.methods.contract import Method, MethodError
from steadytune.objective import RegularizedModel
from steadytune.tasks import Classification, Task, infer_task


class RegularizedTrainer(Trainer):
    """A `Trainer` whose training steps add the terms of `methods`.

    All arguments and features of `Trainer` stay, with these differences. A step's loss is the mean over the labelled
    items of its whole accumulation group, so the gradient does not depend on how a batch is split. Label smoothing
    acts on the training loss only. Evaluation does not move the random stream of training. `training_args.bin` is not
    written. The model is wrapped while `train` runs; `trainer.model` stays the plain model throughout.

    Args:
        args: as for `Trainer`, positional or by keyword.
        methods: regularizers, in the order of application.
        task: what is trained; inferred from the model if not given.
        train_batch_sampler: gives the rows of each training batch, in place of sampler and batch size.
        kwargs: as for `Trainer`.
    Raises:
        MethodError: a method cannot act on this model, task or set-up.
        SiteUnavailable: the model lacks a site that a method needs.
    """

    def __init__(
        self,
        *args: Any,
        methods: Sequence[Method] = (),
        task: Task | None = None,
        train_batch_sampler: Sampler[list[int]] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled or self.args.n_gpu > 1:
            raise MethodError(
                "RegularizedTrainer trains on one device per process, with or without DDP; FSDP, DeepSpeed and "
                "DataParallel are not supported. Launch with torchrun or accelerate, or set CUDA_VISIBLE_DEVICES."
            )
        if methods and self.args.neftune_noise_alpha is not None:
            raise MethodError(
                "neftune_noise_alpha would also act in passes that must be without noise; leave it out and give the "
                "method NEFTune(alpha=...)."
            )
        offering = [method.key for method in methods if method.active and method.offers_weights]
        if offering and self.args.load_best_model_at_end:
            raise MethodError(
                f"{offering[0]} puts other weights in place in the end, so load_best_model_at_end cannot choose among "
                "checkpoints; leave one of them out."
            )
        self.methods = tuple(methods)
        self.train_batch_sampler = train_batch_sampler
        self.model_accepts_loss_kwargs = True  # of RegularizedModel, whatever the wrapped model's forward takes
        self._given_task = task
        self._prepared: nn.Module | None = None
        self._unseen: list[Any] = []
        self._resumes = False
        self.choose_weights: Callable[[], None] | None = None  # between an average and the last weights
        self.regularized_model: RegularizedModel = self._regularize()
        self.regularized_model.close()
        self.label_smoother = None  # part of the task's loss; the Trainer's own would replace it

    def _regularize(self) -> RegularizedModel:
        """The wrapper of the current model: the one in place, or a new one if there is a new model."""
        current: RegularizedModel | None = getattr(self, "regularized_model", None)
        model: Any = self.model
        if current is not None and current.model is model:
            current.reopen()
            return current
        task = self._given_task or infer_task(model)
        if smoothing := self.args.label_smoothing_factor:
            if not isinstance(task, Classification):
                raise MethodError(f"label_smoothing_factor has no meaning for a {task.name} task.")
            task = copy.copy(task)
            task.label_smoothing = smoothing
        if self.compute_loss_func is not None:
            task = _with_loss(task, self.compute_loss_func)
        return RegularizedModel(model, self.methods, task=task, seed=self.args.seed)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As in `Trainer`; then the methods have finished: an average takes the place of the weights.

        Args:
            args: as in `Trainer`.
            kwargs: as in `Trainer`.
        """
        self._resumes = bool(kwargs.get("resume_from_checkpoint") or any(args[:1]))
        try:
            result = super().train(*args, **kwargs)
            self.regularized_model.finish(self.choose_weights)
            return result
        finally:
            self.regularized_model.close()

    # -- the step -----------------------------------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As in `Trainer`, with the methods' own parameters as a further group.

        Args:
            model: as in `Trainer`.
        """
        self.regularized_model = self._regularize()
        fresh = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if fresh:
            optimizer.param_groups[:] = self.regularized_model.follow_rules(optimizer.param_groups)
            for group in self.regularized_model.own_parameter_groups(self.args.learning_rate, self.args.weight_decay):
                optimizer.add_param_group(group)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """As in `Trainer`; now the methods learn how long training is, and meet the optimizer.

        Args:
            num_training_steps: as in `Trainer`.
            optimizer: as in `Trainer`.
        """
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        found: Any = optimizer or self.optimizer
        inner = getattr(found, "optimizer", found)  # accelerate wraps it, and only the inner one runs its hooks
        self.regularized_model.attach(inner, total_updates=num_training_steps)
        if self.regularized_model.wants_survey and not self._resumes:  # a checkpoint holds what it found
            with borrowed_stream(self.args.device, RandomState.capture(self.args.device)):
                self.regularized_model.survey(self._all_rows())
        return scheduler

    def _all_rows(self) -> Iterator[Any]:
        """The training rows in order, all of them in every process."""
        rows: Any = self.train_dataset
        if isinstance(rows, datasets.Dataset):
            rows = self._remove_unused_columns(rows, description="survey")
        loader = DataLoader(rows, batch_size=self.args.per_device_train_batch_size, collate_fn=self.data_collator)
        return (self._prepare_inputs(batch) for batch in loader)

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: DataLoader[Any] | None = None) -> Any:
        if not training:
            if not self.accelerator._models:  # else the Trainer prepares the plain model, which changes its forward
                self.accelerator._models.append(model)
            return model
        if self._prepared is None or self.accelerator.unwrap_model(self._prepared) is not self.regularized_model:
            self._prepared = self.accelerator.prepare_model(self.regularized_model)
            for name in ("forward", "_original_forward"):  # accelerate's autocast; `compute_loss` runs under it anyway
                vars(self.regularized_model).pop(name, None)
        return self._prepared

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> Any:
        """Mixed precision for evaluation of the plain model too, which `accelerate` does not know.

        Args:
            cache_enabled: as in `Trainer`.
        """
        return self.accelerator.autocast()

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """As in `Trainer`; also keeps the batches of one optimizer step for methods that contrast all of them.

        Args:
            epoch_iterator: as in `Trainer`.
            num_batches: as in `Trainer`.
            device: as in `Trainer`.
        """
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._unseen = batches
        return batches, items

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor | int | None:
        """As in `Trainer`, with labels counted as the task does."""
        task = self.regularized_model.task
        try:
            counted = [{"labels": task.items(dict(batch)).labels} for batch in batch_samples]
        except (KeyError, TypeError):  # batches that are no mappings with labels
            counted = batch_samples
        found: Tensor | int | None = super()._get_num_items_in_batch(counted, device)
        return found

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """As in `Trainer`; the first of an optimizer step shows all its batches to the methods.

        Not earlier, because a resumed training takes up its random stream after it has fetched the batches.

        Args:
            model: as in `Trainer`.
            inputs: as in `Trainer`.
            num_items_in_batch: as in `Trainer`.
        """
        if self._unseen:
            batches, self._unseen = self._unseen, []
            self.regularized_model.train()
            with self.accelerator.autocast():
                self.regularized_model.prime([self._prepare_inputs(batch) for batch in batches])
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The total of the step in training, the plain loss in evaluation.

        Args:
            model: the wrapped model in training, the plain one in evaluation.
            inputs: one batch.
            return_outputs: also return the model's output.
            num_items_in_batch: labelled items of the accumulation group, over all processes if the training
                arguments average over them.
        """
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs)
        items = num_items_in_batch
        if items is not None and self.args.average_tokens_across_devices:
            items = items / self.accelerator.num_processes
        outputs = model(**inputs, num_items_in_batch=items)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        norm = self.accelerator.clip_grad_norm_(self.regularized_model.model.parameters(), self.args.max_grad_norm)
        for module in self.regularized_model.method_modules.values():
            if own := list(module.parameters()):  # accelerate would unscale the gradients twice
                nn.utils.clip_grad_norm_(own, self.args.max_grad_norm)
        return norm

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        parent: Any = super()  # untyped
        return parent._get_grad_norm(self.regularized_model.model, grad_norm)  # as clipped: without the methods' own

    # -- data, evaluation, logs ---------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[Any]:
        """As in `Trainer`, or with the given batch sampler."""
        if self.train_batch_sampler is None:
            loader: DataLoader[Any] = super().get_train_dataloader()
            return loader
        rows: Any = self.train_dataset
        plain = DataLoader(
            rows,
            batch_sampler=self.train_batch_sampler,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(plain)
        return prepared

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As in `Trainer`; the random stream of training stays where it is.

        Args:
            args: as in `Trainer`.
            kwargs: as in `Trainer`.
        """
        device = self.args.device
        with borrowed_stream(device, RandomState.capture(device)):
            return super().evaluation_loop(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in `Trainer`; lines of training also hold the label loss, each term and the methods' telemetry.

        Args:
            logs: values to log.
            start_time: as in `Trainer`.
        """
        if "loss" in logs:
            logs = {**logs, **self.regularized_model.drain_telemetry()}
        super().log(logs, start_time)

    # -- saving -------------------------------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: Mapping[str, Tensor] | None = None) -> None:
        folder = output_dir or self.args.output_dir
        model: Any = self.model
        model.save_pretrained(folder, state_dict=state_dict, is_main_process=self.args.should_save)
        tokenizer: Any = self.processing_class or getattr(self.data_collator, "tokenizer", None)
        if tokenizer is not None and self.args.should_save:
            tokenizer.save_pretrained(folder)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            self.regularized_model.save_state(output_dir)

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self.regularized_model = self._regularize()  # what methods do to a model comes before trained weights
        super()._load_from_checkpoint(*args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.regularized_model.load_state(checkpoint)


def _with_loss(task: Task, function: Callable[..., Tensor]) -> Task:
    """The task with the user's `compute_loss_func` as its loss."""

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        outputs = SequenceClassifierOutput(logits=logits)
        return function(outputs, labels, num_items_in_batch=task.count(labels))

    custom = copy.copy(task)
    setattr(custom, "loss", loss)  # noqa: B010 - replaces a method on this one instance
    return custom

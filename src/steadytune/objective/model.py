"""The wrapper around a Hugging Face model: one forward is one training step."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from steadytune.encoders import PassRunner, RandomState, Sites, VectorSource, borrowed_stream
from steadytune.functional import keyed_seed
from steadytune.methods.compatibility import check_together
from steadytune.methods.contract import Context, Method, MethodError
from steadytune.objective.checks import check_first, check_moved, check_padding
from steadytune.objective.coefficients import Coefficients
from steadytune.objective.rows import Group
from steadytune.objective.state import read_state, write_state
from steadytune.objective.step import PassCount, StepOutput, StepPlan, TrainingStep, take
from steadytune.objective.telemetry import Telemetry
from steadytune.objective.updates import Groups, UpdateHooks, by_rule, check_rules, rules_of
from steadytune.tasks import Task, infer_task


class RegularizedModel(nn.Module):
    """A Hugging Face model whose training forward adds the terms of regularizers.

    In training mode `forward(**batch)` with `labels` runs one step and returns a `StepOutput`; in evaluation mode it
    is the wrapped model. Nothing of the wrapped model is changed but for hooks, which `close()` removes; a method whose
    card says so (new top layers, noise on the weights, adapters, frozen layers) changes it once, here.

    Args:
        model: a Hugging Face model with a task head.
        methods: regularizers, in the order of application.
        task: what is trained; inferred from the model's configuration if not given.
        seed: names the methods' random streams; dropout and data order keep the global ones.
    Raises:
        MethodError: a method cannot act on this model or task, or weights do not fit together.
        SiteUnavailable: the model lacks a site that a method needs.
        RuntimeError: the model is wrapped already.
    """

    def __init__(
        self, model: nn.Module, methods: Sequence[Method] = (), *, task: Task | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        keys = [method.key for method in methods]
        if len(set(keys)) < len(keys):
            raise MethodError(f"each method may be given once; got {', '.join(keys)}.")
        self.model = model
        self.methods = tuple(method for method in methods if method.active)
        redundant = check_together([method.key for method in self.methods])
        if len(offering := [method.key for method in self.methods if method.offers_weights]) > 1:
            raise MethodError(f"{' and '.join(offering)} both put other weights in place in the end; leave one out.")
        check_moved(self.methods)
        self.task = task or infer_task(model)
        for method in self.methods:
            self.task = method.training_task(self.task)
        self.coefficients = Coefficients.of(self.methods)
        self.seed = seed
        self.micro_steps = 0
        self.tokens = 0
        self.updates = 0
        self.finished = False
        self.spent = PassCount()
        self._telemetry = Telemetry(self.methods)
        self._first = True
        self._group: Group | None = None
        self._updates: UpdateHooks | None = None
        self._surveyed = False
        self._sites: Sites | None = Sites(model)
        try:
            for method in self.methods:
                method.check(self._context())
            self._set_up()
            self._resume_at = frozenset[int]().union(*(m.resume_layers(self._context()) for m in self.methods))
            self._rules = rules_of(self.methods, self._context())
        except BaseException:
            self.close()
            raise
        for text in redundant:
            self.notice(text)

    def _set_up(self) -> None:
        """Let every method make what it owns; those that change the loaded model come first."""
        first = next(self.model.parameters())
        made = {}
        changed = any(method.setup_order < 3 for method in self.methods)
        for method in sorted(self.methods, key=lambda method: method.setup_order):
            if changed and method.setup_order == 3:  # they meet another model than the one that was checked
                method.check(self._context())
            with borrowed_stream(first.device, keyed_seed(self.seed, "setup", method.key)):
                made[method.key] = method.setup(self._context())
        self.method_modules = nn.ModuleDict()
        dtype = torch.promote_types(first.dtype, torch.float32)
        for method in self.methods:
            if (module := made[method.key]) is not None:
                self.method_modules[method.key] = module.to(first.device, dtype)
        buffers = [f"method_modules.{name}" for name, _ in self.method_modules.named_buffers()]
        self._ddp_params_and_buffers_to_ignore = buffers  # equal in all processes; DDP would send them in every step

    def _context(self) -> Context:
        assert self._sites is not None
        parts = self._sites.anatomy
        trainable = any(p.requires_grad for part in (parts.embedding, *parts.layers) for p in part.parameters())
        world = dist.get_world_size() if dist.is_initialized() else 1
        return Context(parts, self.task, trainable, world, self.model)

    def forward(self, *args: Any, num_items_in_batch: Tensor | float | None = None, **inputs: Any) -> Any:
        """One training step, or the wrapped model's forward in evaluation mode.

        Args:
            args: positional arguments, allowed in evaluation mode.
            num_items_in_batch: labelled items of the whole accumulation group in this process; the loss is then this
                batch's share, so that the losses of the group add up to their mean.
            inputs: keyword arguments of the wrapped model; in training mode `labels` is needed.
        """
        if not self.training:
            return self.model(*args, **inputs)
        if self._sites is None:
            raise RuntimeError("this RegularizedModel is closed or a copy; wrap its .model again to train it.")
        if self.finished:
            raise RuntimeError("finish() has ended this training; wrap the model anew to train it further.")
        if args or not any(inputs.get(name) is not None for name in ("labels", "start_positions")):
            raise ValueError("in training mode give the batch as keywords, labels included; call .eval() to predict.")
        cell = self._take_cell(inputs)
        if cell is not None and num_items_in_batch is None:
            self._group = None
            raise ValueError("after prime(), give forward num_items_in_batch: the labelled items of the whole group.")
        if self._first:
            attached, surveyed = self._updates is not None, self._surveyed
            check_first(self.methods, self.model, attached=attached, surveyed=surveyed)
            if self.task.head_reads_one_token:
                check_padding(self.methods, inputs.get("attention_mask"), self._sites.anatomy.sentence_token)
        items = self.task.items(inputs)
        labels = items.labels
        share: Tensor | float = 1.0
        if num_items_in_batch is not None:
            own = self._count(labels)
            share = torch.where(own > 0, own / num_items_in_batch, 0.0)  # a group may be without any label
        runner = PassRunner(self.model, self._sites, scores=items.scores, head_reads=items.head_reads)
        step = TrainingStep(self._plan(), self.micro_steps, runner, inputs, labels, items.per_text, share, cell)
        try:
            with torch.autocast(labels.device.type, enabled=False):
                output = take(step)
        except BaseException:
            self._group = None
            raise
        finally:
            step.forget()
        self.micro_steps += 1
        self.tokens += inputs["input_ids"].numel() if "input_ids" in inputs else 0
        self.spent.add(**vars(step.passes))
        self._first = False
        self._keep(output)
        return output

    def _plan(self) -> StepPlan:
        assert self._sites is not None
        weights = dict(self.model.named_parameters())
        return StepPlan(
            methods=self.methods,
            modules=dict(self.method_modules.items()),
            task=self.task,
            anatomy=self._sites.anatomy,
            coefficients=self.coefficients,
            seed=self.seed,
            resume_at=self._resume_at,
            first=self._first,
            count=self._count,
            weights=weights,
            parameters=[*weights.values(), *self.method_modules.parameters()],
            notice=self.notice,
        )

    def _count(self, labels: Tensor) -> Tensor:
        """Labelled items, in a dtype whose quotients do not coarsen a float64 gradient."""
        dtype = next(self.model.parameters()).dtype
        return self.task.count(labels).to(torch.promote_types(dtype, torch.float32))

    # -- one group of accumulated batches -----------------------------------------------------------------------------

    def accumulate(self, batches: Sequence[Mapping[str, Any]]) -> Iterator[StepOutput]:
        """One optimizer step over several batches: back-propagate the loss of each output.

        The losses add up to the mean over all their items, whatever their sizes, and a contrast that asks for it
        runs over all of them.

        Args:
            batches: keyword arguments of `forward`, labels included.
        """
        total = sum(self.task.count(self.task.items(dict(batch)).labels) for batch in batches)
        self.prime(batches)
        try:
            for batch in batches:
                yield self(**batch, num_items_in_batch=total)
        finally:
            self._group = None

    def prime(self, batches: Sequence[Mapping[str, Any]]) -> None:
        """Compute ahead what a contrast over accumulated batches needs, at one forward pass without graph each.

        Nothing happens if no method asks for it or if there is one batch. The next `len(batches)` calls of `forward`
        must be given these batches in this order; their dropout is replayed.

        Args:
            batches: as in `accumulate`.
        """
        self._group = None
        sources: list[VectorSource] = [s for m in self.methods if (s := m.shared_vectors()) is not None]
        if not sources or len(batches) < 2 or self._sites is None:
            return
        group = Group(list(batches), [], [], [])
        main = RandomState.capture(next(self.model.parameters()).device)
        try:
            for number, batch in enumerate(batches, start=self.micro_steps):
                inputs = dict(batch)
                items = self.task.items(inputs)
                runner = PassRunner(self.model, self._sites, scores=items.scores, head_reads=items.head_reads)
                step = TrainingStep(self._plan(), number, runner, inputs, items.labels)
                group.labels.append(items.labels)
                with torch.no_grad():
                    clean = step.clean
                step.forget()
                group.vectors.append({source: clean.vector(source).detach() for source in sources})
                group.starts.append(clean.start)
        finally:
            main.restore()
        self._group = group

    def _take_cell(self, batch: Mapping[str, Any]) -> tuple[Group, int] | None:
        if (group := self._group) is None:
            return None
        try:
            place = group.take(batch)
        except RuntimeError:
            self._group = None
            raise
        if group.next == len(group.batches):
            self._group = None
        return group, place

    # -- telemetry ----------------------------------------------------------------------------------------------------

    def _keep(self, output: StepOutput) -> None:
        assert output.task_loss is not None and output.terms is not None and output.telemetry is not None
        terms = {f"{key}/term": term for key, term in output.terms.items()}
        for name, value in {"task_loss": output.task_loss, **terms, **output.telemetry}.items():
            self._telemetry.add(name, value)
        if self.micro_steps == 8:  # early enough to stop a run, late enough for a mean
            self._telemetry.judge()

    @property
    def notices(self) -> list[str]:
        """Sentences for the log and the record, each once."""
        return self._telemetry.notices

    def drain_telemetry(self) -> dict[str, float]:
        """Mean telemetry since the last call, by "key/name"; says what the methods have to say about it."""
        return self._telemetry.drain()

    def notice(self, text: str) -> None:
        """Log a sentence and keep it for the record; once, even if its numbers change.

        Args:
            text: the sentence.
        """
        self._telemetry.notice(text)

    # -- optimizer ----------------------------------------------------------------------------------------------------

    def parameter_groups(self, lr: float, weight_decay: float = 0.0) -> Groups:
        """Groups for a torch optimizer: encoder with and without decay, then each method's own parameters.

        Args:
            lr: learning rate of the encoder; a method may ask for a multiple of it, for its own parameters or others.
            weight_decay: for weights of the encoder that are matrices; a method may ask for another.
        """
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        groups = [
            {"name": "encoder", "params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
            {"name": "encoder, no decay", "params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
        ]
        parted = self.follow_rules([{"lr": lr, **group} for group in groups if group["params"]])
        return parted + self.own_parameter_groups(lr, weight_decay)

    def follow_rules(self, groups: Groups) -> Groups:
        """Groups of the encoder's parameters, parted where a method asks for other learning rates or weight decay.

        Args:
            groups: with "params", "lr" and "weight_decay".
        """
        return by_rule(groups, self._names(), self._rules)

    def _names(self) -> dict[int, str]:
        return {id(parameter): name for name, parameter in self.model.named_parameters()}

    def own_parameter_groups(self, lr: float, weight_decay: float) -> Groups:
        """The groups of the methods' own parameters only, to add to an existing optimizer.

        Args:
            lr: see `parameter_groups`.
            weight_decay: see `parameter_groups`.
        """
        groups = []
        for method in self.methods:
            if method.key in self.method_modules and (own := list(self.method_modules[method.key].parameters())):
                wish = method.own_optimizer()
                group = {
                    "name": method.key,
                    "params": own,
                    "lr": lr * wish.learning_rate_scale,
                    "weight_decay": weight_decay if wish.weight_decay is None else wish.weight_decay,
                }
                groups.append(group)
        return groups

    def attach(self, optimizer: torch.optim.Optimizer, *, total_updates: int | None = None) -> None:
        """Check that an optimizer trains everything as the methods want it, and let them act in its steps.

        Args:
            optimizer: built from `parameter_groups`, or from groups that contain them.
            total_updates: how many steps it will take in all, for methods that must know.
        Raises:
            MethodError: a parameter of a method is not in it, another is treated in another way than a method asks
                for, or the number of steps is needed.
        """
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, parameter in self.method_modules.named_parameters():
            if id(parameter) not in known:
                raise MethodError(
                    f"the optimizer lacks the parameter {name} of method {name.split('.')[0]}; build it from "
                    "parameter_groups()."
                )
        for method in self.methods:
            lacking = [name for name, p in self.model.named_parameters() if p.requires_grad and id(p) not in known]
            if method.setup_order == 2 and lacking:
                raise MethodError(
                    f"the optimizer lacks {lacking[0]}, which {method.key} trains; build it from parameter_groups() "
                    "after wrapping the model."
                )
        check_rules(optimizer.param_groups, self._names(), self._rules)
        for method in self.methods:
            if method.needs_total and total_updates is None:
                raise MethodError(f"{method.key} must know the length of training; give attach() total_updates.")
        number = self._updates.number if self._updates is not None else self.updates
        self.detach()
        self._updates = UpdateHooks(
            optimizer,
            methods=sorted(
                (method for method in self.methods if method.acts_on_updates),
                key=lambda method: (method.reads_updates, method.holds_weights),
            ),
            modules=dict(self.method_modules.items()),
            parameters={name: p for name, p in self.model.named_parameters() if p.requires_grad},
            seed=self.seed,
            number=number,
            total=total_updates,
            report=self._telemetry.add,
            notice=self.notice,
        )

    def detach(self) -> None:
        """Take the methods off the optimizer; safe to call twice."""
        if self._updates is not None:
            self.updates = self._updates.number
            self._updates.remove()
            self._updates = None

    @property
    def wants_survey(self) -> bool:
        """Some method must look at the training rows before the first step, and has not."""
        return not self._surveyed and any(method.wants_survey for method in self.methods)

    def survey(self, batches: Iterable[Mapping[str, Any]]) -> None:
        """Let the methods that ask for it look at the training rows, one by one and without dropout.

        It costs about one pass over the rows.

        Args:
            batches: keyword arguments of `forward`, labels included.
        """
        for method in self.methods:
            if method.wants_survey:
                method.survey(self._rows(batches), self._gradients_of, self._owned(method))
        self._surveyed = True

    def _rows(self, batches: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Tensor]]:
        for batch in batches:
            self.spent.add(1, 1, 1)
            for row in range(len(next(iter(batch.values())))):
                yield {name: value[row : row + 1] for name, value in batch.items()}

    def _gradients_of(self, row: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of the label loss of one row, without dropout, by name of the trainable parameters that it reaches."""
        trainable = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        training = self.model.training
        self.model.eval()
        try:
            inputs = dict(row)
            items = self.task.items(inputs)
            with torch.enable_grad():
                loss = self.task.loss(items.scores(self.model(**inputs)), items.labels)
            found = torch.autograd.grad(loss, list(trainable.values()), allow_unused=True)
        finally:
            self.model.train(training)
        return {name: g for name, g in zip(trainable, found, strict=True) if g is not None}

    def _owned(self, method: Method) -> nn.Module | None:
        return dict(self.method_modules.items()).get(method.key)

    # -- the end of training ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def swap_averages(self) -> bool:
        """Exchange the weights and what methods offer in their place; a second call exchanges them back.

        Returns:
            Whether there was anything to exchange.
        """
        parameters, found = dict(self.model.named_parameters()), False
        for method in self.methods:
            for name, average in method.averages(self._owned(method)).items():
                last = parameters[name].detach().clone()
                parameters[name].copy_(average)
                average.copy_(last)
                found = True
        return found

    def finish(self, choose: Callable[[], None] | None = None) -> None:
        """End the training: averaged weights take their place, adapters become part of the weights.

        Nothing happens if no method has anything to do, or a second time.

        Args:
            choose: called in between; it may call `swap_averages` to have the last weights back.
        """
        if self.finished:
            return
        self.finished = self.swap_averages()
        for method in () if self.finished else self.methods:
            if type(method).averages is not Method.averages:
                self.notice(f"{method.key} has no average at the end of training, so the last weights stay.")
        if self.finished and choose is not None:
            choose()
        for method in self.methods:
            if type(method).finish is not Method.finish:
                method.finish(self._context(), self._owned(method))
                self.finished = True

    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """Clip the gradients of the encoder and of each method's own parameters, each by its own norm.

        Args:
            max_norm: largest allowed Euclidean norm of each.
        Returns:
            Norm of the encoder's gradient before clipping.
        """
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), max_norm)
        for module in self.method_modules.values():
            if own := list(module.parameters()):
                nn.utils.clip_grad_norm_(own, max_norm)
        return norm

    # -- saving -------------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Save the plain encoder; it loads without this library.

        Args:
            folder: where to.
        Raises:
            MethodError: a method keeps the model from being plain until `finish` is called.
        """
        for method in self.methods:
            if type(method).finish is not Method.finish and not self.finished:
                raise MethodError(f"{method.key} has not finished; call finish() before save_pretrained().")
        model: Any = self.model
        model.save_pretrained(folder)

    def save_state(self, folder: str | Path) -> None:
        """Save what a resumed run needs beside model and optimizer: the methods' parameters and the step count.

        Args:
            folder: an existing folder.
        """
        counters = {
            "methods": [method.key for method in self.methods],
            "micro_steps": self.micro_steps,
            "tokens": self.tokens,
            "updates": self.updates if self._updates is None else self._updates.number,
            "surveyed": self._surveyed,
            "spent": vars(self.spent),
            "notices": self.notices,
        }
        write_state(Path(folder), counters, self.method_modules)

    def load_state(self, folder: str | Path) -> None:
        """Load what `save_state` saved.

        Args:
            folder: where it lies.
        Raises:
            MethodError: the state is missing or was saved with other methods.
        """
        counters = read_state(Path(folder), [method.key for method in self.methods], self.method_modules)
        self.micro_steps, self.tokens = counters["micro_steps"], counters["tokens"]
        self._telemetry.notices = counters["notices"]
        self.spent, self._first = PassCount(**counters["spent"]), True
        self.updates, self._surveyed = counters["updates"], counters["surveyed"]
        if self._updates is not None:
            self._updates.number = self.updates

    def close(self) -> None:
        """Remove every hook from the wrapped model and the optimizer; safe to call twice."""
        self.detach()
        if self._sites is not None:
            self._sites.close()
            self._sites = None

    def reopen(self) -> None:
        """Install the hooks again after `close`; nothing happens if they are in place."""
        if self._sites is None:
            self._sites = Sites(self.model)

    def __getstate__(self) -> dict[str, Any]:
        return {
            **self.__dict__,
            "_sites": None,
            "_group": None,
            "_updates": None,
        }  # a copy is closed: hooks belong to the original

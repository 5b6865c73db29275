"""Updates of a part of the encoder's parameters only. Card: child_tuning.md."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, Literal

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor, nn

from steadytune.functional import draw_noise
from steadytune.methods.buffers import buffer_name
from steadytune.methods.contract import Context, Method, MethodError, ParameterRule, Update, setting

Mode = Literal["F", "D", "random"]
Masked = Literal["grad", "update"]


def top_share(scores: Float[Tensor, " entries"], share: float) -> Bool[Tensor, " entries"]:
    """Which entries belong to the largest ones; among equal scores at the border the first ones do.

    Args:
        scores: one per entry, finite.
        share: of the entries to keep; at least one is kept.

    Source: `kthvalue`, since `quantile` refuses more than 16 million entries.
    """
    count = max(1, round(share * len(scores)))
    border = scores.kthvalue(len(scores) - count + 1).values
    kept = scores > border
    equal = (scores == border).nonzero().flatten()
    kept[equal[: count - int(kept.sum())]] = True
    return kept


class Child(nn.Module):
    """What is masked: the parameters of the encoder's blocks, and fixed masks if there are any.

    Args:
        blocks: the parameters, by name.
        fixed: keep a mask for each, all true at first.
    """

    kept_fisher: Tensor

    def __init__(self, blocks: Mapping[str, nn.Parameter], fixed: bool) -> None:
        super().__init__()
        self.names, self.fixed = tuple(blocks), fixed
        self.before: dict[str, tuple[Tensor, Tensor]] = {}
        for name, parameter in blocks.items() if fixed else ():
            self.register_buffer(buffer_name(name), torch.ones_like(parameter, dtype=torch.bool))
        self.register_buffer("kept_fisher", torch.ones(()))

    def mask(self, name: str) -> Tensor:
        """The fixed mask of a parameter.

        Args:
            name: of the parameter.
        """
        return self.get_buffer(buffer_name(name))

    def keep_best(self, scores: Mapping[str, Tensor], share: float) -> None:
        """Set the masks to the largest scores of all parameters together.

        Args:
            scores: by name; the masks are those of the same entries.
            share: of all entries that is kept.
        """
        flat = torch.cat([scores[name].flatten() for name in self.names])
        kept = top_share(flat, share)
        self.kept_fisher.copy_(torch.where(kept, flat, 0.0).sum() / flat.sum().clamp(min=torch.finfo(flat.dtype).tiny))
        for name, part in zip(
            self.names, torch.split(kept, [scores[name].numel() for name in self.names]), strict=True
        ):
            self.mask(name).copy_(part.view_as(scores[name]))


@dataclass(frozen=True, kw_only=True)
class ChildTuning(Method):
    """A mask on the gradients of the encoder's blocks, fresh in each step or chosen once (Xu et al. 2021)."""

    key: ClassVar[str] = "child_tuning"
    holds_weights: ClassVar[bool] = True

    mode: Mode = setting(
        "F", "mask: fresh in each step (F), the largest Fisher scores (D), or random and fixed", source="Xu 2021"
    )
    share: float = setting(
        0.3, "p, share of the entries that are updated", low=0, high=1, open_low=True, source="Xu 2021, script"
    )
    mask: Masked = setting("grad", "mask gradients, or hold masked entries altogether", source="Xu 2021, code")
    fisher_rows: int | None = setting(
        1000, "most training rows that mode D looks at; all if null", low=1, source="derived, bounds the cost"
    )

    @property
    def active(self) -> bool:
        """Whether anything is masked."""
        return self.share < 1

    @property
    def wants_survey(self) -> bool:
        """In mode D, for the scores."""
        return self.mode == "D"

    def rows_to_survey(self, rows: int) -> int:
        """At most `fisher_rows`.

        Args:
            rows: to train on.
        """
        return min(rows, self.fisher_rows or rows) if self.wants_survey else 0

    def check(self, context: Context) -> None:
        """Refuse an encoder whose blocks are frozen.

        Args:
            context: model, task and processes.
        Raises:
            MethodError: there is nothing to mask.
        """
        if not _blocks(context):
            raise MethodError("child_tuning cannot act here: no parameter inside the encoder's layers is trained.")

    def setup(self, context: Context) -> nn.Module:
        """What is masked; the fixed masks are all true until the survey, or drawn at once.

        Args:
            context: model, task and processes.
        """
        blocks = _blocks(context)
        state = Child(blocks, fixed=self.mode != "F")
        state.to(next(iter(blocks.values())).device)
        if self.mode == "random":
            state.keep_best({name: torch.rand(p.shape, device=p.device) for name, p in blocks.items()}, self.share)
        return state

    def parameter_rules(self, context: Context) -> Mapping[str, ParameterRule]:
        """No weight decay under a fixed mask: it would go on shrinking the entries that are not updated.

        Args:
            context: model, task and processes.
        """
        return {} if self.mode == "F" else dict.fromkeys(_blocks(context), ParameterRule(weight_decay=0.0))

    def survey(
        self,
        examples: Iterable[Mapping[str, Tensor]],
        gradients: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
        state: nn.Module | None,
    ) -> None:
        """Mode D: keep the entries with the largest mean squared gradient of single rows.

        Args:
            examples: batches of one row each.
            gradients: of the label loss of such a row.
            state: takes the masks.
        Raises:
            MethodError: no row, or scores that are not finite.
        """
        assert isinstance(state, Child)
        wide = state.kept_fisher.dtype
        scores = {name: torch.zeros_like(state.mask(name), dtype=wide) for name in state.names}
        for example in islice(examples, self.fisher_rows):
            found = gradients(example)
            for name in scores.keys() & found.keys():
                scores[name] += found[name].to(wide).square()
        for score in scores.values() if dist.is_initialized() else ():
            dist.all_reduce(score)  # the masks must be the same in every process, to the last bit
        sizes = torch.stack([score.sum() for score in scores.values()])
        if not bool(sizes.isfinite().all()) or not bool(sizes.any()):
            raise MethodError(
                "child_tuning finds no Fisher scores: the squared gradients of the training rows are 0 or not finite; "
                "check the rows and their labels, or take float32 weights."
            )
        state.keep_best(scores, self.share)

    def before_update(self, now: Update, state: nn.Module | None) -> None:
        """Mask gradients; in mode F what is kept is divided by its share.

        Args:
            now: parameters and their gradients.
            state: what is masked.
        """
        assert isinstance(state, Child)
        kept, entries = [], 0
        for name in state.names:
            parameter = now.parameters.get(name)
            if parameter is None or parameter.grad is None:
                continue
            mask = state.mask(name) if state.fixed else self._draw(parameter.grad, now.generator(name))
            if self.mask == "update":
                state.before[name] = (mask, parameter.detach().clone())
            parameter.grad.mul_(mask)
            if not state.fixed:
                parameter.grad.div_(self.share)
            kept.append(mask.sum())
            entries += mask.numel()
        now.report("kept_share", torch.stack(kept).sum() / entries if kept else 0.0)
        if not kept:
            now.notice("child_tuning masks nothing: the optimizer trains none of the parameters inside the layers.")
        if self.mode == "D":
            now.report("kept_fisher", state.kept_fisher)

    def _draw(self, gradient: Tensor, generator: torch.Generator) -> Tensor:
        return draw_noise(gradient, 1.0, "uniform_released", generator) < self.share

    def after_update(self, now: Update, state: nn.Module | None) -> None:
        """Put masked entries back if the optimizer has moved them all the same.

        Args:
            now: parameters.
            state: what is masked, and the values before the step.
        """
        assert isinstance(state, Child)
        for name, (mask, before) in state.before.items():
            parameter = now.parameters[name]
            parameter.copy_(torch.where(mask, parameter, before))
        state.before.clear()


def _blocks(context: Context) -> dict[str, nn.Parameter]:
    """Trained parameters inside the encoder's layers, by name."""
    inside = {id(parameter) for layer in context.anatomy.layers for parameter in layer.parameters()}
    return {name: p for name, p in context.model.named_parameters() if id(p) in inside and p.requires_grad}

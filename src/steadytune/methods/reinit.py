"""The top layers drawn anew before training. Card: reinit.md."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from steadytune.encoders import Anatomy, Edits, SiteUnavailable
from steadytune.methods.contract import Context, Method, MethodError, ParameterRule, Pass, setting

logger = logging.getLogger("steadytune")

_FLAG = "_is_hf_initialized"  # transformers' initialisers skip a tensor that carries it


@dataclass(frozen=True, kw_only=True)
class ReInit(Method):
    """Top layers and pooler drawn from the model's own initial distribution (Zhang et al. 2021)."""

    key: ClassVar[str] = "reinit"
    setup_order: ClassVar[int] = 0

    layers: int = setting(1, "l, how many of the top layers are drawn anew", low=0, source="Zhang 2021, smallest l > 0")
    pooler: bool = setting(True, "also what lies between the layers and the label linear", source="Zhang 2021")

    @property
    def active(self) -> bool:
        """Whether anything is drawn anew."""
        return self.layers > 0 or self.pooler

    def check(self, context: Context) -> None:
        """Refuse models without these layers, with shared layers, or with frozen ones.

        Args:
            context: model, task and processes.
        Raises:
            MethodError: too many layers, no pooler, or a part that would stay random.
            SiteUnavailable: all layers are one.
        """
        depth = context.anatomy.depth
        if self.layers and depth != len(context.anatomy.layers):
            raise SiteUnavailable(
                f"reinit cannot draw the top layers of {context.anatomy.family.name} anew: its layers share weights."
            )
        if self.layers > depth:
            raise MethodError(f"reinit.layers must be at most {depth}, the layers of this model; got {self.layers}.")
        if self.pooler and not _above(context):
            raise MethodError(
                "reinit.pooler finds nothing between the layers and the label linear; set reinit.pooler to false."
            )
        self._refuse_frozen(context)

    def setup(self, context: Context) -> None:
        """Draw them anew, in place.

        Args:
            context: model, task and processes.
        Raises:
            MethodError: the model's initialiser left a matrix as it was.
        """
        anatomy = context.anatomy
        for module in self._parts(context):
            before = {name: p.detach().clone() for name, p in module.named_parameters() if p.ndim > 1}
            _initialize(anatomy, module)
            after = dict(module.named_parameters())
            for name, matrix in before.items():
                if torch.equal(matrix, after[name]):
                    raise MethodError(
                        f"reinit: the initialiser of {anatomy.family.name} left {name} of {type(module).__name__} as "
                        "it was; leave this method out for this model."
                    )
        if self.layers == anatomy.depth:
            logger.warning("reinit.layers %d is all of them: above the embeddings nothing is pre-trained.", self.layers)

    def parameter_rules(self, context: Context) -> Mapping[str, ParameterRule]:
        """None; asked for when every method is set up, so that a part frozen since then is found.

        Args:
            context: model, task and processes.
        Raises:
            MethodError: a part that would stay random.
        """
        self._refuse_frozen(context)
        return {}

    def edits(self, now: Pass) -> Edits | None:
        """None; reports what was done.

        Args:
            now: the pass that is about to run.
        """
        now.report("reinitialized_layers", float(self.layers))
        return None

    def _parts(self, context: Context) -> list[nn.Module]:
        top = list(context.anatomy.layers[len(context.anatomy.layers) - self.layers :])
        return top + (_above(context) if self.pooler else [])

    def _refuse_frozen(self, context: Context) -> None:
        for module in self._parts(context):
            for name, parameter in module.named_parameters():
                if not parameter.requires_grad:
                    raise MethodError(
                        f"reinit would leave {name} of a {type(module).__name__} random, because it is frozen; train "
                        "it, or lower reinit.layers."
                    )


def _above(context: Context) -> list[nn.Module]:
    """The encoder's pooler and the modules of the head but for the label linear, outermost first, none twice."""
    anatomy = context.anatomy
    encoder = set(anatomy.base.modules())
    found = [] if anatomy.pooler is None else [anatomy.pooler]

    def search(module: nn.Module) -> None:
        for child in module.children():
            if child in encoder or child is anatomy.label_linear:
                continue
            if not {anatomy.base, anatomy.label_linear}.isdisjoint(child.modules()):
                search(child)
            elif any(True for _ in child.parameters()):
                found.append(child)

    search(context.model)
    return found


def _initialize(anatomy: Anatomy, module: nn.Module) -> None:
    """The model's own initialiser on a module and all below it, children first as transformers does it."""
    base: Any = anatomy.base
    with _unmarked(list(module.parameters())):
        module.apply(base._init_weights)


@contextmanager
def _unmarked(tensors: list[nn.Parameter]) -> Iterator[None]:
    """Let transformers' initialisers act on tensors that were loaded."""
    marked: list[Tensor] = [tensor for tensor in tensors if getattr(tensor, _FLAG, False)]
    for tensor in marked:
        setattr(tensor, _FLAG, False)
    try:
        yield
    finally:
        for tensor in marked:
            setattr(tensor, _FLAG, True)

"""Only the top layers and the head train. Card: topk.md."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from steadytune.encoders import Edits, SiteUnavailable
from steadytune.methods.contract import Context, Method, MethodError, Pass, setting


@dataclass(frozen=True, kw_only=True)
class TopK(Method):
    """Everything below the top k layers is frozen (baseline of Xu et al. 2021 and Yuan et al. 2023)."""

    key: ClassVar[str] = "topk"
    early_gradient: ClassVar[bool] = True  # re-entrant checkpointing cuts a layer off whose input needs no gradient
    setup_order: ClassVar[int] = 2

    layers: int = setting(1, "k, how many of the top layers train", low=0, source="derived; smallest k of the grid")

    def check(self, context: Context) -> None:
        """Refuse models whose layers are one, and as many layers as there are.

        Args:
            context: model, task and processes.
        Raises:
            MethodError: nothing would be frozen but the embeddings.
            SiteUnavailable: all layers are one.
        """
        depth = context.anatomy.depth
        if depth != len(context.anatomy.layers):
            raise SiteUnavailable(
                f"topk cannot freeze the lower layers of {context.anatomy.family.name} alone: its layers share weights."
            )
        if self.layers >= depth:
            raise MethodError(
                f"topk.layers must be below {depth}, the layers of this model; got {self.layers}, which freezes none."
            )

    def setup(self, context: Context) -> None:
        """Freeze the embeddings, the lower layers and what all layers share.

        Args:
            context: model, task and processes.
        """
        anatomy = context.anatomy
        top = [*anatomy.layers[anatomy.depth - self.layers :], anatomy.final_norm, anatomy.pooler]
        kept = {id(p) for module in top if isinstance(module, nn.Module) for p in module.parameters()}
        for parameter in anatomy.base.parameters():
            if id(parameter) not in kept:
                parameter.requires_grad_(False)

    def edits(self, now: Pass) -> Edits | None:
        """None; reports what trains.

        Args:
            now: the pass that is about to run.
        """
        now.report("trained_layers", float(self.layers))
        return None

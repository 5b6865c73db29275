"""Low-rank adapters beside frozen weights, by peft. Card: lora.md."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from steadytune.encoders import FAMILIES, Edits, SiteUnavailable
from steadytune.methods.contract import Context, Method, MethodError, Pass, setting


@dataclass(frozen=True, kw_only=True)
class LoRA(Method):
    """Query and value projections get a trained low-rank addition; the encoder is frozen (Hu et al. 2022)."""

    key: ClassVar[str] = "lora"
    early_gradient: ClassVar[bool] = True  # re-entrant checkpointing cuts a layer off whose input needs no gradient
    setup_order: ClassVar[int] = 2

    rank: int = setting(8, "r, rank of the addition", low=1, source="published scripts of Hu 2022, RoBERTa-base")
    alpha: float = setting(
        16,
        "α, the addition is scaled by α/r",
        low=0,
        open_low=True,
        source="published scripts of Hu 2022, RoBERTa-base",
    )
    dropout: float = setting(0.0, "dropout on what an adapter reads", low=0, high=0.99, source="default of peft")

    def check(self, context: Context) -> None:
        """Refuse without peft, on families whose projections it does not know, and on models with adapters.

        Args:
            context: model, task and processes.
        Raises:
            MethodError: peft is missing, or the model has adapters already.
            SiteUnavailable: the projections are not known by name.
        """
        name, known = context.anatomy.family.name, _known_targets()
        if name not in known:
            raise SiteUnavailable(
                f"lora adapts the query and value projections that peft knows by name, and it knows none of {name}; "
                f"it knows those of {', '.join(other for other in FAMILIES if other in known)}."
            )
        if _adapters(context.anatomy.base):
            raise MethodError(
                "lora finds adapters in this model already; call finish() on their RegularizedModel, or load it anew."
            )

    def setup(self, context: Context) -> None:
        """Put the adapters in place; of the encoder, they and the pooler train.

        Args:
            context: model, task and processes.
        """
        from peft import LoraConfig, inject_adapter_in_model

        base: Any = context.anatomy.base
        alpha: Any = self.alpha  # peft takes any number and declares an integer
        config = LoraConfig(r=self.rank, lora_alpha=alpha, lora_dropout=self.dropout)
        training = base.training
        inject_adapter_in_model(config, base)
        base.train(training)
        if context.anatomy.pooler is not None:
            context.anatomy.pooler.requires_grad_(True)

    def edits(self, now: Pass) -> Edits | None:
        """None; reports the scale of the additions.

        Args:
            now: the pass that is about to run.
        """
        now.report("scaling", self.alpha / self.rank)
        return None

    @torch.no_grad()
    def finish(self, context: Context, state: nn.Module | None) -> None:
        """Add each adapter to its weight and take it away; the encoder stays frozen.

        Args:
            context: model, task and processes.
            state: None.
        """
        base: Any = context.anatomy.base
        for name, adapter in _adapters(base).items():
            adapter.merge()
            base.set_submodule(name, adapter.get_base_layer())
        vars(base).pop("peft_config", None)


def _known_targets() -> set[str]:
    """The model types whose query and value projections peft knows."""
    try:
        from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    except ImportError:
        raise MethodError("lora needs the package peft: pip install steadytune[peft].") from None
    return set(TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING)


def _adapters(base: nn.Module) -> dict[str, Any]:
    """Every layer with an adapter, by name."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in base.named_modules() if isinstance(module, LoraLayer)}

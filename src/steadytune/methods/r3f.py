"""Agreement of the clean pass with one whose word embeddings carry noise. Card: r3f.md."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steadytune.encoders import Edits
from steadytune.functional import draw_noise
from steadytune.methods.contract import Context, Method, MethodError, Mix, Pass, Step, Update, setting
from steadytune.methods.precision import check_noise

_TINY = 0.01  # relative noise below which a fresh dropout draw makes nearly all of the term (r3f.md, "Fails when")


class DividedHead(nn.Module):
    """The weights of the head divided by their largest singular values, for evaluation and export.

    Args:
        weights: by name in the model.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.places = {name: f"weight_{place}" for place, name in enumerate(weights)}
        for name, weight in weights.items():
            self.register_buffer(self.places[name], torch.empty_like(weight))
            self.keep(name, weight)

    @torch.no_grad()
    def keep(self, name: str, weight: Tensor) -> None:
        """Divide a weight as it is now.

        Args:
            name: of the weight.
            weight: undivided.
        """
        self.get_buffer(self.places[name]).copy_(weight / _largest_singular_value(weight))

    def by_name(self) -> dict[str, Tensor]:
        """The divided weights; the tensors are the buffers."""
        return {name: self.get_buffer(place) for name, place in self.places.items()}


@dataclass(frozen=True, kw_only=True)
class R3F(Method):
    """Divergence of the predictions with and without noise on the word embeddings (Aghajanyan et al. 2021)."""

    key: ClassVar[str] = "r3f"
    mix: ClassVar[Mix] = "additive"

    weight: float = setting(1.0, "λ, factor of the divergence", low=0, source="released code; top of HyPe's grid")
    noise_std: float = setting(
        1e-5, "σ, standard deviation (normal) or half-width (uniform)", low=0, source="Aghajanyan 2021"
    )
    distribution: Literal["normal", "uniform"] = setting("normal", "law of the noise", source="HyPe's comparison")
    relative: bool = setting(False, "σ in units of the root mean square of the embedding matrix", source="derived")
    same_dropout: bool = setting(False, "the noisy pass replays the dropout of the clean one", source="derived")
    detach: bool = setting(True, "no gradient from the noisy pass into the embedding matrix", source="released code")
    spectral_norm: bool = setting(False, "R4F: divide the head's weights by their norms", source="Aghajanyan 2021")

    @property
    def active(self) -> bool:
        """Whether there is a term or a head to divide."""
        return self.weight > 0 or self.spectral_norm

    @property
    def acts_on_updates(self) -> bool:
        """Whether divided weights must follow the weights."""
        return self.spectral_norm

    @property
    def offers_weights(self) -> bool:
        """Only the divided head takes the place of the last weights."""
        return self.spectral_norm

    def check(self, context: Context) -> None:
        """Refuse two equal passes, and a head that cannot be divided.

        Args:
            context: model, task and processes.
        """
        if self.weight > 0 and self.noise_std == 0 and self.same_dropout:
            raise MethodError(
                "r3f compares two equal passes: with noise_std 0 and same_dropout true nothing makes them differ; "
                "raise noise_std or set same_dropout to false."
            )
        if self.spectral_norm:
            context.anatomy.require("weights", "r3f.spectral_norm")
            if not _head_weights(context):
                raise MethodError("r3f.spectral_norm finds no linear map outside the encoder; set it to false.")

    def setup(self, context: Context) -> nn.Module | None:
        """With `spectral_norm`, the divided weights of the head.

        Args:
            context: model, task and processes.
        """
        return DividedHead(_head_weights(context)) if self.spectral_norm else None

    def after_update(self, now: Update, state: nn.Module | None) -> None:
        """Divide the weights of the head as they are now.

        Args:
            now: the weights.
            state: the divided ones.
        """
        if isinstance(state, DividedHead):
            for name in state.places.keys() & now.parameters.keys():
                state.keep(name, now.parameters[name])

    def averages(self, state: nn.Module | None) -> Mapping[str, Tensor]:
        """The divided weights of the head, which every training pass uses too.

        Args:
            state: the divided weights.
        """
        return state.by_name() if isinstance(state, DividedHead) else {}

    def edits(self, now: Pass) -> Edits | None:
        """With `spectral_norm`, the divided head in every pass, with the gradient of the division.

        Args:
            now: the pass that is about to run.
        """
        if not isinstance(now.state, DividedHead):
            return None
        places = now.state.places

        def divided(name: str, weight: Tensor) -> Tensor:
            if name not in places:
                return weight
            largest = _largest_singular_value(weight)
            now.report("largest_singular_value", largest)
            return (weight / largest).to(weight.dtype)

        return Edits(weights=divided)

    def loss(self, step: Step, state: nn.Module | None) -> Float[Tensor, ""] | None:
        """KL(p ‖ q) + KL(q ‖ p) of clean and noisy pass, or the squared difference; the gradient flows through both.

        Args:
            step: gives the passes.
            state: the divided head, if any.
        Raises:
            MethodError: nothing makes the two passes differ.
        """
        if self.weight == 0:
            return None
        if step.inputs.get("input_ids") is None:
            raise MethodError("r3f needs input_ids: its noise is added to word embeddings, which inputs_embeds bypass.")
        edits = Edits(embedding=partial(self._noised, step))
        clean = step.clean.logits
        noisy = step.run("r3f", edits=edits, dropout="as clean" if self.same_dropout else "fresh").logits
        assert clean is not None and noisy is not None
        if step.first and self.noise_std == 0 and torch.equal(clean, noisy):
            zero = ", ".join(kind for kind, rate in step.anatomy.dropout.items() if rate == 0) or "nothing"
            raise MethodError(
                f"r3f compares two equal passes: noise_std is 0 and dropout is 0 for {zero}; raise one of them."
            )
        divergence = step.task.divergence(clean, noisy, "sum")
        step.report("divergence", divergence)
        step.report("fresh_dropout", 0.0 if self.same_dropout else max(step.anatomy.dropout.values()))
        return divergence

    def _noised(self, step: Step, states: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        if self.detach:
            states = states.detach()
        if self.noise_std == 0:
            step.report("relative_noise", 0.0)
            return states
        noise = draw_noise(states, self.noise_std, self.distribution, step.generator("noise"))
        if self.relative:
            noise *= _root_mean_square(step.anatomy.embedding, noise.dtype)
        real = _real(step.inputs.get("attention_mask"), states)
        noise *= real
        still = states.detach().to(noise.dtype) * real
        if step.first:
            check_noise(step, "r3f.noise_std", self.noise_std, "embeddings", still.to(states.dtype), noise)
        step.report("relative_noise", noise.norm() / still.norm())
        return (states + noise).to(states.dtype)

    def judge(self, telemetry: Mapping[str, float]) -> list[str]:
        """Say when most of the term is dropout.

        Args:
            telemetry: means by name.
        """
        noise = telemetry.get("relative_noise", 1.0)
        if not 0 < noise < _TINY or telemetry.get("fresh_dropout", 0.0) == 0:
            return []
        return [
            f"r3f: the noise is {noise:.1e} of the embeddings and the noisy pass draws its own dropout, so most of the "
            "term is dropout; for noise alone set r3f.same_dropout: true and a noise_std of 1e-2 or more."
        ]


def _head_weights(context: Context) -> dict[str, Tensor]:
    """Weights of the linear maps outside the encoder, by name."""
    inside = set(context.anatomy.base.modules())
    found = {id(m.weight) for m in context.model.modules() if isinstance(m, nn.Linear) and m not in inside}
    return {name: p.detach() for name, p in context.model.named_parameters() if id(p) in found}


def _largest_singular_value(weight: Tensor) -> Float[Tensor, ""]:
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    largest = torch.linalg.matrix_norm(wide, 2)
    return torch.where(largest > 0, largest, 1.0)


def _root_mean_square(embedding: Any, dtype: torch.dtype) -> Tensor:
    matrix: Tensor = embedding.weight.detach()
    norm: Tensor = torch.linalg.vector_norm(matrix, dtype=dtype)
    mean: Tensor = norm / matrix.numel() ** 0.5
    return mean


def _real(mask: Tensor | None, states: Tensor) -> Tensor:
    """1 at the tokens of the texts, 0 at padding; a model without a mask reads every token."""
    if mask is None or mask.ndim != 2:
        return states.new_ones((), dtype=torch.bool)
    return mask.bool()[..., None]

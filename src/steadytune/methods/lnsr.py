"""Penalty on how layers pass noise on to the layers above. Card: lnsr.md."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from steadytune.encoders import PassOutput, SiteUnavailable
from steadytune.functional import draw_noise
from steadytune.methods.contract import Context, Method, MethodError, Mix, Step, setting

Sampler = Literal["gaussian", "interpolate", "covariance", "subspace"]
_SMALLEST_IN_LOW_PRECISION = 0.03  # relative size below which two passes differ by rounding; lnsr.md, "bf16"


def draw_perturbation(
    states: Float[Tensor, "batch tokens dim"],
    real: Bool[Tensor, "batch tokens"],
    *,
    sampler: Sampler,
    scale: float,
    relative: bool,
    generator: torch.Generator,
    directions: int | None = None,
) -> Float[Tensor, "batch tokens dim"]:
    """One draw of noise for every state, 0 on padding, float32 or wider, without gradient.

    "gaussian" is isotropic. The others stay among the states of the batch: "interpolate" moves each state towards
    another one, "covariance" mixes the centered states, "subspace" is Gaussian in their top principal directions.

    Args:
        states: hidden states.
        real: False on padding.
        sampler: one of the above.
        scale: σ, standard deviation of "gaussian" and "subspace" per direction and factor of "covariance"; α, part of
            the way, of "interpolate".
        relative: every draw is rescaled to the norm `scale` times that of its state.
        generator: stream to draw from.
        directions: q, number of principal directions of "subspace"; 1 if not given.

    Source: Hua et al. 2021 for Gaussian noise of 5 % of the norm; the others are derived candidates.
    """
    states = states.detach().to(torch.promote_types(states.dtype, torch.float32))
    flat, kept = states.flatten(0, 1), real.flatten()
    match sampler:
        case "gaussian":
            noise = draw_noise(flat, 1.0, "normal", generator)
        case "interpolate":
            noise = flat[_partners(kept, generator)] - flat
        case "covariance":
            centered, count = _centered(flat, kept)
            mix = draw_noise(flat.new_empty(len(flat), len(flat)), 1.0, "normal", generator)
            noise = mix @ centered / (count - 1).clamp(min=1).sqrt()
        case "subspace":
            centered, _ = _centered(flat, kept)
            top = torch.linalg.eigh(centered.T @ centered).eigenvectors[:, -(directions or 1) :]
            noise = draw_noise(flat, 1.0, "normal", generator) @ top @ top.T
    noise = torch.where(real[..., None], noise.view_as(states), 0.0)
    if relative:
        length = noise.norm(dim=-1, keepdim=True)
        noise = torch.where(length > 0, noise * (states.norm(dim=-1, keepdim=True) / length), 0.0)
    return scale * noise


def squared_distance(
    noisy: Float[Tensor, "batch tokens dim"],
    clean: Float[Tensor, "batch tokens dim"],
    counted: Bool[Tensor, "batch tokens"],
    *,
    relative: bool,
    shares: Float[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """‖h̃ − h‖² of one layer: sum over the dimension, mean over the counted tokens, then over the examples.

    Args:
        noisy: states of the pass with noise.
        clean: states of the pass without.
        counted: which tokens count; an example without any adds 0.
        relative: in units of ‖h‖², which carries no gradient.
        shares: of each example in the mean; the same of all if not given.
    Returns:
        Scalar, float32 or wider, differentiable in both.

    Source: Hua et al. 2021; eq. 3 and section 3.5 of the specification.
    """
    dtype = torch.promote_types(noisy.dtype, torch.float32)
    noisy, clean = noisy.to(dtype), clean.to(dtype)
    distance = (noisy - clean).square().sum(dim=-1)
    if relative:
        distance = distance / clean.detach().square().sum(dim=-1).clamp(min=torch.finfo(dtype).tiny)
    distance = torch.where(counted, distance, 0.0)  # not a product: what overflows on padding is not to become NaN
    per_example = distance.sum(dim=1) / counted.sum(dim=1).clamp(min=1)
    return per_example.mean() if shares is None else (shares * per_example).sum()


@dataclass(frozen=True, kw_only=True)
class LNSR(Method):
    """Noise at one layer, and a penalty on what of it arrives at the layers above (Hua et al. 2021)."""

    key: ClassVar[str] = "lnsr"
    mix: ClassVar[Mix] = "additive"

    weight: float = setting(1.0, "λ, shared evenly by the penalized layers", low=0, source="middle of a grid 0.1 to 10")
    injection_layer: int = setting(0, "b, the layer whose input is perturbed", low=0, source="Hua 2021, abstract")
    noise: Sampler = setting("gaussian", "law of the noise", source="Hua 2021")
    noise_std: float = setting(0.05, "ρ if relative, else σ (α for interpolate)", low=0, source="Hua 2021, figure 1")
    relative: bool = setting(True, "noise in units of each token's norm", source="Hua 2021, figure 1")
    directions: int | None = setting(None, "q, directions of noise: subspace", low=1, source="derived")
    draws: int = setting(1, "K, noise draws in a step", low=1, source="derived")
    layers: tuple[int, ...] | None = setting(None, "layers penalized, from b + 1; all if null", source="Hua 2021")
    normalize: bool = setting(True, "penalty in units of ‖h‖², else the mean over dimensions", source="derived")
    tokens: Literal["all", "sentence"] = setting("all", "all real tokens, or the one the head reads", source="derived")
    dropout: Literal["replayed", "fresh"] = setting("replayed", "dropout of the noisy branch", source="derived")

    @property
    def active(self) -> bool:
        """Whether the branches can differ and the difference counts."""
        return self.weight > 0 and (self.noise_std > 0 or self.dropout == "fresh")

    def check(self, context: Context) -> None:
        """Refuse layers that the model lacks, and models with nothing to train.

        Args:
            context: model, task and processes.
        """
        depth, b = context.anatomy.depth, self.injection_layer
        if b >= depth:
            raise MethodError(f"lnsr.injection_layer must be from 0 to {depth - 1}: no layer is above it; got {b}.")
        if b < (first := context.anatomy.first_resume):
            raise SiteUnavailable(
                f"lnsr cannot resume a {context.anatomy.family.name} with convolution at layer {b}: something outside "
                f"its layers reads the embeddings later; set lnsr.injection_layer to {first} or more."
            )
        if self.layers is not None and (not self.layers or not all(b < r <= depth for r in self.layers)):
            raise MethodError(
                f"lnsr.layers must name layers from {b + 1} to {depth}, or be null for all; got {list(self.layers)}."
            )
        if (self.noise == "subspace") != (self.directions is not None):
            raise MethodError("lnsr.directions must be given with noise: subspace, and only with it.")
        if not context.trainable:
            raise MethodError("lnsr cannot act on a frozen encoder: its penalty trains only what lies below the head.")

    def resume_layers(self, context: Context) -> frozenset[int]:
        """The injection layer.

        Args:
            context: model, task and processes.
        """
        return frozenset({self.injection_layer})

    def loss(self, step: Step, state: nn.Module | None) -> Float[Tensor, ""]:
        """The mean penalty over draws and layers; see `squared_distance`.

        Args:
            step: gives the clean pass and its upper part once more.
            state: unused.
        """
        clean, b = step.clean, self.injection_layer
        entering = clean.hidden[b]
        mask = step.inputs.get("attention_mask")
        real = torch.ones(entering.shape[:2], dtype=torch.bool, device=entering.device) if mask is None else mask.bool()
        penalties = []
        for draw in range(self.draws):
            noise = draw_perturbation(
                entering,
                real,
                sampler=self.noise,
                scale=self.noise_std,
                relative=self.relative,
                generator=step.generator("noise", draw),
                directions=self.directions,
            )
            if step.first and self.noise_std > 0:
                self._check_precision(step, entering.detach()[real], noise[real])
            noisy = step.resume(
                f"lnsr/{draw}",
                base="clean",
                layer=b,
                hidden=(entering + noise).to(entering.dtype),
                dropout="as base" if self.dropout == "replayed" else "fresh",
            )
            penalties.append(self._penalty(step, noisy, clean, real))
        return torch.stack(penalties).mean()

    def _penalty(self, step: Step, noisy: PassOutput, clean: PassOutput, real: Tensor) -> Tensor:
        counted = real
        if self.tokens == "sentence":
            counted = torch.zeros_like(real)
            counted[:, clean.sentence_token] = True
        layers = self.layers or tuple(range(self.injection_layer + 1, step.anatomy.depth + 1))
        distances, shares = [], step.text_shares
        for layer in layers:
            one, two = noisy.hidden[layer], clean.hidden[layer]
            ratio = squared_distance(one, two, counted, relative=True, shares=shares)
            step.report(f"relative_distance_layer_{layer}", ratio.detach().sqrt())
            if not self.normalize:
                ratio = squared_distance(one, two, counted, relative=False, shares=shares) / one.shape[-1]
            distances.append(ratio)
        return torch.stack(distances).mean()

    def _check_precision(self, step: Step, states: Tensor, noise: Tensor) -> None:
        """Raise where two passes differ more by rounding than by the noise."""
        dtype = states.dtype if step.compute_dtype is None else step.compute_dtype
        if dtype not in (torch.bfloat16, torch.float16):
            return
        size = float(noise.norm() / states.to(noise.dtype).norm())
        if round(size, 3) < _SMALLEST_IN_LOW_PRECISION:  # the bound itself may come out a little smaller
            name = str(dtype).removeprefix("torch.")
            raise MethodError(
                f"lnsr.noise_std gives noise of {size:.1e} times the norm of the states, which in {name} is lost in "
                f"rounding; use at least {_SMALLEST_IN_LOW_PRECISION:g}, or float32."
            )


def _centered(states: Float[Tensor, "states dim"], real: Bool[Tensor, " states"]) -> tuple[Tensor, Tensor]:
    """The states less their mean, 0 where not real, and how many are."""
    count = real.sum().clamp(min=1).to(states.dtype)
    mean = torch.where(real[:, None], states, 0.0).sum(dim=0) / count
    return torch.where(real[:, None], states - mean, 0.0), count


def _partners(real: Bool[Tensor, " states"], generator: torch.Generator) -> Tensor:
    """For each real state another real one, uniformly; a single one is its own partner."""
    count = real.sum().clamp(min=1)
    order = (~real).long().sort(stable=True).indices  # the real states come first
    rank = (real.cumsum(0) - 1).clamp(min=0)
    uniform = torch.empty(len(real), device=real.device).uniform_(generator=generator)
    step = 1 + (uniform * (count - 1)).long().clamp(max=(count - 2).clamp(min=0))
    return order[(rank + step) % count]

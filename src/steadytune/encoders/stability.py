"""How much of a small noise at one layer arrives at the layers above: a curve to draw, of any model at any time."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from steadytune.encoders.families import SiteUnavailable
from steadytune.encoders.passes import PassRunner
from steadytune.encoders.sites import Sites
from steadytune.functional import draw_noise, keyed_generator


def stability_curve(
    model: nn.Module, inputs: Mapping[str, Tensor], *, layer: int = 0, relative_noise: float = 0.05, seed: int = 0
) -> Float[Tensor, " layers"]:
    """‖h̃ − h‖ / ‖h‖ after each layer above an injection of noise, without dropout; falling means damped.

    The ratio is taken for each token; entry i is its mean over the real tokens of an example, then over the examples,
    at the output of layer `layer` + i, and at the top after the final norm if there is one. The noise of each token is
    uniform on the sphere of radius `relative_noise` times the norm of its state. A fresh random model damps as well,
    so compare a fine-tuned one with that, not with a flat line.

    Args:
        model: a Hugging Face model with a task head; its modes are put back, its random streams are not touched.
        inputs: its keyword arguments; without `attention_mask` every token is real.
        layer: the layer whose input gets the noise, counted from 0.
        relative_noise: size of the noise in units of the norm of each state.
        seed: names the draw.
    Returns:
        One number per layer from `layer` on, float32 or wider, without gradient.
    Raises:
        RuntimeError: the model is wrapped; `close()` its `RegularizedModel` first and `reopen()` it afterwards.
        SiteUnavailable: there is no such layer, or something outside the layers reads what enters it later.
        UnknownFamily: its family is not supported.

    Source: Hua et al. 2021, figure 1.
    """
    modes = {module: module.training for module in model.modules()}
    sites = Sites(model)
    try:
        first, depth = sites.anatomy.first_resume, sites.anatomy.depth
        if not first <= layer < depth:
            raise SiteUnavailable(
                f"layer must be from {first} to {depth - 1} for this {sites.anatomy.family.name}; got {layer}."
            )
        model.eval()
        with torch.no_grad():
            return _curve(PassRunner(model, sites), inputs, layer, relative_noise, seed)
    finally:
        sites.close()
        for module, training in modes.items():
            module.training = training


def _curve(runner: PassRunner, inputs: Mapping[str, Tensor], layer: int, relative_noise: float, seed: int) -> Tensor:
    clean = runner.run(inputs)
    states = clean.hidden[layer]
    noise = draw_noise(states, 1.0, "normal", keyed_generator(states.device, seed, "stability", layer))
    noise *= relative_noise * states.to(noise.dtype).norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)
    noisy = runner.resume(clean, layer, (states + noise).to(states.dtype), start=None)
    mask = inputs.get("attention_mask")
    real = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device) if mask is None else mask.bool()
    return torch.stack(
        [_mean_ratio(noisy.hidden[i], clean.hidden[i], real) for i in range(layer + 1, len(clean.hidden))]
    )


def _mean_ratio(
    noisy: Float[Tensor, "batch tokens dim"],
    clean: Float[Tensor, "batch tokens dim"],
    real: Bool[Tensor, "batch tokens"],
) -> Float[Tensor, ""]:
    dtype = torch.promote_types(clean.dtype, torch.float32)
    noisy, clean = noisy.to(dtype), clean.to(dtype)
    ratio = torch.where(real, (noisy - clean).norm(dim=-1) / clean.norm(dim=-1), 0.0)
    return (ratio.sum(dim=1) / real.sum(dim=1).clamp(min=1)).mean()

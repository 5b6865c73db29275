"""Random draws that can be repeated exactly, and what low precision leaves of them."""

import hashlib
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Distribution = Literal["normal", "uniform", "uniform_released"]


def keyed_seed(*key: int | str) -> int:
    """A 63-bit seed that depends on every part of the key and on nothing else.

    A draw is named by what it is for (run seed, method, step, layer), so it can be repeated in a recomputed or
    replayed pass, and a resumed run needs no generator state.

    Args:
        key: any number of integers and strings; their order counts.
    Returns:
        A non-negative integer below 2**63.
    """
    digest = hashlib.blake2b("\x1f".join(map(repr, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def keyed_generator(device: torch.device | str, *key: int | str) -> torch.Generator:
    """A generator at the start of the stream that `key` names; the global streams are not touched.

    Args:
        device: where the numbers will be drawn.
        key: see `keyed_seed`.
    """
    return torch.Generator(device=device).manual_seed(keyed_seed(*key))


def draw_noise(
    like: Float[Tensor, "*shape"], scale: float, distribution: Distribution, generator: torch.Generator
) -> Float[Tensor, "*shape"]:
    """Independent zero-mean noise of the shape of `like`, float32 or wider.

    Args:
        like: gives shape, device and, if wider than float32, the dtype.
        scale: σ; standard deviation of "normal", half-width of "uniform" (standard deviation σ/√3).
        distribution: "normal" N(0, σ²); "uniform" U(−σ, σ); "uniform_released" U[0, σ), the off-center law of the
            code released with HyPe, for comparison only.
        generator: stream to draw from.
    Returns:
        A new tensor without gradient.

    Source: Yuan et al. 2023 (HyPe), eq. 1; `uniform_released`: their released code.
    """
    noise = torch.empty(like.shape, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)
    match distribution:
        case "normal":
            return noise.normal_(0.0, scale, generator=generator)
        case "uniform":
            return noise.uniform_(-scale, scale, generator=generator)
        case "uniform_released":
            return noise.uniform_(0.0, scale, generator=generator)
    raise ValueError(f"distribution must be 'normal', 'uniform' or 'uniform_released'; got {distribution!r}.")


def realized_noise(
    states: Float[Tensor, "*shape"], noise: Float[Tensor, "*shape"], dtype: torch.dtype
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """What is left of an additive noise once the sum is stored in `dtype`.

    Args:
        states: the values before the noise.
        noise: the intended noise, float32 or wider.
        dtype: the type that the noised states, or the copy that a matrix product reads, are rounded to.
    Returns:
        Correlation of the intended with the realized change (1 is faithful, near 0 is rounding), and the share of
        entries that changed at all.
    """
    wide = noise.dtype
    change = (states.to(wide) + noise).to(dtype).to(wide) - states.to(dtype).to(wide)
    moved = (change != 0).to(wide).mean()
    a, b = (change - change.mean()).flatten(), (noise - noise.mean()).flatten()
    norm = (a.norm() * b.norm()).clamp(min=torch.finfo(wide).tiny)
    return (a @ b) / norm, moved

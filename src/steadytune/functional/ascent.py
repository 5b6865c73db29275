"""Steps that increase a loss: perturbations from a gradient."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Norm = Literal["l2", "linf"]


def by_token(
    values: Float[Tensor, "batch tokens dim"], token_ids: Int[Tensor, "batch tokens"]
) -> tuple[Float[Tensor, "slots dim"], Int[Tensor, "batch tokens"]]:
    """Sum over all occurrences of each token id: the gradient of an embedding matrix, without the matrix.

    There are as many slots as positions, so that nothing waits for the number of distinct ids; slots without an id
    are 0.

    Args:
        values: one vector per position, e.g. a gradient with respect to the looked-up embeddings.
        token_ids: what was looked up.
    Returns:
        The sums, and for each position its slot, so that `sums[slots]` spreads a value per id over its occurrences.

    Source: the chain rule for a lookup; Pan et al. 2022 (CAT), eq. 2 with respect to the matrix.
    """
    ordered, order = token_ids.flatten().sort()
    begins = torch.ones_like(ordered)
    begins[1:] = ordered[1:] != ordered[:-1]
    slots = torch.empty_like(order).scatter_(0, order, begins.cumsum(0) - 1)
    sums = torch.zeros_like(values.flatten(0, 1)).index_add_(0, slots, values.flatten(0, 1))
    return sums, slots.view_as(token_ids)


def ascent_step(gradient: Float[Tensor, "*shape"], epsilon: float, norm: Norm) -> Float[Tensor, "*shape"]:
    """The step of size ε that increases a loss most, to first order.

    Args:
        gradient: of the loss; one norm over the whole tensor.
        epsilon: ε, Euclidean length of the step ("l2") or size of every entry ("linf").
        norm: "l2" for ε g / ‖g‖ (Miyato et al. 2017), "linf" for ε sign(g) (Goodfellow et al. 2015).
    Returns:
        A constant, float32 or wider; 0 where the gradient is 0, and everywhere if it is not finite.

    Source: Pan et al. 2022 (CAT), eq. 3.
    """
    gradient = gradient.detach().to(torch.promote_types(gradient.dtype, torch.float32))
    length = gradient.norm()
    usable: Bool[Tensor, ""] = length.isfinite() & (length > torch.finfo(gradient.dtype).tiny)
    step = epsilon * gradient / length if norm == "l2" else epsilon * gradient.sign()
    return torch.where(usable, step, 0.0)


def real_tokens(
    embedding: Float[Tensor, "batch tokens dim"],
    *,
    token_ids: Int[Tensor, "batch tokens"] | None,
    attention_mask: Tensor | None,
    padding_id: int | None,
) -> Bool[Tensor, "batch tokens"]:
    """Which tokens are no padding: those that the mask names, else those with another id, else all.

    Args:
        embedding: gives shape and device.
        token_ids: what was looked up, if known.
        attention_mask: one number per token; one of another shape is not read.
        padding_id: id of padding, if there is one.
    """
    if attention_mask is not None and attention_mask.ndim == 2:
        return attention_mask != 0
    if token_ids is not None and padding_id is not None:
        return token_ids != padding_id
    return torch.ones(embedding.shape[:2], dtype=torch.bool, device=embedding.device)


def end_tokens(real: Bool[Tensor, "batch tokens"], sentence_token: int) -> Bool[Tensor, "batch tokens"]:
    """The special tokens of each text: its first and last token, or the last two where the head reads at the end.

    Args:
        real: False on padding.
        sentence_token: position of the token that the head reads.
    """
    last = real.shape[1] - 1 - real.long().flip(1).argmax(dim=1)
    other = real.long().argmax(dim=1) if sentence_token == 0 else (last - 1).clamp(min=0)
    ends = torch.zeros_like(real).scatter_(1, torch.stack([other, last], dim=1), True)
    return ends & real


def relative_size(
    offset: Float[Tensor, "batch tokens dim"],
    embedding: Float[Tensor, "batch tokens dim"],
    real: Bool[Tensor, "batch tokens"],
) -> Float[Tensor, ""]:
    """‖r‖ / ‖e‖ over the real tokens of an example, mean over the examples.

    Args:
        offset: r.
        embedding: e.
        real: False on padding.
    """
    lengths = [
        torch.where(real[..., None], value.detach().to(offset.dtype), 0.0).square().sum(dim=(1, 2)).sqrt()
        for value in (offset, embedding)
    ]
    shares = lengths[0] / lengths[1].clamp(min=torch.finfo(offset.dtype).tiny)
    return shares.sum() / max(len(shares), 1)


@dataclass(frozen=True)
class Ball:
    """Where the perturbation of each example may lie: a ball around its embeddings, on the tokens that may move.

    "l2" measures an example by its Euclidean norm over all tokens, "linf" every token by its largest entry. All is
    float32 or wider, carries no gradient, and belongs to one example alone.

    Attributes:
        norm: how it is measured.
        unit: what a size of 1 means, by example.
        movable: tokens that may move; others stay at 0.
        radius: size of the ball; None for no bound.

    Source: Zhu et al. 2020 (FreeLB) for "l2", Jiang et al. 2020 (SMART) for "linf".
    """

    norm: Norm
    unit: Float[Tensor, "batch 1 1"]
    movable: Bool[Tensor, "batch tokens 1"]
    radius: float | None

    @classmethod
    def around(
        cls,
        embedding: Float[Tensor, "batch tokens dim"],
        real: Bool[Tensor, "batch tokens"],
        *,
        norm: Norm,
        radius: float | None,
        relative: bool,
        movable: Bool[Tensor, "batch tokens"] | None = None,
    ) -> "Ball":
        """The ball of each example.

        Args:
            embedding: its center.
            real: False on padding.
            norm: how it is measured.
            radius: its size; None for no bound.
            relative: sizes are in units of the mean norm of the example's real tokens ("l2" Euclidean, "linf" largest
                entry); else absolute.
            movable: tokens that may move; None for all real ones.
        """
        wide = embedding.detach().to(torch.promote_types(embedding.dtype, torch.float32))
        if relative:
            masked = torch.where(real[..., None], wide, 0.0)
            lengths = masked.norm(dim=-1) if norm == "l2" else masked.abs().amax(dim=-1)
            unit = (lengths.sum(dim=1) / real.sum(dim=1).clamp(min=1))[:, None, None]
        else:
            unit = wide.new_ones(len(wide), 1, 1)
        return cls(norm, unit, (real if movable is None else movable & real)[..., None], radius)

    def size(self, offset: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch per 1"]:
        """Size of an offset, absolute: one per example ("l2") or per token ("linf").

        Args:
            offset: any.
        """
        if self.norm == "l2":
            return offset.square().sum(dim=(1, 2), keepdim=True).sqrt()
        return offset.abs().amax(dim=-1, keepdim=True)

    def normalized(self, vectors: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Directions of size 1: of each example, or of each of its tokens.

        Args:
            vectors: e.g. a gradient.
        Returns:
            0 for a whole example whose vectors are all 0 or not all finite; 0 on tokens that do not move.
        """
        wide = vectors.detach().to(torch.promote_types(vectors.dtype, torch.float32))
        wide = torch.where(self.movable, wide, 0.0)
        peak = wide.abs().amax(dim=(1, 2), keepdim=True)
        usable = peak.isfinite() & (peak > torch.finfo(wide.dtype).tiny)
        scaled = torch.where(usable, wide / peak, 0.0)  # so that squares of a short gradient do not vanish
        size = self.size(scaled)
        return torch.where(size > 0, scaled / size, 0.0)

    def placed(self, drawn: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """A draw as an offset: in units, 0 on tokens that do not move.

        Args:
            drawn: independent entries.
        """
        return torch.where(self.movable, drawn * self.unit, 0.0)

    def spread(self, drawn: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """A draw as an offset whose length does not grow with the text: divided by √(T d), T tokens that may move.

        Args:
            drawn: independent entries.

        Source: Zhu et al. 2020 (FreeLB), where the path of an example starts.
        """
        count = self.movable.sum(dim=1, keepdim=True).clamp(min=1) * drawn.shape[-1]
        return self.placed(drawn) / count.to(drawn.dtype).sqrt()

    def project(self, offset: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """The nearest point of the ball.

        Args:
            offset: any.
        """
        if self.radius is None:
            return offset
        bound = self.radius * self.unit
        if self.norm == "linf":
            return offset.clamp(-bound, bound)
        return offset * (bound / self.size(offset).clamp(min=torch.finfo(offset.dtype).tiny)).clamp(max=1.0)

    def step(
        self, offset: Float[Tensor, "batch tokens dim"], gradient: Float[Tensor, "batch tokens dim"], size: float
    ) -> Float[Tensor, "batch tokens dim"]:
        """A step of this size along the gradient, then into the ball.

        Args:
            offset: where it starts.
            gradient: normalized before it is scaled; a zero or non-finite one takes the example's perturbation away.
            size: in units.
        """
        direction = self.normalized(gradient)
        moved = self.project(offset + size * self.unit * direction)
        return torch.where((direction != 0).any(dim=2, keepdim=True).any(dim=1, keepdim=True), moved, 0.0)

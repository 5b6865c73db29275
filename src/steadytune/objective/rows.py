"""The rows that a contrast runs over: those of this batch, of all accumulated batches, of all processes.

Every row is live in exactly one batch of one process, so the gradients of all of them add up to that of one large batch
once the factor of the batch's share and of the averaging over processes is taken back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from steadytune.encoders import RandomState, VectorSource


@dataclass
class Group:
    """All batches of one optimizer step, with their vectors computed ahead of it.

    Attributes:
        batches: keyword arguments of the model, labels included.
        labels: by batch, of its items.
        vectors: by batch and source, without gradient.
        starts: random state at the start of each batch's clean pass.
        next: the batch that comes next.
    """

    batches: list[Mapping[str, Any]]
    labels: list[Tensor]
    vectors: list[dict[VectorSource, Tensor]]
    starts: list[RandomState]
    next: int = 0

    def take(self, batch: Mapping[str, Any]) -> int:
        """The place of the batch that is about to run.

        Args:
            batch: what `forward` was given.
        Raises:
            RuntimeError: it is not the batch of this place.
        """
        if not _same_batch(self.batches[self.next], batch):
            raise RuntimeError("forward was called with another batch than the one given to prime() at this place.")
        self.next += 1
        return self.next - 1


def rank() -> int:
    """This process's number among those that train together."""
    return dist.get_rank() if dist.is_initialized() else 0


def joined(
    vectors: Tensor,
    labels: Tensor,
    *,
    others: Sequence[tuple[Tensor, Tensor]] = (),
    place: int = 0,
    devices: bool = False,
) -> tuple[Tensor, Tensor, slice]:
    """Rows and labels of the whole group, without gradient, and where this batch's rows are among them.

    Args:
        vectors: of this batch.
        labels: of this batch.
        others: vectors and labels of the other accumulated batches of this process.
        place: number of `others` that come before this batch.
        devices: also the rows of all other processes, in order of rank.
    """
    cells = [*others[:place], (vectors, labels), *others[place:]]
    rows, row_labels = torch.cat([cell[0].detach() for cell in cells]), torch.cat([cell[1] for cell in cells])
    start = sum(len(cell[1]) for cell in cells[:place])
    if devices and dist.is_initialized():
        rows, lengths = _gather(rows)
        row_labels, _ = _gather(row_labels)
        start += sum(lengths[: rank()])
    return rows, row_labels, slice(start, start + len(vectors))


def live(rows: Tensor, vectors: Tensor, where: slice, factor: Tensor | float) -> Tensor:
    """The joined rows, those of this batch with a gradient multiplied by a factor.

    Args:
        rows: from `joined`.
        vectors: of this batch.
        where: from `joined`.
        factor: of the gradient; values stay as they are.
    """
    own: Tensor = _ScaleGradient.apply(vectors, factor)  # type: ignore[no-untyped-call]
    return torch.cat([rows[: where.start], own, rows[where.stop :]])


def _same_batch(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Equal texts and labels; equal labels alone are common in small batches."""
    if one.keys() != other.keys():
        return False
    pairs = [(one[name], other[name]) for name in one]
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a is b or a == b for a, b in pairs)


class _ScaleGradient(torch.autograd.Function):
    """The same values, with a gradient multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, factor: Tensor | float) -> Tensor:
        ctx.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


def _gather(rows: Tensor) -> tuple[Tensor, list[int]]:
    """Rows of all processes in order of rank, without gradient, and how many each gave; they may differ."""
    world = dist.get_world_size()
    counts = [torch.zeros((), dtype=torch.long, device=rows.device) for _ in range(world)]
    dist.all_gather(counts, torch.tensor(len(rows), device=rows.device))
    lengths = [int(count) for count in counts]
    padded = torch.zeros((max(lengths), *rows.shape[1:]), dtype=rows.dtype, device=rows.device)
    padded[: len(rows)] = rows
    gathered = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(gathered, padded)
    return torch.cat([part[:length] for part, length in zip(gathered, lengths, strict=True)]), lengths

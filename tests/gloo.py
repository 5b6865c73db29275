"""What each of two processes computes in tests/integration/test_two_processes.py; importable by a spawned process."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from dummies import LogitPenalty, Owner
from steadytune.methods import SCL
from steadytune.methods.contract import Method
from steadytune.objective import RegularizedModel
from tiny import gradients, rows_of, tiny_batch, tiny_model

WORLD = 2


@dataclass(frozen=True)
class Case:
    """One step. `parts[rank]` are the sizes of the accumulated batches of a process.

    Attributes:
        methods: of the step.
        parts: rows by process and accumulated batch.
        regression: task.
        items: give the number of items, as trainers do; else each process takes the mean of its batch.
        family: of the model; XLNet has parameters that classification does not use.
    """

    methods: tuple[Method, ...]
    parts: tuple[Sequence[int], Sequence[int]]
    regression: bool = False
    items: bool = True
    family: str = "bert"

    @property
    def rows(self) -> int:
        return sum(map(sum, self.parts))


EVEN, UNEVEN, ACCUMULATED = ((4,), (4,)), ((5,), (3,)), ((3, 2), (1, 4))
DEVICES = SCL(weight=0.9, gather_across_devices=True)
BOTH = SCL(weight=0.9, gather_across_devices=True, gather_across_accumulation=True)
CASES = {
    "plain, even": Case((), EVEN, items=False),
    "plain, uneven": Case((), UNEVEN),
    "plain, accumulated": Case((), ACCUMULATED),
    "plain, xlnet": Case((), UNEVEN, family="xlnet"),
    "regression, even": Case((LogitPenalty(),), EVEN, regression=True, items=False),
    "regression, uneven": Case((LogitPenalty(),), UNEVEN, regression=True),
    "own parameters, uneven": Case((Owner(),), UNEVEN),
    "SCL over devices, even": Case((DEVICES,), EVEN, items=False),
    "SCL over devices, even, items": Case((DEVICES,), EVEN),
    "SCL over devices, uneven": Case((DEVICES,), UNEVEN),
    "SCL over devices in a stack, uneven": Case((DEVICES, LogitPenalty()), UNEVEN),
    "SCL over devices, xlnet": Case((DEVICES,), UNEVEN, family="xlnet"),
    "SCL over both, accumulated": Case((BOTH,), ACCUMULATED),
    "SCL over both, one batch": Case((BOTH,), UNEVEN),
}
LOCAL = "SCL without gathering"
LOCAL_CASES = {LOCAL: Case((SCL(weight=0.9),), EVEN, items=False)}


def model_of(case: Case) -> RegularizedModel:
    """The same weights in every process, in float64 and without dropout."""
    labels = 1 if case.regression else 3
    model = tiny_model(case.family, num_labels=labels, dropout=0.0, depth=2, dtype=torch.float64)
    return RegularizedModel(model, case.methods).double()


def batch_of(case: Case) -> dict[str, Tensor]:
    """All rows of a step; process 0 has the first ones."""
    return tiny_batch(case.family, rows=case.rows, regression=case.regression)


def _step(case: Case, rank: int) -> dict[str, Tensor]:
    sizes = [*case.parts[0], *case.parts[1]]
    first = 0 if rank == 0 else len(case.parts[0])
    mine = rows_of(batch_of(case), sizes)[first : first + len(case.parts[rank])]
    model = model_of(case)
    data_parallel = DistributedDataParallel(model, find_unused_parameters=case.family == "xlnet")
    model.prime(mine)
    for index, part in enumerate(mine):
        data_parallel.require_backward_grad_sync = index == len(mine) - 1
        output = data_parallel(**part, num_items_in_batch=case.rows / WORLD if case.items else None)
        output.loss.backward()
    return gradients(model)


def work(rank: int, folder: str) -> None:
    """Compute every case and save the gradients of this process.

    Args:
        rank: of this process.
        folder: meeting point, and where results go.
    """
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD, timeout=timedelta(seconds=60)
    )
    try:
        results = {name: _step(case, rank) for name, case in {**CASES, **LOCAL_CASES}.items()}
        torch.save(results, Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()

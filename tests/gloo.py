"""What each of two processes computes in tests/integration/test_two_processes.py; importable by a spawned process."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from dummies import LogitPenalty, Owner
from steadytune.methods import (
    ASA,
    CAT,
    L2SP,
    LNSR,
    PGD,
    R3F,
    SAM,
    SCL,
    SMART,
    Averaging,
    ChildTuning,
    FreeLB,
    HyPe,
    Mixout,
    RDrop,
    RecAdam,
    lnsr,
)
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
CONTRAST = CAT(weight=0.4, epsilon=0.0, gather_across_devices=True, projection_dim=8)  # r belongs to a process
EXACT_STACK = (DEVICES, CONTRAST, LNSR(weight=2.0), ASA(weight=0.5))
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
    "LNSR, even": Case((LNSR(weight=2.0),), EVEN, items=False),
    "LNSR, accumulated": Case((LNSR(weight=2.0, draws=2),), ACCUMULATED),
    "LNSR, regression": Case((LNSR(weight=2.0, relative=False, normalize=False),), UNEVEN, regression=True),
    "ASA, even": Case((ASA(),), EVEN, items=False),
    "ASA, accumulated": Case((ASA(parameterization="normalized"),), ACCUMULATED),
    "ASA, regression": Case((ASA(protect="none"),), UNEVEN, regression=True),
    "ASA on half of the layers": Case((ASA(layers=(1,), rank=4),), UNEVEN),
    "ASA that begins later": Case((ASA(start_step=1),), UNEVEN),
    "ASA, deberta": Case((ASA(),), UNEVEN, family="deberta-v2"),
    "CAT over devices, even": Case((CONTRAST,), EVEN, items=False),
    "CAT over devices, even, items": Case((CONTRAST,), EVEN),
    "CAT over devices, uneven": Case((CONTRAST,), UNEVEN),
    "CAT over devices, xlnet": Case((CONTRAST,), UNEVEN, family="xlnet"),
    "the stack": Case(EXACT_STACK, UNEVEN),
    "PGD, accumulated": Case((PGD(),), ACCUMULATED),
    "PGD beside a term": Case((PGD(steps=2), LogitPenalty()), UNEVEN),
    "FreeLB, uneven": Case((FreeLB(initial_size=0.0),), UNEVEN),
    "FreeLB, accumulated": Case((FreeLB(initial_size=0.0),), ACCUMULATED),
    "penalized distance": Case((L2SP(form="penalty"),), UNEVEN),
}
LOCAL_CASES = {
    "SCL without gathering": Case((SCL(weight=0.9),), EVEN, items=False),
    "CAT without gathering": Case((CAT(weight=0.4, epsilon=0.0, projection_dim=8),), EVEN, items=False),
    "CAT with a perturbation": Case((CAT(weight=0.0, epsilon=0.5),), EVEN, items=False),
}
TRAINED = {  # several steps with everything that differs between processes: rows, dropout, noise, perturbation
    "the stack": (
        SCL(weight=0.5, gather_across_devices=True),
        CAT(weight=0.3, epsilon=0.5, gather_across_devices=True, projection_dim=8),
        HyPe(noise_std=0.05),
        LNSR(),
        ASA(target_mask_fraction=0.2),
    ),
    "ASA that begins later": (ASA(start_step=1),),
    "CAT over micro-batches": (CAT(epsilon=0.5, projection_dim=8),),
}
UPDATED = {  # methods that act on weights or carry some from step to step
    "of part of the weights": (ChildTuning(mode="F"), L2SP(), Averaging()),
    "with a teacher": (SMART(),),
    "mixed": (Mixout(), RDrop(), R3F(noise_std=0.05)),
    "along the path": (FreeLB(),),
    "at other weights": (SAM(), RecAdam()),
}
STEPS = 3


def model_of(case: Case) -> RegularizedModel:
    """The same weights in every process, in float64 and without dropout."""
    labels = 1 if case.regression else 3
    model = tiny_model(case.family, num_labels=labels, dropout=0.0, depth=2, dtype=torch.float64)
    return RegularizedModel(model, case.methods).double()


def batch_of(case: Case) -> dict[str, Tensor]:
    """All rows of a step; process 0 has the first ones."""
    return tiny_batch(case.family, rows=case.rows, regression=case.regression)


@contextmanager
def constant_noise() -> Iterator[None]:
    """LNSR's noise depends on the state alone, so a row has the same one in every process."""

    def draw(states: Tensor, real: Tensor, **settings: Any) -> Tensor:
        return settings["scale"] * states.detach().roll(1, dims=-1) * real[..., None]

    with patch.object(lnsr, "draw_perturbation", draw):
        yield


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


def _trained(methods: tuple[Method, ...], rank: int) -> dict[str, dict[str, Tensor]]:
    """Gradients of the last of several steps, and the own parameters before and after them."""
    wrapped = RegularizedModel(tiny_model("bert", depth=2), methods)
    data_parallel = DistributedDataParallel(wrapped)
    optimizer = torch.optim.AdamW(wrapped.parameter_groups(1e-2))
    wrapped.attach(optimizer, total_updates=STEPS)
    before = {name: p.detach().clone() for name, p in wrapped.method_modules.named_parameters()}
    torch.manual_seed(rank)
    for step in range(STEPS):
        optimizer.zero_grad()
        data_parallel(**tiny_batch("bert", rows=3 + rank, seed=2 * step + rank)).loss.backward()
        wrapped.clip_grad_norm_(1.0)
        optimizer.step()
    after = {name: value.detach() for name, value in [*wrapped.named_parameters(), *wrapped.named_buffers()]}
    return {"gradients": gradients(wrapped), "before": before, "after": after}


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
        with constant_noise():
            results = {name: _step(case, rank) for name, case in {**CASES, **LOCAL_CASES}.items()}
        trained = {name: _trained(methods, rank) for name, methods in {**TRAINED, **UPDATED}.items()}
        torch.save({"one step": results, "trained": trained}, Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()

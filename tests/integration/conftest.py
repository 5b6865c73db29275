"""Set-up that several files of this folder ask for."""

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def imports_stay_out_of_garbage_collection() -> Iterator[None]:
    """Each `Trainer.train` collects garbage; to go through all imported modules takes longer than a tiny training."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()

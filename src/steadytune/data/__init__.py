"""Data on its way in: sources, the choice of rows, and batches."""

from steadytune.data.batching import ClassBalancedBatches, Encoded, LengthGroupedBatches, PaddingCollator, encode
from steadytune.data.examples import Examples
from steadytune.data.sampling import Selection, resolve_splits, select, take_fraction, take_k_shot, take_rows
from steadytune.data.sources import Dataset, available_splits, check_trainable, load_dataset
from steadytune.data.tables import DataError, read_rows

__all__ = [
    "ClassBalancedBatches",
    "DataError",
    "Dataset",
    "Encoded",
    "Examples",
    "LengthGroupedBatches",
    "PaddingCollator",
    "Selection",
    "available_splits",
    "check_trainable",
    "encode",
    "load_dataset",
    "read_rows",
    "resolve_splits",
    "select",
    "take_fraction",
    "take_k_shot",
    "take_rows",
]

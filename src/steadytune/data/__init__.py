"""Data on its way in: sources, the choice of rows, and batches."""

from steadytune.data.batching import ClassBalancedBatches, LengthGroupedBatches, PaddingCollator
from steadytune.data.checks import DataReport, data_report
from steadytune.data.corruption import corrupt, flip_labels, noise_words, thin_classes
from steadytune.data.examples import Examples
from steadytune.data.sampling import Selection, resolve_splits, select, take_fraction, take_k_shot, take_rows
from steadytune.data.sources import Dataset, available_splits, check_trainable, load_dataset
from steadytune.data.tables import DataError, read_rows

__all__ = [
    "ClassBalancedBatches",
    "DataError",
    "DataReport",
    "Dataset",
    "Examples",
    "LengthGroupedBatches",
    "PaddingCollator",
    "Selection",
    "available_splits",
    "check_trainable",
    "corrupt",
    "data_report",
    "flip_labels",
    "load_dataset",
    "noise_words",
    "read_rows",
    "resolve_splits",
    "select",
    "take_fraction",
    "take_k_shot",
    "take_rows",
    "thin_classes",
]

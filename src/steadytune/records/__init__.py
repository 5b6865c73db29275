"""Records: what a run was and what came of it. Never imports torch."""

from steadytune.records.record import Cost, RunRecord
from steadytune.records.store import config_hash, write_json, write_pooled, write_predictions, write_record
from steadytune.records.study import StoreError, StudyStore, read_record

__all__ = [
    "Cost",
    "RunRecord",
    "StoreError",
    "StudyStore",
    "config_hash",
    "read_record",
    "write_json",
    "write_pooled",
    "write_predictions",
    "write_record",
]

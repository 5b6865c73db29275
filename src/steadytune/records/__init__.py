"""Records: what a run was and what came of it. Never imports torch."""

from steadytune.records.record import Cost, RunRecord
from steadytune.records.store import config_hash, write_json, write_predictions, write_record

__all__ = ["Cost", "RunRecord", "config_hash", "write_json", "write_predictions", "write_record"]

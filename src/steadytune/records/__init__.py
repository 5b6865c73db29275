"""Records: what a run was and what came of it. Never imports torch."""

from steadytune.records.pretraining import Point, PretrainRecord, Texts, read_pretraining
from steadytune.records.record import Cost, GroupScores, RobustnessScores, RunRecord
from steadytune.records.soup import SOUP_FILE, Ingredient, SoupRecord, read_soup
from steadytune.records.store import config_hash, write_json, write_pooled, write_predictions, write_record
from steadytune.records.study import StoreError, StudyStore, read_record

__all__ = [
    "SOUP_FILE",
    "Cost",
    "GroupScores",
    "Ingredient",
    "Point",
    "PretrainRecord",
    "RobustnessScores",
    "RunRecord",
    "SoupRecord",
    "StoreError",
    "StudyStore",
    "Texts",
    "config_hash",
    "read_pretraining",
    "read_record",
    "read_soup",
    "write_json",
    "write_pooled",
    "write_predictions",
    "write_record",
]

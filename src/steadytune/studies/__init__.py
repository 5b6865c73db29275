"""Studies: a plan becomes cells, cells become records."""

from steadytune.studies.execute import Moment
from steadytune.studies.plan import Cell, Plan, PlanError, load_plan

__all__ = ["Cell", "Moment", "Plan", "PlanError", "load_plan"]

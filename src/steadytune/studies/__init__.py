"""Studies: a plan becomes cells, cells become records."""

from steadytune.studies.execute import Moment, execute
from steadytune.studies.plan import Cell, Plan, PlanError, load_plan

__all__ = ["Cell", "Moment", "Plan", "PlanError", "execute", "load_plan"]

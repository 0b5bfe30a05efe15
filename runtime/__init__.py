"""Running a plan: stages, schedules, micro-batches and the pipeline. Never solves."""

from skyfx.runtime.pipeline import Pipeline as Pipeline
from skyfx.runtime.stage import Stage as Stage
from skyfx.solver.schedule import orders as orders

__all__ = ["Pipeline", "Stage", "orders"]

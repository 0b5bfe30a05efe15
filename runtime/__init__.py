"""Running a plan: stages, schedules, micro-batches and the pipeline. Never solves."""

from skyfx.runtime.execution.stage import Stage as Stage
from skyfx.runtime.pipeline import Pipeline as Pipeline
from skyfx.solver.core.schedule import orders as orders

__all__ = ["Pipeline", "Stage", "orders"]

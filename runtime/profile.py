"""Predicted and measured times: of each stage for a micro-batch, and of a step."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from torch import nn

from skyfx.runtime.execution.workers import StepTimes
from skyfx.runtime.model_state import preserve_state
from skyfx.solver.core import files
from skyfx.solver.core.chrome_trace import chrome_trace
from skyfx.solver.core.plan import Plan
from skyfx.solver.core.timeline import CompletedAction
from skyfx.solver.core.units import operations


@dataclass(frozen=True, slots=True)
class StageProfile:
    """Seconds of a stage for a micro-batch, and its floating point operations, if known."""

    device: str
    predicted_s: float
    measured_s: float
    flops: float = 0.0


@dataclass(frozen=True, slots=True)
class Profile:
    """The times of the stages in their order, and of a step. `print` shows a table.

    The predicted step is the simulated one where the plan has it. `timeline` holds the actions of
    the last step, in seconds since its first one.
    """

    stages: tuple[StageProfile, ...]
    predicted_step_s: float
    measured_step_s: float
    timeline: tuple[CompletedAction, ...] = ()

    @classmethod
    def of(
        cls, plan: Plan, steps: Sequence[StepTimes], timeline: tuple[CompletedAction, ...] = ()
    ) -> "Profile":
        """The medians of measured steps beside their plan, and the timeline of the last step."""
        columns = zip(*(step.stage_s for step in steps), strict=True)
        return cls(
            tuple(
                StageProfile(stage.device, stage.compute_s, median(column), stage.flops)
                for stage, column in zip(plan.stages, columns, strict=True)
            ),
            plan.simulated_s or plan.step_s,
            median(step.step_s for step in steps),
            timeline,
        )

    def write_trace(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write the timeline as a file for https://ui.perfetto.dev and `skyfx report --run`.

        Raises:
            FileExistsError: the file exists and `force` is false.
        """
        devices = [stage.device for stage in self.stages]
        with files.replacing(path, force=force) as written:
            written.write_bytes(chrome_trace({"measured": (devices, self.timeline)}))

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [
            ("stage", "device", "predicted", "measured", "error", "per second"),
            *(
                (str(k), one.device, *_figures(one.predicted_s, one.measured_s), _rate(one))
                for k, one in enumerate(self.stages)
            ),
            ("step", "", *_figures(self.predicted_step_s, self.measured_step_s), ""),
        ]
        if not any(one.flops for one in self.stages):
            rows = [row[:-1] for row in rows]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = (
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )
        return "\n".join(lines)


def _figures(predicted_s: float, measured_s: float) -> tuple[str, str, str]:
    error = f"{predicted_s / measured_s - 1:+.1%}" if measured_s else ""
    return f"{predicted_s * 1e3:.4g} ms", f"{measured_s * 1e3:.4g} ms", error


def _rate(stage: StageProfile) -> str:
    known = stage.flops and stage.measured_s
    return f"{operations(stage.flops / stage.measured_s)}/s" if known else ""


def measured(model: nn.Module, step: Callable[[], StepTimes | None], steps: int) -> list[StepTimes]:
    """The times of `steps` steps, after one to warm up; leaves the model as it was."""
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    took = []
    with preserve_state(model):
        try:
            for _ in range(1 + steps):
                for parameter, _ in gradients:
                    parameter.grad = None
                took.append(step())
        finally:
            for parameter, gradient in gradients:
                parameter.grad = gradient
    return [one for one in took[1:] if one is not None]

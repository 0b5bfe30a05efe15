"""A plan (`skyfx.plan/1`): the nodes of each device, their cost, and the distance to the best."""

import random
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar, Literal, get_args

from skyfx.solver.core.field_checks import non_negative, one_of, text_sequence, whole_number
from skyfx.solver.core.pins import Pin
from skyfx.solver.core.schedule import Orders, forwards, in_flight_counts, orders

Mode = Literal["training", "inference"]
Objective = Literal["throughput", "step", "latency"]
Schedule = Literal["gpipe", "1f1b", "generated", "tapered", "interleaved"]
Overlap = Literal["none", "full"]
Communication = Literal["relay", "host"]
Recompute = Literal["never", "auto", "always"]
Strategy = Literal["optimal", "dynamic", "even"]
Status = Literal["optimal", "feasible"]

SCHEDULES_WITH_COUNTS = ("generated", "tapered", "interleaved")
"""Schedules for which a plan has the counts of micro-batches in flight."""

_WORDS: dict[str, Any] = {
    "mode": Mode,
    "objective": Objective,
    "schedule": Schedule,
    "overlap": Overlap,
    "communication": Communication,
    "recompute": Recompute,
}

_FIGURES = (
    *("compute_s", "receive_s", "send_s", "time_s"),
    *(
        "memory_bytes",
        "peak_bytes",
        "limit_bytes",
        "live",
        "flops",
        "recompute_s",
        "recompute_bytes",
    ),
)
"""Of a stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumptions:
    """The assumptions of a plan's figures.

    The defaults are those of `skyfx solve`, but that it may recompute where memory is short.
    """

    mode: Mode = "training"
    objective: Objective = "throughput"
    schedule: Schedule = "1f1b"
    microbatches: int = 8
    optimizer_state_ratio: float = 2.0
    overlap: Overlap = "none"
    communication: Communication = "relay"
    pins: tuple[str, ...] = ()
    """`PATTERN=DEVICE` or `PATTERN!=DEVICE`, see `pins.py`."""
    recompute: Recompute = "never"
    """Whether stages may run parts again in backward; plans that do not say so do not."""

    @property
    def training(self) -> bool:
        """Whether backward passes, gradients and optimizer state count."""
        return self.mode == "training"

    def check(self, path: str = "") -> None:
        """Refuse values without a meaning.

        Raises:
            ValueError: the field, its value and what was expected.
        """
        for field, words in _WORDS.items():
            one_of(f"{path}{field}", getattr(self, field), get_args(words))
        whole_number(f"{path}microbatches", self.microbatches, least=1)
        non_negative(f"{path}optimizer_state_ratio", self.optimizer_state_ratio)
        text_sequence(f"{path}pins", self.pins)
        for x, pin in enumerate(self.pins):
            try:
                Pin.of(pin)
            except ValueError:
                expected = "expected PATTERN=DEVICE or PATTERN!=DEVICE"
                raise ValueError(f"{path}pins[{x}]: found {pin!r}, {expected}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A file that a plan was made from; `structure` (graphs only) is `Graph.structure()`."""

    name: str
    sha256: str
    structure: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """The nodes that one device runs, with the predicted times and memory of one micro-batch.

    `peak_bytes` is the peak memory in a step (`solver/costs/peak_memory.py`), 0 where it is not
    known. `limit_bytes` is the memory of its device, None where it is unlimited or not known.
    `live` is the most micro-batches in flight (`solver/core/schedule.py`), 0 where the schedule
    determines it. `flops` are the floating point operations per micro-batch, 0 where the graph has
    no counts. `recompute` are the nodes that run again in backward, by segment; `recompute_s` is
    the part of `compute_s` that this takes, `recompute_bytes` what they would keep otherwise.
    """

    device: str
    nodes: tuple[str, ...]
    compute_s: float
    receive_s: float
    send_s: float
    time_s: float
    memory_bytes: float
    peak_bytes: float = 0.0
    limit_bytes: float | None = None
    live: int = 0
    flops: float = 0.0
    recompute: tuple[tuple[str, ...], ...] = ()
    recompute_s: float = 0.0
    recompute_bytes: float = 0.0

    @property
    def flops_per_s(self) -> float:
        """Operations per second of computing; 0 where they are not known."""
        return self.flops / self.compute_s if self.compute_s else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SolverInfo:
    """How the plan was found: by which `method`, and by which bound `lower_bound` is proven.

    `binding` is the name of the bound. `says` has a remark of each method.
    """

    name: str
    version: str
    status: Status
    wall_s: float
    strategy: Strategy
    binding: str
    method: str = ""
    says: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternatives:
    """The objective's value of the baselines; None where one does not fit."""

    even: float | None
    dynamic: float | None
    best_single_device: float | None
    simulated_1f1b_s: float | None = None
    """A simulated step of the best plan for 1f1b, where the plan has counts of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Stages in pipeline order, their cost, and the certificate: `lower_bound` and `gap`."""

    FORMAT: ClassVar[str] = "skyfx.plan/1"

    format: Literal["skyfx.plan/1"] = "skyfx.plan/1"
    graph: Reference
    cluster: Reference
    assumptions: Assumptions
    stages: tuple[Stage, ...]
    bottleneck_s: float
    step_s: float
    objective_value: float
    lower_bound: float
    gap: float | None
    solver: SolverInfo
    alternatives: Alternatives
    simulated_s: float = 0.0
    """Seconds of a step under its schedule (`solver/costs/simulator.py`); 0 if unknown."""

    def check(self) -> None:
        """Refuse what the format refuses; `validate` checks a plan against its graph.

        Raises:
            ValueError: the field's path, its value and what was expected.
        """
        if not self.stages:
            raise ValueError("stages: found an empty list, expected at least one stage")
        self.assumptions.check("assumptions.")
        for field in ("bottleneck_s", "step_s", "objective_value", "lower_bound", "gap"):
            if (value := getattr(self, field)) is not None:
                non_negative(field, value)
        non_negative("solver.wall_s", self.solver.wall_s)
        non_negative("simulated_s", self.simulated_s)
        for name in ("even", "dynamic", "best_single_device", "simulated_1f1b_s"):
            if (value := getattr(self.alternatives, name)) is not None:
                non_negative(f"alternatives.{name}", value)
        for k, stage in enumerate(self.stages):
            for field in _FIGURES:
                if (value := getattr(stage, field)) is not None:
                    non_negative(f"stages[{k}].{field}", value)

    @property
    def live(self) -> tuple[int, ...] | None:
        """Micro-batches in flight per stage; None where the schedule determines them."""
        if self.assumptions.schedule in SCHEDULES_WITH_COUNTS and self.assumptions.training:
            return tuple(stage.live for stage in self.stages)
        return None

    def orders(self, num_microbatches: int, *, training: bool) -> Orders:
        """The actions of each device in a step of any number of micro-batches.

        Raises:
            ValueError: the counts make a deadlock.
        """
        devices = [stage.device for stage in self.stages]
        if not training:
            return forwards(num_microbatches, devices)
        usual = in_flight_counts(self.assumptions.schedule, len(devices), num_microbatches)
        return orders(self.live or usual, num_microbatches, devices)

    def stage_of(self) -> dict[str, int]:
        """The stage of each node, by node id."""
        return {name: k for k, stage in enumerate(self.stages) for name in stage.nodes}

    def segments(self) -> list[tuple[str, ...]]:
        """The nodes that are recomputed, by segment."""
        return [segment for stage in self.stages for segment in stage.recompute]

    def __str__(self) -> str:
        return str(_tables().text(self))

    def _repr_html_(self) -> str:
        return str(_tables().html(self))


def _tables() -> ModuleType:
    """Loaded when a plan is printed: rich takes a while, and draws from Python's generator."""
    state = random.getstate()
    from skyfx.solver.core import plan_table

    random.setstate(state)
    return plan_table


def relative_gap(objective_value: float, lower_bound: float) -> float | None:
    """How far a plan can be from the best: `objective_value / lower_bound - 1`.

    None where the bound is 0 and says nothing.
    """
    if objective_value == lower_bound:
        return 0.0
    return objective_value / lower_bound - 1 if lower_bound > 0 else None

"""The conditions under which methods apply, and a row of the table that names them.

A condition that is not met gives the method's remark in the plan.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from skyfx.solver.methods.exact.host_window_dp import MAX_COUNTS
from skyfx.solver.methods.exact.interval_dp import MAX_ORDERED_DEVICES
from skyfx.solver.methods.features import MAX_LEVEL_STATES
from skyfx.solver.methods.heuristics.local_search import MAX_STAGES
from skyfx.solver.methods.heuristics.local_search import MAX_UNITS as MAX_SHIFTED_UNITS
from skyfx.solver.methods.ideals.device_states import MAX_STATES
from skyfx.solver.methods.method import Method, MethodUpdate, SearchState
from skyfx.solver.problem.coarsening import MAX_UNITS


@dataclass(frozen=True, slots=True)
class Requirement:
    """A condition for a method.

    Attributes:
        remark: stands in the plan where it is not met; empty where that is not worth a line.
        is_met: by the problem and what is known so far.
    """

    remark: str
    is_met: Callable[[SearchState], bool]


RELAY = Requirement("only in relay", lambda s: s.problem.assumptions.communication == "relay")
HOST = Requirement("only in host", lambda s: s.problem.assumptions.communication == "host")
THROUGHPUT = Requirement(
    "only for throughput", lambda s: s.problem.assumptions.objective == "throughput"
)
LATENCY = Requirement("only for latency", lambda s: s.problem.assumptions.objective == "latency")
STEP = Requirement("", lambda s: s.problem.assumptions.objective == "step")
MEMORY_BINDS = Requirement("only where memory binds", lambda s: s.problem.memory_binds)
ENOUGH_MEMORY = Requirement("only where memory does not bind", lambda s: not s.problem.memory_binds)
FREE_MOVES = Requirement("only where moving is free", lambda s: s.features.moves_are_free)
CHAIN = Requirement("only for chains", lambda s: s.features.is_chain)
RUNS_EVERYWHERE = Requirement(
    "only where all devices run all units", lambda s: s.features.runs_everywhere
)
SEVERAL_DEVICES = Requirement("only for several devices", lambda s: s.problem.num_devices > 1)
FEW_STATES = Requirement(
    f"only for up to {MAX_STATES} states of devices", lambda s: s.features.num_states <= MAX_STATES
)
MANY_STATES = Requirement(
    f"only for more than {MAX_STATES} states of devices",
    lambda s: s.features.num_states > MAX_STATES,
)
FEW_LEVEL_STATES = Requirement(
    f"only for up to {MAX_LEVEL_STATES} states of devices",
    lambda s: s.features.num_states <= MAX_LEVEL_STATES,
)
FEW_COUNTS = Requirement(
    f"only for up to {MAX_COUNTS} counts of devices", lambda s: s.features.num_counts <= MAX_COUNTS
)
ORDERED_DEVICES = Requirement(
    f"only for up to {MAX_ORDERED_DEVICES} devices",
    lambda s: (
        s.problem.num_devices <= MAX_ORDERED_DEVICES
        or s.incumbent is None
        or s.problem.assumptions.communication == "host"
    ),
)
INCUMBENT = Requirement("only from a known plan", lambda s: s.incumbent is not None)
SEVERAL_STAGES = Requirement(
    "only from a known plan of several stages",
    lambda s: s.incumbent is not None and len(s.incumbent.stages) > 1,
)
SHIFTABLE = Requirement(
    f"only for up to {MAX_SHIFTED_UNITS} units in {MAX_STAGES} stages",
    lambda s: (
        s.problem.num_units <= MAX_SHIFTED_UNITS
        and s.incumbent is not None
        and len(s.incumbent.stages) <= MAX_STAGES
    ),
)
UNLISTED_IDEALS = Requirement(
    "all ideals can be listed", lambda s: not s.features.lists_all_ideals(s.limits)
)
LONG = Requirement("", lambda s: s.problem.num_units > MAX_UNITS)


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the table.

    Attributes:
        name: as plans call the method.
        run: the method.
        requires: the conditions under which it applies; the first that is not met is its remark.
        budget: its part of the time that is left.
    """

    name: str
    run: Method
    requires: tuple[Requirement, ...] = ()
    budget: float = 1.0

    def __call__(self, search: SearchState) -> Iterator[MethodUpdate]:
        """Run the method where it applies."""
        unmet = next((each for each in self.requires if not each.is_met(search)), None)
        if unmet is None:
            yield from self.run(search)
        else:
            yield MethodUpdate(remark=unmet.remark)

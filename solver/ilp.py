"""The integer linear program: stages of any DAG on any devices, devices chosen and ordered.

Positions j = 1..D stand at the end of the pipeline: the last stage is always position D, and unused positions are the first
ones. So the number of stages after a position, which its memory depends on, is known. Times are divided by `scale`, the
warm start's bottleneck, and memory by each limit's size, so that the solver's tolerances mean what they say.

    p[i,j]  1 if unit i is at a position <= j          (binary, j < D; 1 for j = D)
    a[d,j]  1 if device d holds position j             (binary)
    y[i,d]  1 if unit i is on device d                 (follows from p and a)
    c[v,j]  1 if value v crosses boundary j|j+1        (follows from p)
    t[j]    time to move what crosses j|j+1            (relay)
    C[d]    compute time of device d;  R[d], S[d] its receive and send time
    T       the bottleneck
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pulp

from skyfx.solver.cost import live_microbatches
from skyfx.solver.problem import Problem, UnitPlacement, Value

__all__: list[str] = ["Model", "build"]

Expression = pulp.LpAffineExpression


@dataclass
class Model:
    """The program under construction, and how to read a solution of it."""

    problem: Problem
    scale: float
    lp: pulp.LpProblem = field(default_factory=lambda: pulp.LpProblem("skyfx", pulp.LpMinimize))

    def __post_init__(self) -> None:
        n, d = self.problem.num_units, self.problem.num_devices
        self.units, self.devices, self.positions = range(n), range(d), range(1, d + 1)
        self.boundaries = range(1, d)
        add = self.lp.add_variable
        self._p = {
            (i, j): add(f"p_{i}_{j}", cat="Binary") for i in self.units for j in self.boundaries
        }
        self.a = {
            (e, j): add(f"a_{e}_{j}", cat="Binary") for e in self.devices for j in self.positions
        }
        self.y = {(i, e): add(f"y_{i}_{e}", 0, 1) for i in self.units for e in self.devices}
        self.compute = [add(f"C_{e}", 0) for e in self.devices]
        self.receive = [add(f"R_{e}", 0) for e in self.devices]
        self.send = [add(f"S_{e}", 0) for e in self.devices]
        self.move = {j: add(f"t_{j}", 0) for j in self.boundaries}
        self.bottleneck = add("T", 0)

    def p(self, i: int, j: int) -> Expression | int:
        """`p[i,j]`, with its constants at both ends."""
        if j == 0:
            return 0
        return 1 if j == self.problem.num_devices else self._p[i, j]

    def at(self, i: int, j: int) -> Expression:
        """1 if unit i is at position j."""
        return self.p(i, j) - self.p(i, j - 1)

    def used(self, j: int) -> Expression:
        """1 if position j has a device."""
        return pulp.lpSum(self.a[d, j] for d in self.devices)

    def require(self, constraint: pulp.LpConstraint | bool) -> None:
        """Add a constraint; one between constants has nothing to add."""
        if not isinstance(constraint, bool):
            self.lp += constraint

    def start(self, stages: UnitPlacement) -> dict[str, float]:
        """The binaries of a known plan, by variable name."""
        first = self.problem.num_devices - len(stages) + 1
        values = {f"a_{d}_{j}": 0.0 for d in self.devices for j in self.positions}
        for j, (d, part) in enumerate(stages, start=first):
            values[f"a_{d}_{j}"] = 1.0
            for i in part:
                values |= {f"p_{i}_{b}": float(b >= j) for b in self.boundaries}
        return values

    def placement(self, values: dict[str, float]) -> UnitPlacement:
        """The plan that a solution describes; each binary by the nearer of 0 and 1, never truncated."""
        position = {
            i: 1 + sum(values[f"p_{i}_{j}"] < 0.5 for j in self.boundaries) for i in self.units
        }
        stages = []
        for j in self.positions:
            device = max(self.devices, key=lambda d: values[f"a_{d}_{j}"])
            if values[f"a_{device}_{j}"] > 0.5:
                stages.append((device, [i for i in self.units if position[i] == j]))
        return stages


def build(problem: Problem, scale: float) -> Model:
    """Write the program for a problem; `scale` is a bottleneck in seconds that is known to be possible."""
    model = Model(problem, scale)
    order_constraints(model)
    device_constraints(model)
    assignment_constraints(model)
    memory_constraints(model)
    if problem.assumptions.communication == "relay":
        relay_constraints(model)
    else:
        host_constraints(model)
    time_constraints(model)
    model.lp.setObjective(objective(model))
    return model


def objective(model: Model) -> Expression:
    """The bottleneck, the latency, or the time of a step, in units of `scale`."""
    assumptions = model.problem.assumptions
    moves = (
        list(model.move.values())
        if assumptions.communication == "relay"
        else [*model.send, *model.receive]
    )
    latency = pulp.lpSum([*model.compute, *moves])
    return {
        "throughput": pulp.lpSum([model.bottleneck]),
        "latency": latency,
        "step": latency + (assumptions.microbatches - 1) * model.bottleneck,
    }[assumptions.objective]


def order_constraints(model: Model) -> None:
    """[Prefix] once in, always in. [Acyclic] no unit before what it reads."""
    for j in model.boundaries:
        if j + 1 in model.boundaries:
            for i in model.units:
                model.require(model.p(i, j) <= model.p(i, j + 1))
        for a, b in model.problem.edges:
            model.require(model.p(b, j) <= model.p(a, j))


def device_constraints(model: Model) -> None:
    """[Devices] one a position, one position each. [Suffix] used positions are the last. [Empty] none holds nothing."""
    last = model.problem.num_devices
    for j in model.positions:
        model.require(model.used(j) <= 1 if j < last else model.used(j) == 1)
    for d in model.devices:
        model.require(pulp.lpSum(model.a[d, j] for j in model.positions) <= 1)
    for j in model.boundaries:
        model.require(model.used(j) <= model.used(j + 1))
        for i in model.units:
            model.require(model.p(i, j) <= model.used(j))


def assignment_constraints(model: Model) -> None:
    """[Assignment] each unit on one device, the one at its position, which can run it. [Compute] its time."""
    time = model.problem.time_s
    for i in model.units:
        model.require(pulp.lpSum(model.y[i, d] for d in model.devices) == 1)
        for d in model.devices:
            if not np.isfinite(time[d, i]):
                model.y[i, d].upBound = 0
            for j in model.positions:
                model.require(model.y[i, d] >= model.at(i, j) + model.a[d, j] - 1)
    for d in model.devices:
        work = pulp.lpSum(
            float(time[d, i] / model.scale) * model.y[i, d]
            for i in model.units
            if np.isfinite(time[d, i])
        )
        model.require(model.compute[d] == work)


def memory_constraints(model: Model) -> None:
    """[Memory] what the units at a position need, with its live micro-batches, fits the device there."""
    problem = model.problem
    if not np.isfinite(problem.memory_limit).any():
        return
    for j in model.positions:
        live = live_microbatches(problem.assumptions, problem.num_devices - j + 1)
        need = problem.parameter_bytes + problem.saved_bytes * live
        unlimited = float(need.sum() + problem.peak_bytes.max())
        unit = max(unlimited, 1.0)
        terms = [float(need[i] / unit) * model.at(i, j) for i in model.units if need[i]]
        if problem.peak_bytes.any():
            peak = model.lp.add_variable(f"L_{j}", 0)
            for i in model.units:
                model.require(peak >= float(problem.peak_bytes[i] / unit) * model.at(i, j))
            terms.append(peak)
        limits = [min(float(problem.memory_limit[d]), unlimited) / unit for d in model.devices]
        room = pulp.lpSum(limits[d] * model.a[d, j] for d in model.devices)
        model.require(pulp.lpSum(terms) <= room)


def relay_constraints(model: Model) -> None:
    """[Crossing] a value crosses from its maker to its last reader. [Move] what crosses takes the link's time."""
    problem = model.problem
    pairs = [(d, e) for d in model.devices for e in model.devices if d != e]
    wires = {pair: (*problem.wire(*pair), *problem.wire(pair[1], pair[0])) for pair in pairs}
    forward = sum(value.output_bytes for value in problem.values)
    backward = sum(value.gradient_bytes for value in problem.values)
    for j in model.boundaries:
        sizes = _crossing(model, j, forward, backward)
        total = (1.0, forward, float(backward > 0), backward)
        by_wire: dict[tuple[float, ...], list[tuple[int, int]]] = {}
        for pair, wire in wires.items():
            by_wire.setdefault(wire, []).append(pair)
        for wire, same in by_wire.items():
            weights = (wire[0], wire[1] * forward, wire[2], wire[3] * backward)
            time = pulp.lpSum(w / model.scale * s for w, s in zip(weights, sizes, strict=True) if w)
            if len(by_wire) == 1:
                model.require(model.move[j] >= time)
                continue
            largest = (
                float(sum(w * (s > 0) for w, s in zip(weights, total, strict=True))) / model.scale
            )
            for d, e in same:
                free = largest * (2 - model.a[d, j] - model.a[e, j + 1])
                model.require(model.move[j] >= time - free)
        least = [min(wire[m] for wire in wires.values()) for m in range(4)]
        weights = (least[0], least[1] * forward, least[2], least[3] * backward)
        if len(by_wire) > 1 and any(weights):
            always = pulp.lpSum(
                w / model.scale * s for w, s in zip(weights, sizes, strict=True) if w
            )
            model.require(model.move[j] >= always)


def _crossing(model: Model, j: int, forward: float, backward: float) -> tuple[pulp.LpVariable, ...]:
    """Variables of boundary j: anything crosses, share of all bytes, any gradient crosses, share of all gradients."""
    anything, gradient = (model.lp.add_variable(f"{name}_{j}", 0, 1) for name in ("n", "b"))
    bytes_, gradients = (model.lp.add_variable(f"{name}_{j}", 0, 1) for name in ("F", "B"))
    crossing = []
    for v, value in enumerate(model.problem.values):
        c = model.lp.add_variable(f"c_{v}_{j}", 0, 1)
        for lower in _reasons_to_cross(model, value, j):
            model.require(c >= lower)
        model.require(anything >= c)
        if value.gradient_bytes:
            model.require(gradient >= c)
        crossing.append((c, value))
    if forward:
        model.require(bytes_ >= pulp.lpSum(v.output_bytes / forward * c for c, v in crossing))
    if backward:
        model.require(gradients >= pulp.lpSum(v.gradient_bytes / backward * c for c, v in crossing))
    return anything, bytes_, gradient, gradients


def _reasons_to_cross(model: Model, value: Value, j: int) -> Iterator[Expression]:
    made = model.used(j) if value.is_input else model.p(value.producer, j)
    if value.is_output:
        yield made
        return
    for consumer in value.consumers:
        yield made - model.p(consumer, j)


def host_constraints(model: Model) -> None:
    """[Write] a value read elsewhere is written once. [Read] each device that reads it reads it once."""
    problem = model.problem
    writes: list[list[Expression]] = [[] for _ in model.devices]
    reads: list[list[Expression]] = [[] for _ in model.devices]
    for v, value in enumerate(problem.values):
        readers = [c for c in value.consumers if c != value.producer]
        if not readers:
            continue
        for d in model.devices:
            write, read = (model.lp.add_variable(f"{name}_{v}_{d}", 0, 1) for name in ("w", "r"))
            for c in readers:
                model.require(write >= model.y[value.producer, d] - model.y[c, d])
                model.require(read >= model.y[c, d] - model.y[value.producer, d])
            for terms, variable, to_host in ((writes, write, True), (reads, read, False)):
                latency, per_byte = problem.host_wire(d, to_host=to_host)
                time = value.count * latency + value.output_bytes * per_byte
                terms[d].append(time / model.scale * variable)
    for d in model.devices:
        model.require(model.send[d] == pulp.lpSum(writes[d]))
        model.require(model.receive[d] == pulp.lpSum(reads[d]))


def time_constraints(model: Model) -> None:
    """[Relay time] a device sends and receives at its position's boundaries. [Bottleneck] no device above T."""
    problem = model.problem
    if problem.assumptions.communication == "relay":
        _relay_time(model)
    for d in model.devices:
        parts = [model.compute[d], model.receive[d], model.send[d]]
        if problem.assumptions.overlap == "full":
            for part in parts:
                model.require(model.bottleneck >= part)
        else:
            model.require(model.bottleneck >= pulp.lpSum(parts))


def _relay_time(model: Model) -> None:
    largest = _largest_move(model.problem) / model.scale
    if largest == 0:
        return
    for d in model.devices:
        for j in model.boundaries:
            model.require(model.send[d] >= model.move[j] - largest * (1 - model.a[d, j]))
            model.require(model.receive[d] >= model.move[j] - largest * (1 - model.a[d, j + 1]))
    # Implied, but the relaxation does not know it: every move is somebody's send and somebody's receive.
    for side in (model.send, model.receive):
        model.require(pulp.lpSum(side) >= pulp.lpSum(model.move.values()))


def _largest_move(problem: Problem) -> float:
    """Seconds to move every value and gradient over the slowest wires: no boundary takes longer."""
    forward = sum(value.output_bytes for value in problem.values)
    backward = sum(value.gradient_bytes for value in problem.values)
    devices = range(problem.num_devices)
    wires = [problem.wire(d, e) for d in devices for e in devices if d != e]
    slowest = [max((wire[m] for wire in wires), default=0.0) for m in range(2)]
    return 2 * slowest[0] + slowest[1] * (forward + backward)

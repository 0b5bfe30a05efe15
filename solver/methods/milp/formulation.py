"""The integer linear program: stages of any DAG on any devices, devices chosen and ordered.

`ilp_model.py` names the variables, `ilp_moves.py` writes what communication costs.
"""

from itertools import pairwise

import numpy as np
import pulp

from skyfx.solver.methods.milp.communication import host_constraints, relay_constraints
from skyfx.solver.methods.milp.variables import Expression, Model
from skyfx.solver.problem.problem import Problem


def build(problem: Problem, scale: float) -> Model:
    """Write the program for a problem; `scale` is a bottleneck, in seconds, that can be reached."""
    model = Model(problem, scale)
    order_constraints(model)
    device_constraints(model)
    symmetry_constraints(model)
    assignment_constraints(model)
    memory_constraints(model)
    if problem.assumptions.communication == "relay":
        relay_constraints(model)
    else:
        host_constraints(model)
    bottleneck_constraints(model)
    model.lp.setObjective(objective(model))
    return model


def objective(model: Model) -> Expression:
    """The bottleneck, the latency, or the time of a step, in units of `scale`."""
    assumptions = model.problem.assumptions
    relay = assumptions.communication == "relay"
    moves = list(model.move.values()) if relay else [*model.send, *model.receive]
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
    """[Devices] one a position, one position each. [Suffix] the last ones. [Empty] no units."""
    last = model.problem.num_devices
    for j in model.positions:
        model.require(model.used(j) <= 1 if j < last else model.used(j) == 1)
    for d in model.devices:
        model.require(model.placed(d, last) <= 1)
    for j in model.boundaries:
        model.require(model.used(j) <= model.used(j + 1))
        for i in model.units:
            model.require(model.p(i, j) <= model.used(j))


def symmetry_constraints(model: Model) -> None:
    """[Symmetry] of identical devices the earlier listed one is placed no later than the next."""
    for group in model.problem.identical_devices:
        for earlier, later in pairwise(group):
            for j in model.positions:
                model.require(model.placed(later, j) <= model.placed(earlier, j))


def assignment_constraints(model: Model) -> None:
    """[Assignment] a unit is on the device at its position, which can run it. [Compute] time."""
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
    """[Memory] the units at a position, with its live micro-batches, fit the device there."""
    problem = model.problem
    if not np.isfinite(problem.memory_limit).any():
        return
    for j in model.positions:
        need = problem.need_bytes(position=problem.num_devices - j + 1)
        unlimited = float(need.sum() + problem.peak_bytes.max())
        unit = max(unlimited, 1.0)
        terms = [float(need[i] / unit) * model.at(i, j) for i in model.units if need[i]]
        if problem.peak_bytes.any():
            peak = model.variable(f"L_{j}")
            for i in model.units:
                model.require(peak >= float(problem.peak_bytes[i] / unit) * model.at(i, j))
            terms.append(peak)
        limits = [min(float(problem.memory_limit[d]), unlimited) / unit for d in model.devices]
        room = pulp.lpSum(limits[d] * model.a[d, j] for d in model.devices)
        model.require(pulp.lpSum(terms) <= room)


def bottleneck_constraints(model: Model) -> None:
    """[Bottleneck] no device is busy for longer than T."""
    for d in model.devices:
        parts = [model.compute[d], model.receive[d], model.send[d]]
        if model.problem.assumptions.overlap == "full":
            for part in parts:
                model.require(model.bottleneck >= part)
        else:
            model.require(model.bottleneck >= pulp.lpSum(parts))

"""Why no plan can exist, in one message with both numbers and what would help.

What would help is tried: nothing is advised that leaves the problem as impossible as it is.
"""

import numpy as np

from skyfx.solver.core.pins import Pin
from skyfx.solver.core.units import size
from skyfx.solver.problem.problem import Problem
from skyfx.solver.problem.relaxations import Fits, memory_of, relaxations


def advised(problem: Problem, fault: str, fits: Fits) -> str:
    """The fault, and the smallest changes that would help; `fits` tells whether one does."""
    helps = [*memory_of(problem, fits), *relaxations(problem, fits)]
    if not helps:
        return f"{fault}\nAdd a device that has what is missing."
    return f"{fault}\nEach of these would help: {'; '.join(helps)}; or another device."


def explain(problem: Problem) -> str | None:
    """Say what rules out every plan, with both numbers; None where nothing simple does."""
    return _unit_without_a_type(problem) or _unit_too_large(problem) or _total_too_large(problem)


def _node(problem: Problem, unit: int) -> str:
    members = [problem.graph.nodes[j] for j in problem.members[unit]]
    with_it = f" with the {len(members) - 1} nodes that it must stay with"
    return repr(members[0].id) + with_it * (len(members) > 1)


def _unit_without_a_type(problem: Problem) -> str | None:
    runs = np.isfinite(problem.time_s).any(axis=0)
    if runs.all():
        return None
    if problem.assumptions.pins and (fault := _pinned_nowhere(problem, int(runs.argmin()))):
        return fault
    types = ", ".join(sorted({device.type for device in problem.cluster.devices}))
    unit = int(runs.argmin())
    return (
        f"no device can run {_node(problem, unit)}: the cluster has the types {types}. "
        "Measure the graph on one of them, or add a device of a type that it has times for."
    )


def _pinned_nowhere(problem: Problem, unit: int) -> str | None:
    """The pins that leave a unit no device that can run it; None where no pin is to blame."""
    nodes = [problem.graph.nodes[j] for j in problem.members[unit]]
    training = problem.assumptions.training
    able = [
        device.name
        for device in problem.cluster.devices
        if all(node.runs_on(device.type, training=training) for node in nodes)
    ]
    pins = [pin for pin in map(Pin.of, problem.assumptions.pins) if any(map(pin.matches, nodes))]
    if not (able and pins):
        return None
    listed = " and ".join(f"'{pin}'" for pin in pins)
    return (
        f"no device may run {_node(problem, unit)}: pinned by {listed}, and only "
        f"{', '.join(able)} can run it. Leave out a pin, or add a device that it allows."
    )


def _unit_too_large(problem: Problem) -> str | None:
    need = problem.need_bytes(1) + problem.peak_bytes  # in the last position, which needs least
    largest = problem.memory_limit.max()
    unit = int(need.argmax())
    if need[unit] <= largest:
        return None
    sizes = f"{size(need[unit])}, the largest device has {size(largest)}."
    return f"{_node(problem, unit)} needs {sizes}"


def _total_too_large(problem: Problem) -> str | None:
    need, offered = float(problem.need_bytes(1).sum()), float(problem.memory_limit.sum())
    if need <= offered:
        return None
    devices = "\n".join(
        f"  {device.name}  {size(device.memory_bytes or 0)}" for device in problem.cluster.devices
    )
    return f"the model needs {size(need)}, the devices offer {size(offered)}\n{devices}"


def nothing_fits(problem: Problem) -> str:
    """What to say where a search has proven that there is no plan, though all simple tests pass."""
    return (
        f"it is proven that no split of {problem.num_units} units over "
        f"{problem.num_devices} devices keeps their order, runs each on a type that can "
        f"run it{' as the pins ask' if problem.assumptions.pins else ''} and fits every memory."
    )

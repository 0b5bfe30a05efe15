"""Units in one order: the times, the memory and the moves of its intervals on each device.

Legend: `prefix_time[d, i]` seconds of the units before cut i on device d; `need[p, i]` bytes of
them at position p + 1 from the end, the last row for all earlier positions too; `crossing[., i]`
the values that cross at cut i.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from skyfx.solver.costs.moves import Crossing, move_s
from skyfx.solver.kernels import kernel
from skyfx.solver.problem.instance import Floats
from skyfx.solver.problem.problem import Problem

NEVER = 4
"""How many times all work and two moves a unit takes a device that may not run it.

More than any T, and little enough for the sums of the others to keep their digits.
"""


class IntervalTables(NamedTuple):
    """The tables of `n` units in one order, for `D` devices."""

    prefix_time: Floats
    """Seconds of the units before each cut, `(D, n + 1)`."""
    need: Floats
    """Bytes of the units before each cut, `(P, n + 1)`."""
    limit: Floats
    """Bytes of each device, `(D,)`."""
    receive: Floats
    """Least seconds to receive what crosses, `(D, n + 1)`."""
    send: Floats
    """Least seconds to send it, `(D, n + 1)`."""
    crossing: Crossing
    """Of each cut, `(n + 1,)` each."""
    wires: Floats
    """Latency and seconds per byte from device to device, `(2, D, D)`."""


def interval_tables(problem: Problem, order: Sequence[int]) -> IntervalTables:
    """The tables of an order of the units; moving in `relay`."""
    wires, crossing = problem.wires, live_values(problem, order)
    receive, send = _cheapest(wires, crossing)
    allowed = np.where(np.isfinite(problem.time_s), problem.time_s, 0.0)
    moves = 2 * (wires[0].max() * 2 + wires[1].max() * sum(crossing[:2]).max())
    never = NEVER * (allowed.max(axis=0).sum() + moves)
    time = np.where(np.isfinite(problem.time_s), problem.time_s, never)
    positions = range(1, min(problem.assumptions.microbatches, problem.num_devices) + 1)
    needs = [prefix_sums(problem.need_bytes(p)[order]) for p in positions]
    need = np.array([needs[0]] if np.array_equal(needs[0], needs[-1]) else needs)
    limit = np.minimum(problem.memory_limit, 1e300)
    return IntervalTables(prefix_sums(time[:, order]), need, limit, receive, send, crossing, wires)


def live_values(problem: Problem, order: Sequence[int] | None = None) -> Crossing:
    """What crosses each cut of an order of the units, `(n + 1,)` each; by default the model's."""
    n = problem.num_units
    place = np.arange(n) if order is None else np.argsort(order)
    change = np.zeros((4, n + 2))
    for value in problem.values:
        first = 0 if value.is_input else place[value.producer] + 1
        last = n if value.is_output else place[list(value.consumers)].max()
        sizes = (value.output_bytes, value.gradient_bytes, value.count, value.gradient_bytes > 0)
        change[:, first] += sizes
        change[:, last + 1] -= sizes
    held = np.cumsum(change, axis=1)[:, : n + 1]
    held[np.abs(held) < 0.5e-9 * np.abs(change).max(axis=1, keepdims=True)] = 0.0
    return Crossing(held[0], held[1], (held[2] > 0.5) * 1.0, (held[3] > 0.5) * 1.0)


def prefix_sums(of_units: Floats) -> Floats:
    """Sums of the units before each cut, along the last axis."""
    zero = np.zeros((*of_units.shape[:-1], 1))
    sums: Floats = np.concatenate([zero, np.cumsum(of_units, axis=-1)], axis=-1)
    return sums


def _cheapest(wires: Floats, crossing: Crossing) -> tuple[Floats, Floats]:
    """The least seconds that each device receives, and sends, what crosses, `(D, n + 1)`."""
    num = wires.shape[1]
    receive, send = np.zeros((2, num, len(crossing.forward)))
    for d in range(num if num > 1 else 0):
        others = np.arange(num) != d
        into, out = wires[:, others, d].min(axis=1), wires[:, d, others].min(axis=1)
        receive[d], send[d] = move_s(into, out, crossing), move_s(out, into, crossing)
    return receive, send


@kernel()
def move(d: int, e: int, i: int, crossing: Any, wires: Any) -> float:
    """Seconds to move what crosses at cut i from device d to e, and its gradients back."""
    forward, backward = crossing.forward[i], crossing.backward[i]
    here = Crossing(crossing.forward_bytes[i], crossing.backward_bytes[i], forward, backward)
    there, back = (wires[0, d, e], wires[1, d, e]), (wires[0, e, d], wires[1, e, d])
    return float(move_s(there, back, here))

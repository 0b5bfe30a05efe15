"""What communication costs, in the integer program: over boundaries (`relay`) or through the host.

A boundary's move is `latency * anything + seconds per byte * bytes`, the same backward. Bytes and
gradients are shares of all there are, so that each of these four is a number from 0 to 1.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import pulp

from skyfx.solver.costs.moves import send_s
from skyfx.solver.methods.milp.variables import Expression, Model
from skyfx.solver.problem.instance import Value
from skyfx.solver.problem.problem import Problem

Weights = tuple[float, float, float, float]
"""Seconds: forward latency, all bytes forward, backward latency, all gradients backward."""


@dataclass(frozen=True)
class _Wires:
    """What a boundary can cost, by the pair of devices beside it."""

    problem: Problem

    @cached_property
    def forward(self) -> float:
        """All bytes that can cross a boundary."""
        return sum(value.output_bytes for value in self.problem.values)

    @cached_property
    def backward(self) -> float:
        """All gradient bytes that can cross a boundary."""
        return sum(value.gradient_bytes for value in self.problem.values)

    @cached_property
    def pairs_by_weights(self) -> dict[Weights, list[tuple[int, int]]]:
        """The pairs of devices, together where their wires cost the same."""
        found: dict[Weights, list[tuple[int, int]]] = {}
        devices = range(self.problem.num_devices)
        for pair in ((d, e) for d in devices for e in devices if d != e):
            latency, per_byte = self.problem.wire(*pair)
            back_latency, back_per_byte = self.problem.wire(*pair[::-1])
            weights = (
                latency,
                per_byte * self.forward,
                back_latency * (self.backward > 0),
                back_per_byte * self.backward,
            )
            found.setdefault(weights, []).append(pair)
        return found

    def least(self) -> list[float]:
        """Weights that no pair of devices undercuts."""
        return [min(weights) for weights in zip(*self.pairs_by_weights, strict=True)]

    def largest_s(self) -> float:
        """Seconds that no boundary exceeds."""
        return max((sum(weights) for weights in self.pairs_by_weights), default=0.0)


def relay_constraints(model: Model) -> None:
    """[Crossing], [Move] and [Relay time], below: values travel from boundary to boundary."""
    wires = _Wires(model.problem)
    for j in model.boundaries:
        sizes = _crossing(model, j, wires)
        _move_constraints(model, j, wires, sizes)
    _relay_time(model, wires.largest_s() / model.scale)


def _move_constraints(model: Model, j: int, wires: _Wires, sizes: list[Expression]) -> None:
    """[Move] what crosses boundary j takes the time of the wire between the devices beside it."""

    def move_s(weights: Weights | list[float]) -> Expression:
        used = zip(weights, sizes, strict=True)
        return pulp.lpSum(w / model.scale * size for w, size in used if w)

    for weights, pairs in wires.pairs_by_weights.items():
        if len(wires.pairs_by_weights) == 1:
            model.require(model.move[j] >= move_s(weights))
            return
        largest = sum(weights) / model.scale
        for d, e in pairs:
            elsewhere = largest * (2 - model.a[d, j] - model.a[e, j + 1])
            model.require(model.move[j] >= move_s(weights) - elsewhere)
    # Implied, but the relaxation does not know it: no pair is faster than this.
    model.require(model.move[j] >= move_s(wires.least()))


def _crossing(model: Model, j: int, wires: _Wires) -> list[Expression]:
    """[Crossing] a value crosses boundary j between its maker and its last reader.

    Returns:
        1 if anything crosses, the share of all bytes, 1 if a gradient does, the share of all
        gradients.
    """
    anything, bytes_, gradient, gradients = (model.variable(f"{x}_{j}", 1) for x in "nFbB")
    crossing = []
    for v, value in enumerate(model.problem.values):
        c = model.variable(f"c_{v}_{j}", 1)
        for lower in _reasons_to_cross(model, value, j):
            model.require(c >= lower)
        model.require(anything >= c)
        if value.gradient_bytes:
            model.require(gradient >= c)
        crossing.append((c, value))
    if wires.forward:
        share = pulp.lpSum(v.output_bytes / wires.forward * c for c, v in crossing)
        model.require(bytes_ >= share)
    if wires.backward:
        share = pulp.lpSum(v.gradient_bytes / wires.backward * c for c, v in crossing)
        model.require(gradients >= share)
    return [anything, bytes_, gradient, gradients]


def _reasons_to_cross(model: Model, value: Value, j: int) -> Iterator[Expression]:
    made = model.used(j) if value.is_input else model.p(value.producer, j)
    if value.is_output:
        yield made
        return
    for consumer in value.consumers:
        yield made - model.p(consumer, j)


def _relay_time(model: Model, largest: float) -> None:
    """[Relay time] a device sends and receives at its position's boundaries."""
    if largest == 0:
        return
    for d in model.devices:
        for j in model.boundaries:
            model.require(model.send[d] >= model.move[j] - largest * (1 - model.a[d, j]))
            model.require(model.receive[d] >= model.move[j] - largest * (1 - model.a[d, j + 1]))
    # Implied, but the relaxation does not know it: each move is one's send and another's receive.
    for side in (model.send, model.receive):
        model.require(pulp.lpSum(side) >= pulp.lpSum(model.move.values()))


def host_constraints(model: Model) -> None:
    """[Write] a value read elsewhere is written once. [Read] each other reader reads it once."""
    writes: list[list[Expression]] = [[] for _ in model.devices]
    reads: list[list[Expression]] = [[] for _ in model.devices]
    for v, value in enumerate(model.problem.values):
        readers = [c for c in value.consumers if c != value.producer]
        if not readers:
            continue
        for d in model.devices:
            write, read = (model.variable(f"{x}_{v}_{d}", 1) for x in "wr")
            for c in readers:
                model.require(write >= model.y[value.producer, d] - model.y[c, d])
                model.require(read >= model.y[c, d] - model.y[value.producer, d])
            for terms, variable, to_host in ((writes, write, True), (reads, read, False)):
                wire = model.problem.host_wire(d, to_host=to_host)
                time_s = send_s(wire, value.count, value.output_bytes)
                terms[d].append(time_s / model.scale * variable)
    for d in model.devices:
        model.require(model.send[d] == pulp.lpSum(writes[d]))
        model.require(model.receive[d] == pulp.lpSum(reads[d]))

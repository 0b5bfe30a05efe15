"""The compiled instance that every method reads: units, values and devices as arrays.

Legend, here, in the ILP and in `interval_dp`: `i` unit, `v` value, `d` device, `k` stage,
`n` units, `D` devices.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from skyfx.solver.core.cluster import HOST, Cluster, Wiring
from skyfx.solver.core.graph import Graph, Node
from skyfx.solver.core.pins import Pin
from skyfx.solver.core.plan import Assumptions
from skyfx.solver.costs.cost_model import Cost, Placement, evaluate, in_flight_at, resident_bytes
from skyfx.solver.problem.contraction import contract

Floats = NDArray[np.float64]
UnitPlacement = Sequence[tuple[int, Sequence[int]]]
"""Stages in pipeline order: the device's index and the indices of its units."""


@dataclass(frozen=True, slots=True)
class Value:
    """Outputs of one unit that the same other units read: they cross boundaries together."""

    producer: int
    consumers: tuple[int, ...]
    is_input: bool
    is_output: bool
    count: int
    output_bytes: float
    gradient_bytes: float


@dataclass(frozen=True)
class Instance:
    """A graph, a cluster and assumptions, with the values derived from them, each computed once.

    Nothing here reads the memory of a device: `Problem.with_memory` hands these values on.
    """

    graph: Graph
    cluster: Cluster
    assumptions: Assumptions
    groups: tuple[str, ...] | None = None
    """Labels of the nodes to merge, instead of their `colocate`, as for `contract`."""

    @property
    def num_devices(self) -> int:
        """`D`."""
        return len(self.cluster.devices)

    @property
    def num_units(self) -> int:
        """`n`."""
        return len(self.members)

    @cached_property
    def members(self) -> list[list[int]]:
        """Node indices of each unit, `(n,)`; units stand in a topological order."""
        return contract(self.graph, self.groups, training=self.assumptions.training)

    @cached_property
    def unit_of(self) -> dict[str, int]:
        """The unit of each node, by node id."""
        return {self.graph.nodes[j].id: i for i, unit in enumerate(self.members) for j in unit}

    @cached_property
    def time_s(self) -> Floats:
        """Compute seconds `(D, n)` with slowdown; infinite where a unit may not run."""
        training = self.assumptions.training

        def row(kind: str) -> Floats:
            return self._sum(lambda node: node.time_s(kind, training=training))

        rows = {kind: row(kind) for kind in {device.type for device in self.cluster.devices}}
        time = np.array([rows[d.type] * d.slowdown for d in self.cluster.devices])
        return np.where(self.allowed, time, np.inf)

    @cached_property
    def allowed(self) -> NDArray[np.bool_]:
        """Whether the pins allow each unit on each device, `(D, n)`."""
        table = np.ones((len(self.cluster.devices), len(self.graph.nodes)), dtype=bool)
        for pin in map(Pin.of, self.assumptions.pins):
            meant = np.array([pin.matches(node) for node in self.graph.nodes])
            free = np.array([pin.allows(device.name) for device in self.cluster.devices])
            table &= ~meant[None, :] | free[:, None]
        return np.array([table[:, unit].all(axis=1) for unit in self.members]).T

    @cached_property
    def resident_bytes(self) -> Floats:
        """Memory `(n,)` of a unit's parameters, in training with gradients and optimizer state."""
        return self._sum(lambda node: resident_bytes(node, self.assumptions))

    @cached_property
    def saved_bytes(self) -> Floats:
        """Memory `(n,)` that a unit takes for each live micro-batch; zero in inference."""
        return self._sum(lambda node: node.saved_bytes) * self.assumptions.training

    def need_bytes(self, position: int) -> Floats:
        """Memory `(n,)` of each unit, but for the peak, at a position counted from the end."""
        live = in_flight_at(self.assumptions, position)
        return self.resident_bytes + self.saved_bytes * live

    @cached_property
    def peak_bytes(self) -> Floats:
        """The largest output `(n,)` of a unit, which inference holds; zero in training."""
        nodes = self.graph.nodes
        largest = [max(nodes[j].output_bytes for j in unit) for unit in self.members]
        return np.array(largest, dtype=float) * (not self.assumptions.training)

    @cached_property
    def edges(self) -> list[tuple[int, int]]:
        """Pairs of units of which the first may not be in a later stage, each once."""
        training = self.assumptions.training
        pairs = {
            (self.unit_of[name], self.unit_of[node.id])
            for node in self.graph.nodes
            for name in node.preceding(training=training)
        }
        return sorted((a, b) for a, b in pairs if a != b)

    @cached_property
    def readers(self) -> list[list[int]]:
        """Of each unit, those that read it or come after it, ascending."""
        readers: list[list[int]] = [[] for _ in range(self.num_units)]
        for a, b in self.edges:
            readers[a].append(b)
        return readers

    @cached_property
    def reads(self) -> list[list[int]]:
        """Of each unit, those that it reads or comes after, ascending."""
        reads: list[list[int]] = [[] for _ in range(self.num_units)]
        for a, b in self.edges:
            reads[b].append(a)
        return reads

    @cached_property
    def values(self) -> list[Value]:
        """The values that can cross a boundary, grouped by producer, readers and kind."""
        readers: dict[str, set[int]] = {node.id: set() for node in self.graph.nodes}
        for node in self.graph.nodes:
            for name in node.inputs:
                readers[name].add(self.unit_of[node.id])
        outputs = set(self.graph.outputs)
        groups: dict[tuple[int, tuple[int, ...], bool, bool], list[tuple[float, float]]] = {}
        for node in self.graph.nodes:
            unit, is_output = self.unit_of[node.id], node.id in outputs
            others = tuple(sorted(readers[node.id] - {unit}))
            # An input is fed at stage 1, so it travels even to a reader within its own unit.
            if node.is_input and readers[node.id]:
                others = tuple(sorted(readers[node.id] | {unit}))
            elif node.is_input:
                others = (unit,)
            if others or is_output:
                sizes = (node.output_bytes, node.gradient_bytes * self.assumptions.training)
                groups.setdefault((unit, others, node.is_input, is_output), []).append(sizes)
        return [
            Value(
                *key, len(sizes), sum((f for f, _ in sizes), 0.0), sum((b for _, b in sizes), 0.0)
            )
            for key, sizes in groups.items()
        ]

    def wire(self, source: int, target: int) -> tuple[float, float]:
        """Latency in seconds and seconds per byte from one device to another."""
        return self._wire(self._name(source), self._name(target))

    @cached_property
    def wires(self) -> Floats:
        """Latency and seconds per byte from device to device, `(2, D, D)`; 0 to itself."""
        devices = range(self.num_devices)
        wires = np.zeros((2, len(devices), len(devices)))
        for d in devices:
            for e in devices:
                if d != e:
                    wires[:, d, e] = self.wire(d, e)
        return wires

    def host_wire(self, device: int, *, to_host: bool) -> tuple[float, float]:
        """Latency in seconds and seconds per byte between a device and the host's memory."""
        name = self._name(device)
        return self._wire(name, HOST) if to_host else self._wire(HOST, name)

    def placement(self, stages: UnitPlacement) -> list[tuple[str, list[str]]]:
        """The stages by device names and node ids, nodes in the graph's order."""
        nodes = self.graph.nodes
        return [
            (self._name(d), [nodes[j].id for j in sorted(j for i in part for j in self.members[i])])
            for d, part in stages
        ]

    def units_of(self, placement: Placement) -> UnitPlacement:
        """Stages by device numbers and units, given by device names and node ids."""
        number = {device.name: d for d, device in enumerate(self.cluster.devices)}
        return [
            (number[name], sorted({self.unit_of[node] for node in nodes}))
            for name, nodes in placement
        ]

    def cost(self, stages: UnitPlacement) -> Cost:
        """The cost of a placement, by the one cost model."""
        return evaluate(self.graph, self.cluster, self.placement(stages), self.assumptions)

    def _name(self, device: int) -> str:
        return self.cluster.devices[device].name

    @cached_property
    def _wiring(self) -> Wiring:
        return self.cluster.wiring()

    def _wire(self, source: str, target: str) -> tuple[float, float]:
        wire = self._wiring(source, target)
        return (0.0, 0.0) if wire is None else (wire.latency_s, 1 / wire.bandwidth_bytes_per_s)

    def _sum(self, of: Callable[[Node], float]) -> Floats:
        nodes = self.graph.nodes
        return np.array([sum(of(nodes[j]) for j in unit) for unit in self.members], dtype=float)

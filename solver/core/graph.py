"""The model as the planner sees it: nodes with measured times and sizes (`skyfx.graph/1`)."""

import hashlib
import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import msgspec

from skyfx.solver.core.field_checks import no_duplicates, non_negative, positive

INPUT = "input"
AMOUNTS = (
    *("output_bytes", "gradient_bytes", "parameter_bytes", "saved_bytes", "workspace_bytes"),
    *("flops", "backward_flops"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One operator of the model, or one of its inputs (`op == "input"`).

    Times are seconds for one micro-batch, keyed by device type: a type that is absent cannot run
    the node, an empty mapping is free on every type. Sizes are bytes for one micro-batch, `flops`
    floating point operations; 0 where they are not known. `trainable_bytes` are those of
    `parameter_bytes` that get a gradient; None where all do.

    `kept` are the bytes that the node keeps for its backward, by the node that made them (`""` for
    what it makes for itself alone). What several nodes keep, `saved_bytes` counts once. `storage`
    is the node whose memory its value shares, `""` for a parameter's; None where it has its own.
    `repeatable` nodes may run again in backward instead of keeping anything.

    In training, no node of `after` may be in a later stage. They read a value that this node reads
    too, and its gradients then add up in the order of the unsplit model, to the same digits.
    """

    id: str
    op: str
    module: str | None
    inputs: tuple[str, ...]
    forward_s: dict[str, float]
    backward_s: dict[str, float]
    output_bytes: float
    gradient_bytes: float
    parameter_bytes: float
    saved_bytes: float
    colocate: str | None
    workspace_bytes: float = 0.0
    flops: float = 0.0
    backward_flops: float = 0.0
    after: tuple[str, ...] = ()
    trainable_bytes: float | None = None
    kept: dict[str, float] = field(default_factory=dict)
    storage: str | None = None
    repeatable: bool = False

    @property
    def is_input(self) -> bool:
        """Whether it is an input: fed at the first stage, whatever stage holds the node."""
        return self.op == INPUT

    def runs_on(self, device_type: str, *, training: bool) -> bool:
        """Whether a device of this type can run the node, in training also backward."""
        tables = (self.forward_s, self.backward_s) if training else (self.forward_s,)
        return all(not table or device_type in table for table in tables)

    def preceding(self, *, training: bool) -> tuple[str, ...]:
        """The nodes that no later stage may hold: those that it reads, and `after`."""
        return self.inputs + self.after if training else self.inputs

    @property
    def trained_bytes(self) -> float:
        """Bytes of parameters that have a gradient and a state of the optimizer in training."""
        return self.parameter_bytes if self.trainable_bytes is None else self.trainable_bytes

    def time_s(self, device_type: str, *, training: bool) -> float:
        """Seconds without slowdown, in training with backward; infinite where it cannot run."""
        forward = self.forward_s.get(device_type, math.inf) if self.forward_s else 0.0
        if not (training and self.backward_s):
            return forward
        return forward + self.backward_s.get(device_type, math.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearFit:
    """How times in a neighbourhood follow from times alone: `factor * alone + overhead_s` a node.

    `error` and `error_p90` are the median and the 90th percentile of the relative error on
    calibration segments that the fit did not know.
    """

    factor: float
    overhead_s: float
    regions: int
    error: float
    error_p90: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceCalibration:
    """How the times of one device type were come by.

    `spread` is the median over the nodes of the interquartile range relative to the median time.
    """

    type: str
    spread: float
    forward: LinearFit | None = None
    backward: LinearFit | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """A model: `nodes` in a topological order, and the ids of the nodes whose values it returns."""

    FORMAT: ClassVar[str] = "skyfx.graph/1"

    format: Literal["skyfx.graph/1"] = "skyfx.graph/1"
    name: str
    microbatch_size: int
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    measured: tuple[DeviceCalibration, ...] | None = None

    def check(self) -> None:
        """Refuse what the format refuses.

        Raises:
            ValueError: the field's path, its value and what was expected.
        """
        if not self.nodes:
            raise ValueError("nodes: found an empty list, expected at least one node")
        positive("microbatch_size", self.microbatch_size)
        no_duplicates("nodes", "id", [node.id for node in self.nodes])
        for i, node in enumerate(self.nodes):
            for name in ("forward_s", "backward_s"):
                for device_type, seconds in getattr(node, name).items():
                    non_negative(f"nodes[{i}].{name}[{device_type!r}]", seconds)
            for name in AMOUNTS:
                non_negative(f"nodes[{i}].{name}", getattr(node, name))
            if node.trainable_bytes is not None:
                non_negative(f"nodes[{i}].trainable_bytes", node.trainable_bytes)
                if node.trainable_bytes > node.parameter_bytes:
                    raise ValueError(
                        f"nodes[{i}].trainable_bytes: found {node.trainable_bytes:g}, expected at "
                        f"most its parameter_bytes, {node.parameter_bytes:g}"
                    )
            for maker, size in node.kept.items():
                non_negative(f"nodes[{i}].kept[{maker!r}]", size)
        self._check_references()

    def _check_references(self) -> None:
        position = {node.id: i for i, node in enumerate(self.nodes)}
        for i, node in enumerate(self.nodes):
            for edge, verb in (("inputs", "reads"), ("after", "comes after")):
                for j, name in enumerate(getattr(node, edge)):
                    if name not in position:
                        raise ValueError(f"nodes[{i}].{edge}[{j}]: {name!r} is no node's id")
                    if position[name] >= i:
                        raise ValueError(
                            f"nodes[{i}].{edge}[{j}]: {name!r} is node {position[name]} and node "
                            f"{i} {verb} it: a cycle, or not a topological order; expected {edge} "
                            "to stand before the node that names them"
                        )
        for j, name in enumerate(self.outputs):
            if name not in position:
                raise ValueError(f"outputs[{j}]: {name!r} is no node's id")

    def structure(self) -> str:
        """A digest of ids, operators, edges and parameter bytes, but of no time and no batch size.

        Equal for two measurements of one model; a plan made from one may run the other.
        """
        parts = [(n.id, n.op, n.inputs, float(n.parameter_bytes)) for n in self.nodes]
        return hashlib.sha256(msgspec.json.encode((parts, self.outputs))).hexdigest()

"""A second opinion on plans, from plain JSON and the standard library alone.

It is written from `docs/formats.md` and shares no code with the planner. Where a referee script
lies beside the checkout, that one is asked too, and both have to agree.
"""

import importlib.util
import itertools
import json
import math
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import msgspec

from skyfx.solver import Cluster, Graph, Plan
from tests.support import ROOT

Json = dict[str, Any]
LATER = "comes after one in a later stage"
OTHER = ROOT.parent / "shared" / "tools" / "referee.py"


def referee_faults(graph: Graph, cluster: Cluster, plan: Plan) -> list[str]:
    """What is wrong with the plan, by this referee and, if there is one, the other."""
    documents = [json.loads(msgspec.json.encode(part)) for part in (graph, cluster, plan)]
    found = list(faults(*documents))
    known = not _brings_live(documents[2]) and not _freezes(documents[0])
    other = _other_referee() if known else None
    if other is not None:
        theirs = other.check(*documents)["faults"]
        ours = [fault for fault in found if LATER not in fault]  # the other one knows no `after`
        assert bool(ours) == bool(theirs), f"this referee: {found}, the other one: {theirs}"
    return found + list(_gap(documents[2])) + list(_flops(documents[0], documents[2]))


def _brings_live(plan: Json) -> bool:
    """Whether the plan says how many micro-batches are live, which the other one knows not."""
    return plan["assumptions"]["schedule"] in ("generated", "tapered", "interleaved")


def _freezes(graph: Json) -> bool:
    """Whether some parameters do not train, which the other one knows not."""
    return any(_trained(node) != node["parameter_bytes"] for node in graph["nodes"])


def _other_referee() -> ModuleType | None:
    if not OTHER.is_file():
        return None
    spec = importlib.util.spec_from_file_location("other_referee", OTHER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def faults(graph: Json, cluster: Json, plan: Json) -> Iterator[str]:
    """Every rule and figure but the gap."""
    listed = sorted(name for stage in plan["stages"] for name in stage["nodes"])
    devices = [stage["device"] for stage in plan["stages"]]
    if listed != sorted(node["id"] for node in graph["nodes"]):
        yield "the stages' nodes are not the graph's nodes, each once"
        return
    beside = itertools.pairwise(devices)
    twice = len(set(devices)) < len(devices)
    if plan["assumptions"]["schedule"] == "interleaved":
        twice = any(one == other for one, other in beside)
    if twice or not set(devices) <= {d["name"] for d in cluster["devices"]}:
        yield "the stages' devices are not different devices of the cluster"
        return
    count = Recount(graph, cluster, plan)
    broken = list(count.broken_rules())
    yield from broken
    if all(LATER in fault for fault in broken):
        yield from count.wrong_figures()


def _gap(plan: Json) -> Iterator[str]:
    value, bound = plan["objective_value"], plan["lower_bound"]
    gap = value / bound - 1 if bound > 0 else None
    if value == bound:
        gap = 0.0
    if (gap is None) != (plan["gap"] is None) or (gap is not None and not _same(plan["gap"], gap)):
        yield f"gap: {plan['gap']}, recomputed {gap}"


def _flops(graph: Json, plan: Json) -> Iterator[str]:
    """Operations of each stage, where both files have some; the other referee knows none."""
    fields = ("flops", "backward_flops")[: 1 + (plan["assumptions"]["mode"] == "training")]
    of_node = {node["id"]: sum(node[field] for field in fields) for node in graph["nodes"]}
    said = [stage["flops"] for stage in plan["stages"]]
    true = [sum(of_node.get(v, 0.0) for v in stage["nodes"]) for stage in plan["stages"]]
    if any(said) and any(true):
        for k, (one, other) in enumerate(zip(said, true, strict=True)):
            if not _same(one, other):
                yield f"stage {k} flops: {one}, recomputed {other}"


class Recount:
    """The figures of one plan, added up value by value."""

    def __init__(self, graph: Json, cluster: Json, plan: Json) -> None:
        self.nodes, self.outputs = graph["nodes"], set(graph["outputs"])
        self.plan, self.terms = plan, plan["assumptions"]
        self.training = self.terms["mode"] == "training"
        self.stage = {name: k for k, s in enumerate(plan["stages"]) for name in s["nodes"]}
        named = {device["name"]: device for device in cluster["devices"]}
        self.devices = [named[s["device"]] for s in plan["stages"]]
        self.last = len(self.devices) - 1
        self.limits = {device["name"]: device.get("memory_bytes") for device in self.devices}
        self.rounds = self.terms["microbatches"]
        self.default = cluster.get("default_link")
        self.links = {(w["source"], w["target"]): w for w in cluster.get("links", [])}
        self.readers: dict[str, list[int]] = {node["id"]: [] for node in self.nodes}
        for node in self.nodes:
            for name in node["inputs"]:
                self.readers[name].append(self.stage[node["id"]])

    def broken_rules(self) -> Iterator[str]:
        homes: dict[str, int] = {}
        for node in self.nodes:
            home = self.stage[node["id"]]
            if any(self.stage[name] > home for name in node["inputs"]):
                yield f"{node['id']} reads from a later stage"
            if self.training and any(self.stage[name] > home for name in node.get("after", ())):
                yield f"{node['id']} {LATER}"
            label = node["colocate"]
            if label is not None and homes.setdefault(label, home) != home:
                yield f"label {label} is split"
            for table in self._tables(node):
                if table and self.devices[home]["type"] not in table:
                    yield f"{node['id']} cannot run on {self.devices[home]['name']}"
        if _brings_live(self.plan) and self.training:
            live = [stage["live"] for stage in self.plan["stages"]]
            if sorted(live, reverse=True) != live or not 1 <= min(live) <= max(live) <= self.rounds:
                yield f"{live} micro-batches may be live"
        for name, need in self.by_device(self.memory_bytes()).items():
            limit = self.limits[name]
            if limit is not None and need > limit * (1 + 1e-9):
                yield f"{name} needs {need} of {limit} bytes"

    def wrong_figures(self) -> Iterator[str]:
        figures = self.figures()
        for field in ("bottleneck_s", "step_s", "objective_value"):
            if not _same(self.plan[field], figures[field]):
                yield f"{field}: {self.plan[field]}, recomputed {figures[field]}"
        for field in ("compute_s", "receive_s", "send_s", "time_s", "memory_bytes"):
            for k, stage in enumerate(self.plan["stages"]):
                if not _same(stage[field], figures[field][k]):
                    yield f"stage {k} {field}: {stage[field]}, recomputed {figures[field][k]}"
        if self.plan["lower_bound"] > figures["objective_value"] * (1 + 1e-6):
            yield f"lower_bound {self.plan['lower_bound']} is above the plan"

    def figures(self) -> Json:
        compute = [0.0] * len(self.devices)
        for node in self.nodes:
            home = self.devices[self.stage[node["id"]]]
            seconds = sum(table.get(home["type"], 0.0) for table in self._tables(node))
            compute[self.stage[node["id"]]] += seconds * home["slowdown"]
        relay = self.terms["communication"] == "relay"
        send, receive = self.relayed() if relay else self.hosted()
        combine = max if self.terms["overlap"] == "full" else (lambda *parts: math.fsum(parts))
        busy = [combine(*parts) for parts in zip(compute, receive, send, strict=True)]
        latency = sum(compute) + sum(send) + (0.0 if relay else sum(receive))
        bottleneck = max(self.by_device(busy).values())
        step = latency + (self.rounds - 1) * bottleneck
        chosen = {"throughput": bottleneck, "latency": latency, "step": step}
        return {
            "compute_s": compute,
            "receive_s": receive,
            "send_s": send,
            "time_s": busy,
            "memory_bytes": self.memory_bytes(),
            "bottleneck_s": bottleneck,
            "step_s": step,
            "objective_value": chosen[self.terms["objective"]],
        }

    def by_device(self, of_stage: list[float]) -> dict[str, float]:
        """What the stages of each device take together."""
        total = {device["name"]: 0.0 for device in self.devices}
        for device, amount in zip(self.devices, of_stage, strict=True):
            total[device["name"]] += amount
        return total

    def relayed(self) -> tuple[list[float], list[float]]:
        """Seconds that each stage sends and receives where values go from stage to stage."""
        forward: list[list[float]] = [[] for _ in range(self.last)]
        backward: list[list[float]] = [[] for _ in range(self.last)]
        for node in self.nodes:
            home = self.stage[node["id"]]
            begin = 0 if node["op"] == "input" else home
            end = (
                self.last if node["id"] in self.outputs else max([home, *self.readers[node["id"]]])
            )
            for boundary in range(begin, end):
                forward[boundary].append(node["output_bytes"])
                if self.training and node["gradient_bytes"]:
                    backward[boundary].append(node["gradient_bytes"])
        names = [device["name"] for device in self.devices]
        moves = [
            self.transfer_s(names[k], names[k + 1], forward[k])
            + self.transfer_s(names[k + 1], names[k], backward[k])
            for k in range(self.last)
        ]
        return [*moves, 0.0], [0.0, *moves]

    def hosted(self) -> tuple[list[float], list[float]]:
        """Seconds that each stage writes to and reads from the host's memory."""
        send, receive = [0.0] * len(self.devices), [0.0] * len(self.devices)
        for node in self.nodes:
            home, size = self.stage[node["id"]], [node["output_bytes"]]
            elsewhere = set(self.readers[node["id"]]) - {home}
            if elsewhere:
                send[home] += self.transfer_s(self.devices[home]["name"], "host", size)
            for k in elsewhere:
                receive[k] += self.transfer_s("host", self.devices[k]["name"], size)
        return send, receive

    def transfer_s(self, source: str, target: str, sizes: list[float]) -> float:
        """Seconds for one message with values of these sizes; no message takes no time."""
        wire = self.links.get((source, target), self.default)
        if wire is None or not sizes:
            return 0.0
        return wire["latency_s"] + math.fsum(sizes) / wire["bandwidth_bytes_per_s"]

    def memory_bytes(self) -> list[float]:
        needs = []
        for k in range(len(self.devices)):
            nodes = [node for node in self.nodes if self.stage[node["id"]] == k]
            parameters = sum(node["parameter_bytes"] for node in nodes)
            if self.training:
                saved = sum(node["saved_bytes"] for node in nodes)
                alive = self.rounds
                if self.terms["schedule"] == "1f1b":
                    alive = min(alive, self.last - k + 1)
                elif _brings_live(self.plan):
                    alive = self.plan["stages"][k]["live"]
                ratio = self.terms["optimizer_state_ratio"]
                trains = sum(map(_trained, nodes))
                needs.append(parameters + trains + trains * ratio + saved * alive)
            else:
                needs.append(parameters + max([0.0, *(node["output_bytes"] for node in nodes)]))
        return needs

    def _tables(self, node: Json) -> list[dict[str, float]]:
        return [node["forward_s"], node["backward_s"]] if self.training else [node["forward_s"]]


def _trained(node: Json) -> float:
    trains: float | None = node.get("trainable_bytes")
    return float(node["parameter_bytes"] if trains is None else trains)


def _same(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-6 * max(abs(a), abs(b), 1e-12)

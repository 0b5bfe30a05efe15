"""A plan as one self-contained HTML page: timeline, stages, memory, modules, sentences.

Positions and sizes are computed here, in pixels; the template sets the style
(`html_report.html.j2`).
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from skyfx.solver.analysis.scenarios import COLUMNS, Scenario, predict_step_s
from skyfx.solver.core.cluster import Cluster
from skyfx.solver.core.graph import Graph, Node
from skyfx.solver.core.plan import Plan
from skyfx.solver.core.schedule import Kind
from skyfx.solver.core.timeline import CompletedAction
from skyfx.solver.core.units import operations, seconds, size
from skyfx.solver.costs.cost_model import crossings

TEMPLATE = Path(__file__).with_name("html_report.html.j2")

COLOURS = {"#0072b2": "#fff"} | dict.fromkeys(
    ("#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#999999"), "#000"
)
"""The colours of Okabe and Ito (2008), distinct for the colour-blind, and a text colour on each."""

WIDTH = 960
ROW = 26
LETTERS = 20
"""Width in pixels from which an action shows its name."""

SHORTEST_S = 1e-12
"""A plan of free operators takes no time; its bars have no width."""

TICKS = 8
MODULES = 48
"""At most so many rows of modules."""


@dataclass(frozen=True, slots=True)
class DrawnStep:
    """A step, simulated or measured.

    Attributes:
        name: `predicted` or `measured`.
        done: its actions.
    """

    name: str
    done: Sequence[CompletedAction]

    @property
    def step_s(self) -> float:
        """Its duration."""
        return max(done.ended_s for done in self.done)


def page(
    graph: Graph,
    cluster: Cluster,
    plan: Plan,
    runs: Sequence[DrawnStep],
    sentences: Sequence[str],
    found: Sequence[Scenario] = (),
) -> str:
    """The page.

    Args:
        graph: the model.
        cluster: devices and links.
        plan: the plan.
        runs: steps of the plan, drawn below each other on one scale.
        sentences: the explanation.
        found: the scenarios.
    """
    import jinja2  # takes a while to load, and only this command needs it

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"operations": operations, "seconds": seconds, "size": size}
    longest_s = max((run.step_s for run in runs), default=0.0)
    step_s = predict_step_s(graph, cluster, plan)
    return environment.from_string(TEMPLATE.read_text()).render(
        plan=plan,
        width=WIDTH,
        row=ROW,
        colours=list(COLOURS),
        runs=[{"name": run.name, "rows": list(_rows(plan, run, longest_s))} for run in runs],
        steps={"predicted": step_s} | {run.name: run.step_s for run in runs},
        ticks=[(WIDTH * i / TICKS, longest_s * i / TICKS) for i in range(TICKS + 1)],
        stages=list(_stages(plan)),
        memory=list(_memory(plan, cluster)),
        parts=list(_parts(graph, plan)),
        values=list(_values(plan)),
        sentences=sentences,
        what_ifs=(COLUMNS, *(one.row(step_s) for one in found)) if found else (),
    )


def _rows(plan: Plan, run: DrawnStep, longest_s: float) -> Iterator[dict[str, object]]:
    """A row for each device; an action is coloured by its micro-batch."""
    scale, palette = WIDTH / max(longest_s, SHORTEST_S), list(COLOURS.items())
    for device in dict.fromkeys(stage.device for stage in plan.stages):
        slices = []
        for done in run.done:
            action = done.action
            if plan.stages[action.stage].device != device:
                continue
            colour, ink = palette[action.microbatch % len(palette)]
            width = scale * (done.ended_s - done.began_s)
            letter = "F" if action.kind is Kind.FORWARD else "B"
            slices.append(
                {
                    "x": scale * done.began_s,
                    "width": width,
                    "colour": colour,
                    "ink": ink,
                    "backward": action.kind is Kind.BACKWARD,
                    "text": f"{letter}{action.microbatch}" if width > LETTERS else "",
                    "tip": f"stage {action.stage}, {action}: {seconds(done.began_s)} to "
                    f"{seconds(done.ended_s)}",
                }
            )
        yield {"device": device, "slices": slices}


def _stages(plan: Plan) -> Iterator[dict[str, object]]:
    """Seconds per micro-batch: compute, receive and send, in one row or, with overlap, in three."""
    scale = WIDTH / max(plan.bottleneck_s, SHORTEST_S)
    overlaps = plan.assumptions.overlap == "full"
    for k, stage in enumerate(plan.stages):
        bars, begin = [], 0.0
        for name in ("compute", "receive", "send"):
            x, taken = 0.0 if overlaps else begin, getattr(stage, f"{name}_s")
            tip = f"{name} {seconds(taken)}"
            bars.append({"name": name, "x": scale * x, "width": scale * taken, "tip": tip})
            begin += taken
        idle_s = plan.bottleneck_s - stage.time_s
        yield {"k": k, "stage": stage, "bars": bars, "idle": idle_s, "binds": not idle_s}


def _memory(plan: Plan, cluster: Cluster) -> Iterator[dict[str, object]]:
    """The memory of each device: steady, peak and limit."""
    limits = {device.name: device.memory_bytes for device in cluster.devices}
    taken = dict[str, tuple[float, float]]()
    for stage in plan.stages:
        steady, peak = taken.get(stage.device, (0.0, 0.0))
        most = max(stage.memory_bytes, stage.peak_bytes)
        taken[stage.device] = steady + stage.memory_bytes, peak + most
    largest = max((*(peak for _, peak in taken.values()), *filter(None, limits.values())))
    scale = WIDTH / max(largest, 1.0)
    for device, (steady, peak) in taken.items():
        row = {"device": device, "steady": steady, "peak": peak, "limit": limits.get(device)}
        yield row | {"scale": scale}


def _parts(graph: Graph, plan: Plan) -> Iterator[dict[str, object]]:
    """The model's modules by stage, and the values that cross each cut."""
    stage_of = plan.stage_of()
    between = crossings(graph, stage_of, len(plan.stages))
    depth = _depth(graph.nodes)
    for k, stage in enumerate(plan.stages):
        nodes = (node for node in graph.nodes if stage_of[node.id] == k)
        groups = Counter(_module(node, depth) for node in nodes)
        yield {
            "k": k,
            "device": stage.device,
            "modules": [{"name": name, "nodes": num} for name, num in groups.items()],
            "cut": _cut(between[k]) if k < len(between) else None,
        }


def _cut(crossing: Sequence[Node]) -> dict[str, object]:
    return {
        "values": len(crossing),
        "forward": sum(node.output_bytes for node in crossing),
        "backward": sum(node.gradient_bytes for node in crossing),
    }


def _depth(nodes: Sequence[Node]) -> int:
    """The depth of module names that gives at most `MODULES` rows."""
    for depth in range(8, 1, -1):
        if len({_module(node, depth) for node in nodes}) <= MODULES:
            return depth
    return 1


def _module(node: Node, depth: int) -> str:
    if node.is_input:
        return "inputs"
    return ".".join((node.module or "").split(".")[:depth]) or "(the model itself)"


def _values(plan: Plan) -> Iterator[dict[str, object]]:
    """The objective of the plan and of the baselines, and the lower bound."""
    others = plan.alternatives
    known = {
        "lower bound": plan.lower_bound,
        "this plan": plan.objective_value,
        "even split": others.even,
        "dynamic": others.dynamic,
        "best single device": others.best_single_device,
    }
    largest = max(value for value in known.values() if value is not None)
    for name, value in known.items():
        width = None if value is None else WIDTH * value / max(largest, SHORTEST_S)
        yield {"name": name, "value": value, "width": width}

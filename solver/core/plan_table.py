"""A plan as a table, for `print(plan)`, `skyfx show` and notebooks."""

import html as escape
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from skyfx.solver.core.units import percent, seconds, size

if TYPE_CHECKING:
    from skyfx.solver.core.plan import Plan

COLUMNS = (
    *("stage", "device", "nodes", "modules"),
    *("compute", "receive", "send", "time", "memory", ""),
)
WIDTH = 120
"""Characters per line where no terminal says how wide it is."""


def render(plan: "Plan", console: Console) -> None:
    """Draw the plan on a rich console."""
    console.print(Text(_title(plan)), highlight=False, soft_wrap=True)  # a table would break it
    table = Table(*COLUMNS, box=None)
    for row in _rows(plan):
        table.add_row(*(Text(cell) for cell in row))  # names are not rich's markup
    console.print(table)
    for line in _summary(plan):
        console.print(Text(line), highlight=False)


def text(plan: "Plan") -> str:
    """The plan as plain text."""
    stream = io.StringIO()
    render(plan, Console(file=stream, width=WIDTH, no_color=True))
    return stream.getvalue().rstrip()


def html(plan: "Plan") -> str:
    """The plan as a small HTML table, for notebooks."""
    head = "".join(f"<th>{name}</th>" for name in COLUMNS)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in _rows(plan)
    )
    lines = "<br>".join(escape.escape(line) for line in _summary(plan))
    title = escape.escape(_title(plan))
    return f"<table><caption>{title}</caption><tr>{head}</tr>{body}</table><p>{lines}</p>"


def _title(plan: "Plan") -> str:
    a = plan.assumptions
    live = f" ({', '.join(map(str, plan.live))} in flight)" if plan.live else ""
    return f"{plan.graph.name}: {a.mode}, {a.schedule}{live}, {a.microbatches} micro-batches"


def _rows(plan: "Plan") -> list[tuple[str, ...]]:
    return [
        (
            str(k),
            stage.device,
            str(len(stage.nodes)),
            _modules(stage.nodes),
            seconds(stage.compute_s),
            seconds(stage.receive_s),
            seconds(stage.send_s),
            seconds(stage.time_s),
            size(stage.memory_bytes)
            + ("" if stage.limit_bytes is None else f" of {size(stage.limit_bytes)}"),
            "<- bottleneck" if stage.time_s == plan.bottleneck_s else "",
        )
        for k, stage in enumerate(plan.stages)
    ]


def _modules(nodes: Sequence[str]) -> str:
    """The first and the last module: `layer.0 .. layer.3`; nothing for an empty stage."""
    modules = [node.split(".")[:-1] for node in nodes]
    # Numbered blocks say most, where there are any; inputs belong to no module.
    blocks = [module for module in modules if any(part.isdigit() for part in module)]
    named = blocks or [module for module in modules if module] or [[node] for node in nodes]
    return " .. ".join(dict.fromkeys(map(_block, (*named[:1], *named[-1:]))))


def _block(module: Sequence[str]) -> str:
    """The first number with the name before it, else the last two names: `layer.3`."""
    last = next((i for i, part in enumerate(module) if part.isdigit()), len(module) - 1)
    return ".".join(module[max(0, last - 1) : last + 1])


def _recomputed(plan: "Plan") -> list[str]:
    """What is recomputed, by stage; nothing where nothing is."""
    said = [
        f"stage {k} {sum(map(len, stage.recompute))} nodes in {seconds(stage.recompute_s)}"
        for k, stage in enumerate(plan.stages)
        if stage.recompute
    ]
    return [f"recomputed in backward: {', '.join(said)}"] if said else []


def _summary(plan: "Plan") -> list[str]:
    others = {
        "even split": plan.alternatives.even,
        "dynamic": plan.alternatives.dynamic,
        "best single device": plan.alternatives.best_single_device,
    }
    usual_s, simulated = plan.alternatives.simulated_1f1b_s, []
    if usual_s is not None:
        simulated = [f"simulated step {seconds(plan.simulated_s)}; of 1f1b {seconds(usual_s)}"]
    said = (f"{name} {'does not fit' if v is None else seconds(v)}" for name, v in others.items())
    return [
        f"bottleneck {seconds(plan.bottleneck_s)} per micro-batch, step {seconds(plan.step_s)}",
        *simulated,
        *_recomputed(plan),
        f"{plan.assumptions.objective} {seconds(plan.objective_value)}; no plan is below "
        f"{seconds(plan.lower_bound)} ({plan.solver.binding}): "
        f"gap {percent(plan.gap)}, {plan.solver.status}",
        f"instead: {', '.join(said)}",
    ]

"""Recomputation beside coarser ways: `python -m benchmarks.recomputation [--only TEXT] [--write]`.

Models of five kinds are captured and measured here, and planned for devices of which none may hold
what the best plan without limits takes there. Beside each plan: the same planner when it may only
recompute whole layers, and the plan's own cuts with every layer recomputed, as
`torch.utils.checkpoint` does around each.
"""

import argparse
import itertools
import math
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest import mock

import numpy as np
import torch
import transformers

from benchmarks.common.documents import table, when_and_where
from skyfx.api import capture_and_measure
from skyfx.devices.resolve import resolve
from skyfx.solver import Assumptions, Cluster, Device, Graph, Plan, evaluate, solve
from skyfx.solver.core.cluster import Wire
from skyfx.solver.errors import InfeasibleError, NoPlanError
from skyfx.solver.refinement import segment_runs
from skyfx.solver.refinement.segment_runs import SegmentRuns

MODULE = "benchmarks.recomputation"
RESULT = Path(__file__).parents[2] / "docs" / "recomputation.md"
WIDTH, LAYERS, WORDS, LENGTH, SAMPLES = 192, 6, 1000, 64, 64
SPEEDS = {"alike": (1.0, 1.0, 1.0, 1.0), "unlike": (1.0, 1.4, 2.0, 2.8)}
SHARES = (0.8, 0.65, 0.5)
RESERVE = 1.1
"""The planner keeps a tenth of a device's memory in reserve."""

WIRE = Wire(bandwidth_bytes_per_s=125e6, latency_s=1e-4)
ASSUMED = Assumptions(microbatches=8, overlap="full", recompute="auto")
LIMITS: dict[str, Any] = {"gap": 0.01, "time_limit_s": 5.0}
LAYER = re.compile(r"(.*?\b(?:layer|layers|h|block)\.\d+)\.")
HEAD = ("model", "devices", "limit", "step", "gap %", "whole layers", "every layer, same cuts")

TEXT = """# Recomputation at operators, beside coarser ways

Plans for four devices with so much memory each, in parts of the largest peak of the best plan
without limits (`limit`). `step` is the bottleneck in parts of that plan's. `whole layers` is the
bottleneck of the same planner's plan when it recomputes whole layers or nothing, in parts of
skyfx's, and `every layer, same cuts` that of skyfx's cuts where each stage recomputes every layer,
if it fits or not. All figures are the cost model's, on costs that were measured here.

"""


def main() -> None:
    """Plan, print, and with `--write` keep the table in the documentation."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.add_argument("--only", default="", help="models whose name holds this text")
    parser.add_argument("--cases", type=int, help="so many clusters, of three limits each")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, layers, uniform = list[Sequence[str]](), list[float](), list[float]()
    cases = ((name, kind) for name in MODELS if options.only in name for kind in SPEEDS)
    for name, kind in itertools.islice(cases, options.cases):
        for share, step, plan, *others in beside(measured(name), SPEEDS[kind]):
            found = [math.inf if plan is None else x / plan.objective_value for x in others]
            cells = [f"{step:.3f}", f"{100 * plan.gap:.1f}"] if plan else ["none found", ""]
            rows.append((name, kind, str(share), *cells, *(f"{x:.3f}" for x in found)))
            print(*rows[-1], sep=" | ", flush=True)
            if plan is not None:
                layers.append(found[0])
                uniform.append(found[1])
    says = (
        f"{len(layers)} of {len(rows)} are planned. Whole layers: {_mean(layers)}; "
        f"every layer: {_mean(uniform)}.\n\n"
    )
    print(says)
    if options.write:
        RESULT.write_text(f"{TEXT}{says}{table(HEAD, rows)}\n{when_and_where(MODULE)}\n")


def beside(
    graph: Graph, speeds: Sequence[float]
) -> Iterator[tuple[float, float, Plan | None, float, float]]:
    """For each limit: the step in parts of the best, the plan, and the others' bottlenecks."""
    kind = next(kind for node in graph.nodes for kind in node.forward_s)
    devices = tuple(Device(name=f"d{i}", type=kind, slowdown=x) for i, x in enumerate(speeds))
    free = Cluster(devices=devices, links=(), default_link=WIRE)
    best = solve(graph, free, ASSUMED, **LIMITS).plan
    largest = max(stage.peak_bytes for stage in best.stages if stage.peak_bytes is not None)
    for share in SHARES:
        limit = share * largest * RESERVE
        limited = replace(free, devices=tuple(replace(d, memory_bytes=limit) for d in devices))
        plan = _plan(graph, limited)
        with mock.patch.object(SegmentRuns, "of", _whole_layers(graph)):
            coarse = _plan(graph, limited)
        step = math.inf if plan is None else plan.objective_value / best.objective_value
        whole = math.inf if coarse is None else coarse.objective_value
        yield share, step, plan, whole, _every_layer(graph, limited, plan)


def _plan(graph: Graph, cluster: Cluster) -> Plan | None:
    try:
        return solve(graph, cluster, ASSUMED, **LIMITS).plan
    except (InfeasibleError, NoPlanError):
        return None


def _layer(node: str) -> str | None:
    found = LAYER.match(node)
    return found[1] if found else None


def _whole_layers(graph: Graph) -> Callable[..., SegmentRuns]:
    """Instead of `SegmentRuns.of`: only runs that are a whole layer."""
    places = dict[str, list[int]]()
    for i, node in enumerate(graph.nodes):
        if (layer := _layer(node.id)) is not None:
            places.setdefault(layer, []).append(i)
    spans = {(x[0], x[-1] + 1) for x in places.values()}
    own = SegmentRuns.of

    def of(graph: Graph, device_types: Collection[str]) -> SegmentRuns:
        with mock.patch.object(segment_runs, "LONGEST", len(graph.nodes)):
            runs = own(graph, device_types)
        kept = [
            each[:, [(int(begin), end) in spans for begin in each[0]]] if each.size else each
            for end, each in enumerate(runs.ending)
        ]
        ratios = [float(x) for each in kept if each.size for x in each[1] / each[2]]
        prices = np.geomspace(min(ratios), 2 * max(ratios), 16).tolist() if ratios else []
        return replace(runs, ending=kept, prices=prices)

    return of


def _every_layer(graph: Graph, cluster: Cluster, plan: Plan | None) -> float:
    """The bottleneck of the plan's cuts where all layers run again in backward."""
    if plan is None:
        return math.inf
    nodes = tuple(
        replace(
            node,
            backward_s={
                kind: node.forward_s.get(kind, 0.0) + node.backward_s.get(kind, 0.0)
                for kind in node.forward_s | node.backward_s
            },
        )
        if _layer(node.id)
        else node
        for node in graph.nodes
    )
    placement = [(stage.device, stage.nodes) for stage in plan.stages]
    return evaluate(replace(graph, nodes=nodes), cluster, placement, ASSUMED).objective_value


def _mean(ratios: Sequence[float]) -> str:
    finite = [x for x in ratios if math.isfinite(x)]
    if not finite:
        return "none"
    mean = math.exp(fmean(map(math.log, finite)))
    lost = len(ratios) - len(finite)
    more = f", and none in {lost}" if lost else ""
    return f"{mean:.3f} times as long in the geometric mean, least {min(finite):.3f}{more}"


@cache
def measured(name: str) -> Graph:
    """The model as it trains, with costs that are measured on a CPU."""
    torch.manual_seed(0)
    model, batch = MODELS[name]()
    _, places = resolve(("cpu",))
    return capture_and_measure(model, places.values(), example_inputs=batch, num_microbatches=8)


def _words() -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(0, WORDS, (SAMPLES, LENGTH))}


def _bert() -> tuple[torch.nn.Module, Any]:
    config = transformers.BertConfig(
        num_hidden_layers=LAYERS,
        hidden_size=WIDTH,
        num_attention_heads=4,
        intermediate_size=4 * WIDTH,
        vocab_size=WORDS,
    )
    return transformers.BertForSequenceClassification(config), _words()


def _gpt2() -> tuple[torch.nn.Module, Any]:
    config = transformers.GPT2Config(
        n_layer=LAYERS, n_embd=WIDTH, n_head=4, vocab_size=WORDS, n_positions=LENGTH
    )
    return transformers.GPT2LMHeadModel(config), _words()


def _llama() -> tuple[torch.nn.Module, Any]:
    config = transformers.LlamaConfig(
        num_hidden_layers=LAYERS,
        hidden_size=WIDTH,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=3 * WIDTH,
        vocab_size=WORDS,
    )
    return transformers.LlamaForCausalLM(config), _words()


def _t5() -> tuple[torch.nn.Module, Any]:
    config = transformers.T5Config(
        num_layers=LAYERS // 2,
        d_model=WIDTH,
        num_heads=4,
        d_kv=48,
        d_ff=4 * WIDTH,
        vocab_size=WORDS,
    )
    words = _words()["input_ids"]
    batch = {"input_ids": words, "decoder_input_ids": words.flip(1)}
    return transformers.T5ForConditionalGeneration(config), batch


def _vit() -> tuple[torch.nn.Module, Any]:
    config = transformers.ViTConfig(
        num_hidden_layers=LAYERS,
        hidden_size=WIDTH,
        num_attention_heads=4,
        intermediate_size=4 * WIDTH,
        image_size=64,
        patch_size=8,
        num_labels=10,
    )
    batch = {"pixel_values": torch.randn(SAMPLES, 3, 64, 64)}
    return transformers.ViTForImageClassification(config), batch


MODELS: dict[str, Callable[[], tuple[torch.nn.Module, Any]]] = {
    "bert": _bert,
    "gpt2": _gpt2,
    "llama": _llama,
    "t5": _t5,
    "vit": _vit,
}


if __name__ == "__main__":
    main()

"""The same table for a GPU beside this machine's CPU: `python -m benchmarks.fidelity.accelerator`.

One process, a thread for each stage; on the GPU a stage's time is what its stream takes.
"""

import argparse
import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn import functional

import skyfx
from benchmarks.fidelity.table import compute_errors, worst
from skyfx.devices.local_links import with_links
from skyfx.devices.resolve import resolve
from skyfx.measurement.measure import measure
from skyfx.runtime.batches.microbatch import Batch
from skyfx.solver import Assumptions, Cluster, Graph, Plan, solve
from skyfx.solver.costs.simulator import simulate
from skyfx.tracing.capture import capture

MICROBATCHES, WARM, STEPS = 8, 3, 9
DEVICES = ("cuda:0", "cpu")


def bert(layers: int, width: int, length: int, samples: int) -> tuple[Any, Any, Tensor]:
    """An encoder; short and narrow, launching kernels takes longer than running them."""
    config = transformers.BertConfig(
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    words = {"input_ids": torch.randint(0, 1000, (samples, length))}
    model = transformers.BertForSequenceClassification(config)
    return model, words, torch.randint(0, 2, (samples,))


def resnet(samples: int) -> tuple[Any, Any, Tensor]:
    """ResNet-50 on images of 128 by 128."""
    model = transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=10))
    images = {"pixel_values": torch.randn(samples, 3, 128, 128)}
    return model, images, torch.randint(0, 10, (samples,))


CASES: dict[str, Callable[[], tuple[Any, Any, Tensor]]] = {
    "bert 6 x 512, 128 tokens": lambda: bert(6, 512, 128, 32),
    "bert 4 x 1024, 512 tokens": lambda: bert(4, 1024, 512, 64),
    "resnet-50": lambda: resnet(64),
}


def loss_fn(outputs: Any, targets: Tensor) -> Tensor:
    """The mean over a micro-batch."""
    return functional.cross_entropy(outputs.logits, targets)


def main() -> None:
    """Print a line for each plan, and keep all figures in a file."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fidelity.accelerator", description=__doc__
    )
    parser.add_argument("--rows", type=Path, required=True, help="JSON file to write")
    rows = []
    arguments = parser.parse_args()
    for name, make in CASES.items():
        torch.manual_seed(0)
        model, batch, targets = make()
        whole = Batch.of(batch)
        cluster, places = resolve(DEVICES)
        captured = capture(copy.deepcopy(model), whole.split(whole.batch_size // MICROBATCHES)[0])
        graph = measure(captured, places.values())
        cluster = with_links(cluster, places)
        for label, plan in plans(graph, cluster):
            found = run(graph, cluster, plan, copy.deepcopy(model), batch, targets)
            rows.append({"model": name, "plan": label, **found})
            print(line(rows[-1]), flush=True)
            arguments.rows.write_text(json.dumps(rows, indent=1))


def plans(graph: Graph, cluster: Cluster) -> Iterator[tuple[str, Plan]]:
    """The GPU alone, the best of both, and what somebody would do who does not measure."""
    assumptions = Assumptions(microbatches=MICROBATCHES, overlap="full")
    alone = Cluster(devices=cluster.devices[:1])
    yield "gpu alone", solve(graph, alone, assumptions).plan
    yield "optimal", solve(graph, cluster, assumptions, gap=0.01, time_limit_s=10).plan
    yield "dynamic", solve(graph, cluster, assumptions, strategy="dynamic").plan
    yield "even", solve(graph, cluster, assumptions, strategy="even").plan


def run(
    graph: Graph, cluster: Cluster, plan: Plan, model: Any, batch: Any, targets: Tensor
) -> dict[str, Any]:
    """Predict and measure a plan."""
    placement = [(stage.device, stage.nodes) for stage in plan.stages]
    timeline = simulate(graph, cluster, placement, plan.assumptions)
    steps, busy = [], []
    devices = [device for device in DEVICES if device in {s.device for s in plan.stages}]
    with skyfx.partition(model, devices, example_inputs=batch, plan=plan) as pipeline:
        for i in range(WARM + STEPS):
            torch.accelerator.synchronize()
            pipeline.train_step(batch, targets, loss_fn)
            torch.accelerator.synchronize()
            assert pipeline.measured is not None
            if i >= WARM:
                steps.append(pipeline.measured.step_s)
                busy.append(pipeline.measured.stage_s)
            for parameter in pipeline.parameters():
                parameter.grad = None
    return {
        "stages": [f"{stage.device}: {len(stage.nodes)}" for stage in plan.stages],
        "compute_s": [stage.compute_s for stage in plan.stages],
        "busy_s": [median(column) for column in zip(*busy, strict=True)],
        "step_s": timeline.step_s,
        "formula_s": plan.step_s,
        "measured_s": median(steps),
        "spread": (max(steps) - min(steps)) / median(steps),
    }


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    step = row["step_s"] / row["measured_s"] - 1
    cells = (
        row["model"],
        row["plan"],
        ", ".join(row["stages"]),
        f"{100 * worst(compute_errors(row)):+.1f}",
        f"{1e3 * row['step_s']:.1f}",
        f"{1e3 * row['measured_s']:.1f}",
        f"{100 * step:+.1f}",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()

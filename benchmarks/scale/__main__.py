"""Large models without their weights: `python -m benchmarks.scale [--only TEXT] [--write]`.

Each line is a process of its own: a model on the meta device is captured, measured on this
machine's processor, planned for eight unlike devices and split, and nothing of it is ever made.
"""

import argparse
import itertools
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
import transformers
from torch import nn

import skyfx
from benchmarks.common.documents import when_and_where
from skyfx.measurement.measure import measure
from skyfx.partitioning.plan_matching import match
from skyfx.partitioning.stage_builder import split
from skyfx.passes.planner_graph import to_planner_graph
from skyfx.runtime.device import LocalDevice
from skyfx.solver import Assumptions, Cluster, Device, Link, solve
from skyfx.tracing.capture import capture

RESULT = Path(__file__).parents[2] / "docs" / "scale.md"
HEAD = ("model", "nodes", "capture s", "measure s", "plan s", "split s", "all s", "MB", "gap %")
SAMPLES, LENGTH = 8, 128
SLOWDOWNS = (1.0, 1.0, 1.2, 1.5, 2.0, 2.0, 3.0, 4.0)


def bert(layers: int) -> nn.Module:
    """BERT-large with so many layers."""
    config = transformers.BertConfig(
        num_hidden_layers=layers,
        hidden_size=1024,
        num_attention_heads=16,
        intermediate_size=4096,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return transformers.BertForMaskedLM(config)


def llama_70b() -> nn.Module:
    """Llama 3's configuration of 70 billion parameters."""
    config = transformers.LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
    )
    return transformers.LlamaForCausalLM(config).to(torch.bfloat16)


MODELS = {
    "bert-large-24": lambda: bert(24),
    "bert-large-160": lambda: bert(160),
    "llama-70b": llama_70b,
}


def cluster(types: int) -> Cluster:
    """Eight devices that differ in speed, as many types as that makes, on 10 Gbit/s."""
    devices = [Device(name=f"d{i}", type="cpu", slowdown=s) for i, s in enumerate(SLOWDOWNS)]
    assert len(set(SLOWDOWNS)) <= types
    links = [
        Link(source=a.name, target=b.name, bandwidth_bytes_per_s=1.25e9, latency_s=1e-4)
        for a in devices
        for b in devices
        if a is not b
    ]
    return Cluster(devices=tuple(devices), links=tuple(links))


def run(name: str) -> str:
    """One line of the table."""
    times = [time.monotonic()]
    with skyfx.empty_weights():
        model = MODELS[name]()
    samples = 1 if name.startswith("llama") else SAMPLES
    ids = torch.zeros(samples, LENGTH, dtype=torch.long, device="meta")
    training = not name.startswith("llama")
    captured = capture(model, {"input_ids": ids}, training=training)
    times.append(time.monotonic())
    graph = measure(captured, [LocalDevice("cpu", torch.device("cpu"))])
    times.append(time.monotonic())
    mode = "training" if training else "inference"
    plan = solve(graph, cluster(8), Assumptions(mode=mode), gap=0.01, time_limit_s=20.0).plan
    times.append(time.monotonic())
    described = to_planner_graph(captured)
    places = [LocalDevice(stage.device, torch.device("meta")) for stage in plan.stages]
    split(captured, described, match(captured, described, plan, {}), places, [True] * len(places))
    times.append(time.monotonic())
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    took = [f"{b - a:.1f}" for a, b in itertools.pairwise(times)]
    gap = "" if plan.gap is None else f"{plan.gap * 100:.2f}"
    cells = [
        name,
        str(len(captured.ids)),
        *took,
        f"{times[-1] - times[0]:.1f}",
        f"{memory:.0f}",
        gap,
    ]
    return " | ".join(cells)


def main() -> None:
    """Run, print, and with `--write` keep the table in the documentation."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--only", default="", help="models whose name holds this text")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    options = parser.parse_args()
    if options.one:
        torch.set_num_threads(1)
        print(run(options.one))
        return
    lines = [" | ".join(HEAD), " | ".join("---" for _ in HEAD)]
    for name in (name for name in MODELS if options.only in name):
        command = [sys.executable, "-m", "benchmarks.scale", "--one", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        lines.append(done.stdout.splitlines()[-1])
        print(lines[-1], flush=True)
    if options.write:
        table = "".join(f"| {line} |\n" for line in lines)
        RESULT.write_text(f"{_preface()}\n{table}")


def _preface() -> str:
    return (
        f"# Large models without their weights\n\n{when_and_where('benchmarks.scale')}\n"
        f"BERT-large trains on {SAMPLES} samples of {LENGTH} tokens a micro-batch, Llama infers\n"
        "on one, in bfloat16. The devices are this processor, slowed down by 1 to 4. One thread;\n"
        "no cache of earlier measurements. `MB` is the largest resident memory.\n"
    )


if __name__ == "__main__":
    main()

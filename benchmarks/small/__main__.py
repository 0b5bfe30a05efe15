"""Small models, from the call to the pipeline: `python -m benchmarks.small [--write]`.

Each model is a process of its own on one core. It partitions the model once to import and compile
what is needed, then three times with the clock running.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import skyfx
from benchmarks.common.documents import table, when_and_where

RESULT = Path(__file__).parents[2] / "docs" / "small.md"
HEAD = (
    *("model", "devices", "operators", "capture s", "operators s", "segments s"),
    *("plan and rest s", "all s", "one step s", "beyond a step s"),
)
RUNS, STEPS, BATCH = 3, 5, 16
OPERATORS, SEGMENTS = "cpu, operators", "cpu, calibration segments"

CLUSTERS = {"one": ["cpu"], "two": ["cpu", skyfx.Device("cpu", slowdown=3)]}


class Lstm(nn.Module):
    """Two layers of an LSTM, and a linear layer on its last output."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(32, 32, 2, batch_first=True)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        """From `(batch, length, 32)` to `(batch, 4)`."""
        outputs, _ = self.lstm(x)
        return self.head(outputs[:, -1])


def linear() -> tuple[nn.Module, Any]:
    """Three linear layers."""
    return nn.Sequential(*(nn.Linear(12, 12) for _ in range(3))), torch.randn(BATCH, 12)


def cnn() -> tuple[nn.Module, Any]:
    """Two convolutions."""
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
        *(nn.Flatten(), nn.Linear(16, 10)),
    )
    return model, torch.randn(BATCH, 3, 32, 32)


def lstm() -> tuple[nn.Module, Any]:
    """A recurrent network."""
    return Lstm(), torch.randn(BATCH, 12, 32)


def bert() -> tuple[nn.Module, Any]:
    """BERT with two layers."""
    config = transformers.BertConfig(
        num_hidden_layers=2,
        hidden_size=32,
        num_attention_heads=2,
        intermediate_size=64,
        vocab_size=100,
    )
    model = transformers.BertForSequenceClassification(config)
    return model, {"input_ids": torch.randint(0, 100, (BATCH, 12))}


def gpt2() -> tuple[nn.Module, Any]:
    """GPT-2 with one layer."""
    config = transformers.GPT2Config(
        n_layer=1,
        n_embd=32,
        n_head=2,
        vocab_size=100,
        n_positions=16,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    return transformers.GPT2LMHeadModel(config), {"input_ids": torch.randint(0, 100, (BATCH, 12))}


MODELS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "3 linear": linear,
    "cnn": cnn,
    "lstm": lstm,
    "bert": bert,
    "gpt2": gpt2,
}


def run(name: str) -> list[list[str]]:
    """The lines of a model."""
    return [_line(name, devices) for devices in CLUSTERS]


def _line(name: str, devices: str) -> list[str]:
    _timed(name, devices)
    found = [_timed(name, devices) for _ in range(RUNS)]
    operators = f"{found[0][0]:.0f}"
    *parts, all_s = (median(column) for column in list(zip(*found, strict=True))[1:])
    step_s = _step_s(name)
    cells = (*(f"{part:.2f}" for part in parts), f"{all_s:.2f}", f"{step_s:.4f}")
    return [name, devices, operators, *cells, f"{all_s - step_s:.2f}"]


def _timed(name: str, devices: str) -> tuple[float, ...]:
    """Number of operators, and seconds of the parts of a call and of all of it."""
    model, inputs = MODELS[name]()
    last_s: dict[str, float] = {}
    totals: dict[str, int] = {}
    began_s = time.perf_counter()

    def progress(what: str, done: int, total: int) -> None:
        last_s[what], totals[what] = time.perf_counter() - began_s, total
        last_s.setdefault(f"{what} begin", last_s[what])

    skyfx.partition(model, CLUSTERS[devices], example_inputs=inputs, progress=progress).close()
    all_s = time.perf_counter() - began_s
    # The first operator is told of when it has been measured, the last segment when it begins.
    captured_s, operators_s = last_s[f"{OPERATORS} begin"], last_s[OPERATORS]
    segments_s = last_s.get(SEGMENTS, operators_s)
    return (
        *(totals[OPERATORS], captured_s, operators_s - captured_s, segments_s - operators_s),
        *(all_s - segments_s, all_s),
    )


def _step_s(name: str) -> float:
    """Seconds of the model forward and backward by itself, the model's own run time."""
    model, inputs = MODELS[name]()
    times = []
    for _ in range(STEPS + 1):
        began_s = time.perf_counter()
        outputs = model(**inputs) if isinstance(inputs, dict) else model(inputs)
        (outputs if isinstance(outputs, Tensor) else outputs.logits).sum().backward()
        times.append(time.perf_counter() - began_s)
    return median(times[1:])


def main() -> None:
    """Run, print, and with `--write` keep the table in the documentation."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.small", description=__doc__)
    parser.add_argument("--only", default="", help="models whose name holds this text")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    options = parser.parse_args()
    if options.one:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        torch.set_num_threads(1)
        print("\n".join(" | ".join(line) for line in run(options.one)))
        return
    load = os.getloadavg()[0]
    rows: list[list[str]] = []
    for name in (name for name in MODELS if options.only in name):
        command = [sys.executable, "-m", "benchmarks.small", "--one", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        for line in done.stdout.splitlines()[-len(CLUSTERS) :]:
            print(line, flush=True)
            rows.append(line.split(" | "))
    if options.write:
        RESULT.write_text(f"{_preface(load)}\n{table(HEAD, rows)}")


def _preface(load: float) -> str:
    return (
        f"# Small models, from the call to the pipeline\n\n{when_and_where('benchmarks.small')}\n"
        f"Load of the machine before the run: {load:.1f}. One core, training, medians of {RUNS} "
        "calls of\n"
        "`skyfx.partition` after one that imports and compiles; no cache of earlier "
        "measurements.\n"
        "`two` are this processor and itself slowed down by 3. The aim is at most 3 s beyond one "
        "step of\n"
        "the model by itself for a model with fewer than 100 operators.\n"
    )


if __name__ == "__main__":
    main()

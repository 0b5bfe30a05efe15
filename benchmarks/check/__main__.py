"""What the check costs, in parts of a step: `python -m benchmarks.check [--write]`.

Each row is a process of its own on one core, with two CPU stages. Times are those of the check
alone, without capturing, measuring, planning and splitting; memory is the most that the process
takes beyond what it has before it splits the model, as the kernel counts.
"""

import argparse
import ctypes
import gc
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
from torch.nn import functional

from benchmarks.common.documents import table, when_and_where
from skyfx.orchestration.assembly import assemble
from skyfx.orchestration.environment import environment_of
from skyfx.orchestration.plan_resolution import PlanSource
from skyfx.runtime.batches.batch_cutter import BatchCutter
from skyfx.runtime.batches.microbatch import Batch
from skyfx.runtime.memory.resident import forget_peak
from skyfx.runtime.pipeline import Pipeline
from skyfx.solver.core.plan import Assumptions
from skyfx.verification.check import PipelineCheck
from skyfx.verification.cut_decision import batch_rule, capture_microbatch, decide
from skyfx.verification.observation import weighted_sum

RESULT = Path(__file__).parents[2] / "docs" / "check-cost.md"
BATCH, MICROBATCHES, RUNS = 32, 8, 3
CHECKS = ("outputs", "full")
HEAD = (
    *("model", "parameters", "step of a micro-batch", "step of a batch"),
    *(f"`{check}` in micro-batches" for check in CHECKS),
    *(f"`{check}` in batches" for check in CHECKS),
    *("memory of a step", *(f"of `{check}`" for check in CHECKS)),
)


def bert() -> tuple[nn.Module, Any]:
    """BERT with four layers of its base's size."""
    config = transformers.BertConfig(num_hidden_layers=4)
    model = transformers.BertForSequenceClassification(config)
    return model, {"input_ids": torch.randint(0, 30_000, (BATCH, 64))}


def gpt2() -> tuple[nn.Module, Any]:
    """GPT-2 with four layers."""
    config = transformers.GPT2Config(n_layer=4, vocab_size=8_000, use_cache=False)
    config.bos_token_id = config.eos_token_id = 0
    return transformers.GPT2LMHeadModel(config), {"input_ids": torch.randint(0, 8_000, (BATCH, 64))}


def resnet() -> tuple[nn.Module, Any]:
    """ResNet-50."""
    model = transformers.ResNetForImageClassification(transformers.ResNetConfig())
    return model, {"pixel_values": torch.randn(BATCH, 3, 96, 96)}


class UNet(nn.Module):
    """Four levels with two convolutions each."""

    def __init__(self) -> None:
        super().__init__()
        levels = [(3, 32), (32, 64), (64, 128), (128, 256)]
        deeper = levels[:0:-1]
        self.down = nn.ModuleList(_block(*level) for level in levels)
        self.widen = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in deeper)
        self.up = nn.ModuleList(_block(2 * a, a) for a, _ in deeper)
        self.head = nn.Conv2d(32, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """From `(batch, 3, height, width)` to `(batch, 2, height, width)`."""
        above: list[Tensor] = []
        for block in self.down:
            above.append(block(functional.max_pool2d(x, 2) if above else x))
            x = above[-1]
        above.pop()
        for widen, block in zip(self.widen, self.up, strict=True):
            x = block(torch.cat([above.pop(), widen(x)], dim=1))
        return self.head(x)


def _block(before: int, after: int) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()),
        *(nn.Conv2d(after, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()),
    )


def unet() -> tuple[nn.Module, Any]:
    """A U-Net."""
    return UNet(), torch.randn(BATCH, 3, 64, 64)


MODELS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "bert": bert,
    "gpt2": gpt2,
    "resnet": resnet,
    "unet": unet,
}


class Subject:
    """A model with its plan for two CPUs, to be checked again and again."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        self.model, inputs = MODELS[name]()
        batch = Batch.of(inputs)
        rule = batch_rule(self.model, batch, None)
        cut = decide(self.model, batch, rule, MICROBATCHES, training=True)
        self.batch = batch.placed(cut.rule)
        self.cutter = BatchCutter(cut.rule, cut.size, cut.joins)
        self.environment = environment_of(["cpu", "cpu"])
        self.captured = capture_microbatch(self.model, batch, cut, training=True)
        graph, cluster = self.environment.measure(self.captured, None)
        assumptions = Assumptions(microbatches=MICROBATCHES)
        source = PlanSource(graph, self.batch, assumptions, "optimal", 0.1, 10.0)
        self.plan = source.replan(cluster)
        self.splitting_s = 0.0

    def pipeline(self, check: Any) -> Pipeline:
        """A pipeline, checked like this."""
        found = self.model, self.captured, self.batch, self.plan, self.environment, self._make
        return PipelineCheck(*found).pipeline(check)

    def _make(self) -> Pipeline:
        began_s = time.perf_counter()
        found = self.model, self.plan, self.captured, self.environment, self.cutter
        pipeline = assemble(*found)
        self.splitting_s = time.perf_counter() - began_s
        return pipeline

    def check_s(self, check: Any) -> float:
        """Seconds of a check, without splitting."""
        began_s = time.perf_counter()
        self.pipeline(check).close()
        return time.perf_counter() - began_s - self.splitting_s

    def plain_step_s(self) -> float:
        """Seconds of a micro-batch forward and backward in plain torch."""
        self.model.train()
        args, kwargs = self.captured.microbatch.restore()
        began_s = time.perf_counter()
        returned = self.model(*args, **kwargs)
        outputs = [returned] if isinstance(returned, Tensor) else [returned.logits]
        weighted_sum(outputs).backward()  # type: ignore[no-untyped-call]
        self.model.zero_grad()
        return time.perf_counter() - began_s

    def train(self) -> float:
        """Two steps of a batch with Adam; the seconds of the second, without the optimizer."""
        args, kwargs = self.batch.restore()

        def loss_fn(returned: Any, _: Any) -> Tensor:
            return weighted_sum([returned] if isinstance(returned, Tensor) else [returned.logits])

        with self.pipeline("off") as pipeline:
            optimizer = torch.optim.Adam(pipeline.parameters())
            for _ in range(2):
                began_s = time.perf_counter()
                pipeline.train_step(kwargs or tuple(args), None, loss_fn)
                took_s = time.perf_counter() - began_s
                optimizer.step()
                optimizer.zero_grad()
        return took_s


def seconds(name: str, runs: int) -> list[float]:
    """Of a plain micro-batch, a step of a batch, and the checks; medians in turns."""
    subject = Subject(name)
    turns: list[list[float]] = []
    for _ in range(runs + 1):
        checks = [subject.check_s(check) for check in CHECKS]
        turns.append([subject.plain_step_s(), subject.train(), *checks])
    return [median(column) for column in zip(*turns[1:], strict=True)]


def peak_bytes(name: str, what: str) -> float:
    """The most memory that a step, or a check, takes beyond what was there before."""
    subject = Subject(name)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    forget_peak()
    before = _status("VmRSS")
    if what == "step":
        subject.train()
    else:
        subject.pipeline(what).close()
    return _status("VmHWM") - before


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(x for x in lines if x.startswith(f"{field}:")).split()[1]) * 1024


def main() -> None:
    """Run, print, and with `--write` keep the table in the documentation."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.check", description=__doc__)
    parser.add_argument("--only", default="", help="models whose name holds this text")
    parser.add_argument("--runs", type=int, default=RUNS, help="turns of which a median is taken")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    options = parser.parse_args()
    if options.one:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        torch.set_num_threads(1)
        name, what = options.one
        found = seconds(name, options.runs) if what == "seconds" else [peak_bytes(name, what)]
        print(" ".join(map(str, found)))
        return
    load = os.getloadavg()[0]
    rows = []
    for name in (name for name in MODELS if options.only in name):
        rows.append(_row(name, options.runs))
        print(" | ".join(rows[-1]), flush=True)
    if options.write:
        RESULT.write_text(f"{_preface(load, options.runs)}\n{table(HEAD, rows)}")


def _row(name: str, runs: int) -> list[str]:
    microbatch_s, batch_s, *checks_s = _process(name, "seconds", runs)
    (step,), *checks = (_process(name, what, runs) for what in ("step", *CHECKS))
    size = sum(x.numel() for x in MODELS[name]()[0].parameters())
    return [
        *(name, f"{size / 1e6:.0f} M", f"{microbatch_s * 1e3:.0f} ms", f"{batch_s * 1e3:.0f} ms"),
        *(f"{check_s / microbatch_s:.1f}" for check_s in checks_s),
        *(f"{check_s / batch_s:.2f}" for check_s in checks_s),
        *(f"{step / 2**20:.0f} MiB", *(f"{peak / step:.0%}" for (peak,) in checks)),
    ]


def _process(name: str, what: str, runs: int) -> list[float]:
    options = ["--runs", str(runs), "--one", name, what]
    command = [sys.executable, "-m", "benchmarks.check", *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [float(word) for word in done.stdout.splitlines()[-1].split()]


def _preface(load: float, runs: int) -> str:
    return (
        f"# What the check costs\n\n{when_and_where('benchmarks.check')}\n"
        f"Load of the machine before the run: {load:.1f}. One core, two CPU stages, a batch of "
        f"{BATCH} in {MICROBATCHES}\nmicro-batches, medians of {runs} in turns. A step is forward "
        "and backward: of a micro-batch in plain torch,\nof a batch in the pipeline. Memory is "
        "what a step with Adam, or a check, takes at most beyond the model.\n"
    )


if __name__ == "__main__":
    main()

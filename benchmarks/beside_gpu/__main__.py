"""A GPU with little memory beside a CPU: `python -m benchmarks.beside_gpu [--write]`.

Training steps of models that need more memory than the GPU may take, in turns, against what one
would do otherwise. Needs a GPU and accelerate, which is no part of the development environment.
"""

import argparse
import copy
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import skyfx
from benchmarks.common.documents import keep, table, when_and_where

RESULT = Path(__file__).parents[2] / "docs" / "beside-gpu.md"
BY_HAND = "## Why"
"""From here on the document is written by hand."""

TURNS, MICROBATCHES, WORDS, LENGTH, SAMPLES = 5, 8, 4000, 128, 16
PARTS = (0.4, 0.7)
"""Of what the whole model takes on the GPU alone, what the GPU may take."""

Step = Callable[[], float]

TEXT = """# A GPU with little memory beside a CPU

Training steps (forward and backward of 8 micro-batches of 2 samples, 128 tokens each), in turns in
one process; medians of five after two to warm up. The GPU may take a part of what the whole model
takes on it in a step. skyfx's step in milliseconds, of the others how many times longer it takes.

- **skyfx**: `partition(model, [GPU, "cpu"], objective="step", schedule="generated")`; predicted:
  the simulated step over the measured; peak: what torch's allocator counted, over the limit.
- **even**: as many operators for each, run by skyfx.
- **device_map**: accelerate's `infer_auto_device_map` with the GPU's limit less what a step takes
  beside the parameters there, and `dispatch_model`; the parts on the CPU run on it
  (`main_device="cpu"`: parts that move to the GPU to run cannot be trained). One stage after
  another, as it does.
- **CPU**: the whole model there. **GPU**: the whole model there, as if it had the memory.

"""
HEAD = (
    *("model", "limit, MiB", "part", "stages", "skyfx, ms", "predicted", "peak"),
    *("even", "device_map", "CPU", "GPU"),
)


@dataclass(frozen=True, slots=True)
class Case:
    """A model, the class of its layers, and a batch."""

    name: str
    model: nn.Module
    layer: str
    batch: Tensor
    targets: Tensor


def cases() -> Iterator[Case]:
    """BERT of medium size, with a head for each word."""
    torch.manual_seed(0)
    words = torch.randint(0, WORDS, (SAMPLES, LENGTH))
    bert = transformers.BertConfig(
        num_hidden_layers=12,
        hidden_size=768,
        num_attention_heads=12,
        vocab_size=WORDS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = transformers.BertForMaskedLM(bert)
    yield Case("bert", model, "BertLayer", words, words)


def loss_fn(outputs: Any, targets: Tensor) -> Tensor:
    """Of each word."""
    logits = outputs.logits
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.to(logits.device).flatten())


def alone(case: Case, model: nn.Module, device: str) -> Step:
    """One micro-batch after the other on a model that is where it is to be."""

    def step() -> float:
        total = 0.0
        parts = zip(case.batch.chunk(MICROBATCHES), case.targets.chunk(MICROBATCHES), strict=True)
        for batch, targets in parts:
            loss = loss_fn(model(batch.to(device)), targets) / MICROBATCHES
            loss.backward()
            total += float(loss.detach())
        model.zero_grad()
        return total

    return step


def planned(case: Case, pipeline: skyfx.Pipeline) -> Step:
    """The same by a pipeline."""

    def step() -> float:
        loss = float(pipeline.train_step(case.batch, case.targets, loss_fn))
        for parameter in pipeline.parameters():
            parameter.grad = None
        return loss

    return step


def mapped(case: Case, limit: float, whole: float) -> Step:
    """The way of accelerate; the activations' part of the limit is kept free."""
    from accelerate import dispatch_model, infer_auto_device_map

    model = copy.deepcopy(case.model)
    parameters = sum(p.nbytes for p in model.parameters())
    room = int(limit * parameters / whole)
    places = infer_auto_device_map(
        model,
        max_memory={0: room, "cpu": 2**40},
        no_split_module_classes=[case.layer],
    )
    return alone(case, dispatch_model(model, places, main_device="cpu"), "cpu")


def taken(step: Step) -> float:
    """The most bytes of the GPU in a step, with what is there before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return float(torch.cuda.max_memory_allocated())


def timed(step: Step) -> float:
    """Seconds of a step."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def compared(case: Case) -> Iterator[Sequence[str]]:
    """A row for each limit."""
    on_gpu = alone(case, copy.deepcopy(case.model).to("cuda:0"), "cuda:0")
    on_gpu()
    whole = taken(on_gpu)
    for part in PARTS:
        limit = part * whole
        gpu = skyfx.Device("cuda:0", memory_bytes=limit)
        pipelines = {
            "skyfx": skyfx.partition(
                copy.deepcopy(case.model),
                [gpu, "cpu"],
                example_inputs=case.batch,
                objective="step",
                schedule="generated",
                optimizer_state_ratio=0.0,
                num_microbatches=MICROBATCHES,
            ),
            "even": skyfx.partition(
                copy.deepcopy(case.model),
                ["cuda:0", "cpu"],
                example_inputs=case.batch,
                strategy="even",
                num_microbatches=MICROBATCHES,
            ),
        }
        steps = {name: planned(case, pipeline) for name, pipeline in pipelines.items()}
        steps |= {
            "device_map": mapped(case, limit, whole),
            "cpu": alone(case, copy.deepcopy(case.model), "cpu"),
            "gpu": on_gpu,
        }
        losses = {name: [step(), step()] for name, step in steps.items()}
        for name, found in losses.items():
            assert abs(found[0] / losses["cpu"][0] - 1) < 1e-3, (name, found)
        there = torch.cuda.memory_allocated()
        own = sum(p.nbytes for p in pipelines["skyfx"].parameters() if p.is_cuda)
        peak = taken(steps["skyfx"]) - there + own
        times: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(TURNS):
            for name, step in steps.items():
                times[name].append(timed(step))
        plan, took = pipelines["skyfx"].plan, {x: median(y) for x, y in times.items()}
        others = (f"{took[x] / took['skyfx']:.2f}" for x in ("even", "device_map", "cpu", "gpu"))
        yield (
            *(case.name, f"{limit / 2**20:.0f}", f"{part}", str(len(plan.stages))),
            *(f"{1e3 * took['skyfx']:.0f}", f"{plan.simulated_s / took['skyfx']:.2f}"),
            *(f"{peak / limit:.2f}", *others),
        )
        for pipeline in pipelines.values():
            pipeline.close()
        del pipelines, steps
        gc.collect()


def main() -> None:
    """Print the table, and with `--write` keep it in docs/."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.beside_gpu", description="skyfx on a GPU beside a CPU"
    )
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    options = parser.parse_args()
    rows: list[Sequence[str]] = []
    for case in cases():
        for row in compared(case):
            rows.append(row)
            print(" | ".join(row), flush=True)
    gpu = torch.cuda.get_device_name(0)
    found = TEXT + table(HEAD, rows) + f"\n{gpu}; {when_and_where('benchmarks.beside_gpu')}\n"
    print(found)
    if options.write:
        keep(RESULT, found, BY_HAND)


if __name__ == "__main__":
    main()

"""One model of the sweep: captured, split in three, and held against the unsplit model.

What is compared:

    inference   outputs, bit for bit
    training    in training mode, dropouts at 0: gradients of a loss over all outputs, and buffers

Both sides run on one thread; torch adds numbers up in another order on more.
"""

import logging
import os
import re
import time
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.coverage.tiny_models import build
from skyfx.api import partition
from skyfx.passes.rng_advance import is_random
from skyfx.runtime.execution.microbatch import OutputSpec
from skyfx.runtime.model_state import preserve_state
from skyfx.runtime.pytree import flatten
from skyfx.solver.errors import CaptureError
from skyfx.tracing.adapter import has_cache
from skyfx.tracing.capture import Capture, capture
from skyfx.tracing.leaf_calls import leaf_of
from tests.support.plans import even_plan

__all__: list[str] = ["Result", "report"]

NUM_STAGES = 3
CLOSE = 1e-6
"""How far a gradient may be off, relative to its norm."""

NEGLIGIBLE = 1e-4
"""Gradients this much smaller than the model's largest are rounding errors of others."""


@dataclass(slots=True)
class Result:
    """What came out; an empty reason is a model that came out right."""

    family: str
    name: str
    runs_eagerly: bool = False
    reason: str = ""
    untrained: str = ""
    """Why it does not even train eagerly on this batch."""
    num_nodes: int = 0
    num_stages: int = 0
    whole: list[str] = field(default_factory=list)
    """Submodules that stay whole."""
    in_whole: float = 0.0
    """The part of the parameters that is theirs."""
    output_error: float = 0.0
    gradient_error: float = 0.0
    seconds: float = 0.0


def check(family: str, name: str) -> Result:
    """Build, capture, split, run and compare one model."""
    result = Result(family, name)
    try:
        model, batch = build(family, name)
        with torch.no_grad():
            model(**batch)
    except Exception as error:
        result.reason = _short(error)
        return result
    result.runs_eagerly = True
    began = time.monotonic()
    try:
        _infer(model, batch, result)
        if not result.reason:
            _train(model, batch, result)
    except Exception as error:
        result.reason = _short(error)
    result.seconds = round(time.monotonic() - began, 1)
    return result


def _infer(model: nn.Module, batch: dict[str, Tensor], result: Result) -> None:
    model.eval()
    torch.manual_seed(1)
    with torch.no_grad(), preserve_state(model):
        expected = OutputSpec.of(_without_cache(model, batch))[1]
    captured = capture(model, batch, training=False)
    _describe(model, captured, result)
    plan = even_plan(captured, NUM_STAGES, mode="inference", microbatches=1)
    if _is_random(captured):
        torch.manual_seed(1)
        with torch.no_grad(), preserve_state(model):
            found = captured.module(*captured.microbatch.tensors)
    else:
        with partition(model, ["cpu"] * NUM_STAGES, example_inputs=batch, plan=plan) as pipeline:
            found = OutputSpec.of(pipeline(batch))[1]
    result.num_stages = sum(1 for stage in plan.stages if stage.nodes)
    if [x.shape for x in found] != [x.shape for x in expected]:
        result.reason = f"{len(found)} outputs, eager has {len(expected)}, or of other shapes"
        return
    result.output_error = max(map(_error, found, expected))
    if result.output_error:
        result.reason = f"outputs differ by {result.output_error:.1e}"


def _train(model: nn.Module, batch: dict[str, Tensor], result: Result) -> None:
    _without_dropout(model)
    model.train()
    torch.manual_seed(1)
    try:
        with preserve_state(model):
            loss(_without_cache(model, batch), None).backward()
            expected = _taken(model)
    except Exception as error:
        result.untrained = _short(error)
        return
    captured = capture(model, batch)
    torch.manual_seed(1)
    if _is_random(captured):
        with preserve_state(model):
            loss(captured.module(*captured.microbatch.tensors), None).backward()
            found = _taken(model)
    else:
        plan = even_plan(captured, NUM_STAGES, microbatches=1)
        with partition(model, ["cpu"] * NUM_STAGES, example_inputs=batch, plan=plan) as pipeline:
            pipeline.train_step(batch, None, loss)
        found = _taken(model)
    if found.keys() != expected.keys():
        one = min(found.keys() ^ expected.keys())
        result.reason = f"{one} has a gradient on one side only"
        return
    result.gradient_error = _gradient_error(found, expected)
    if result.gradient_error > CLOSE:
        result.reason = f"gradients differ by {result.gradient_error:.1e}"


def _is_random(captured: Capture) -> bool:
    """Whether it draws random numbers: then only the graph as a whole draws as eager does.

    In a pipeline each random operator has a stream of its own.
    """
    return any(map(is_random, captured.module.graph.nodes))


def _without_cache(model: nn.Module, batch: dict[str, Tensor]) -> Any:
    """Call the model as a pipeline does: without storing keys and values for another call."""
    return model(**batch, **({"use_cache": False} if has_cache(model) else {}))


def loss(outputs: Any, _: Any) -> Tensor:
    """A number in which every output has a weight of its own."""
    total = torch.zeros(())
    for x in flatten(outputs)[0]:
        if isinstance(x, Tensor) and x.requires_grad:
            weights = torch.arange(x.numel(), dtype=torch.float32).cos().view(x.shape)
            total = total + (x.float() * weights).sum() / x.numel() ** 0.5
    return total


def _taken(model: nn.Module) -> dict[str, Tensor]:
    """The gradients by name, taken away from the model, and the buffers."""
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found | {n: x.to(torch.float32, copy=True) for n, x in model.named_buffers()}


def _gradient_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest relative error of a gradient or buffer, by its norm."""
    sizes = {n: float(x.norm()) for n, x in expected.items()}
    least = NEGLIGIBLE * max(sizes.values(), default=0.0)
    return max(
        0.0 if _same(found[n], x) else float((found[n] - x).norm()) / max(sizes[n], least, 1e-30)
        for n, x in expected.items()
    )


def _error(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value; 0.0 if every bit is equal."""
    if _same(found, expected):
        return 0.0
    one, other = found.double(), expected.double()
    return float((one - other).abs().max() / other.abs().max().clamp(min=1e-30)) or 1e-30


def _same(found: Tensor, expected: Tensor) -> bool:
    """Equal in every bit, or not a number at the same places."""
    if not found.is_floating_point():
        return torch.equal(found, expected)
    numbers = torch.equal(found.nan_to_num(), expected.nan_to_num())
    return numbers and torch.equal(found.isnan(), expected.isnan())


def _describe(model: nn.Module, captured: Capture, result: Result) -> None:
    leaves = [node for node in captured.ids if leaf_of(node)]
    inside = {x.target for node in leaves for x in captured.tensors_of(node)}
    numel = {f"model.{n}": p.numel() for n, p in model.named_parameters()}
    result.num_nodes = len(captured.ids)
    result.whole = [captured.ids[node].removesuffix(".forward") for node in leaves]
    result.in_whole = sum(numel.get(str(x), 0) for x in inside) / max(1, sum(numel.values()))


def _without_dropout(model: nn.Module) -> None:
    """Set every probability of dropping something to 0, in modules and in configs."""
    for module in model.modules():
        for owner in (module, getattr(module, "config", None)):
            for key, value in list(getattr(owner, "__dict__", {}).items()):
                if "drop" in key and isinstance(value, float):
                    setattr(owner, key, 0.0)
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention | nn.RNNBase):
            module.dropout = 0.0


def _short(error: Exception) -> str:
    """The first line of an error, without the folder of the packages."""
    kind = "" if isinstance(error, CaptureError) else f"{type(error).__name__}: "
    line = (str(error).strip() or repr(error)).splitlines()[0]
    return re.sub(r"/\S*/site-packages/", "", kind + line)[:300]


def report(family: str, name: str, to: Connection) -> None:
    """Check one model and send the result as a dict."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with to, open(os.devnull, "w") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
        to.send(asdict(check(family, name)))

"""What one micro-batch does to a model: in plain torch, and in the stages of a pipeline."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from skyfx.runtime.execution.microbatch import Batch, OutputSpec
from skyfx.runtime.model_state import ModelState, preserve_state
from skyfx.runtime.pipeline import Pipeline
from skyfx.tracing.capture import in_mode, on_one_device
from skyfx.tracing.exporter import has_cache

SEED = 20_220_101
"""Of torch's generator in both runs, so that dropout drops the same."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What a run gave and left.

    Attributes:
        outputs: the tensors that the model returned; empty where another process has them.
        has_gradients: whether any of them requires a gradient.
        gradients: by name of the parameters that require one and are here; None for none.
        before: buffers, attributes and generators.
        after: the same afterwards.
    """

    outputs: Sequence[Tensor]
    has_gradients: bool
    gradients: Mapping[str, Tensor | None]
    before: ModelState
    after: ModelState


def observe_plain(model: nn.Module, microbatch: Batch, *, training: bool) -> Observation:
    """Run the model itself; it is as before afterwards."""

    def run() -> list[Tensor]:
        _, outputs = plain_outputs(model, microbatch)
        loss = weighted_sum(outputs)
        if training and loss is not None:
            loss.backward()  # type: ignore[no-untyped-call]
        return outputs

    with in_mode(model, training=training), on_one_device(model):
        return _observed(model, run, training=training)


def plain_outputs(model: nn.Module, microbatch: Batch) -> tuple[OutputSpec, list[Tensor]]:
    """What the model returns for a copy of a micro-batch: its form and its tensors."""
    args, kwargs = _fresh(microbatch).restore()
    if has_cache(model):
        kwargs = {"use_cache": False} | kwargs
    return OutputSpec.of(model(*args, **kwargs))


def observe_staged(
    model: nn.Module, pipeline: Pipeline, microbatch: Batch, *, training: bool
) -> Observation:
    """Run the stages; the model is as before afterwards."""
    found: list[Tensor] = []

    def loss_fn(returned: Any, _: Any) -> Tensor:
        _, outputs = OutputSpec.of(returned)
        found[:] = outputs
        loss = weighted_sum(outputs)
        assert loss is not None
        return loss

    args, kwargs = _fresh(microbatch).restore()
    batch = kwargs or tuple(args)  # a batch is one or the other

    def run() -> list[Tensor]:
        if training:
            pipeline.train_step(batch, None, loss_fn)
        else:
            _, found[:] = OutputSpec.of(pipeline(batch))
        return found

    return _observed(model, run, training=training)


def _fresh(microbatch: Batch) -> Batch:
    """A copy, as a model may write to its inputs."""
    copies = (x.clone() if isinstance(x, Tensor) else x for x in microbatch.leaves)
    return replace(microbatch, leaves=tuple(copies))


def weighted_sum(outputs: Sequence[Tensor]) -> Tensor | None:
    """A loss with another gradient for each number of the outputs; None without gradients."""
    parts = [
        (x * _weights(x)).sum().float().cpu()
        for x in outputs
        if x.requires_grad and x.is_floating_point()
    ]
    return torch.stack(parts).sum() if parts else None


def _weights(x: Tensor) -> Tensor:
    numbers = torch.arange(x.numel(), device=x.device, dtype=torch.float32)
    return (torch.cos(numbers) / math.sqrt(max(1, x.numel()))).to(x.dtype).reshape(x.shape)


def _observed(
    model: nn.Module, run: Callable[[], Sequence[Tensor]], *, training: bool
) -> Observation:
    with _gradients_apart(model), preserve_state(model):
        torch.manual_seed(SEED)
        before = ModelState.of(model)
        with torch.set_grad_enabled(training):
            outputs = run()
        after = ModelState.of(model)
        gradients = {
            name: None if x.grad is None else x.grad.detach().cpu()
            for name, x in model.named_parameters()
            if training and not x.is_meta
        }
        has_gradients = any(x.requires_grad for x in outputs)
        copies = [x.detach().cpu() for x in outputs]
        return Observation(copies, has_gradients, gradients, before, after)


@contextmanager
def _gradients_apart(model: nn.Module) -> Iterator[None]:
    """Within it, no parameter has a gradient; afterwards each has its own again."""
    kept = [(x, x.grad) for x in model.parameters()]
    for x, _ in kept:
        x.grad = None
    try:
        yield
    finally:
        for x, gradient in kept:
            x.grad = gradient

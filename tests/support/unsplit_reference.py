"""The unsplit model, run by plain torch on the same micro-batches."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import skyfx
from skyfx.devices import inventory, resolve
from skyfx.runtime import pytree
from tests.support.models import Case

# The reference and each stage have one thread on any machine: torch adds up in another order on
# more, and bits would differ where a machine has more cores than a test has stages.
torch.set_num_threads(1)
resolve.cores = inventory.cores = lambda: 1.0


def unsplit(case: Case) -> Case:
    return Case(copy.deepcopy(case.model), case.batch, case.targets, case.loss_fn)


def parts(value: Any, size: int) -> list[Any]:
    """A tensor, or a dict of tensors, in pieces of `size` along dimension 0."""
    if isinstance(value, Tensor):
        return list(value.split(size))
    pieces = {name: parts(tensor, size) for name, tensor in value.items()}
    return [dict(zip(pieces, row, strict=True)) for row in zip(*pieces.values(), strict=True)]


def call(model: nn.Module, batch: Any) -> Any:
    return model(**batch) if isinstance(batch, Mapping) else model(batch)


def train_step(case: Case, size: int) -> Tensor:
    """As `step`, in training mode."""
    case.model.train()
    return step(case, size)


def step(case: Case, size: int) -> Tensor:
    """Gradients of one step into the model's own `.grad`; returns the mean loss."""
    total = torch.zeros(())
    for batch, targets in zip(parts(case.batch, size), parts(case.targets, size), strict=True):
        loss = case.loss_fn(call(case.model, batch), targets)
        share = loss * (len(targets) / len(case.targets))
        share.backward()
        total += share.detach()
    return total


def infer(case: Case, size: int) -> list[Tensor]:
    """All tensors that the model returns in eval mode, joined over the micro-batches."""
    case.model.eval()
    with torch.no_grad():
        pieces = [tensors(call(case.model, batch)) for batch in parts(case.batch, size)]
    return [torch.cat(column) for column in zip(*pieces, strict=True)]


def tensors(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


CLOSE = 1e-6


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))


def assert_equal_gradients(pipeline: skyfx.Pipeline, model: nn.Module) -> None:
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, parameter in pipeline.named_parameters():
        assert (parameter.grad is None) == (expected[name] is None), name
        if parameter.grad is not None:
            assert relative(parameter.grad, expected[name]) <= CLOSE, name

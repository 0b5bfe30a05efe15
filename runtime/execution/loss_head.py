"""The loss of each micro-batch, where the last stage ends."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.utils.hooks import RemovableHandle

from skyfx.runtime.batches.batch_dims import TARGETS
from skyfx.runtime.batches.microbatch import Batch
from skyfx.runtime.execution.stage import StagedModel, add_gradient, note_gradient
from skyfx.runtime.transport.local import Gradients, Values


@dataclass(slots=True)
class LossHead:
    """The loss of each micro-batch, weighted by its share of the batch.

    Before it is computed, the attributes of `model` are as forward has left them.
    """

    model: nn.Module
    loss_fn: Callable[[Any, Any], Tensor]
    targets: Sequence[Batch]
    weights: Sequence[float]
    total: Tensor | None = None

    def __call__(self, microbatch: int, staged: StagedModel, outputs: Values) -> Gradients:
        """Add this micro-batch's loss to `total`.

        Returns:
            The gradient of each output, None where the loss does not depend on it.

        Raises:
            ValueError: the loss is not a single number, or does not depend on the outputs.
        """
        gradients: list[Tensor | None] = [None] * len(outputs)
        leaves, num_outputs = [x.detach() for x in outputs], staged.outputs.num_tensors
        noting, writable = list[RemovableHandle](), _own_memory(outputs)
        for i, x in enumerate(outputs):
            if x.requires_grad and i < num_outputs:
                leaves[i] = note_gradient(leaves[i], i, gradients, writable=i in writable)
            elif x.requires_grad:  # it stays on the model, without a graph
                note = partial(add_gradient, i=i, gradients=gradients)
                noting.append(leaves[i].requires_grad_().register_hook(note))  # type: ignore[no-untyped-call]
        writes = {i: leaves[i]._version for i in writable}
        with torch.enable_grad():
            returned = staged.leave(self.model, leaves)
            _, given = self.targets[microbatch].to(outputs[0].device).restore()
            loss = self.loss_fn(staged.outputs.restore(returned), given[TARGETS])
            _check_loss(loss)
            for i in [i for i in writes if leaves[i]._version != writes[i]]:
                increment_version(outputs[i])  # what backward needs of it is gone
            share = loss * self.weights[microbatch]
            self._go_backward(share, microbatch, staged)
        share = share.detach()
        self.total = share if self.total is None else self.total + share
        for handle in noting:
            handle.remove()
        for leaf in leaves[num_outputs:]:
            leaf.grad = None
        return gradients

    def _go_backward(self, share: Tensor, microbatch: int, staged: StagedModel) -> None:
        """As `share.backward()`, but what a stage's parameter gets is added in its backward."""
        leaves = _leaves(share)
        stages = staged.stages.values() if any(isinstance(x, nn.Parameter) for x in leaves) else ()
        stage_of = {id(x): stage for stage in stages for x in stage.module.parameters()}
        read = [x for x in leaves if id(x) in stage_of]
        if not read:
            share.backward()  # type: ignore[no-untyped-call]
            return
        found = torch.autograd.grad(share, read, retain_graph=True)
        for x, gradient in zip(read, found, strict=True):
            stage_of[id(x)].add_later(microbatch, x, gradient)
        if others := [x for x in leaves if id(x) not in stage_of]:
            torch.autograd.backward(share, inputs=others)


def _leaves(of: Tensor) -> list[Tensor]:
    """The leaves of a tensor's graph."""
    met, ahead, found = set[object](), [of.grad_fn], dict[int, Tensor]()
    while ahead:
        node = ahead.pop()
        if node is None or node in met:
            continue
        met.add(node)
        ahead += [following for following, _ in node.next_functions]
        if isinstance(leaf := getattr(node, "variable", None), Tensor):
            found[id(leaf)] = leaf
    return list(found.values())


def _own_memory(outputs: Values) -> set[int]:
    """The numbers of outputs that share memory with no other."""
    dense = {i: x for i, x in enumerate(outputs) if x.layout is torch.strided}
    held = [x.untyped_storage().data_ptr() for x in dense.values()]
    return {i for i, place in zip(dense, held, strict=True) if held.count(place) == 1}


def _check_loss(loss: Any) -> None:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(
            f"loss_fn returned {found}, expected a tensor of one number, the mean loss of the "
            "micro-batch"
        )
    if not loss.requires_grad:
        raise ValueError(
            "the loss depends on no output that requires a gradient: is every parameter frozen, or "
            "does loss_fn detach the outputs?"
        )


def returned_loss(outputs: Any, _: Any) -> Tensor:
    """The loss that the model returns, as transformers' models do where the batch has labels.

    Alone, as `loss` of an object or a dict, or first in a tuple.

    Raises:
        ValueError: it returns none.
    """
    loss = getattr(outputs, "loss", outputs)
    if isinstance(outputs, dict):
        loss = outputs.get("loss")
    elif isinstance(loss, tuple | list) and loss:  # (loss, outputs)
        loss = loss[0]
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise ValueError(
            f"the model returns no loss but a {type(outputs).__name__}: pass targets and loss_fn "
            "to train_step"
        )
    return loss

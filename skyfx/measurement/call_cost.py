"""What a call of an operator costs: times, operations, and what it keeps until its backward."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from skyfx.measurement.flops import counted
from skyfx.measurement.timing import Timing, backward_of, entry_s, gradients_of, timed
from skyfx.runtime import pytree
from skyfx.tracing.leaves.leaf_calls import Leaf
from skyfx.tracing.torch_internals import NO_SAVED_TENSORS_HOOKS, allocations_of, storage_id


@dataclass(frozen=True, slots=True)
class CallCost:
    """What a call costs.

    Attributes:
        forward_s: seconds, the median of many.
        backward_s: likewise; None where no gradient flows.
        spread: the interquartile range relative to the median, the larger of both directions.
        flows: of each tensor among its outputs, whether a gradient flows back through it.
        keeps_inputs: which of its tensors autograd keeps for backward.
        keeps_outputs: which of its outputs.
        keeps_bytes: what else.
        workspace_bytes: what it takes for itself meanwhile, in training in its backward.
        flops: floating point operations, see `counting.py`.
        backward_flops: likewise; 0 where no gradient flows.
    """

    forward_s: float
    backward_s: float | None = None
    spread: float = 0.0
    flows: tuple[bool, ...] = ()
    saves_inputs: tuple[int, ...] = ()
    saves_outputs: tuple[int, ...] = ()
    saves_bytes: float = 0.0
    workspace_bytes: float = 0.0
    flops: int = 0
    backward_flops: int = 0


def measure_call(
    target: Callable[..., Any],
    args: Any,
    kwargs: Any,
    needs: Sequence[bool],
    *,
    training: bool,
    num_threads: int,
) -> CallCost:
    """Time an operator on copies of its arguments.

    Args:
        target: the operator.
        args: its positional arguments, with real values: indices must be in range.
        kwargs: its keyword arguments.
        needs: of each tensor among them, whether it requires a gradient.
        training: with gradients recorded in forward, and backward measured too. (Without them a
            forward is up to a fifth faster.)
        num_threads: torch threads to time with.
    """
    leaves, spec = pytree.tree_flatten((args, kwargs))
    following = iter(needs)
    copies = [_copy(x, next(following)) if isinstance(x, Tensor) else x for x in leaves]
    call = _Call(target, copies, spec)
    mutable = getattr(getattr(target, "_schema", None), "is_mutable", False)
    if isinstance(target, Leaf):
        mutable = any(needs[i] for i in target.seen.writes)
    # An operator that writes in place cannot be repeated on a leaf that records gradients.
    with torch.set_grad_enabled(training and not mutable):
        forward = timed(call, num_threads)
        returned, flops = counted(call)
    if not training:
        outputs = _tensors(returned)
        with torch.no_grad():
            most = workspace_bytes(call, _device(outputs))
        flows, spread = (False,) * len(outputs), forward.spread
        return CallCost(forward.median_s, None, spread, flows, workspace_bytes=most, flops=flops)
    del returned  # there may be no room for it twice
    with torch.enable_grad():
        if mutable:
            copies = [x * 1 if isinstance(x, Tensor) and x.requires_grad else x for x in copies]
        cost = _with_backward(_Call(target, copies, spec), call.leaves, forward, num_threads)
    return replace(cost, flops=flops)


@dataclass(frozen=True, slots=True)
class _Call:
    """An operator with its arguments."""

    target: Callable[..., Any]
    arguments: Sequence[Any]
    spec: pytree.TreeSpec

    def __call__(self) -> Any:
        args, kwargs = pytree.tree_unflatten(list(self.arguments), self.spec)
        return self.target(*args, **kwargs)

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the arguments."""
        return _tensors(self.arguments)

    @property
    def leaves(self) -> list[Tensor]:
        """Those that gradients are wanted for."""
        return [x for x in self.tensors if x.requires_grad]


def _with_backward(
    call: _Call, leaves: Sequence[Tensor], forward: Timing, num_threads: int
) -> CallCost:
    """The cost of a call in training; `leaves` are what its gradients end in."""
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            outputs = call()
    except RuntimeError as error:
        if NO_SAVED_TENSORS_HOOKS not in str(error):
            raise
        outputs = call()
        kept[:] = [*call.tensors, *_tensors(outputs)]  # not known, so all that can be seen
    found = _tensors(outputs)
    gradients, device = gradients_of(outputs, leaves), _device(found)
    back = Timing(0.0, 0.0)
    if gradients is not None:
        back = timed(backward_of(gradients, leaves), num_threads)
        back = replace(back, median_s=max(0.0, back.median_s - entry_s(device, num_threads)))
    storages = {storage_id(x): x.untyped_storage().nbytes() for x in kept}
    given, made = [*map(storage_id, call.tensors)], [*map(storage_id, found)]
    return CallCost(
        forward_s=forward.median_s,
        backward_s=None if gradients is None else back.median_s,
        spread=max(forward.spread, back.spread),
        flows=tuple(x.requires_grad for x in found),
        saves_inputs=tuple(i for i, x in enumerate(given) if x in storages),
        saves_outputs=tuple(i for i, x in enumerate(made) if x in storages),
        saves_bytes=sum(storages[x] for x in storages.keys() - {*given, *made}),
        workspace_bytes=workspace_bytes(gradients or call, device),
        backward_flops=0 if gradients is None else counted(gradients)[1],
    )


def workspace_bytes(call: Callable[[], Any], device: torch.device) -> float:
    """The most bytes that `call` has in use on `device`, beyond what it returns.

    A convolution copies what it reads into another layout, attention keeps sums: nobody sees those
    bytes in what goes in and comes out, but they are in use at the peak.
    """
    if device.type == "meta":
        return 0.0
    if device.type != "cpu":
        torch.accelerator.reset_peak_memory_stats(device)
        returned = call()
        most = torch.accelerator.max_memory_allocated(device)
        left = torch.accelerator.memory_allocated(device)
        del returned
        return float(most - left)
    returned, sizes = allocations_of(call)
    del returned
    in_use = most = 0
    for size in sizes:
        in_use += size
        most = max(most, in_use)
    return float(most - in_use)


def _tensors(values: Any) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(values) if isinstance(x, Tensor)]


def _copy(tensor: Tensor, needs: bool) -> Tensor:
    """A copy with an autograd graph of its own, still a parameter if it was one."""
    copy = tensor.detach().clone(memory_format=torch.preserve_format)
    is_parameter = isinstance(tensor, nn.Parameter)
    return nn.Parameter(copy, needs) if is_parameter else copy.requires_grad_(needs)


def _device(outputs: Sequence[Tensor]) -> torch.device:
    return outputs[0].device if outputs else torch.device("cpu")

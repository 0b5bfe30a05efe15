"""The most that tensors take during a call: what was there, and what torch's allocator adds."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils import _pytree as pytree


def measured_peak(
    call: Callable[[], None], states: Iterable[Mapping[str, Any]], model: nn.Module
) -> float:
    """The peak of the bytes of all tensors while `call` runs, from the model's own on.

    Args:
        call: runs a step.
        states: the optimizer's, which are there all the time.
        model: whose parameters, buffers and gradients are there.
    """
    tensors = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters())]
    tensors += [x for state in states for x in pytree.tree_leaves(dict(state))]
    there = {
        x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()
        for x in tensors
        if isinstance(x, Tensor) and not x.is_meta
    }
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return float(sum(there.values()) + most)

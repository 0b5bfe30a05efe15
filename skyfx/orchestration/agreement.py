"""All processes of a job split the same model, for the same request, by the same example."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from skyfx.runtime.batches.microbatch import Batch
from skyfx.runtime.distributed.checksum import checksum
from skyfx.runtime.distributed.process_group import ProcessGroup, as_bytes
from skyfx.runtime.distributed.roll_call import differing, enter, in_ranks, in_words
from skyfx.runtime.execution.shared_data import form_of
from skyfx.runtime.pytree import parts_of
from skyfx.solver.errors import DisagreementError

Initial = Literal["same", "first"]
"""Parameters and buffers of all processes: they have to be the same, or are the first one's."""

_Summary = tuple[str, int | None]
"""The form of a tensor and the checksum of its values, None where it has none."""


def agree(
    model: nn.Module, batch: Batch, asked: Mapping[str, Any], group: ProcessGroup, initial: Initial
) -> Batch:
    """Compare what all processes ask for, and with which model.

    Args:
        model: gets the first process's values if `initial` says so.
        batch: the example of this process.
        asked: the arguments that have to be the same, by name.
        group: all processes.
        initial: what to do if parameters or buffers differ.

    Returns:
        The example of the first process.

    Raises:
        DisagreementError: processes ask for something else, or have another model. It is raised in
            all processes.
    """
    if group.size == 1:
        return batch
    example = {
        "example_inputs": ", ".join(map(in_words, batch.tensors)),
        "nesting of example_inputs": form_of(batch.leaves, batch.spec),
    }
    name = f"{type(model).__module__}.{type(model).__qualname__}"
    enter(group, "partition", model=name, **asked, initial=initial, **example)
    group.counts.clear()
    tensors = {
        name: x for name, x in (*model.named_parameters(), *model.named_buffers()) if not is_lazy(x)
    }
    _agree_on_state(tensors, group, initial)
    return _first_example(batch, group)


def _agree_on_state(tensors: Mapping[str, Tensor], group: ProcessGroup, initial: Initial) -> None:
    """The same tensors, with the same values where they have any; or those of the first process."""
    ours = {name: _summary(x) for name, x in tensors.items()}
    held = group.all_gather_json(ours, dict[str, _Summary])
    for name in dict.fromkeys(name for each in held for name in each):
        forms = [each[name][0] if name in each else "missing" for each in held]
        if text := differing(dict(enumerate(forms))):
            raise DisagreementError(
                f"the model is not the same in all processes: {name!r} is {text}"
            )
    other: dict[str, list[int]] = {}
    for name in ours:
        sums = {rank: x for rank, each in enumerate(held) if (x := each[name][1]) is not None}
        ranks = [rank for rank, x in sums.items() if x != sums[min(sums)]]
        if ranks:
            other[name] = [min(sums), *ranks]
    if initial == "first":
        for name in other:
            _take(tensors[name], group, other[name][0])
    elif other:
        name, (first, *ranks) = next(iter(other.items()))
        more = f" (and {len(other) - 1} more)" if len(other) > 1 else ""
        raise DisagreementError(
            f"{name!r}{more} has other values on {in_ranks(ranks)} than on rank {first}.\n"
            "Seed or load the model alike in all processes, or let all take the first one's: "
            'partition(..., initial="first")'
        )


def _summary(tensor: Tensor) -> _Summary:
    fixed = "" if tensor.requires_grad or not isinstance(tensor, nn.Parameter) else ", frozen"
    return f"{in_words(tensor)}{fixed}", None if tensor.is_meta else checksum(tensor)


def _first_example(batch: Batch, group: ProcessGroup) -> Batch:
    """The example of the first process, whose shapes all have: it may be drawn at random."""
    sums = group.all_gather_json([checksum(x) for x in batch.tensors], list[int])
    if all(each == sums[0] for each in sums):
        return batch
    copies = [x.detach().clone() if isinstance(x, Tensor) else x for x in batch.leaves]
    for copy in copies:
        if isinstance(copy, Tensor):
            _take(copy, group, 0)
    return replace(batch, leaves=tuple(copies))


def _take(tensor: Tensor, group: ProcessGroup, source: int) -> None:
    """Write the values of this process into the tensor of all."""
    for part in parts_of(tensor):
        values = torch.empty(part.shape, dtype=part.dtype)
        if group.rank == source:
            values.copy_(part.detach())
        if values.numel():
            group.broadcast(source, as_bytes(values))
        if group.rank != source and not part.is_meta:
            with torch.no_grad():
                part.copy_(values)

"""Tensors that processes share among them, in all of them."""

from collections.abc import Iterator, Mapping

from torch import Tensor

from skyfx.runtime.distributed.process_group import ProcessGroup
from skyfx.runtime.pytree import empty_copy, parts_of


def gathered(
    group: ProcessGroup, tensors: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor | None]]:
    """The values of each tensor, from the first process that has any; all processes call it.

    Args:
        group: all processes.
        tensors: by name, the same names everywhere; without values where a process has none.

    Yields:
        Names and copies on the CPU, one after the other; None where no process has values.
    """
    ours = [name for name, x in tensors.items() if not x.is_meta]
    held = [set(names) for names in group.all_gather_json(ours, list[str])]
    for name, tensor in tensors.items():
        holders = [rank for rank, names in enumerate(held) if name in names]
        if not holders:
            yield name, None
            continue
        values = empty_copy(tensor)
        for part, own in zip(parts_of(values), parts_of(tensor), strict=True):
            if holders[0] == group.rank:
                part.copy_(own.detach())
            group.broadcast(holders[0], part)
        yield name, values

"""Tensors that processes share among them, in all of them."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from skyfx.runtime.distributed.process_group import ProcessGroup


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
        values = torch.empty(tensor.shape, dtype=tensor.dtype)
        if holders[0] == group.rank:
            values.copy_(tensor.detach())
        yield name, group.broadcast(holders[0], values)

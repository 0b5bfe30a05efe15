"""Moves parameters, buffers and optimizer state to the processes of another plan.

    before    process 0: a b c     process 1: d e f
    after     process 0: a b       process 1: c d e f      c goes over, with its optimizer state

A tensor that moves to a process is a new one there, since a tensor without values cannot be given
any. In the optimizers it replaces the old one.
"""

import json
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from skyfx.runtime.checkpoint.layout import form_of
from skyfx.runtime.checkpoint.state_codec import decode, encode
from skyfx.runtime.distributed.process_group import ProcessGroup, as_bytes
from skyfx.runtime.pytree import empty_copy, parts_of
from skyfx.tracing.tensor_binding import bare, in_place_of, named_tensors, rebind


def move(
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    rank_of: Mapping[str, int],
    group: ProcessGroup,
) -> Mapping[int, Tensor]:
    """Move tensors whose process changes; all processes call it.

    Args:
        model: has values for some of its tensors in this process.
        optimizers: of its parameters, which have no gradients.
        rank_of: the rank that owns each tensor from now on, by its name.
        group: all processes.

    Returns:
        The new tensors, by the `id` of the tensor that each replaces.
    """
    named = named_tensors(model, tied=True)
    held = group.all_gather_json([name for name, x in named.items() if not x.is_meta], list[str])
    holders = {name: [r for r, names in enumerate(held) if name in names] for name in named}
    replaced: dict[int, Tensor] = {}
    for name in sorted(rank_of.keys() & named.keys()):
        tensor, to = named[name], rank_of[name]
        if id(tensor) in replaced or to in holders[name]:
            continue
        source = holders[name][0]
        if group.rank == source:
            replaced[id(tensor)] = bare(tensor)
            _send(tensor, optimizers, group, to)
        elif group.rank == to:
            replaced[id(tensor)] = _received(tensor, optimizers, group, source)
        elif not tensor.is_meta:  # another copy, which only the new owner needs
            replaced[id(tensor)] = bare(tensor)
    rebind(model, replaced)
    for optimizer in optimizers:
        for some in optimizer.param_groups:
            some["params"] = [replaced.get(id(x), x) for x in some["params"]]
    return replaced


def follow(optimizers: Sequence[Optimizer]) -> None:
    """Move the optimizers' state of each parameter to the present device of the parameter."""
    for optimizer in optimizers:
        for parameter, kept in optimizer.state.items():
            for name, value in kept.items():
                # Numbers, such as the count of steps, stay where the optimizer keeps them.
                if isinstance(value, Tensor) and value.ndim and value.device != parameter.device:
                    kept[name] = value.to(parameter.device)


def _send(tensor: Tensor, optimizers: Sequence[Optimizer], group: ProcessGroup, to: int) -> None:
    tensors: dict[str, Tensor] = {}
    kept = [
        encode(dict(optimizer.state.pop(tensor, {})), str(i), tensors)
        for i, optimizer in enumerate(optimizers)
    ]
    forms = {name: form_of(x) for name, x in tensors.items()}
    text = json.dumps({"kept": kept, "forms": forms}).encode()
    group.send(torch.tensor([len(text)]), to)
    group.send(torch.frombuffer(bytearray(text), dtype=torch.uint8), to)
    for each in (tensor, *tensors.values()):
        for part in parts_of(each):
            group.send(as_bytes(part), to)


def _received(
    tensor: Tensor, optimizers: Sequence[Optimizer], group: ProcessGroup, source: int
) -> Tensor:
    length = torch.zeros(1, dtype=torch.long)
    group.receive(length, source)
    text = torch.empty(int(length), dtype=torch.uint8)
    group.receive(text, source)
    content = json.loads(bytes(text.numpy()))
    new = in_place_of(tensor, _received_into(empty_copy(tensor), group, source))
    tensors = {
        name: _received_into(torch.empty(shape, dtype=getattr(torch, kind)), group, source)
        for name, (kind, shape) in content["forms"].items()
    }
    for optimizer, kept in zip(optimizers, content["kept"], strict=True):
        if kept:
            optimizer.state[new] = decode(kept, tensors.__getitem__)
    return new


def _received_into(values: Tensor, group: ProcessGroup, source: int) -> Tensor:
    for part in parts_of(values):
        group.receive(as_bytes(part), source)
    return values

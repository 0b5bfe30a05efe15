"""Parameters, buffers and what an optimizer keeps for them, moved to where another plan has them.

    before    process 0: a b c     process 1: d e f
    after     process 0: a b       process 1: c d e f      c goes over, with its optimizer state

What comes into a process is a new tensor there, since a tensor without values cannot be given any;
the optimizers get it in the place of the old one.
"""

import json
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from skyfx.runtime.checkpoint.layout import form_of
from skyfx.runtime.checkpoint.state_codec import decode, encode
from skyfx.runtime.distributed.process_group import ProcessGroup, as_bytes
from skyfx.tracing.tensor_binding import bare, named_tensors, rebind

__all__: list[str] = ["follow", "move"]


def move(
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    rank_of: Mapping[str, int],
    group: ProcessGroup,
) -> Mapping[int, Tensor]:
    """Move what lives in another process from now on; all processes call it.

    Args:
        model: the model; here it has values for some of its tensors.
        optimizers: of its parameters, which have no gradients.
        rank_of: whose each tensor is to be, by its name.
        group: all processes.

    Returns:
        The tensors that have taken the place of others, by the `id`s of these.
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
        elif not tensor.is_meta:  # another copy of what nobody but the new one needs
            replaced[id(tensor)] = bare(tensor)
    rebind(model, replaced)
    for optimizer in optimizers:
        for some in optimizer.param_groups:
            some["params"] = [replaced.get(id(x), x) for x in some["params"]]
    return replaced


def follow(optimizers: Sequence[Optimizer]) -> None:
    """Bring what optimizers keep for a parameter to the device where that is now."""
    for optimizer in optimizers:
        for parameter, kept in optimizer.state.items():
            for name, value in kept.items():
                # Numbers, such as how many steps there were, stay where the optimizer wants them.
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
        group.send(as_bytes(each), to)


def _received(
    tensor: Tensor, optimizers: Sequence[Optimizer], group: ProcessGroup, source: int
) -> Tensor:
    length = torch.zeros(1, dtype=torch.long)
    group.receive(length, source)
    text = torch.empty(int(length), dtype=torch.uint8)
    group.receive(text, source)
    said = json.loads(bytes(text.numpy()))
    values = _receive(tensor.shape, tensor.dtype, group, source)
    is_parameter = isinstance(tensor, nn.Parameter)
    new = nn.Parameter(values, tensor.requires_grad) if is_parameter else values
    tensors = {
        name: _receive(shape, getattr(torch, kind), group, source)
        for name, (kind, shape) in said["forms"].items()
    }
    for optimizer, kept in zip(optimizers, said["kept"], strict=True):
        if kept:
            optimizer.state[new] = decode(kept, tensors.__getitem__)
    return new


def _receive(shape: Sequence[int], dtype: torch.dtype, group: ProcessGroup, source: int) -> Tensor:
    values = torch.empty(tuple(shape), dtype=dtype)
    group.receive(as_bytes(values), source)
    return values

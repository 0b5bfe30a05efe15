"""Replaces the tensors that a module holds as parameters and buffers."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from skyfx.tracing.torch_internals import own_tensors


def rebind(module: nn.Module, others: Mapping[int, Tensor]) -> None:
    """Replace the tensors with these `id`s by others, wherever the module holds them."""
    for held in own_tensors(module):
        for name, tensor in held.items():
            if id(tensor) in others:
                held[name] = others[id(tensor)]


def named_tensors(module: nn.Module, *, tied: bool = False) -> dict[str, Tensor]:
    """Its parameters and buffers by name: each once, or, `tied`, under each of its names."""
    named: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=not tied))
    return named | dict(module.named_buffers(remove_duplicate=not tied))


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on another device; a copy of a parameter is a parameter with its own gradient."""
    return in_place_of(tensor, tensor.detach().to(device))


def in_place_of(tensor: Tensor, values: Tensor) -> Tensor:
    """The values, as a parameter if the tensor is one."""
    is_parameter = isinstance(tensor, nn.Parameter)
    return nn.Parameter(values, tensor.requires_grad) if is_parameter else values


def bare(tensor: Tensor) -> Tensor:
    """A copy without values, on torch's meta device."""
    return moved(tensor, torch.device("meta"))

"""Weights of 8 bits with a scale for each row, as a tensor subclass by torch's own protocol."""

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

aten = torch.ops.aten


class Int8Weight(Tensor):
    """Holds `codes` and `scale`, and reads as the product."""

    codes: Tensor
    scale: Tensor

    def __new__(cls, codes: Tensor, scale: Tensor) -> Self:
        make: Any = Tensor._make_wrapper_subclass
        return make(cls, codes.shape, dtype=scale.dtype, device=codes.device)

    def __init__(self, codes: Tensor, scale: Tensor) -> None:
        self.codes, self.scale = codes, scale

    @classmethod
    def of(cls, weight: Tensor) -> "Int8Weight":
        scale = weight.abs().amax(1, keepdim=True) / 127
        return cls((weight / scale).round().to(torch.int8), scale)

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["codes", "scale"], None

    @classmethod
    def __tensor_unflatten__(cls, inner: dict[str, Tensor], *_: Any) -> "Int8Weight":
        return cls(inner["codes"], inner["scale"])

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.linear:
            x, weight, *rest = args
            return functional.linear(x, weight.codes.to(x.dtype) * weight.scale, *rest)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (aten.detach.default, aten.clone.default, aten._to_copy.default):
            given = {k: v for k, v in (kwargs or {}).items() if k != "dtype"}
            parts = (args[0].codes, args[0].scale)
            return cls(*(func(part, *args[1:], **given) for part in parts))
        raise NotImplementedError(f"{func} of an Int8Weight")


def quantise(model: nn.Module) -> None:
    """Freeze a model, and have the linear layers within it hold such weights."""
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(Int8Weight.of(module.weight), requires_grad=False)

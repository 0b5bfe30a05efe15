"""What one micro-batch keeps: the tensors that autograd saves from forward to backward, by node."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from skyfx.captures import Capture
from skyfx.names import is_tensor_attribute
from skyfx.outline import num_bytes

__all__: list[str] = ["Sizes", "sizes_of"]


@dataclass(frozen=True, slots=True)
class Sizes:
    """By node name: bytes saved for backward, and bytes of the gradient that flows back."""

    saved_bytes: Counter[str]
    gradient_bytes: Counter[str]


def sizes_of(captured: Capture) -> Sizes:
    """Run the graph once on the example and watch what autograd saves.

    A storage that several nodes save counts for the first of them; parameters and buffers do not
    count, they are there anyway.
    """
    if not captured.training:
        return Sizes(Counter(), Counter())
    watcher = _Watcher(captured.module)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(watcher.pack, lambda x: x):
        watcher.run(*captured.microbatch.tensors)
    return Sizes(watcher.saved_bytes, watcher.gradient_bytes)


class _Watcher(fx.Interpreter):
    """Runs a graph and notes what each node saves."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.saved_bytes = Counter[str]()
        self.gradient_bytes = Counter[str]()
        self._running = ""
        # Storages are told apart by address, so each must stay alive until the run ends.
        self._kept: dict[int, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        self._running = n.name
        value = super().run_node(n)
        if is_tensor_attribute(n):
            self._kept[_address(value)] = value
        if n.op != "output" and isinstance(value, Tensor) and value.requires_grad:
            self.gradient_bytes[n.name] = num_bytes(value)
        return value

    def pack(self, tensor: Tensor) -> Tensor:
        address = _address(tensor)
        if address not in self._kept:
            self._kept[address] = tensor
            self.saved_bytes[self._running] += tensor.untyped_storage().nbytes()
        return tensor


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()

"""What crosses from one process to the next, as one message: the values of a boundary, packed.

    byte    0 .. n-1          64 ...           next multiple of 64 ...
            one flag each     first value      second value             ...

A message costs one latency, as the cost model has it. Its length is known to both ends, who know
the shapes; the flags say what only the sender knows: which values require a gradient, and which
gradients there are none of.
"""

import itertools
import math
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

__all__: list[str] = ["MessageLayout", "TensorSpec"]

ALIGNMENT = 64
"""Bytes, as torch aligns what it allocates: kernels then add up in the same order."""


class Flag(IntEnum):
    """What the sender says of a value."""

    ABSENT = 0
    PLAIN = 1
    REQUIRES_GRAD = 2


class TensorSpec(NamedTuple):
    """What the receiver knows of a tensor.

    `strides` are None where it is contiguous. A message is, but operators go through what they are
    given, and through a dropout's mask for it, in the order in which it lies in memory.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    strides: tuple[int, ...] | None = None

    @classmethod
    def of(cls, tensor: Tensor) -> "TensorSpec":
        """What a tensor looks like, without the gaps and repetitions that it may have in memory."""
        plain = tensor.is_contiguous()
        strides = None if plain else torch.empty_like(tensor, device="meta").stride()
        return cls(tuple(tensor.shape), tensor.dtype, strides)

    @property
    def num_bytes(self) -> int:
        """Bytes, contiguous."""
        return math.prod(self.shape) * self.dtype.itemsize


class MessageLayout:
    """Where the values of a message lie; a form that is None takes no room."""

    def __init__(self, forms: Sequence[TensorSpec | None]) -> None:
        self._forms = forms
        rooms = [_aligned(0 if form is None else form.num_bytes) for form in forms]
        self._starts = list(itertools.accumulate(rooms, initial=_aligned(len(forms))))

    @classmethod
    def of(cls, values: Sequence[Tensor | None]) -> "MessageLayout":
        """The layout of such values."""
        return cls([None if x is None else TensorSpec.of(x) for x in values])

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to send."""
        return all(form is None for form in self._forms)

    def room(self) -> Tensor:
        """Room for a message."""
        return torch.empty(self._starts[-1], dtype=torch.uint8)

    def pack(self, values: Sequence[Tensor | None]) -> Tensor:
        """A message with these values, on the CPU; one that has room may still be None."""
        message = self.room()
        for i, value in enumerate(values):
            flag = Flag.ABSENT
            if value is not None:
                flag = Flag.REQUIRES_GRAD if value.requires_grad else Flag.PLAIN
                self._view(message, i).copy_(value.detach())
            message[i] = flag
        return message

    def unpack(self, message: Tensor | None) -> list[Tensor | None]:
        """The values, as views of the message or copies in their own order in memory.

        Those that required a gradient require one.
        """
        if message is None:  # there was nothing to send
            return [None] * len(self._forms)
        flags = message[: len(self._forms)].tolist()
        return [
            None
            if flag == Flag.ABSENT
            else self._value(message, i).requires_grad_(flag == Flag.REQUIRES_GRAD)
            for i, flag in enumerate(flags)
        ]

    def _value(self, message: Tensor, i: int) -> Tensor:
        form, view = self._forms[i], self._view(message, i)
        if form is None or form.strides is None:
            return view
        return torch.empty_strided(form.shape, form.strides, dtype=form.dtype).copy_(view)

    def _view(self, message: Tensor, i: int) -> Tensor:
        form, start = self._forms[i], self._starts[i]
        assert form is not None
        return message[start : start + form.num_bytes].view(form.dtype).view(form.shape)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT

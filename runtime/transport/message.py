"""Messages between processes: the values of a boundary, packed into one tensor.

    byte    0 .. n-1          64 ...           next multiple of 64 ...
            one flag each     first value      second value             ...

A message costs one latency, as in the cost model. Both ends know the shapes, and so its length. The
flags tell the receiver which values require a gradient, and which gradients are None.
"""

import itertools
import math
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

ALIGNMENT = 64
"""Bytes, as in torch's own allocations: kernels then add up in the same order."""


class Flag(IntEnum):
    """The sender's flag for a value."""

    ABSENT = 0
    PLAIN = 1
    REQUIRES_GRAD = 2


class TensorSpec(NamedTuple):
    """The form of a tensor, which the receiver knows.

    `strides` is None for a contiguous tensor. Tensors in a message are contiguous, but operators
    visit their inputs, and a dropout its mask, in the order of the memory.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    strides: tuple[int, ...] | None = None

    @classmethod
    def of(cls, tensor: Tensor) -> "TensorSpec":
        """The form of a tensor, without gaps and repetitions in its memory."""
        plain = tensor.is_contiguous()
        strides = None if plain else torch.empty_like(tensor, device="meta").stride()
        return cls(tuple(tensor.shape), tensor.dtype, strides)

    def resized(self, shape: Sequence[int]) -> "TensorSpec":
        """The form of a tensor of this shape, contiguous if that is another one."""
        return self if tuple(shape) == self.shape else TensorSpec(tuple(shape), self.dtype)

    def empty(self) -> Tensor:
        """A tensor of this form without values."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")

    @property
    def num_bytes(self) -> int:
        """Bytes, contiguous."""
        return math.prod(self.shape) * self.dtype.itemsize


class MessageLayout:
    """The positions of the values in a message; a form that is None takes no bytes."""

    def __init__(self, forms: Sequence[TensorSpec | None]) -> None:
        self._forms = forms
        sizes = [_aligned(0 if form is None else form.num_bytes) for form in forms]
        self._starts = list(itertools.accumulate(sizes, initial=_aligned(len(forms))))

    @classmethod
    def of(cls, values: Sequence[Tensor | None]) -> "MessageLayout":
        """The layout of such values."""
        return cls([None if x is None else TensorSpec.of(x) for x in values])

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to send."""
        return all(form is None for form in self._forms)

    def buffer(self) -> Tensor:
        """An empty message."""
        return torch.empty(self._starts[-1], dtype=torch.uint8)

    def pack(self, values: Sequence[Tensor | None]) -> Tensor:
        """A message with these values, on the CPU; a value may be None although it has a form."""
        message = self.buffer()
        for i, value in enumerate(values):
            flag = Flag.ABSENT
            if value is not None:
                flag = Flag.REQUIRES_GRAD if value.requires_grad else Flag.PLAIN
                self._view(message, i).copy_(value.detach())
            message[i] = flag
        return message

    def unpack(self, message: Tensor | None) -> list[Tensor | None]:
        """The values, as views of the message, or as copies where they are not contiguous.

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

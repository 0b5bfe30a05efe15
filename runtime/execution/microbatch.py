"""Batches are split into micro-batches, and their outputs are joined."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from enum import Enum
from numbers import Number
from typing import Any

import torch
from torch import Tensor

from skyfx.runtime import pytree
from skyfx.runtime.pytree import flatten, unflatten

CONSTANTS = (Number, str, bytes, Enum, type(None), torch.dtype, torch.device, torch.layout)
"""Types of arguments other than tensors: their `repr` identifies the value."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The arguments of one call of the model, flattened: tensors, constants, and their nesting.

    `batch_size` is the first tensor's size along dimension 0. Every tensor of that size is split
    along it; each micro-batch gets all other tensors and the constants as they are.
    """

    leaves: tuple[Any, ...]
    spec: pytree.TreeSpec
    batch_size: int

    @classmethod
    def of(cls, inputs: Any) -> "Batch":
        """From a tensor or dataclass, a tuple of positional or a mapping of keyword arguments.

        Raises:
            TypeError: it is of another type, or holds no tensor with a batch dimension.
        """
        if isinstance(inputs, Mapping) and all(isinstance(name, str) for name in inputs):
            return cls.of_call(**inputs)
        if isinstance(inputs, Tensor) or is_dataclass(inputs):
            return cls.of_call(inputs)
        if isinstance(inputs, (tuple, list)):
            return cls.of_call(*inputs)
        raise TypeError(
            f"the batch is a {type(inputs).__name__}, expected a tensor, a tuple of the model's "
            "positional arguments or a dict of its keyword arguments"
        )

    @classmethod
    def of_call(cls, *args: Any, **kwargs: Any) -> "Batch":
        """From the arguments of `model(*args, **kwargs)`; raises as `of` does."""
        leaves, spec = flatten((args, kwargs))
        for leaf in leaves:
            if not isinstance(leaf, (Tensor, *CONSTANTS)) and not is_dataclass(leaf):
                raise TypeError(
                    f"the batch holds an object of {type(leaf).__name__}, expected tensors, "
                    "numbers and strings, nested in tuples, lists, dicts and dataclasses"
                )
        sizes = _sizes(leaves)
        if not sizes:
            raise TypeError(
                "the batch holds no tensor with a batch dimension, expected one to be split along"
            )
        if sizes[0] == 0:
            raise ValueError("the batch holds 0 samples, expected at least 1")
        return cls(tuple(leaves), spec, sizes[0])

    @classmethod
    def of_targets(cls, targets: Any, batch_size: int) -> "Batch":
        """From the targets of a loss, split like a batch of this size.

        Raises:
            ValueError: their number differs from the number of samples.
        """
        leaves, spec = flatten(targets)
        found = _sizes(leaves)
        if found and found[0] != batch_size:
            raise ValueError(
                f"the batch holds {batch_size} samples, but the first tensor of the targets has "
                f"{found[0]}: give a target for each sample"
            )
        return cls(tuple(leaves), spec, batch_size)

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the leaves, in order."""
        return [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]

    @property
    def signature(self) -> tuple[Any, ...]:
        """All that a capture depends on: nesting, shapes, dtypes and constants. Hashable."""
        leaves = [
            (leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else (type(leaf), repr(leaf))
            for leaf in self.leaves
        ]
        return (str(self.spec), *leaves)

    def split(self, size: int) -> list["Batch"]:
        """Micro-batches of `size` samples; the last one may have fewer."""
        starts = range(0, self.batch_size, size)
        return [self._part(start, min(size, self.batch_size - start)) for start in starts]

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on the device."""
        moved = [leaf.to(device) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        return Batch(tuple(moved), self.spec, self.batch_size)

    def restore(self) -> Any:
        """The arguments or targets, nested as they were."""
        return unflatten(self.leaves, self.spec)

    def _part(self, start: int, length: int) -> "Batch":
        leaves = [
            leaf.narrow(0, start, length)
            if isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] == self.batch_size
            else leaf
            for leaf in self.leaves
        ]
        return Batch(tuple(leaves), self.spec, length)


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """The nesting of a model's return value: the positions of its tensors, and its constants.

    Any other leaf, such as a cache, is returned as None.
    """

    spec: pytree.TreeSpec
    leaves: tuple[Any, ...]
    is_tensor: tuple[bool, ...]

    @classmethod
    def of(cls, returned: Any) -> tuple["OutputSpec", list[Tensor]]:
        """The nesting of a return value, and its tensors."""
        leaves, spec = flatten(returned)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        kept = (bool, int, float, str)
        constants = tuple(leaf if isinstance(leaf, kept) else None for leaf in leaves)
        return cls(spec, constants, tuple(isinstance(leaf, Tensor) for leaf in leaves)), tensors

    @property
    def num_tensors(self) -> int:
        """The number of its tensors."""
        return sum(self.is_tensor)

    def restore(self, tensors: Sequence[Any]) -> Any:
        """The return value of one micro-batch."""
        following = iter(tensors)
        leaves = [
            next(following) if is_tensor else leaf
            for leaf, is_tensor in zip(self.leaves, self.is_tensor, strict=True)
        ]
        return unflatten(leaves, self.spec)

    def gather(self, parts: Sequence[Sequence[Tensor]], sizes: Sequence[int]) -> Any:
        """The return value of the whole batch, from the tensors and sizes of its parts.

        Raises:
            ValueError: an output has no batch dimension to join its parts along.
        """
        if len(parts) == 1:
            return self.restore(parts[0])
        columns = enumerate(zip(*parts, strict=True))
        return self.restore([_join(i, pieces, sizes) for i, pieces in columns])


def _sizes(leaves: Sequence[Any]) -> list[int]:
    return [x.shape[0] for x in leaves if isinstance(x, Tensor) and x.ndim]


def _join(i: int, pieces: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    if all(x.ndim and x.shape[0] == size for x, size in zip(pieces, sizes, strict=True)):
        return torch.cat(list(pieces))
    if all(torch.equal(x, pieces[0]) for x in pieces[1:]):
        return pieces[0]  # the same for every sample, such as a position table
    raise ValueError(
        f"output {i} of the model has shape {tuple(pieces[0].shape)} for {sizes[0]} samples: it "
        "has no batch dimension to be joined along. Call with at most that many samples at a time, "
        "or drop that output (for a loss, leave the labels out of the batch and use train_step)."
    )

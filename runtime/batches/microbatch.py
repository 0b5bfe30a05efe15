"""Batches are split into micro-batches, and their outputs are joined."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from enum import Enum
from numbers import Number
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from skyfx.runtime import pytree
from skyfx.runtime.batches.batch_dims import TARGETS, BatchDims, Leaves, Path
from skyfx.runtime.batches.output_joins import OutputJoins
from skyfx.runtime.pytree import (
    flatten,
    flatten_with_paths,
    is_object,
    replace_nodes,
    unflatten,
)

CONSTANTS = (Number, str, bytes, Enum, type(None), torch.dtype, torch.device, torch.layout)
"""Types of arguments other than tensors: their `repr` identifies the value."""

RETURNED = (bool, int, float, complex, str, slice, EllipsisType, torch.Size, torch.dtype)
"""Types of what a forward may return or leave beside tensors and None."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The arguments of one call of the model, flattened: tensors, constants, and their nesting.

    Attributes:
        leaves: tensors and constants, in order.
        spec: how they nest.
        paths: the keys that lead to each leaf, from its argument's name or position on.
        dims: the dimension of each leaf that holds the samples; None for what goes whole.
        lists: the paths of lists with an entry for each sample.
        batch_size: the number of samples.
    """

    leaves: tuple[Any, ...]
    spec: pytree.TreeSpec
    paths: tuple[Path, ...]
    dims: tuple[int | None, ...]
    lists: tuple[Path, ...]
    batch_size: int

    @classmethod
    def of(cls, inputs: Any) -> "Batch":
        """From a tensor or object with tensors, a tuple of positional or a mapping of keyword ones.

        Raises:
            TypeError: it is of another type, or holds no tensor with a batch dimension.
        """
        if isinstance(inputs, Mapping) and all(isinstance(name, str) for name in inputs):
            return cls.of_call(**inputs)
        if isinstance(inputs, Tensor) or is_dataclass(inputs) or is_object(inputs):
            return cls.of_call(inputs)
        if isinstance(inputs, (tuple, list)):
            return cls.of_call(*inputs)
        raise TypeError(
            f"the batch is a {type(inputs).__name__}, expected a tensor, a tuple of the model's "
            "positional arguments or a dict of its keyword arguments"
        )

    @classmethod
    def of_call(cls, *args: Any, **kwargs: Any) -> "Batch":
        """From the arguments of `model(*args, **kwargs)`; raises as `of` does.

        Samples are where most tensors have as many along dimension 0, until `placed` says better.
        """
        batch = cls._flat(args, kwargs)
        for leaf in batch.leaves:
            if not isinstance(leaf, (Tensor, *CONSTANTS)) and not is_dataclass(leaf):
                raise TypeError(
                    f"the batch holds an object of {type(leaf).__name__}, expected tensors, "
                    "numbers and strings, nested in tuples, lists, dicts and dataclasses"
                )
        rules = BatchDims().candidates(batch.named_leaves)
        if not rules:
            raise TypeError(
                "the batch holds no tensor with a batch dimension, expected one to be split along"
            )
        return batch.placed(rules[0])

    @classmethod
    def of_targets(cls, targets: Any) -> "Batch":
        """From the targets of a loss; where their samples are is not known yet."""
        return cls._flat((), {TARGETS: targets})

    @classmethod
    def _flat(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> "Batch":
        pairs, spec = flatten_with_paths((args, dict(kwargs)))
        paths, leaves = tuple(path[1:] for path, _ in pairs), tuple(leaf for _, leaf in pairs)
        return cls(leaves, spec, paths, (None,) * len(leaves), (), 1)

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the leaves, in order."""
        return [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]

    @property
    def named_leaves(self) -> Leaves:
        """Each leaf with its path."""
        return list(zip(self.paths, self.leaves, strict=True))

    @property
    def signature(self) -> tuple[Any, ...]:
        """All that a capture depends on: nesting, shapes, dtypes and constants. Hashable."""
        leaves = [
            (leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else (type(leaf), repr(leaf))
            for leaf in self.leaves
        ]
        return (str(self.spec), *leaves)

    def placed(self, rule: BatchDims) -> "Batch":
        """The same batch with its samples where a rule has them.

        Raises:
            ValueError: it contradicts the rule.
        """
        found = rule.placement(self.named_leaves)
        return replace(self, dims=found.dims, lists=found.lists, batch_size=found.num_samples)

    def split(self, size: int) -> list["Batch"]:
        """Micro-batches of `size` samples; the last one may have fewer."""
        starts = range(0, self.batch_size, size)
        return [self._part(start, min(size, self.batch_size - start)) for start in starts]

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on the device."""
        moved = (leaf.to(device) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves)
        return replace(self, leaves=tuple(moved))

    def restore(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The positional and the keyword arguments, nested as they were."""
        args, kwargs = unflatten(self.leaves, self.spec)
        return args, kwargs

    def _part(self, start: int, length: int) -> "Batch":
        pairs = zip(self.leaves, self.dims, strict=True)
        leaves = tuple(x if dim is None else x.narrow(dim, start, length) for x, dim in pairs)
        part = replace(self, leaves=leaves, batch_size=length)
        if not self.lists:
            return part
        # Positional arguments are the first part of a call, keyword arguments the second.
        paths = [(0 if isinstance(path[0], int) else 1, *path) for path in self.lists]
        cut = replace_nodes(part.restore(), paths, lambda entries: entries[start : start + length])
        flat, dims = self._flat(*cut), dict(zip(self.paths, self.dims, strict=True))
        own = tuple(dims[path] for path in flat.paths)
        return replace(flat, dims=own, lists=self.lists, batch_size=length)


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """The nesting of a model's return value: the positions of its tensors, and its constants.

    Any other leaf, such as a cache, is returned as None. `dropped` names the first that is more:
    a distribution, a generator, or an object of which an attribute is a tensor.
    """

    spec: pytree.TreeSpec
    leaves: tuple[Any, ...]
    is_tensor: tuple[bool, ...]
    dropped: str = ""

    @classmethod
    def of(cls, returned: Any) -> tuple["OutputSpec", list[Tensor]]:
        """The nesting of a return value, and its tensors."""
        leaves, spec = flatten(returned)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        constants = tuple(leaf if isinstance(leaf, RETURNED) else None for leaf in leaves)
        dropped = next((type(leaf).__name__ for leaf in leaves if _holds_tensors(leaf)), "")
        are_tensors = tuple(isinstance(leaf, Tensor) for leaf in leaves)
        return cls(spec, constants, are_tensors, dropped), tensors

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

    def gather(
        self,
        parts: Sequence[Sequence[Tensor]],
        sizes: Sequence[int],
        joins: OutputJoins | None = None,
    ) -> Any:
        """The return value of the whole batch, from the tensors and sizes of its parts.

        Raises:
            ValueError: an output has no batch dimension to join its parts along.
        """
        if len(parts) == 1:
            return self.restore(parts[0])
        joins, form, joined = joins or OutputJoins(), self.form, []
        for i, pieces in enumerate(zip(*parts, strict=True)):
            join = joins.of(form, i, pieces, sizes)
            if join is None and not all(torch.equal(x, pieces[0]) for x in pieces[1:]):
                raise ValueError(
                    f"output {i} of the model has shape {tuple(pieces[0].shape)} for {sizes[0]} "
                    "samples: it has no batch dimension to be joined along. Call with at most "
                    "that many samples at a time, or drop that output (for a loss, leave the "
                    "labels out of the batch and use train_step)."
                )
            # What is the same for every sample, such as a position table, is kept.
            joined.append(pieces[0] if join is None else join(pieces, sizes))
        return self.restore(joined)

    @property
    def form(self) -> str:
        """The nesting and where tensors are, as text; equal for return values that are alike."""
        return f"{self.spec} {self.is_tensor}"


def _holds_tensors(leaf: Any) -> bool:
    if isinstance(leaf, (Tensor, nn.Module, type, *RETURNED)) or "Cache" in type(leaf).__name__:
        return False
    held = getattr(leaf, "__dict__", {}).values()
    return isinstance(leaf, Distribution | Iterator) or any(isinstance(x, Tensor) for x in held)

"""How the outputs of micro-batches become those of the batch: seen once, on two micro-batches.

together         apart                                is joined
(4, 10)          (2, 10) and (2, 10)                  along dimension 0
(7, 4, 16)       (7, 2, 16) and (7, 2, 16)            along dimension 1
(28, 16)         (14, 16) and (14, 16)                along dimension 0, in rows or in blocks
(7, 16)          (7, 16) and (7, 16)                  not: the same for all samples
()               () and ()                            by the mean, if that is what it is
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class OutputJoin:
    """How the parts of an output are joined.

    Attributes:
        dim: the dimension that holds the samples; None for a number that is their mean.
        in_blocks: whether other dimensions come before the samples in it, as after
            `x.view(time * samples, ...)`.
    """

    dim: int | None
    in_blocks: bool = False

    def __call__(self, parts: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
        """The output of the batch from those of micro-batches with so many samples."""
        if self.dim is None:
            shares = [x * (size / sum(sizes)) for x, size in zip(parts, sizes, strict=True)]
            return torch.stack(shares).sum(0)
        if not self.in_blocks:
            return torch.cat(list(parts), self.dim)
        pairs = zip(parts, sizes, strict=True)
        apart = [torch.unflatten(x, self.dim, (-1, size)) for x, size in pairs]
        return torch.cat(apart, self.dim + 1).flatten(self.dim, self.dim + 1)


@dataclass(frozen=True, slots=True)
class OutputJoins:
    """How each output is joined.

    Attributes:
        default: the dimension to look at first in outputs that have not been seen.
        form: the nesting of the outputs that have been seen, as text.
        seen: for each of them, None where there is nothing to join.
    """

    default: int = 0
    form: str = ""
    seen: tuple[OutputJoin | None, ...] = ()

    def of(
        self, form: str, i: int, parts: Sequence[Tensor], sizes: Sequence[int]
    ) -> OutputJoin | None:
        """How to join output `i` of this form; None where there is nothing to join."""
        known = self.seen[i] if form == self.form else None
        is_mean = known is not None and known.dim is None
        if form == self.form and (not is_mean or parts[0].numel() == 1):
            return known
        for dim in (self.default, 0):
            pairs = zip(parts, sizes, strict=True)
            if all(-x.ndim <= dim < x.ndim and x.shape[dim] == size for x, size in pairs):
                return OutputJoin(dim % parts[0].ndim)
        return None


def possible_joins(
    together: Tensor, parts: Sequence[Tensor], sizes: Sequence[int]
) -> Iterator[OutputJoin]:
    """The ways to join parts that give the shape of the output of all samples together."""
    is_number = together.numel() == 1 and all(x.shape == together.shape for x in parts)
    if is_number and together.is_floating_point() and not together.equal(parts[0]):
        yield OutputJoin(None)
    for dim, length in enumerate(together.shape):
        lengths = [x.shape[dim] if x.ndim == together.ndim else -1 for x in parts]
        rest = {(*x.shape[:dim], *x.shape[dim + 1 :]) for x in (together, *parts)}
        if sum(lengths) != length or len(rest) > 1 or length in lengths:
            continue
        yield OutputJoin(dim)
        blocks = {n / size for n, size in zip(lengths, sizes, strict=True)}
        if len(blocks) == 1 and (number := blocks.pop()) > 1 and number.is_integer():
            yield OutputJoin(dim, in_blocks=True)

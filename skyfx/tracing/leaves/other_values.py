"""Other values for arguments, to see what depends on them.

None of them suits every code: a length of 0 is an error in one place and a mask in another. So
there are several, and an error tells nothing.

Values that were not seen are among them: code that keeps what is positive shows that it depends on
values only where some are not. What they lead to is dropped, and state is put back.

Whole numbers only become smaller, and keep their order: they may be lengths, indices, or the ends
of pieces, and code in C may read wherever they point.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from skyfx.runtime import pytree
from skyfx.runtime.batches.microbatch import Batch


def other_values(leaves: Sequence[Any], given: Any) -> Iterator[list[Any]]:
    """The leaves of arguments with other values in their tensors.

    Args:
        leaves: copies of the leaves.
        given: the arguments themselves. The numbers of a packed sequence depend on one another, and
            so stay.
    """
    parts = pytree.tree_leaves(given, is_leaf=lambda x: isinstance(x, PackedSequence))
    packed = [x for part in parts if isinstance(part, PackedSequence) for x in part]
    fixed = {id(x) for x in packed if isinstance(x, Tensor) and not x.is_floating_point()}
    originals = pytree.flatten(given)[0]
    for change in _CHANGES:
        yield [
            change(x) if isinstance(x, Tensor) and id(original) not in fixed else x
            for x, original in zip(leaves, originals, strict=True)
        ]


def _is_whole(x: Tensor) -> bool:
    return not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)


def _other(x: Tensor) -> Tensor:
    """Another value for each number."""
    return x // 2 if _is_whole(x) else ~x if x.dtype == torch.bool else -x


def _half(x: Tensor) -> Tensor:
    """Another value for about half of the numbers."""
    generator = torch.Generator().manual_seed(x.numel())
    chosen = torch.rand(x.shape, generator=generator) < 0.5
    return x if _is_whole(x) else torch.where(chosen, _other(x), x)


def _drawn(x: Tensor) -> Tensor:
    """Values that occur in it, at other places."""
    generator = torch.Generator().manual_seed(x.numel())
    index = torch.randint(max(1, x.numel()), x.shape, generator=generator)
    return x if _is_whole(x) or not x.numel() else x.flatten()[index]


def _largest(x: Tensor) -> Tensor:
    can = x.numel() and not (x.is_complex() or _is_whole(x))
    return x.amax().expand_as(x).clone() if can else x


_CHANGES = (_other, _half, _drawn, _largest, torch.zeros_like)


def move_parameters(model: nn.Module) -> None:
    """Move the parameters that train a little, as an optimizer does."""
    with torch.no_grad():
        for x in model.parameters():
            if x.requires_grad and x.is_floating_point() and not x.is_meta and x.numel():
                ways = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).reshape(x.shape)
                x.add_(ways * (x.abs() + 1e-3) / 500)


def moved(batch: Batch, factor: int) -> Batch:
    """Other values of the same forms: larger ones, or of the other sign; whole ones turned over."""

    def other(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        is_whole = _is_whole(x) or x.dtype == torch.bool
        return x * factor if not is_whole else x.flip(-1) if x.ndim else x

    return replace(batch, leaves=tuple(map(other, batch.leaves)))

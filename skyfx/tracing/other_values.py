"""Other values for a tensor, to see what depends on them.

None of them suits every code: a length of 0 is an error in one place and a mask in another. So
there are several, and an error tells nothing.
"""

import torch
from torch import Tensor


def _negative(x: Tensor) -> Tensor:
    """Another value for each number: smaller whole numbers, which are indices or lengths."""
    if x.dtype == torch.bool:
        return ~x
    return -x if x.is_floating_point() or x.is_complex() else x // 2


def _half(x: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(x.numel())
    chosen = torch.rand(x.shape, generator=generator) < 0.5
    return torch.where(chosen, _negative(x), x)


def _drawn(x: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(x.numel())
    index = torch.randint(max(1, x.numel()), x.shape, generator=generator)
    return x.flatten()[index] if x.numel() else x.clone()


def _largest(x: Tensor) -> Tensor:
    return x.amax().expand_as(x).clone() if x.numel() and not x.is_complex() else x.clone()


CHANGES = (_negative, _half, _drawn, _largest, torch.zeros_like)
"""Other values of a tensor, most of which are valid where it was."""

"""What code of a leaf asks torch for, noted and answered."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from skyfx.runtime.pytree import flatten

_GET_GRADIENT = Tensor.grad.__get__  # type: ignore[union-attr]
"""What torch calls to read `x.grad`."""

_OF_LEAVES = (_GET_GRADIENT, Tensor.__deepcopy__)
"""Functions that treat leaves of autograd's graph, such as parameters, otherwise than others."""

MOST_TIMES, MOST_CALLS = 10, 100
"""A run with other values calls so many times as many of torch's functions, and so many more."""


class UsedTensors(TorchFunctionMode):
    """Within it, counts calls of torch's functions, and notes which of these tensors they get."""

    def __init__(self, named: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.are_asked_as_leaves = False
        self.num_calls = 0
        self._name_of = {id(x): name for name, x in named.items()}

    def note_copy(self, *_: Any) -> None:
        """A parameter is deep-copied, which no mode sees."""
        self.are_asked_as_leaves = True

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num_calls += 1
        self.are_asked_as_leaves |= func == _GET_GRADIENT
        for leaf in flatten((args, kwargs))[0]:
            if id(leaf) in self._name_of:
                self.names.add(self._name_of[id(leaf)])
        return func(*args, **(kwargs or {}))


class BoundedCalls(TorchFunctionMode):
    """Within it, torch's functions are called a limited number of times.

    A loop that ends for the values that were seen may have no end for others: `while x.max() < 9`.
    """

    def __init__(self, num_usual: int) -> None:
        super().__init__()
        self._num_left = MOST_TIMES * num_usual + MOST_CALLS

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._num_left -= 1
        if self._num_left < 0:
            raise RuntimeError("code of the model does not end for other values")
        return func(*args, **(kwargs or {}))


class AskedAsLeaves(TorchFunctionMode):
    """Within it, what is no leaf of autograd's graph has no gradient, and can be deep-copied.

    A parameter of a stage may be computed, as a copy is. In plain torch it is a leaf.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _OF_LEAVES and not args[0].is_leaf:
            (x, *_) = args
            return None if func == _GET_GRADIENT else _copy(x)
        return func(*args, **(kwargs or {}))


def _copy(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_(x.requires_grad)

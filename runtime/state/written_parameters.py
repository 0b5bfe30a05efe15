"""Parameters that a forward writes to, as it runs: they are noticed and kept.

    self.weight.data.clamp_(-1, 1)
    with torch.no_grad(): key.mul_(0.9).add_(0.1 * query)
    nn.Embedding(..., max_norm=1.0)

Few forwards do that, so no copies of all parameters are made: each is copied when it is about to
change.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from skyfx.runtime.pytree import tree_leaves

GET_DATA, SET_DATA = Tensor.data.__get__, Tensor.data.__set__  # type: ignore[attr-defined]
"""What `x.data` and `x.data = y` call."""

_KEEP_VALUES = frozenset(("requires_grad_", "__init__", "__int__", "__index__", "__invert__"))


class WrittenParameters(TorchFunctionMode):
    """Within it, each parameter of a model that may be written to in this thread is kept."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model
        self._by_storage: dict[int, list[nn.Parameter]] = {}
        for x in model.parameters():
            if _address(x):
                self._by_storage.setdefault(_address(x), []).append(x)
        self._kept: list[tuple[nn.Parameter, Tensor, Callable[[], None]]] = []

    def changed(self) -> bool:
        """Whether any has other values by now."""
        return bool(self.changed_names())

    def changed_names(self) -> list[str]:
        """The names of those that have other values by now."""
        others = {id(x) for x, before, _ in self._kept if not torch.equal(x, before)}
        return [name for name, x in self._model.named_parameters() if id(x) in others]

    def restore(self) -> None:
        """Put back what they had."""
        for _, _, undo in self._kept:
            undo()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        renorms = given.get("max_norm") is not None  # an embedding, which scales its rows
        if renorms or _may_write(func, given):
            for x in tree_leaves((args if renorms else args[:1], given.get("out"))):
                if type(x) in (Tensor, nn.Parameter):
                    for parameter in self._by_storage.pop(_address(x), ()):
                        undo = parameter_restorer(parameter)
                        self._kept.append((parameter, parameter.detach().clone(), undo))
        return func(*args, **given)


def parameter_restorer(parameter: nn.Parameter) -> Callable[[], None]:
    """Puts back what a parameter has now, also where its `data` has been replaced."""
    data = parameter.data
    before = data.clone()

    def restore() -> None:
        parameter.data = data
        data.copy_(before)

    return restore


def _address(x: Tensor) -> int:
    """Where its storage is; 0 if it has none, as sparse tensors and those within vmap."""
    try:
        return x.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0


def _may_write(function: Any, kwargs: Any) -> bool:
    if function in (GET_DATA, SET_DATA) or kwargs.get("out") is not None:
        return True
    name = str(getattr(function, "__name__", ""))
    if name in _KEEP_VALUES:
        return False
    if name.startswith("__"):
        return name.startswith(("__i", "__setitem__"))
    return name.endswith("_")

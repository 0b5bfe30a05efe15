"""Models without their weights, and weights from files for the stages that need them.

    with skyfx.empty_weights():
        model = LlamaForCausalLM(config)                  no memory, however large
    partition(model, devices, weights="folder/")          each stage reads its own tensors

The files are safetensors, with the model's own names: one file, or a folder of shards. Nothing is
unpickled.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from skyfx.solver.errors import PlanError
from skyfx.tracing.tensor_binding import bare
from skyfx.tracing.torch_internals import replaced

SMALL = 2**20
"""Uninitialised tensors of at most so many elements are made anyway: they may be buffers."""


class _Empty(TorchFunctionMode):
    """Within it, large uninitialised tensors are not allocated."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty and kwargs.get("device") is None:
            made = func(*args, **kwargs | {"device": "meta"})
            if made.numel() > SMALL:
                return made
        return func(*args, **kwargs)


@contextmanager
def empty_weights() -> Iterator[None]:
    """Within it, modules are made with their buffers, but without values of their parameters.

    On torch's meta device buffers would have no values either. Files do not have those that a model
    computes, such as the frequencies of rotary embeddings.
    """
    with _registered_as(lambda x: x if x.is_meta else bare(x)), _Empty():
        yield


def _registered_as(change: Callable[[nn.Parameter], Any]) -> AbstractContextManager[None]:
    """Within it, modules register the changed parameter instead of each new one."""
    register = nn.Module.register_parameter

    def register_changed(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, None if parameter is None else change(parameter))

    return replaced(nn.Module, "register_parameter", register_changed)


class Weights:
    """Tensors by name, in one or several safetensors files, read one by one on request."""

    def __init__(self, path: str | PathLike[str]) -> None:
        """Open the file, or all files of the folder.

        Raises:
            PlanError: there is no such file, or it is not a safetensors file.
        """
        self._path, self._open = Path(path), ExitStack()
        files = sorted(self._path.glob("*.safetensors")) if self._path.is_dir() else [self._path]
        if not files:
            raise PlanError(f"{self._path} holds no file whose name ends in .safetensors")
        self._file_of: dict[str, Any] = {}
        for file in files:
            try:
                opened = self._open.enter_context(safe_open(file, framework="pt"))
            except (OSError, SafetensorError) as error:
                raise PlanError(f"{file} cannot be read as safetensors: {error}") from None
            self._file_of |= dict.fromkeys(opened.keys(), opened)

    def read(self, names: Sequence[str], like: Tensor, device: torch.device) -> Tensor:
        """The tensor under the first of these names that the files have, with the dtype of `like`.

        Raises:
            PlanError: the files have none of the names, or the tensor has another shape.
        """
        name = next((name for name in names if name in self._file_of), None)
        if name is None:
            raise PlanError(
                f"{self._path} has no tensor {names[0]!r}; it has {len(self._file_of)}, such as "
                f"{min(self._file_of, default='none')!r}: use the names of model.state_dict()"
            )
        found: Tensor = self._file_of[name].get_tensor(name)
        if found.shape != like.shape:
            raise PlanError(
                f"{self._path}: {name!r} has shape {tuple(found.shape)}, the model's "
                f"{tuple(like.shape)}"
            )
        return found.to(device, like.dtype)

    def close(self) -> None:
        """Close the files."""
        self._open.close()

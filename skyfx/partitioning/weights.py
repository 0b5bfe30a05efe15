"""Models without their weights, and weights from files for the stages that need them.

    with skyfx.empty_weights():
        model = LlamaForCausalLM(config)                  no memory, however large
    partition(model, devices, weights="folder/")          each stage reads its own tensors

The files are safetensors, with the model's own names: one file, or a folder of shards. Nothing is
unpickled.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from skyfx.runtime.device import LocalDevice
from skyfx.solver.errors import PlanError
from skyfx.tracing.tensor_binding import bare, named_tensors, rebind
from skyfx.tracing.torch_internals import registered_as

__all__: list[str] = ["Weights", "empty_weights", "place_tensors"]

SMALL = 2**20
"""Elements of an uninitialised tensor that is made all the same: it may be a buffer."""


class _Empty(TorchFunctionMode):
    """Within it, large tensors that nobody has filled are not allocated."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty and kwargs.get("device") is None:
            bare = func(*args, **kwargs | {"device": "meta"})
            if bare.numel() > SMALL:
                return bare
        return func(*args, **kwargs)


@contextmanager
def empty_weights() -> Iterator[None]:
    """Within it, modules are made without values for their parameters, but with their buffers.

    Unlike on torch's meta device, what a model computes for its buffers, such as the frequencies of
    rotary embeddings, is there: no file has it.
    """

    def without_values(parameter: nn.Parameter) -> nn.Parameter:
        values = parameter.detach().to("meta")
        return parameter if parameter.is_meta else nn.Parameter(values, parameter.requires_grad)

    with registered_as(without_values), _Empty():
        yield


class Weights:
    """Tensors by name, in one or several safetensors files; read when they are asked for."""

    def __init__(self, path: str | PathLike[str]) -> None:
        """Find what there is.

        Raises:
            PlanError: there is no such file, or it is none.
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
        """The tensor of the first of these names that there is, with the dtype of `like`.

        Raises:
            PlanError: there is none, or it has another shape.
        """
        name = next((name for name in names if name in self._file_of), None)
        if name is None:
            raise PlanError(
                f"{self._path} has no tensor {names[0]!r}; it has {len(self._file_of)}, such as "
                f"{min(self._file_of, default='none')!r}. Their names have to be the model's own"
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


def place_tensors(
    model: nn.Module,
    module: fx.GraphModule,
    owners: Mapping[str, int],
    places: Sequence[LocalDevice | None],
    weights: Weights | None = None,
) -> None:
    """Put each parameter and buffer on its stage's device.

    They stay the same objects, but for those without values, which become others, and for those of
    stages in other processes, which keep none.

    Args:
        model: the model.
        module: its captured graph, which holds the same tensors.
        owners: the stage of each of them, by its name.
        places: where each stage runs, `(num_stages,)`; None in another process.
        weights: where to read what has no values.

    Raises:
        PlanError: one has no values, and there are no weights that have it.
    """
    named = named_tensors(model, tied=True)
    aliases: dict[int, list[str]] = {}
    for name, tensor in named.items():
        aliases.setdefault(id(tensor), []).append(name)
    lasting = model.state_dict(keep_vars=True).keys()
    filled: dict[int, Tensor] = {}
    for name, stage in owners.items():
        if name not in named:
            continue
        tensor, place = named[name], places[stage]
        if place is None:
            if not tensor.is_meta:
                filled[id(tensor)] = bare(tensor)
        elif tensor.is_meta:
            names, has_lasting = [name, *aliases[id(tensor)]], name in lasting
            filled[id(tensor)] = _filled(tensor, names, place.device, weights, lasting=has_lasting)
        elif tensor.device != place.device:
            tensor.data = tensor.data.to(place.device)
    rebind(model, filled)
    rebind(module, filled)


def _filled(
    tensor: Tensor,
    names: Sequence[str],
    device: torch.device,
    weights: Weights | None,
    *,
    lasting: bool,
) -> Tensor:
    """A tensor with values in place of one without."""
    if not lasting:
        raise PlanError(
            f"buffer {names[0]!r} has no values and is in no file: make the model within "
            "skyfx.empty_weights() instead of on the meta device"
        )
    if weights is None:
        raise PlanError(
            f"{names[0]!r} has no values, the model is on the meta device: pass weights=, a "
            "safetensors file or a folder of such files"
        )
    values = weights.read(names, tensor, device)
    is_parameter = isinstance(tensor, nn.Parameter)
    return nn.Parameter(values, tensor.requires_grad) if is_parameter else values

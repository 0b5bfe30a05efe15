"""Puts each parameter and buffer of a model on the device of its stage."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from skyfx.partitioning.weights import Weights
from skyfx.runtime.device import LocalDevice
from skyfx.solver.errors import PlanError
from skyfx.tracing.tensor_binding import bare, in_place_of, named_tensors, rebind


def place_tensors(
    model: nn.Module,
    module: fx.GraphModule,
    owners: Mapping[str, int],
    places: Sequence[LocalDevice | None],
    weights: Weights | None = None,
) -> None:
    """Put each parameter and buffer on its stage's device.

    They stay the same objects, with two exceptions: tensors without values are replaced, and
    tensors of stages in other processes lose their values here.

    Args:
        model: the model.
        module: its captured graph, which holds the same tensors.
        owners: the stage of each tensor, by the tensor's name.
        places: the device of each stage, `(num_stages,)`; None in another process.
        weights: the source of values for tensors that have none.

    Raises:
        PlanError: a tensor has no values, and the weights do not have it.
    """
    named = named_tensors(model, tied=True)
    aliases: dict[int, list[str]] = {}
    for name, tensor in named.items():
        aliases.setdefault(id(tensor), []).append(name)
    saved = model.state_dict(keep_vars=True).keys()
    filled: dict[int, Tensor] = {}
    for name, stage in owners.items():
        if name not in named:
            continue
        tensor, place = named[name], places[stage]
        if place is None:
            if not tensor.is_meta:
                filled[id(tensor)] = bare(tensor)
        elif tensor.is_meta:
            names = [name, *aliases[id(tensor)]]
            if name not in saved:
                raise PlanError(
                    f"buffer {name!r} has no values and is in no file: make the model within "
                    "skyfx.empty_weights() instead of on the meta device"
                )
            filled[id(tensor)] = _read_values(tensor, names, place.device, weights)
        elif tensor.device != place.device:
            tensor.data = tensor.data.to(place.device)
    rebind(model, filled)
    rebind(module, filled)


def _read_values(
    tensor: Tensor, names: Sequence[str], device: torch.device, weights: Weights | None
) -> Tensor:
    """A tensor with values instead of one without, under the first of its names in the weights."""
    if weights is None:
        raise PlanError(
            f"{names[0]!r} has no values, the model is on the meta device: pass weights=, a "
            "safetensors file or a folder of such files"
        )
    return in_place_of(tensor, weights.read(names, tensor, device))

"""The state of a training that a checkpoint keeps, by the model's own names; see `restore`.

A process has the tensors of its own stages; those of others are on torch's meta device.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from skyfx.runtime.checkpoint.state_codec import encode
from skyfx.runtime.pytree import inner_tensors
from skyfx.runtime.rng.generator_state import generator_states
from skyfx.solver.errors import CheckpointError


class Scheduler(Protocol):
    """A learning-rate scheduler, or another object with a state."""

    def step(self) -> None:
        """Advance to the next rate."""

    def state_dict(self) -> dict[str, Any]:
        """The state to save."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Set this state."""


@dataclass(frozen=True, slots=True)
class Training:
    """The objects that are saved and loaded together."""

    model: nn.Module
    optimizer: torch.optim.Optimizer | None
    scheduler: Scheduler | None

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Parameters and buffers by name, and the first name of each tied one by its other names.

        One of a subclass, such as a quantised weight, stands by its parts: `NAME.PART`.

        Raises:
            CheckpointError: the model's state has a value that is no tensor.
        """
        names: dict[int, str] = {}
        tensors: dict[str, Tensor] = {}
        tied: dict[str, str] = {}
        for name, value in self.model.state_dict(keep_vars=True).items():
            if not isinstance(value, Tensor):
                raise CheckpointError(
                    f"the model's state_dict has {name!r}, a {type(value).__name__}: a checkpoint "
                    "holds tensors only. Leave it out of the state_dict, and save it with `extra`"
                )
            first = names.setdefault(id(value), name)
            if first == name:
                parts = inner_tensors(value)
                tensors |= {f"{name}.{part}": x for part, x in parts.items()} or {name: value}
            else:
                tied[name] = first
        return tensors, tied

    def parameter_names(self) -> dict[int, str]:
        """The name of each parameter, by its `id`.

        Raises:
            CheckpointError: the optimizer holds parameters of another model.
        """
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        groups = self.optimizer.param_groups if self.optimizer is not None else []
        held = [id(parameter) for group in groups for parameter in group["params"]]
        foreign = sum(each not in names for each in held)
        if foreign:
            raise CheckpointError(
                f"{foreign} of the optimizer's {len(held)} parameters are not the model's: make "
                "the optimizer from pipeline.parameters()"
            )
        return names


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state that one process has to save.

    Attributes:
        model: parameters and buffers by name.
        state: all other tensors, by path.
        record: all other values, as JSON.
    """

    model: dict[str, Tensor]
    state: dict[str, Tensor]
    record: dict[str, Any]

    @classmethod
    def of(
        cls, training: Training, extra: Mapping[str, Any], rank: int, *, copied: bool
    ) -> "Snapshot":
        """The training as it is now.

        Args:
            training: the objects to save.
            extra: the user's own values.
            rank: of this process; state that all processes have, the first one saves.
            copied: whether training goes on while this is written.

        Raises:
            CheckpointError: a part of it cannot be saved.
        """
        tensors, tied = training.tensors()
        model = {name: x for name, x in tensors.items() if not x.is_meta}
        state: dict[str, Tensor] = {}
        common = state if rank == 0 else {}
        record = {
            "tied": tied,
            "optimizer": _optimizer(training, state, common),
            "scheduler": _scheduler(training.scheduler, common),
            "random": encode(generator_states(), f"random/{rank}", state),
            "extra": encode(dict(extra), "extra", common),
        }
        return cls(_on_cpu(model, copied=copied), _on_cpu(state, copied=copied), record)


def merged(records: list[dict[str, Any]]) -> dict[str, Any]:
    """One record of all processes: common values from the first one, separate ones from each."""
    first = dict(records[0])
    if first["optimizer"] is not None:
        state = {k: v for each in records for k, v in each["optimizer"]["state"].items()}
        first["optimizer"] = {**first["optimizer"], "state": state}
    return first | {"random": [each["random"] for each in records]}


def _optimizer(training: Training, ours: dict[str, Tensor], common: dict[str, Tensor]) -> Any:
    optimizer, names = training.optimizer, training.parameter_names()
    if optimizer is None:
        return None
    groups = []
    for i, group in enumerate(optimizer.param_groups):
        options = {key: value for key, value in group.items() if key != "params"}
        parameters = [names[id(parameter)] for parameter in group["params"]]
        encoded = encode(options, f"groups/{i}", common)
        groups.append({"parameters": parameters, "options": encoded})
    state = {
        names[id(parameter)]: encode(kept, f"optimizer/{names[id(parameter)]}", ours)
        for parameter, kept in optimizer.state.items()
        if kept
    }
    return {"type": type(optimizer).__name__, "groups": groups, "state": state}


def _scheduler(scheduler: Scheduler | None, tensors: dict[str, Tensor]) -> Any:
    """Its state without functions, which are code of the program that loads it."""
    if scheduler is None:
        return None
    state = {key: value for key, value in scheduler.state_dict().items() if not callable(value)}
    return encode(state, "scheduler", tensors)


def _on_cpu(tensors: Mapping[str, Tensor], *, copied: bool) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU, each with separate memory, as a file needs them."""
    found, used = {}, set()
    for name, tensor in tensors.items():
        own = tensor.detach().to("cpu", copy=copied, memory_format=torch.contiguous_format)
        own = own.contiguous()
        start = own.untyped_storage().data_ptr()
        found[name] = own.clone() if start in used else own
        used.add(start)
    return found

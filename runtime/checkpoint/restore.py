"""Restoring a training from a checkpoint: checked first, then copied.

    plan = Restoring(record, index, training, rank, size)     raises, or has changed nothing yet
    for name in plan.wanted: plan.fill(name, tensor)          into the model's own tensors
    plan.finish()                                             optimizer, scheduler, generators

Parameters of other processes' stages are on torch's meta device and stay as they are.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from skyfx.runtime.checkpoint.layout import Entry, form_of
from skyfx.runtime.checkpoint.snapshot import Training
from skyfx.runtime.checkpoint.state_codec import decode
from skyfx.runtime.rng.generator_state import set_generator_states
from skyfx.solver.errors import CheckpointError


class Restoring:
    """A checkpoint that is being loaded into a training.

    Attributes:
        extra: the user's own values.
    """

    def __init__(
        self,
        record: Mapping[str, Any],
        index: Mapping[str, Entry],
        training: Training,
        rank: int,
        size: int,
    ) -> None:
        """Check that the checkpoint is of this training.

        Args:
            record: all of the checkpoint but its tensors.
            index: its tensors.
            training: receives them.
            rank: of this process.
            size: the number of processes now.

        Raises:
            CheckpointError: it is of another model or optimizer.
        """
        self._record, self._index, self._training = record, index, training
        self._tensors, self._tied = training.tensors()
        self._into = defaultdict[str, list[Tensor]](list)
        self._check_model()
        self._check_optimizer()
        if training.scheduler is not None and record["scheduler"] is None:
            raise CheckpointError("a scheduler is given, but the checkpoint was saved without one")
        for name, tensor in self._tensors.items():
            if not tensor.is_meta:
                self._into[self._first(name)].append(tensor.detach())
        self._state, self._options = self._optimizer_state()
        scheduler = None if training.scheduler is None else record["scheduler"]
        self._scheduler = decode(scheduler, self._new_tensor)
        ours = rank if len(record["random"]) == size else 0
        self._generators = decode(record["random"][ours], self._new_tensor)
        self.extra: dict[str, Any] = decode(record["extra"], self._new_tensor)

    @property
    def wanted(self) -> list[str]:
        """The names of the tensors to fill."""
        return list(self._into)

    def fill(self, name: str, value: Tensor) -> None:
        """Copy a tensor to all places that have it."""
        with torch.no_grad():
            for tensor in self._into[name]:
                tensor.copy_(value)

    def buffer(self, name: str) -> Tensor:
        """An empty tensor on the CPU, to receive one from another process."""
        entry = self._entry(name)
        return torch.empty(entry.shape, dtype=getattr(torch, entry.dtype))

    def finish(self) -> None:
        """After all tensors are filled: set optimizer, scheduler and generators."""
        optimizer, scheduler = self._training.optimizer, self._training.scheduler
        if optimizer is not None:
            number, groups = itertools.count(), []
            for group, options in zip(optimizer.param_groups, self._options, strict=True):
                numbers = [next(number) for _ in group["params"]]
                groups.append({**group, **options, "params": numbers})
            optimizer.load_state_dict({"state": {}, "param_groups": groups})
            optimizer.state.update(self._state)
        if scheduler is not None:
            scheduler.load_state_dict(scheduler.state_dict() | self._scheduler)
        set_generator_states(self._generators)

    def _check_model(self) -> None:
        tensors, tied = self._tensors, self._tied
        saved = self._record["model"] + list(self._record["tied"])
        own = [name for name, tensor in tensors.items() if not tensor.is_meta]
        missing = [name for name in own if name not in set(saved)]
        surplus = [name for name in saved if name not in tensors and name not in tied]
        if missing or surplus:
            raise CheckpointError(
                f"the checkpoint is of another model: it has {len(saved)} tensors, the model "
                f"{len(tensors) + len(tied)}; {_some(missing)} are only in the model, "
                f"{_some(surplus)} only in the checkpoint"
            )
        for name in own:
            _check_form(name, self._entry(self._first(name)), tensors[name])
        for name, first in tied.items():
            if self._first(name) != self._first(first):
                raise CheckpointError(
                    f"{name!r} and {first!r} are one tensor in the model, but two in the checkpoint"
                )

    def _check_optimizer(self) -> None:
        optimizer, saved = self._training.optimizer, self._record["optimizer"]
        if optimizer is None:
            return
        names = self._training.parameter_names()
        if saved is None:
            raise CheckpointError("an optimizer is given, but the checkpoint was saved without one")
        kind = type(optimizer).__name__
        if saved["type"] != kind:
            raise CheckpointError(
                f"the checkpoint has the state of {saved['type']}, the optimizer is {kind}"
            )
        if len(saved["groups"]) != len(optimizer.param_groups):
            raise CheckpointError(
                f"the checkpoint has {len(saved['groups'])} parameter groups, the optimizer "
                f"{len(optimizer.param_groups)}"
            )
        pairs = zip(optimizer.param_groups, saved["groups"], strict=True)
        for i, (group, then) in enumerate(pairs):
            now = {names[id(parameter)] for parameter in group["params"]}
            if other := sorted(now ^ {self._name_now(name) for name in then["parameters"]}):
                raise CheckpointError(
                    f"parameter group {i} has {len(now)} parameters, but "
                    f"{len(then['parameters'])} in the checkpoint; {_some(other)} are only in one"
                )

    def _optimizer_state(self) -> tuple[dict[Tensor, Any], list[dict[str, Any]]]:
        """The state of this process's parameters, its tensors to be filled; the groups' options."""
        optimizer, saved, found = self._training.optimizer, self._record["optimizer"], {}
        if optimizer is None:
            return {}, []
        state = {self._name_now(k): v for k, v in saved["state"].items()}
        names = self._training.parameter_names()
        all_options = [group["options"] for group in saved["groups"]]
        for group, options in zip(optimizer.param_groups, all_options, strict=True):
            on_device = bool(options.get("fused") or options.get("capturable"))
            for parameter in group["params"]:
                kept = state.get(names[id(parameter)])
                if kept is not None and not parameter.is_meta:
                    found[parameter] = decode(kept, self._beside(parameter, steps_too=on_device))
        return found, [decode(options, self._new_tensor) for options in all_options]

    def _beside(self, parameter: Tensor, *, steps_too: bool) -> Callable[[str], Tensor]:
        """Makes state for a parameter as torch does: on its device, except for counts of steps."""

        def make(path: str) -> Tensor:
            like, entry = parameter.detach(), self._entry(path)
            kind, hosted = getattr(torch, entry.dtype), path.endswith("/step") and not steps_too
            device = torch.device("cpu") if hosted else like.device
            if list(like.shape) == entry.shape:  # in the parameter's own layout
                tensor = torch.empty_like(like, dtype=kind, device=device)
            else:
                tensor = torch.empty(entry.shape, dtype=kind, device=device)
            self._into[path].append(tensor)
            return tensor

        return make

    def _new_tensor(self, path: str) -> Tensor:
        tensor = self.buffer(path)
        self._into[path].append(tensor)
        return tensor

    def _entry(self, path: str) -> Entry:
        if path not in self._index:
            raise CheckpointError(f"the checkpoint is damaged: it has no tensor {path!r}")
        return self._index[path]

    def _first(self, name: str) -> str:
        return str(self._record["tied"].get(name, name))

    def _name_now(self, name: str) -> str:
        """The present name of a parameter of the checkpoint."""
        return self._tied.get(name, name)


def _check_form(name: str, entry: Entry, tensor: Tensor) -> None:
    kind, shape = form_of(tensor)
    if (entry.shape, entry.dtype) != (shape, kind):
        raise CheckpointError(
            f"{name!r} is {entry.dtype} of shape {tuple(entry.shape)} in the checkpoint, but "
            f"{kind} of shape {tuple(shape)} in the model"
        )


def _some(names: Sequence[str]) -> str:
    """Their number, and a few of them."""
    return f"{len(names)} ({', '.join(names[:3])})" if names else "0"

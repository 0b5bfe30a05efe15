"""The model split for each mode and shape of micro-batch that has come so far."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from skyfx.runtime.execution.microbatch import Batch
from skyfx.runtime.execution.step import StagedModel, autocast_here

SplitFn = Callable[[Batch, bool], StagedModel]
"""Splits the model for micro-batches like this one, for training or not, as the plan says."""


class SplitCache:
    """The splits that have been made, until the model has other tensors."""

    def __init__(self, model: nn.Module, split: SplitFn) -> None:
        """Split this model with this function."""
        self._model, self._split = model, split
        self._made: dict[Any, StagedModel] = {}
        self._tensors_then: list[tuple[Tensor, torch.dtype]] = []

    def put(self, part: Batch, staged: StagedModel, *, training: bool) -> None:
        """Add a split that has been made for micro-batches like this one."""
        self._made[self._setting(training), part.signature] = staged
        self._tensors_then = self._tensors()

    def of(self, parts: Sequence[Batch], *, training: bool) -> list[StagedModel]:
        """The split of each micro-batch."""
        self._forget_other_tensors()
        setting = self._setting(training)
        keys = [(setting, part.signature) for part in parts]
        for key, part in zip(keys, parts, strict=True):
            if key not in self._made:
                self.put(part, self._split(part, training), training=training)
        return [self._made[key] for key in keys]

    def _setting(self, training: bool) -> Any:
        """The part of a key that is the same for all micro-batches: looked up once per batch."""
        modes = [module.training for module in self._model.modules()]
        # A model in eval mode is trained as a whole; in training mode, parts of it may be in eval.
        parts_in_eval = tuple(modes) if training and modes[0] and not all(modes) else ()
        return training, parts_in_eval, autocast_here()

    def _forget_other_tensors(self) -> None:
        """Drop the splits if the model has other parameters or buffers than at its last split.

        `load_state_dict(assign=True)` gives it others, and `half()` other buffers.
        """
        now, then = self._tensors(), self._tensors_then
        if len(now) != len(then) or any(
            a is not b or kind != kind_then
            for (a, kind), (b, kind_then) in zip(now, then, strict=True)
        ):
            self._made.clear()

    def _tensors(self) -> list[tuple[Tensor, torch.dtype]]:
        return [(x, x.dtype) for x in (*self._model.parameters(), *self._model.buffers())]

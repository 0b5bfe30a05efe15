"""The model split for each mode and shape of micro-batch that has come so far."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from skyfx.runtime.execution.microbatch import Batch
from skyfx.runtime.execution.step import StagedModel, autocast_here

__all__: list[str] = ["SplitCache", "Splitter"]

Splitter = Callable[[Batch, bool], StagedModel]
"""Splits the model for micro-batches like this one, for training or not, the way the plan says."""


class SplitCache:
    """What a splitter has made, until the model has other tensors."""

    def __init__(self, model: nn.Module, splitter: Splitter) -> None:
        """Split this model, by this splitter."""
        self._model, self._splitter = model, splitter
        self._made: dict[Any, StagedModel] = {}
        self._tensors_then: list[tuple[Tensor, torch.dtype]] = []

    def of(self, parts: Sequence[Batch], *, training: bool) -> list[StagedModel]:
        """The split of each micro-batch; looking through the modules is done once for all."""
        self._forget_other_tensors()
        modes = [module.training for module in self._model.modules()]
        # A model in eval mode is trained as a whole; in training mode, parts of it may be in eval.
        parts_in_eval = tuple(modes) if training and modes[0] and not all(modes) else ()
        found, around = [], autocast_here()
        for part in parts:
            key = (training, part.signature, parts_in_eval, around)
            if key not in self._made:
                self._made[key] = self._splitter(part, training)
                self._tensors_then = self._tensors()
            found.append(self._made[key])
        return found

    def _forget_other_tensors(self) -> None:
        """Drop the splits if the model has other parameters or buffers than when it was split.

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

"""A loss that draws random numbers, beside stages that draw."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakSet

import torch
from torch import nn

from skyfx.runtime.rng import generator_lending

logger = logging.getLogger(__name__)

_told: WeakSet[nn.Module] = WeakSet()
"""Models of whose loss it has been said."""


@dataclass(slots=True)
class LossDraws:
    """Whether the loss of a step draws; its first call shows it."""

    does: bool = True

    @contextmanager
    def within(self, model: nn.Module) -> Iterator[None]:
        """Lend no generator during a loss that draws."""
        if not self.does:
            yield
            return
        with generator_lending.lend_none():
            before = torch.get_rng_state()
            yield
            self.does = not torch.equal(before, torch.get_rng_state())
        if self.does and model not in _told:
            _told.add(model)
            logger.warning(
                "loss_fn draws other random numbers than plain torch, as %s draws too: stages draw "
                "before it. Draw them in the model's forward, or pass them with the targets",
                type(model).__name__,
            )

"""Segments of a stage that keep nothing for backward but their inputs, and then run once more.

    forward     x --[ a  b  c ]--> y        x is kept; what a, b and c save is dropped
    backward    x --[ a  b  c ]             once more, from x and from the same random numbers,
                gy --> gx                   and then backward as without all this

torch's checkpoints do it: autograd's graph is that of the first run, so gradients add up in the
same order, to the same bits. They would draw other random numbers the second time.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import fx, nn
from torch.utils.checkpoint import checkpoint

from skyfx.runtime.rng import generator_lending


class Recomputed(nn.Module):
    """A segment of a stage's graph."""

    def __init__(self, segment: fx.GraphModule) -> None:
        super().__init__()
        self.segment = segment

    def forward(self, *values: Any) -> Any:
        """What the segment returns."""
        if not torch.is_grad_enabled():
            return self.segment(*values)
        return checkpoint(
            self.segment,
            *values,
            use_reentrant=False,
            preserve_rng_state=False,  # the state of this thread's source is repeated instead
            context_fn=_two_runs,
        )


def _two_runs() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """The contexts of both runs; the second draws what the first has drawn."""
    source = generator_lending.current_source()
    if source is None:  # as in measuring, where numbers do not matter
        return nullcontext(), nullcontext()
    noted = generator_lending.NotedSource(source)
    repeated = generator_lending.RepeatedSource(noted.starts)
    return generator_lending.use_source(noted), generator_lending.use_source(repeated)

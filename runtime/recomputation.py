"""Segments of a stage that keep nothing for backward but their inputs, and then run once more.

    forward     x --[ a  b  c ]--> y        x is kept; what a, b and c save is dropped
    backward    x --[ a  b  c ]             once more, from x and from the same random numbers,
                gy --> gx                   and then backward as without all this

torch's checkpoints do it: autograd's graph is that of the first run, so gradients add up in the
same order, to the same bits. They would draw other random numbers the second time, and write
buffers twice.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint

from skyfx.runtime.rng import generator_lending


class Recomputed(nn.Module):
    """A segment of a stage's graph; its last `num_written` inputs are buffers that it writes."""

    def __init__(self, segment: fx.GraphModule, num_written: int = 0) -> None:
        super().__init__()
        self.segment = segment
        self.num_written = num_written

    def forward(self, *values: Any) -> Any:
        """What the segment returns."""
        if not torch.is_grad_enabled():
            return self.segment(*values)
        first = len(values) - self.num_written
        return checkpoint(
            _Runs(self.segment, values[first:]),
            *values[:first],
            use_reentrant=False,
            preserve_rng_state=False,  # the state of this thread's source is repeated instead
            context_fn=_two_runs,
        )


class _Runs:
    """The runs of a micro-batch: the first one writes buffers, the others copies of them."""

    def __init__(self, segment: fx.GraphModule, buffers: Sequence[Tensor]) -> None:
        self._segment = segment
        self._buffers: Sequence[Tensor] | None = buffers
        self._before = [buffer.clone() for buffer in buffers]

    def __call__(self, *values: Any) -> Any:
        buffers, self._buffers = self._buffers, None
        if buffers is None:
            buffers = [before.clone() for before in self._before]
        return self._segment(*values, *buffers)


def _two_runs() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """The contexts of both runs; the second draws what the first has drawn."""
    source = generator_lending.current_source()
    if source is None:  # as in measuring, where numbers do not matter
        return nullcontext(), nullcontext()
    noted = generator_lending.NotedSource(source)
    repeated = generator_lending.RepeatedSource(noted.starts)
    return generator_lending.use_source(noted), generator_lending.use_source(repeated)

"""Refuses side effects of a forward that a captured graph would leave out in silence.

The graph holds operators. It has no place for

    random numbers from outside torch  `random`, `numpy.random`
    the state of Python objects        `self.calls += 1`, `self.mean = new_mean`

and would repeat the state that it met when the model was captured.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from skyfx.runtime.rng.generator_state import comparable_states, preserve_generators
from skyfx.solver.errors import CaptureError
from skyfx.tracing.torch_internals import checked_draws


@contextmanager
def refuse_foreign_rng() -> Iterator[None]:
    """Within it, random numbers that are not torch's own are refused, in this thread.

    Raises:
        CaptureError: forward draws from Python's or numpy's global generator. Draws by functions
            that were imported by their names are noticed at the end.
    """

    def refuse(name: str, *args: Any) -> None:
        raise CaptureError(
            f"forward draws from {name}, so every step would repeat one draw (a skipped layer, a "
            "mask). Put the lines that draw into the forward of a submodule, which then stays whole"
        )

    with preserve_generators(with_torch=False):
        before = comparable_states()
        with checked_draws(refuse):
            yield
        after = comparable_states()
    for name in ("random", "numpy.random"):
        if before[name] != after[name]:
            refuse(name)

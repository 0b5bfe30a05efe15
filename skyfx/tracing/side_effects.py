"""Refuses side effects of a forward that a captured graph would leave out in silence.

The graph holds operators. It has no place for

    custom gradients                   autograd functions, hooks
    random numbers from outside torch  `random`, `numpy.random`
    the state of Python objects        `self.calls += 1`, `self.mean = new_mean`

and would repeat the state that it met when the model was captured.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from skyfx.runtime.rng.generator_state import comparable_states, preserve_generators
from skyfx.solver.errors import CaptureError
from skyfx.tracing.torch_internals import checked_draws, checked_gradients, checked_vmap


def refuse_custom_autograd() -> AbstractContextManager[None]:
    """Within it, a gradient that is not torch's own is refused, in this thread.

    torch.export looks into an autograd function's forward and forgets its backward.
    """

    def check(what: str, args: Sequence[Any]) -> None:
        differentiable = any(isinstance(x, Tensor) and x.requires_grad for x in args)
        if differentiable and torch.is_grad_enabled():
            raise CaptureError(
                f"{what} would be lost, because a captured graph has the gradients of torch's "
                "operators only. Write it with torch's operators, or make it one by "
                "torch.library.custom_op and register_autograd; remove backward hooks; checkpoint "
                "with use_reentrant=False"
            )

    return checked_gradients(check)


def refuse_vmap() -> AbstractContextManager[None]:
    """Within it, torch.vmap is refused, in this thread.

    It changes what the operators inside compute, and they must not be cut apart.
    """

    def refuse(*args: Any) -> None:
        raise CaptureError(
            "forward uses torch.vmap, and a captured graph cannot be cut inside it: write the "
            "batch dimension out"
        )

    return checked_vmap(refuse)


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
            "mask). Draw with torch, or turn that off while training"
        )

    with preserve_generators(with_torch=False):
        before = comparable_states()
        with checked_draws(refuse):
            yield
        after = comparable_states()
    for name in ("random", "numpy.random"):
        if before[name] != after[name]:
            refuse(name)

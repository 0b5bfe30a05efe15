"""Refuses side effects of a forward that a captured graph would leave out in silence.

The graph holds operators. It has no place for

    random numbers from outside torch  `random`, `numpy.random`
    a fork of torch's own generator    `with torch.random.fork_rng()`
    the state of Python objects        `self.calls += 1`, `self.mean = new_mean`

and would repeat the state that it met when the model was captured.
"""

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import numpy
import torch
from torch import nn

from skyfx.runtime.rng.generator_state import comparable_states, preserve_generators
from skyfx.runtime.state.contents import is_closed, is_foundation
from skyfx.solver.errors import CaptureError
from skyfx.tracing.torch_internals import checked_calls

_drawless: dict[str, int] = {}
"""Files of installed packages that have no function that draws, and how many names they had then:
there are thousands of them, and few draw."""


@contextmanager
def checked_draws(check: Callable[..., None]) -> Iterator[None]:
    """Within it, `check` gets each draw of this thread from `random` or `numpy.random` first.

    It gets the name of that Python module and the arguments. A file that has imported a function
    by its name is checked as well.
    """
    owners: dict[ModuleType, Any] = {random: random._inst, numpy.random: numpy.random.mtrand._rand}
    drawing = {
        id(value): partial(check, module.__name__)
        for module, generator in owners.items()
        for name, value in vars(module).items()
        if getattr(value, "__self__", None) is generator and "state" not in name
    }
    users = [x for name, x in list(sys.modules.items()) if not is_foundation(name)]
    with ExitStack() as stack:
        for module in (*owners, *(x for x in users if isinstance(x, ModuleType))):
            if _drawless.get(module.__name__) == len(vars(module)):
                continue
            names = list(vars(module).items())
            if drawing.keys().isdisjoint(id(value) for _, value in names):
                if is_closed(module):
                    _drawless[module.__name__] = len(names)
                continue
            for name, value in names:
                if id(value) in drawing:
                    stack.enter_context(checked_calls(module, name, drawing[id(value)]))
        yield


@contextmanager
def refuse_forked_rng() -> Iterator[None]:
    """Within it, a fork of torch's generator is refused, in this thread: a graph has none."""

    def refuse(*_: Any) -> None:
        raise CaptureError(
            "forward draws from a fork of torch's generator. Put the lines that do into the "
            "forward of a submodule, which then stays whole"
        )

    with checked_calls(torch.random, "fork_rng", refuse):
        yield


@contextmanager
def refuse_foreign_rng(model: nn.Module) -> Iterator[None]:
    """Within it, random numbers that are not torch's own are refused, in this thread.

    But for those with which beartype picks the items of a list whose types it checks.

    Args:
        model: whose forward runs.

    Raises:
        CaptureError: forward draws from Python's or numpy's global generator. Draws by functions
            that are kept elsewhere than in a file of Python are noticed at the end.
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
        if before[name] != after[name] and not (name == "random" and checks_types(model)):
            refuse(name)


def checks_types(model: nn.Module) -> bool:
    """Whether a forward is wrapped by beartype, which draws by a function of its own."""
    codes = (getattr(type(x).forward, "__code__", None) for x in model.modules())
    return any(code and code.co_filename.startswith("<@beartype(") for code in codes)

"""Refuses side effects of a forward that a captured graph would leave out in silence.

The graph holds operators. It has no place for

    random numbers from outside torch  `random`, `numpy.random`
    the state of Python objects        `self.calls += 1`, `self.mean = new_mean`

and would repeat the state that it met when the model was captured.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

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


def numbers(model: nn.Module) -> dict[str, float]:
    """The plain numbers that the model's modules hold, by name, such as counters and sizes."""
    return {
        f"{path}.{key}" if path else key: value
        for path, module in model.named_modules()
        for key, value in vars(module).items()
        if type(value) in (bool, int, float) and key != "training"
    }


def set_numbers(model: nn.Module, values: Mapping[str, float]) -> None:
    """Give the model's modules these numbers."""
    for name, value in values.items():
        path, _, key = name.rpartition(".")
        setattr(model.get_submodule(path), key, value)


def check_numbers(first: Mapping[str, float], second: Mapping[str, float]) -> None:
    """Refuse a number that forward has changed in both of two runs, such as a counter.

    Raises:
        CaptureError: names the first one, and the cure.
    """
    for name in first.keys() & second.keys():
        raise CaptureError(
            f"forward changes the number {name!r} ({first[name]}, then {second[name]}), which a "
            "captured graph cannot: keep it in a buffer, and write to that in place"
        )


def check_buffers(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
    """Refuse buffers that forward has replaced.

    Raises:
        CaptureError: names the first one, and the cure.
    """
    for name in before.keys() & after.keys():
        if before[name] is not after[name]:
            raise CaptureError(
                f"forward assigns buffer {name!r} anew, which a captured graph cannot do: write to "
                f"it in place, as by `self.{name.rpartition('.')[2]}.copy_(...)`"
            )

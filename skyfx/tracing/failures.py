"""What is said of a model that cannot be captured: what, the model's line, and the cure."""

import inspect
import re
import sysconfig
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from skyfx.runtime.batches.microbatch import Batch
from skyfx.runtime.execution.assigned_attributes import place_of
from skyfx.runtime.state.reachable_state import reachable_functions
from skyfx.solver.errors import CaptureError, SkyfxError
from skyfx.tracing.data_dependence import is_library_file

CURES = {
    r"aten\.equal": (
        "forward registers a buffer, or puts another tensor in its place",
        "Register it in `__init__`, and write to it in place, as by `self.mean.copy_(...)`",
    ),
    r"fake tensor in the exported program constant's list": (
        "a value of forward is computed where the capture does not see it, as in another thread",
        "Compute it in the thread of forward",
    ),
}
"""What torch's errors without a line mean, and the cure, by a part of their text."""

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


class FinalError(CaptureError):
    """Capturing fails because of what forward does, and no part that stays whole would help."""


def capture_failure(model: nn.Module, microbatch: Batch, error: Exception) -> CaptureError:
    """The error that says why a model cannot be captured."""
    shapes = ", ".join(str(tuple(x.shape)) for x in microbatch.tensors)
    of = f"{type(model).__name__} cannot be captured with inputs of shapes {shapes}"
    notes = getattr(error, "__notes__", [])  # what blocks, beside the first obstacle
    return CaptureError("\n".join([f"{of}{model_line(error)}: {_said(error)}", *notes]))


def run_failure(node: fx.Node, name: str, error: Exception) -> Exception:
    """The error that says why a node does not run alone on the values that come to it.

    Args:
        node: of a captured graph.
        name: what it is called.
        error: what it has raised; skyfx's own errors and those of memory stay as they are.
    """
    if isinstance(error, SkyfxError | MemoryError | torch.OutOfMemoryError):
        return error
    place = model_line(error) or _line_of(node)
    return CaptureError(
        f"{name!r} does not run apart from what is around it{place}: {_said(error)}\n"
        "Put it with what it needs into the forward of a submodule, which then stays whole"
    )


def model_line(error: Exception) -> str:
    """The innermost line of code that belongs neither to torch, Python nor skyfx."""
    frames = traceback.extract_tb(error.__traceback__)
    return _innermost([(frame.filename, frame.lineno or 0) for frame in frames])


def _line_of(node: fx.Node) -> str:
    """The line of the model that a node comes from."""
    found = _FRAME.findall(node.meta.get("stack_trace") or "")
    return _innermost([(file, int(line)) for file, line in found])


def _innermost(frames: list[tuple[str, int]]) -> str:
    python = Path(sysconfig.get_path("stdlib"))
    own = [
        (file, line)
        for file, line in frames
        for path in [Path(file)]
        if path.is_absolute()  # and not `<string>`, which torch has generated
        and not is_library_file(file)
        and (not path.is_relative_to(python) or "site-packages" in path.parts)
    ]
    return f", at {own[-1][0]}:{own[-1][1]}" if own else ""


def _said(error: Exception) -> str:
    """The first line of an error, or what it means; of skyfx's own two."""
    text = str(error).strip() or repr(error)
    if isinstance(error, CaptureError):
        return "\n".join(text.splitlines()[:2])
    for pattern, (meaning, cure) in CURES.items():
        if re.search(pattern, text):
            return f"{meaning}.\n{cure}"
    return f"{type(error).__name__}: {text.splitlines()[0]}"


def line_of(model: nn.Module, name: str) -> str:
    """Where code assigns an attribute, or a variable, as ` at FILE:LINE`, if it is found."""
    if ":" in name:
        key, before, functions = name.rpartition(": ")[2], r"\b", reachable_functions(model)
    else:
        owner, key = place_of(model, name)
        before, functions = r"\bself\.", _methods(owner)
    mentions = rf"{before}{re.escape(key)}\b"
    for pattern in (rf"{mentions}(\[.*\])?\s*([-+*/@|&^%]|//|\*\*)?=(?!=)", mentions):
        for function in functions:
            try:
                lines, begin = inspect.getsourcelines(function)
            except OSError:
                continue
            for i, line in enumerate(lines):
                if re.search(pattern, line):
                    return f" at {inspect.getsourcefile(function)}:{begin + i}"
    return ""


def _methods(owner: Any) -> list[Any]:
    found = inspect.getmembers(type(owner), inspect.isfunction)
    is_torchs = {name: x.__module__.partition(".")[0] == "torch" for name, x in found}
    return [x for name, x in found if name != "__init__" and not is_torchs[name]]

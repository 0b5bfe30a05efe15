"""Tracing without code and lines that nobody reads.

torch.export changes its graphs a dozen times, and writes the code of all each time.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import fx

from skyfx.tracing.torch_internals import lines_on_demand, replaced


@contextmanager
def late_code() -> Iterator[None]:
    """Within it, a graph module of this thread writes no code before it is called.

    One that is used afterwards is to be recompiled then.
    """
    here, recompile = threading.get_ident(), fx.GraphModule.recompile

    def on_call(module: fx.GraphModule, *args: Any, **kwargs: Any) -> Any:
        recompile(module)
        return type(module).forward(module, *args, **kwargs)

    def later(module: fx.GraphModule) -> Any:
        if threading.get_ident() != here:
            return recompile(module)
        type(module).forward = on_call  # each graph module has a class of its own
        return None

    with replaced(fx.GraphModule, "recompile", later), lines_on_demand():
        yield

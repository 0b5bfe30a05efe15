"""Which forward hooks of a model a run calls: a stage runs operators, and calls none.

What a hook does to tensors is in the captured graph, and what it leaves on Python's variables comes
back. Only what it does beside them, such as to print, is missing.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from skyfx.runtime.reachable_state import hooks_of


def hooks_by_name(model: nn.Module) -> dict[str, Any]:
    """The forward hooks of a model that are not torch's own, by what a message calls them."""
    return {
        f"the hook {_name(hook)} of {path!r}": hook
        for path, module in model.named_modules()
        for hook in hooks_of(module)
        if not str(getattr(hook, "__module__", "")).startswith("torch.")
    }


@contextmanager
def counted_calls(model: nn.Module) -> Iterator[Counter[str]]:
    """How often each of them is called within it, in any thread."""
    names = {id(hook): name for name, hook in hooks_by_name(model).items()}
    counts: Counter[str] = Counter()

    def count(module: nn.Module, _: Any) -> None:
        # A node that runs code of the model has a copy of its module, with the same functions.
        counts.update(names[id(hook)] for hook in hooks_of(module) if id(hook) in names)

    handle = register_module_forward_pre_hook(count)
    try:
        yield counts
    finally:
        handle.remove()


def _name(hook: Any) -> str:
    return str(getattr(hook, "__qualname__", type(hook).__name__)).rpartition(".")[2]

"""Code of a model that a leaf calls again and again, with tensors that it is given."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor, is_grad_enabled, nn
from torch.autograd.function import BackwardCFunction

from skyfx.runtime.execution.assigned_attributes import AttributeChange
from skyfx.solver.errors import CaptureError
from skyfx.tracing.effects.attribute_watch import AttributeWatch
from skyfx.tracing.failures import line_of
from skyfx.tracing.leaves.call_sites import copy_of
from skyfx.tracing.leaves.leaf_modes import AskedAsLeaves
from skyfx.tracing.tensor_binding import named_tensors
from skyfx.tracing.torch_internals import own_tensors


class BoundCode:
    """A function, or a method of a module (by name, or itself), called without the module's hooks.

    Each call has a module of its own, which holds the tensors of the last run: code that runs again
    in backward, as checkpointing does, finds them there.

    Attributes:
        is_kept: whether backward reads what a run leaves on attributes; then each run has a module
            of its own.
        asks_leaves: whether it does what only leaves of autograd's graph allow, such as reading a
            parameter's gradient, as `module.to` does.
    """

    is_kept = False
    asks_leaves = False

    def __init__(self, owner: nn.Module | None, function: Callable[..., Any] | str) -> None:
        self.owner = owner
        self._function = function
        self._holders = {} if owner is None else _holders(owner)

    def __call__(
        self, state: Mapping[str, Tensor], args: Any, kwargs: Any
    ) -> tuple[Any, Mapping[str, AttributeChange]]:
        """Call it with these parameters and buffers, by name.

        Returns:
            The result, and what the call has left on attributes, which are as before.
        """
        if self.owner is None:
            return self._function(*args, **kwargs), {}  # type: ignore[operator]
        if self.is_kept and is_grad_enabled():
            copied = copy_of(self.owner)
            own = BoundCode(copied, self._function)
            own.asks_leaves = self.asks_leaves
            returned, changes, _ = own._run(copied, state, args, kwargs)
            return returned, changes
        returned, changes, watch = self._run(self.owner, state, args, kwargs)
        watch.put_back()
        return returned, changes

    def _run(
        self, owner: nn.Module, state: Mapping[str, Tensor], args: Any, kwargs: Any
    ) -> tuple[Any, Mapping[str, AttributeChange], AttributeWatch]:
        for name, tensor in state.items():
            for held, key in self._holders[name]:
                held[key] = tensor
        watch = AttributeWatch(owner, reachable=False)
        asked = AskedAsLeaves() if self.asks_leaves else nullcontext()
        with buffers_kept(owner), asked:
            if isinstance(self._function, str):
                returned = getattr(owner, self._function)(*args, **kwargs)
            else:
                returned = self._function(owner, *args, **kwargs)
        return returned, watch.computed_changes(), watch


def _holders(owner: nn.Module) -> dict[str, list[tuple[dict[str, Any], str]]]:
    """The dicts and keys under which the module holds each tensor; several for a tied one."""
    places: dict[int, list[tuple[dict[str, Any], str]]] = {}
    for held in own_tensors(owner):
        for key, tensor in held.items():
            places.setdefault(id(tensor), []).append((held, key))
    return {name: places[id(tensor)] for name, tensor in named_tensors(owner).items()}


@contextmanager
def buffers_kept(module: nn.Module) -> Iterator[None]:
    """Within it, a buffer may be assigned; afterwards it is the old object with the new values.

    Raises:
        CaptureError: a buffer has another shape.
    """
    before = [
        (f"{path}.{name}".lstrip("."), owner, name, buffer)
        for path, owner in module.named_modules()
        for name, buffer in owner.named_buffers(recurse=False)
    ]
    yield
    for path, owner, name, buffer in before:
        new = getattr(owner, name)
        if new is buffer:
            continue
        if not isinstance(new, Tensor) or new.shape != buffer.shape:
            raise CaptureError(
                f"forward gives buffer {path!r} another shape than {tuple(buffer.shape)}"
                f"{line_of(module, path)}, which a captured graph cannot: give it one shape from "
                "the beginning, and write to it in place"
            )
        setattr(owner, name, buffer)
        buffer.copy_(new.detach())


def has_custom_gradient(outputs: Sequence[Tensor]) -> bool:
    """Whether an autograd function has made them, or what they are made of."""
    pending, met = [x.grad_fn for x in outputs], set[Any]()
    while pending:
        made = pending.pop()
        if isinstance(made, BackwardCFunction):
            return True
        if made is not None and made not in met:
            met.add(made)
            pending += [before for before, _ in made.next_functions]
    return False

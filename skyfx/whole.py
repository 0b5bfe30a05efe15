"""What stays whole in one capture, because torch.export cannot follow its code.

No branch on a value is followed, no shape that depends on one, and no gradient of the model's own
making. The innermost place whose code needs one of these is kept whole, and the model is traced
anew; if its arguments or what it returns cannot cross the edge of a node, the next one around it.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._export.utils import _compiling_state_context
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from skyfx.leaves import Run, Seen, stand_in
from skyfx.rebinding import bare
from skyfx.runtime.microbatch import CONSTANTS, OutputForm
from skyfx.runtime.nesting import flatten
from skyfx.solver.errors import CaptureError
from skyfx.spots import Spot, like, spots_in

__all__: list[str] = ["Static", "Whole"]

Own = Callable[..., Any]

_REPLACED = object()
"""Stands in a copy for what was replaced at the time."""

_SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)


class Whole:
    """The places of a model that stay whole, and what was seen of them."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._spots: list[Spot] = []
        self._refused: set[tuple[Any, ...]] = set()
        self._seen: dict[Spot, list[Seen]] = {}
        self._next: dict[Spot, int] = {}
        self._inside = False
        self._instead: list[Own] = []

    @property
    def seen(self) -> list[Seen]:
        """All calls that were seen, in no order."""
        return [call for calls in self._seen.values() for call in calls]

    def add(self, error: BaseException) -> bool:
        """Keep the innermost place whole whose code has failed; False where none is left."""
        for spot in spots_in(error, self._model):
            if spot not in self._spots and spot.kind not in self._refused:
                self._spots += like(spot, self._model)
                return True
        return False

    def see(self, call: Callable[[], Any]) -> Any:
        """Call the model, and note each call of what stays whole.

        Raises:
            CaptureError: one of them cannot; it is none any more.
        """
        self._seen = {spot: [] for spot in self._spots}
        # Models ask whether they are exported, and then keep a mask that hides nothing, say.
        with self._replaced(self._note), _compiling_state_context():
            return call()

    @contextmanager
    def standing_in(self) -> Iterator[None]:
        """Within it, each call is one operator, for torch.export to trace."""
        self._next = dict.fromkeys(self._spots, 0)
        with self._replaced(self._stand_in):
            yield

    @contextmanager
    def _replaced(self, instead: Callable[..., Any]) -> Iterator[None]:
        """Within it, `instead(spot, own, ...)` is called for each place."""
        self._instead.clear()
        with ExitStack() as stack:
            for spot in self._spots:
                own: list[Own] = []
                by = partial(instead, spot, own)
                self._instead.append(by)
                own.append(stack.enter_context(spot.replaced(self._model, by)))
            yield

    def _note(self, spot: Spot, own: list[Own], *args: Any, **kwargs: Any) -> Any:
        if self._inside:
            return own[0](*args, **kwargs)
        self._inside = True
        try:
            returned, seen = self._watched(spot, own[0], args, kwargs)
        except CaptureError:
            self._refused.add(spot.kind)
            self._spots = [other for other in self._spots if other.kind != spot.kind]
            raise
        finally:
            self._inside = False
        self._seen[spot].append(seen)
        return returned

    def _watched(self, spot: Spot, own: Own, args: Any, kwargs: Any) -> tuple[Any, Seen]:
        """Call it, and see what it does."""
        leaves, spec = flatten((args, kwargs))
        number = len(self._seen[spot])
        name = f"{spot}/{number}" if number else str(spot)
        _check_constants(name, "is given", leaves, CONSTANTS)
        module = spot.module(self._model)
        named = {} if module is None else _named(module)
        given = [x for x in leaves if isinstance(x, Tensor)]
        versions = {id(x): x._version for x in (*given, *named.values())}
        generator = torch.get_rng_state()
        with _Used(named) as used:
            returned = own(*args, **kwargs)
        if module is not None and any(x is not named.get(n) for n, x in _named(module).items()):
            raise CaptureError(f"{name!r} assigns a buffer anew, which a stage cannot")
        # A number that was computed may be another one next time, and the graph has it fixed.
        _check_constants(name, "returns", flatten(returned)[0], (str, type(None)))
        state = [n for n in named if n in used.names or spot.name == "forward"]
        tensors = [*given, *(named[n] for n in state)]
        form, outputs = OutputForm.of(returned)
        return returned, Seen(
            name=name,
            run=Run(self._bare(module, named), own if module is None else spot.name),
            leaves=tuple(None if isinstance(x, Tensor) else x for x in leaves),
            is_tensor=tuple(isinstance(x, Tensor) for x in leaves),
            spec=spec,
            state=tuple(state),
            form=form,
            outputs=tuple(x.detach().to("meta") for x in outputs),
            writes=frozenset(
                i
                for i, x in enumerate(tensors)
                if x._version != versions[id(x)] or _may_write(module, x)
            ),
            is_random=not torch.equal(generator, torch.get_rng_state()),
        )

    def _bare(self, module: nn.Module | None, named: dict[str, Tensor]) -> nn.Module | None:
        """A copy whose parameters and buffers have no values, and in which nothing is replaced."""
        if module is None:
            return None
        memo: dict[int, Any] = {id(by): _REPLACED for by in self._instead}
        memo |= {id(x): bare(x) for x in named.values()}
        copied = copy.deepcopy(module, memo)
        for part in copied.modules():
            for name in [n for n, value in vars(part).items() if value is _REPLACED]:
                del vars(part)[name]
        return copied

    def _stand_in(self, spot: Spot, _: list[Own], *args: Any, **kwargs: Any) -> Any:
        seen = self._seen[spot][self._next[spot]]
        self._next[spot] += 1
        module = spot.module(self._model)
        named = {} if module is None else _named(module, tied=True)
        given = [x for x in flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        return stand_in(seen, [*given, *(named[name] for name in seen.state)])


class Static(TorchFunctionMode):
    """Within it, no function of torch may return what only values tell: a number, a shape.

    torch.export goes on with a symbol for it, which has no size to plan with.

    Raises:
        CaptureError: one has.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(returned):
            sizes = leaf.shape if isinstance(leaf, Tensor) else [leaf]
            if any(isinstance(size, _SYMBOLIC) for size in sizes):
                raise CaptureError(
                    f"{getattr(func, '__name__', func)} returns what depends on the values of its "
                    "arguments, and a captured graph has fixed numbers and shapes"
                )
        return returned


class _Used(TorchFunctionMode):
    """Within it, notes which of these tensors are arguments of torch's functions."""

    def __init__(self, named: dict[str, Tensor]) -> None:
        super().__init__()
        self.names: set[str] = set()
        self._name_of = {id(x): name for name, x in named.items()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in flatten((args, kwargs))[0]:
            if id(leaf) in self._name_of:
                self.names.add(self._name_of[id(leaf)])
        return func(*args, **(kwargs or {}))


def _named(module: nn.Module, *, tied: bool = False) -> dict[str, Tensor]:
    """Its parameters and buffers by name: each once, or under each of its names."""
    named: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=not tied))
    return named | dict(module.named_buffers(remove_duplicate=not tied))


def _may_write(module: nn.Module | None, x: Tensor) -> bool:
    """Whether it is a buffer that another branch may write to, as batch norm does in training."""
    return module is not None and module.training and any(x is b for b in module.buffers())


def _check_constants(name: str, does: str, leaves: Sequence[Any], kept: tuple[type, ...]) -> None:
    """Refuse what cannot cross the edge of a node."""
    for leaf in leaves:
        if not isinstance(leaf, (Tensor, *kept)):
            raise CaptureError(f"{name!r} {does} an object of {type(leaf).__name__}")

"""What stays whole in one capture, because torch.export cannot follow its code.

No branch on a value is followed, no shape that depends on one, and no gradient of the model's own
making. The innermost place whose code needs one of these is kept whole, and the model is traced
anew; if its arguments or what it returns cannot cross the edge of a node, the next one around it.
In the end, in the model's own forward, single lines are fixed to what they return (see `lines`).
"""

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import is_dataclass
from functools import partial
from types import EllipsisType, FunctionType
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from skyfx.runtime.execution.microbatch import CONSTANTS, OutputSpec
from skyfx.runtime.pytree import flatten
from skyfx.runtime.rng.generator_state import comparable_states
from skyfx.solver.errors import CaptureError
from skyfx.tracing.call_sites import CallSite, like, spots_in
from skyfx.tracing.data_dependence import DependsOnValuesError, OpSite, OpSiteOverride
from skyfx.tracing.leaf_calls import BoundCode, RecordedCall, buffers_kept, stand_in
from skyfx.tracing.tensor_binding import bare, named_tensors
from skyfx.tracing.torch_internals import export_flags, num_writes

__all__: list[str] = ["CalledOtherwiseError", "LeafSelection"]

SeededStream = Callable[..., Any]
LocalDevice = CallSite | OpSite

logger = logging.getLogger(__name__)

_GIVEN = (*CONSTANTS, slice, EllipsisType)
"""What may be given beside tensors; and configs and functions, see `_check_constants`."""

_REPLACED = object()
"""Stands in a copy for what was replaced at the time."""


class CalledOtherwiseError(CaptureError):
    """What stays whole is called otherwise when it is traced than when the model ran.

    Many models ask whether a tensor has values, and leave out a mask that hides nothing.
    """


class LeafSelection:
    """The places of a model that stay whole, and what was seen of them."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._spots: list[CallSite] = []
        self._refused: set[tuple[Any, ...]] = set()
        self._lines: list[OpSite] = []
        self._line: OpSite | None = None
        self._seen: dict[LocalDevice, list[RecordedCall]] = {}
        self._next: dict[LocalDevice, int] = {}
        self._inside = False
        self._instead: list[_Replacement] = []

    @property
    def seen(self) -> list[RecordedCall]:
        """All calls that were seen, in no order."""
        return [call for calls in self._seen.values() for call in calls]

    def add(self, error: BaseException) -> bool:
        """Keep the innermost place whole whose code has failed; False where none is left."""
        if isinstance(error, DependsOnValuesError):
            self._line = error.line
        for spot in spots_in(error, self._model):
            if spot not in self._spots and spot.kind not in self._refused:
                self._spots += like(spot, self._model)
                return True
        if self._line is not None and self._line not in self._lines:
            logger.warning("%s is fixed: later batches have to go the same way", self._line)
            self._lines.append(self._line)
            return True
        return False

    def see(self, call: Callable[[], Any]) -> Any:
        """Call the model, and note each call of what stays whole.

        Raises:
            CaptureError: one of them cannot; it is none any more.
        """
        places: list[LocalDevice] = [*self._spots, *self._lines]
        self._seen = {place: [] for place in places}
        with self._replaced(self._note):
            return call()

    @contextmanager
    def standing_in(self) -> Iterator[None]:
        """Within it, each call is one operator, for torch.export to trace."""
        self._next = dict.fromkeys(self._seen, 0)
        with self._replaced(self._stand_in):
            yield

    @contextmanager
    def _replaced(self, instead: Callable[..., Any]) -> Iterator[None]:
        """Within it, `instead(spot, own, ...)` is called for each place."""
        self._instead.clear()
        with ExitStack() as stack:
            for spot in self._spots:
                by = _Replacement(partial(instead, spot))
                self._instead.append(by)
                by.own = stack.enter_context(spot.replaced(self._model, by))
            stack.enter_context(
                OpSiteOverride({line: partial(instead, line) for line in self._lines})
            )
            yield

    def _note(self, place: LocalDevice, own: SeededStream, *args: Any, **kwargs: Any) -> Any:
        if self._inside:
            return own(*args, **kwargs)
        self._inside = True
        try:
            returned, seen = self._watched(place, own, args, kwargs)
        except Exception as error:
            if isinstance(place, CallSite):
                self._refused.add(place.kind)
                self._spots = [other for other in self._spots if other.kind != place.kind]
            raise CaptureError(f"{place}: {error}") from error
        finally:
            self._inside = False
        self._seen[place].append(seen)
        return returned

    def _watched(
        self, place: LocalDevice, own: SeededStream, args: Any, kwargs: Any
    ) -> tuple[Any, RecordedCall]:
        """Call it, and see what it does."""
        leaves, spec = flatten((args, kwargs))
        number = len(self._seen[place])
        name = f"{place}/{number}" if number else str(place)
        _check_constants(name, "is given", leaves, _GIVEN)
        module = self._module(place)
        named = {} if module is None else named_tensors(module)
        given = [x for x in leaves if isinstance(x, Tensor)]
        versions = {id(x): num_writes(x) for x in (*given, *named.values())}
        generators = comparable_states()
        kept = nullcontext() if module is None else buffers_kept(module)
        with _Used(named) as used, export_flags(exported=False), kept:
            returned = own(*args, **kwargs)
        # A number that was computed may be another one next time, and the graph has it fixed.
        constants = CONSTANTS if isinstance(place, OpSite) else (str, type(None))
        _check_constants(name, "returns", flatten(returned)[0], constants)
        is_forward = isinstance(place, CallSite) and place.name == "forward"
        state = [n for n in named if n in used.names or is_forward]
        tensors = [*given, *(named[n] for n in state)]
        form, outputs = OutputSpec.of(returned)
        return returned, RecordedCall(
            name=name,
            run=self._run(place, own, module, named),
            leaves=tuple(None if isinstance(x, Tensor) else x for x in leaves),
            is_tensor=tuple(isinstance(x, Tensor) for x in leaves),
            spec=spec,
            state=tuple(state),
            form=form,
            outputs=tuple(x.detach().to("meta") for x in outputs),
            writes=frozenset(
                i
                for i, x in enumerate(tensors)
                if num_writes(x) != versions[id(x)] or _may_write(module, x)
            ),
            is_random=generators != comparable_states(),
        )

    def _module(self, place: LocalDevice) -> nn.Module | None:
        """The module whose method it is."""
        return place.module(self._model) if isinstance(place, CallSite) else None

    def _run(
        self,
        place: LocalDevice,
        own: SeededStream,
        module: nn.Module | None,
        named: dict[str, Tensor],
    ) -> BoundCode:
        """Its code, to be called again."""
        if module is None or isinstance(place, OpSite):
            return BoundCode(None, own)
        return BoundCode(self._bare(module, named), place.name)

    def _bare(self, module: nn.Module, named: dict[str, Tensor]) -> nn.Module:
        """A copy whose parameters and buffers have no values, and in which nothing is replaced."""
        memo: dict[int, Any] = {id(by): _REPLACED for by in self._instead}
        memo |= {id(x): bare(x) for x in named.values()}
        for part in module.modules():  # what is no parameter and was computed cannot be copied
            computed = [x for x in vars(part).values() if isinstance(x, Tensor) and not x.is_leaf]
            memo |= {id(x): x.detach() for x in computed}
        copied = copy.deepcopy(module, memo)
        for part in copied.modules():
            for name in [n for n, value in vars(part).items() if value is _REPLACED]:
                del vars(part)[name]
        return copied

    def _stand_in(self, place: LocalDevice, _: SeededStream, *args: Any, **kwargs: Any) -> Any:
        calls, number = self._seen[place], self._next[place]
        self._next[place] += 1
        leaves, spec = flatten((args, kwargs))
        if number >= len(calls) or not calls[number].is_given(leaves, spec):
            raise CalledOtherwiseError(f"{place} is called otherwise when it is traced")
        seen, module = calls[number], self._module(place)
        named = {} if module is None else named_tensors(module, tied=True)
        given = [x for x in leaves if isinstance(x, Tensor)]
        return stand_in(seen, [*given, *(named[name] for name in seen.state)])


class _Replacement:
    """Called in place of a method or function, which it is given once it is known."""

    def __init__(self, instead: Callable[..., Any]) -> None:
        self._instead = instead
        self.own: SeededStream = instead

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._instead(self.own, *args, **kwargs)


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


def _may_write(module: nn.Module | None, x: Tensor) -> bool:
    """Whether it is a buffer that another branch may write to, as batch norm does in training."""
    return module is not None and module.training and any(x is b for b in module.buffers())


def _check_constants(name: str, does: str, leaves: Sequence[Any], kept: tuple[type, ...]) -> None:
    """Refuse what cannot cross the edge of a node."""
    for leaf in leaves:
        constant = kept is _GIVEN and (is_dataclass(leaf) or _is_constant_function(leaf))
        if isinstance(leaf, slice) and any(
            isinstance(x, Tensor) for x in (leaf.start, leaf.stop, leaf.step)
        ):
            raise CaptureError(f"{name!r} {does} a slice whose ends only values tell")
        if not isinstance(leaf, (Tensor, *kept)) and not constant:
            raise CaptureError(f"{name!r} {does} an object of {type(leaf).__name__}")


def _is_constant_function(value: Any) -> bool:
    """Whether it is a function that computes from its arguments alone."""
    if not isinstance(value, FunctionType):
        return False
    held = [cell.cell_contents for cell in value.__closure__ or ()]
    return all(isinstance(x, CONSTANTS) or _is_constant_function(x) for x in flatten(held)[0])

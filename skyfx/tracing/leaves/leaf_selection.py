"""The selection of a model's calls that become leaves, because torch.export cannot follow them.

torch.export follows no branch on a value, no shape that depends on one, and no custom gradient. The
innermost call whose code needs one of these becomes a leaf, and the model is traced again. If its
arguments or its result cannot cross the edge of a node, the next place around it is tried: the call
around it, then lines of the model's own forward. At last single operators keep their results.
"""

import logging
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from skyfx.runtime.pytree import flatten
from skyfx.solver.errors import CaptureError
from skyfx.tracing.data_dependence import DependsOnValuesError, OpSite, OpSiteOverride
from skyfx.tracing.effects.attribute_watch import AttributeWatch
from skyfx.tracing.effects.autograd_effects import CustomGradientError
from skyfx.tracing.failures import FinalError
from skyfx.tracing.leaves.call_sites import CallSite, call_sites_in, decides, similar_sites
from skyfx.tracing.leaves.forward_lines import ForwardCode, Lines
from skyfx.tracing.leaves.leaf_arguments import flatten_held
from skyfx.tracing.leaves.leaf_calls import RecordedCall, stand_in
from skyfx.tracing.leaves.leaf_recording import Recorder
from skyfx.tracing.leaves.leaf_sites import (
    NOWHERE,
    CannotCrossError,
    Function,
    FunctionSite,
    LeafSite,
    Places,
    Reason,
)
from skyfx.tracing.tensor_binding import named_tensors
from skyfx.tracing.torch_internals import replaced_functions, script_objects_hidden

logger = logging.getLogger(__name__)


class CalledOtherwiseError(CaptureError):
    """A leaf gets other arguments when the model is traced than when it ran.

    Many models ask whether a tensor has values, and leave out a mask that hides nothing.
    """


class LeafSelection:
    """The sites of a model whose calls become leaves, and the calls that were recorded there.

    Attributes:
        is_doubtful: whether a place was given up because a shape depends on values.
        changes: names of variables beside the model that the recorded calls have changed.
    """

    def __init__(
        self, model: nn.Module, places: Places = NOWHERE, *, trusting: bool = False
    ) -> None:
        """Begin at some places.

        Args:
            model: the module whose calls are replaced.
            places: selected or refused from the beginning.
            trusting: whether a call may return a tensor whose shape depends on values.
        """
        self._model = model
        self._code = ForwardCode.of(model)
        self._call_sites = list(places.calls)
        self._function_sites = dict(places.functions)
        self._lines = list(places.lines)
        self._op_sites = list(places.operators)
        self._refused = set(places.refused)
        self._last_op_site: OpSite | None = None
        self._recorders: dict[LeafSite, Recorder] = {}
        self._following: dict[LeafSite, Iterator[RecordedCall]] = {}
        self._because: dict[LeafSite, Reason] = {}
        self._reason = Reason()
        self._trusting = trusting
        self.is_doubtful = False
        self._is_inside = False
        self.changes: frozenset[str] = frozenset()

    @property
    def calls(self) -> list[RecordedCall]:
        """All recorded calls, grouped by their sites."""
        return [call for recorder in self._recorders.values() for call in recorder.calls]

    @property
    def _sites(self) -> list[LeafSite]:
        functions = filter(None, self._function_sites.values())
        return [*self._call_sites, *functions, *self._lines, *self._op_sites]

    @property
    def places(self) -> Places:
        """Where the calls are."""
        return Places(
            tuple(self._call_sites),
            tuple(self._function_sites.items()),
            tuple(self._lines),
            tuple(self._op_sites),
            frozenset(self._refused),
        )

    def add(self, error: BaseException) -> bool:
        """Select the innermost place whose code has failed; False where none is left."""
        if not isinstance(error, _RefusedError):
            told = error.site if isinstance(error, DependsOnValuesError) else error
            text = (str(told) or repr(told)).splitlines()[0]
            if not isinstance(error, CaptureError):  # torch's own words, some of which are many
                text = textwrap.shorten(text, 100, placeholder=" ...")
            self._reason = Reason(text, isinstance(error, DependsOnValuesError) and error.is_shape)
        is_added = self._add(error)
        self._because = {site: self._because.get(site, self._reason) for site in self._sites}
        return is_added

    def _add(self, error: BaseException) -> bool:
        if isinstance(error, DependsOnValuesError):
            self._last_op_site = error.site
        if isinstance(error, CustomGradientError) and self._add_function(error.function):
            return True
        for call in call_sites_in(error, self._model):
            if call not in self._call_sites and call.kind not in self._refused:
                self._call_sites += similar_sites(call, self._model)
                return True
        if self._code is not None and self._add_lines(self._code, error):
            return True
        if (site := self._last_op_site) is None or site in self._op_sites:
            return False
        logger.warning(
            "the result of %s is fixed: later batches have to give the same, or put the lines that "
            "need it into the forward of a submodule, which then stays whole",
            site,
        )
        self._op_sites.append(site)
        return True

    def _add_function(self, function: type) -> bool:
        """Select an autograd function; torch's own ones are run for what is around them."""
        if function in self._function_sites or function.__module__.startswith("torch."):
            return False
        self._function_sites[function] = FunctionSite(function)
        return True

    def _add_lines(self, code: ForwardCode, error: BaseException) -> bool:
        """Select the lines of forward around an error, or more of the lines that it concerns."""
        found = code.around(error)
        if isinstance(error, _LinesRefusedError):
            found = error.wider(code)
        found = found and code.joined(found, self._lines)
        if found is None or found in self._lines or found in self._refused:
            return False
        self._lines = [x for x in self._lines if not found.holds(x)] + [found]
        return True

    def record(self, call: Callable[[], Any]) -> Any:
        """Call the model, and record each call at a selected site.

        Raises:
            CaptureError: one of the calls cannot become a leaf; its site is selected no longer.
        """
        self._recorders = {
            site: Recorder(self._model, site, self._code, self._reason_of(site))
            for site in self._sites
        }
        watch = AttributeWatch(self._model)
        with self._replaced(self._record_call):
            returned = call()
        self.changes = frozenset(name for name in watch.changes() if ":" in name)
        return returned

    def hold_against(self, call: Callable[[], Any]) -> None:
        """Call the model with another micro-batch, and compare all that the graph has fixed.

        Raises:
            CaptureError: a call gives another shape or number; its site is selected no longer.
        """
        self._following = {site: iter(x.calls) for site, x in self._recorders.items()}
        with self._replaced(self._compare):
            call()

    def _reason_of(self, site: LeafSite) -> Reason:
        return replace(self._because.get(site, Reason()), is_trusted=self._trusting)

    @contextmanager
    def stand_ins(self) -> Iterator[None]:
        """Within it, each recorded call is one operator, for torch.export to trace."""
        self._following = {site: iter(x.calls) for site, x in self._recorders.items()}
        with self._replaced(self._stand_in), script_objects_hidden(self._model):
            yield

    @contextmanager
    def _replaced(self, instead: Function) -> Iterator[None]:
        """Within it, `instead(site, own function, ...)` is called at each selected site."""
        with ExitStack() as stack:
            for site in self._call_sites:
                by = partial(instead, site)
                by = partial(_decide, by) if decides(site) else by
                stack.enter_context(site.replaced(self._model, by))
            if self._code is not None:
                lines = {site: partial(instead, site) for site in self._lines}
                stack.enter_context(self._code.taken_out(lines))
            ours = {site: partial(instead, site) for site in self._op_sites}
            stack.enter_context(OpSiteOverride(ours))
            stack.enter_context(replaced_functions(partial(self._apply, instead)))
            yield

    def _apply(
        self, instead: Function, function: type, own: Function, *args: Any, **kwargs: Any
    ) -> Any:
        """Call an autograd function, by `instead` if it is selected."""
        site = self._function_sites.get(function)
        called = own if site is None else partial(instead, site, own)
        return called(*args, **kwargs)

    def _record_call(self, site: LeafSite, own: Function, *args: Any, **kwargs: Any) -> Any:
        with self._refusing(site) as is_inside:
            if is_inside:
                return own(*args, **kwargs)
            return self._recorders[site].record(own, args, kwargs)

    def _compare(self, site: LeafSite, own: Function, *args: Any, **kwargs: Any) -> Any:
        with self._refusing(site) as is_inside:
            if is_inside:
                return own(*args, **kwargs)
            returned, variable = self._recorders[site].compare(
                own, args, kwargs, next(self._following[site], None)
            )
            if variable is not None:
                raise CannotCrossError(
                    f"{site} gives another shape or number for other samples or parameters",
                    variable,
                    is_argument=False,
                )
        return returned

    @contextmanager
    def _refusing(self, site: LeafSite) -> Iterator[bool]:
        """Selects a site no longer if a call fails within; yields whether it is inside a leaf."""
        if self._is_inside:
            yield True
            return
        self._is_inside = True
        try:
            yield False
        except FinalError:
            raise
        except Exception as error:
            if isinstance(site, CallSite):
                self.is_doubtful |= not self._trusting
                self._refused.add(site.kind)
                self._call_sites = [other for other in self._call_sites if other.kind != site.kind]
            elif isinstance(site, FunctionSite):
                self._function_sites[site.function] = None
            elif isinstance(site, Lines):
                self._refused.add(site)
                self._lines.remove(site)
                raise _LinesRefusedError(site, error) from error
            raise _RefusedError(f"{site}: {error}") from error
        finally:
            self._is_inside = False

    def _stand_in(self, site: LeafSite, _: Function, *args: Any, **kwargs: Any) -> Any:
        module = self._recorders[site].module
        leaves, spec = flatten_held(module, (args, kwargs))
        call = next(self._following[site], None)
        if call is None or not call.is_given(leaves, spec):
            raise CalledOtherwiseError(f"{site} gets other arguments in the trace than in the run")
        named = {} if module is None else named_tensors(module, tied=True)
        given = [x for x in leaves if isinstance(x, Tensor)]
        return stand_in(call, [*given, *(named[name] for name in call.state)], module)


def _decide(instead: Function, own: Function, *args: Any, **kwargs: Any) -> Any:
    """Call a function that decides; without a mask it asks for no values."""
    has_values = any(isinstance(x, Tensor) for x in flatten((args, kwargs))[0])
    return partial(instead, own)(*args, **kwargs) if has_values else own(*args, **kwargs)


class _RefusedError(CaptureError):
    """A call cannot become a leaf."""


class _LinesRefusedError(_RefusedError):
    """Lines of forward cannot become a leaf alone."""

    def __init__(self, lines: Lines, error: Exception) -> None:
        super().__init__(f"{lines}: {error}")
        self._lines = lines
        self._error = error

    def wider(self, code: ForwardCode) -> Lines | None:
        """More lines, which may; None where there are none."""
        error = self._error
        if isinstance(error, CannotCrossError) and error.variable:
            return code.widened(self._lines, error.variable, back=error.is_argument)
        return code.around_statement(self._lines)

"""One run of a call that becomes a leaf: what other nodes see of it, and what cannot cross.

A leaf takes and returns tensors and constants. Its shapes and constants are part of the graph, so
they must not depend on values. Two things tell whether they do: another micro-batch, and another
run on the same arguments with other values.
"""

import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn

from skyfx.runtime import pytree
from skyfx.runtime.batches.microbatch import CONSTANTS, OutputSpec
from skyfx.runtime.execution.assigned_attributes import AssignedAttributes
from skyfx.runtime.model_state import preserve_run
from skyfx.runtime.pytree import flatten
from skyfx.runtime.rng.generator_state import comparable_states, preserve_generators
from skyfx.runtime.state.contents import content, equal
from skyfx.solver.errors import CaptureError
from skyfx.tracing.data_dependence import OpSite
from skyfx.tracing.effects.attribute_watch import AttributeWatch
from skyfx.tracing.effects.autograd_effects import BackwardError
from skyfx.tracing.effects.eager_ways import chosen_kernels, same_attention
from skyfx.tracing.leaves.bound_code import (
    BoundCode,
    buffers_kept,
    has_custom_gradient,
)
from skyfx.tracing.leaves.call_sites import CallSite, copy_of, decides
from skyfx.tracing.leaves.forward_lines import ForwardCode, Lines
from skyfx.tracing.leaves.leaf_arguments import (
    Held,
    check_unchanged,
    flatten_held,
    is_argument,
    unflatten_held,
)
from skyfx.tracing.leaves.leaf_calls import RecordedCall
from skyfx.tracing.leaves.leaf_forms import (
    forms_differ,
    is_tried_fully,
    num_changes,
    shapes_differ,
)
from skyfx.tracing.leaves.leaf_modes import BoundedCalls, UsedTensors
from skyfx.tracing.leaves.leaf_sites import CannotCrossError, Function, LeafSite, Reason
from skyfx.tracing.leaves.other_values import other_values
from skyfx.tracing.leaves.reached_tensors import reached, reached_by
from skyfx.tracing.tensor_binding import named_tensors
from skyfx.tracing.torch_internals import (
    checked_calls,
    checked_derivatives,
    export_flags,
    num_writes,
)


class Recorder:
    """Runs the calls at one site, and records each."""

    def __init__(
        self, model: nn.Module, site: LeafSite, code: ForwardCode | None, because: Reason
    ) -> None:
        """Record calls at this site of a model, which stay whole for this reason."""
        self._model = model
        self._site = site
        self._because = because
        self._code = code if isinstance(site, Lines) else None
        self._signature = code.signature(site) if code and isinstance(site, Lines) else None
        self._kernels = chosen_kernels()
        self.calls: list[RecordedCall] = []

    @property
    def module(self) -> nn.Module | None:
        """The module whose method is called at the site."""
        if isinstance(self._site, Lines):
            return self._model
        return self._site.module(self._model) if isinstance(self._site, CallSite) else None

    def record(self, own: Function, args: Any, kwargs: Any) -> Any:
        """Run a call, and record what other nodes see of it; returns its result.

        Raises:
            CannotCrossError: it takes or returns what cannot cross the edge of a node.
            CaptureError: a buffer gets another shape.
        """
        leaves, spec = flatten_held(self.module, (args, kwargs))
        self._check_arguments(args, kwargs)
        module, site = self.module, self._site
        named = {} if module is None else named_tensors(module)
        given = [x for x in leaves if isinstance(x, Tensor)]
        writes = {id(x): num_writes(x) for x in (*given, *named.values())}
        generators, derivatives, forks = comparable_states(), list[bool](), list[Any]()
        before = [_copy(x) for x in leaves]
        watch = None if module is None else AttributeWatch(module, reachable=False)
        code = self._bound_code(own)  # with the attributes as they are before the call
        noted = checked_derivatives(derivatives.append)
        kept = self._buffers_kept()
        used = UsedTensors(named)
        copied = checked_calls(nn.Parameter, "__deepcopy__", used.note_copy)
        forked = checked_calls(torch.random, "fork_rng", lambda *given: forks.append(given))
        attention = same_attention(self._kernels)
        with used, attention, export_flags(exported=False), kept, noted, copied, forked:
            returned = self._run(own, leaves, spec)
        if any(derivatives):
            raise BackwardError
        is_random = generators != comparable_states()
        if forks and not is_random:
            is_random = self._draws_otherwise(own, returned, [_copy(x) for x in before], spec)
        assigned, left = AssignedAttributes.of({} if watch is None else watch.computed_changes())
        others = self._others(own, before, (args, kwargs), used.num_calls)
        self._check_results(own, returned, others)
        held = tuple(f"{x.path}." for x in leaves if isinstance(x, Held))
        needed = (*held, *self._reached())
        state = [n for n in named if n in used.names or n.startswith(needed)]
        tensors = [*given, *(named[n] for n in state)]
        form, outputs = OutputSpec.of(returned)
        code.asks_leaves = used.are_asked_as_leaves
        code.is_kept = bool(left) and has_custom_gradient(outputs)
        outputs = [*outputs, *left]
        written = {i for i, x in enumerate(tensors) if num_writes(x) != writes[id(x)]}
        call = RecordedCall(
            name=f"{site}/{len(self.calls)}" if self.calls else str(site),
            because=self._because.text,
            run=code,
            leaves=tuple(None if isinstance(x, Tensor) else x for x in leaves),
            is_tensor=tuple(isinstance(x, Tensor) for x in leaves),
            spec=spec,
            state=tuple(state),
            form=form,
            assigned=assigned,
            outputs=tuple(x.detach().to("meta") for x in outputs),
            writes=frozenset(written | {i for i, x in enumerate(tensors) if _may_write(module, x)}),
            is_random=is_random,
            forks=bool(forks),
            needs=tuple(x.requires_grad for x in tensors) if derivatives else (),
            ends=bool(self._signature and self._signature.returns),
        )
        if derivatives:
            expected = outputs if not (written or call.is_random) else None
            self._check_apart(call, tensors, expected, args)
        self.calls.append(call)
        return returned

    def compare(
        self, own: Function, args: Any, kwargs: Any, call: RecordedCall | None
    ) -> tuple[Any, str | None]:
        """Run a call that is recorded already, on other values.

        Returns:
            Its result, and the first variable that it gives another form: "" for all of the result,
            None for none.
        """
        with self._buffers_kept():
            returned = own(*args, **kwargs)
        if call is None:
            return returned, ""
        seen = call.form.restore(call.outputs[: call.form.num_tensors])
        if self._signature and not self._signature.returns:
            parts = list(zip(self._signature.gives, seen, returned, strict=True))
        else:
            parts = [("", seen, OutputSpec.of(returned)[0].restore(OutputSpec.of(returned)[1]))]
        return returned, next((n for n, x, y in parts if forms_differ(x, y)), None)

    def _buffers_kept(self) -> AbstractContextManager[None]:
        return nullcontext() if self.module is None else buffers_kept(self.module)

    def _run(self, own: Function, leaves: list[Any], spec: pytree.TreeSpec) -> Any:
        args, kwargs = unflatten_held(self.module, leaves, spec)
        forms = [flatten(x)[1] for x in args]
        returned = own(*args, **kwargs)
        try:
            check_unchanged((args, kwargs), leaves, spec)
        except CaptureError as error:
            changed = [i for i, x in enumerate(args) if flatten(x)[1] != forms[i]]
            variable = self._signature.takes[changed[0]] if self._signature and changed else ""
            raise CannotCrossError(str(error), variable, is_argument=True) from None
        return returned

    def _others(self, own: Function, leaves: list[Any], given: Any, num_calls: int) -> list[Any]:
        """What it returns for other values, as far as it runs on them."""
        found: list[Any] = []
        num = num_changes(self._site, own, self._because)
        spec = flatten_held(self.module, given)[1]
        # Each begins with what its module had; the whole model is looked at once.
        own_module = self.module or nn.Module()
        with nullcontext() if own_module is self._model else preserve_run(self._model):
            for changed in itertools.islice(other_values(leaves, given), num):
                with preserve_run(own_module), suppress(Exception), BoundedCalls(num_calls):
                    found.append(self._run(own, [_copy(x) for x in changed], spec))
        return found

    def _draws_otherwise(
        self, own: Function, returned: Any, leaves: list[Any], spec: pytree.TreeSpec
    ) -> bool:
        """Whether what it draws from a fork depends on where torch's generator is."""
        with preserve_run(self._model):
            torch.rand(1)
            again = self._run(own, leaves, spec)
        return not equal(content(flatten(returned)[0]), content(flatten(again)[0]))

    def _check_arguments(self, args: Any, kwargs: Any) -> None:
        signature = self._signature
        parts = zip(signature.takes, args, strict=True) if signature else [("", (args, kwargs))]
        for variable, value in parts:
            for leaf in flatten_held(self.module, value)[0]:
                if not is_argument(leaf):
                    kind = type(leaf).__name__
                    raise self._error(f"gets an object of {kind}", variable, is_argument=True)

    def _check_results(self, own: Function, returned: Any, others: list[Any]) -> None:
        """Refuse results that may be of another form next time, as far as is known."""
        signature = self._signature
        if signature and signature.returns:
            return  # the model's own outputs
        may_vary = is_tried_fully(self._site, own, self._because)
        differs = forms_differ if may_vary else shapes_differ
        # A computed number may be another one next time, but the graph has it fixed.
        is_tried = may_vary and bool(others)
        is_fixed = isinstance(self._site, OpSite) or decides(self._site) or is_tried
        allowed = CONSTANTS if is_fixed else (str, type(None))
        names = signature.gives if signature else ("",)
        for i, variable in enumerate(names):
            found, *rest = (x[i] if signature else x for x in (returned, *others))
            for leaf in flatten(found)[0]:
                if not isinstance(leaf, (Tensor, *allowed)):
                    kind = type(leaf).__name__
                    raise self._error(f"returns an object of {kind}", variable, is_argument=False)
            if any(differs(x, found) for x in rest):
                what = "returns another shape or number for other values"
                raise self._error(what, variable, is_argument=False)

    def _check_apart(
        self,
        call: RecordedCall,
        tensors: Sequence[Tensor],
        expected: Sequence[Tensor] | None,
        args: Sequence[Any],
    ) -> None:
        """Refuse a call that differentiates what was computed outside of it.

        Args:
            call: it computes a derivative.
            tensors: those it was recorded with.
            expected: its outputs then; None if they may differ in another run.
            args: its arguments.
        """
        copies = [x.detach().clone().requires_grad_(x.requires_grad) for x in tensors]
        found: Sequence[Tensor] | None = None
        with preserve_generators(), suppress(Exception):
            found = call(*copies)
        if found is None or (expected is not None and not all(map(torch.equal, found, expected))):
            variable = ""
            if self._code is not None and self._signature is not None:
                assert isinstance(self._site, Lines)
                pairs = zip(self._signature.takes, args, strict=True)
                computed = [x for x, y in pairs if isinstance(y, Tensor) and y.grad_fn]
                variable = self._code.latest(self._site, computed)
            what = "differentiates what is computed outside of it"
            raise self._error(what, variable, is_argument=True)

    def _error(self, what: str, variable: str, *, is_argument: bool) -> CannotCrossError:
        of = f" ({variable!r})" if variable else ""
        return CannotCrossError(f"{self._site} {what}{of}", variable, is_argument=is_argument)

    def _reached(self) -> tuple[str, ...]:
        """What other runs may need of the module's tensors: names, or beginnings of names."""
        if self._code is not None:
            assert isinstance(self._site, Lines)
            return reached(self._model, self._code.statements(self._site), self._code.this)
        if not isinstance(self._site, CallSite) or self.module is None:
            return ()
        return ("",) if self._site.name == "forward" else reached_by(self.module, self._site.name)

    def _bound_code(self, own: Function) -> BoundCode:
        """The code of a call, to be called again."""
        module = self.module
        if module is None:
            return BoundCode(None, own)
        is_lines = isinstance(self._site, Lines)
        return BoundCode(copy_of(module), own.__func__ if is_lines else self._site.name)  # type: ignore[attr-defined, union-attr]


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _may_write(module: nn.Module | None, x: Tensor) -> bool:
    """Whether it is a buffer that another branch may write to, as batch norm does in training."""
    return module is not None and module.training and any(x is b for b in module.buffers())

"""What micro-batches do to a model: in plain torch, and in the stages of a pipeline."""

import logging
import math
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor, nn

from skyfx.runtime.batches.microbatch import Batch, OutputSpec
from skyfx.runtime.execution.hook_calls import noted_calls
from skyfx.runtime.execution.loss_head import LossHead
from skyfx.runtime.model_state import (
    ModelState,
    attribute_slots,
    module_slots,
    preserve_state,
)
from skyfx.runtime.pipeline import Pipeline
from skyfx.runtime.pytree import tree_leaves
from skyfx.runtime.state.contents import NO_VALUES, equal
from skyfx.runtime.state.reachable_state import parameters_with_hooks
from skyfx.solver.errors import VerificationError
from skyfx.tracing.adapter import has_cache
from skyfx.tracing.capture import Capture, on_one_device
from skyfx.tracing.effects.observing_hooks import called_at_once
from skyfx.tracing.effects.side_effects import checks_types
from skyfx.tracing.training_mode import in_mode
from skyfx.verification.comparison import (
    CALLS,
    GENERATORS,
    GRADIENTS,
    INPUTS,
    OUTPUTS,
    STATE,
    UNREGISTERED,
    Contents,
    is_elsewhere,
)

logger = logging.getLogger(__name__)


class RunMode(NamedTuple):
    """How a micro-batch is run: the model in training or eval mode, and whether backward too.

    `written` has the names of the parameters that forward itself writes to.
    """

    training: bool
    backward: bool
    written: tuple[str, ...] = ()


SEED = 20_220_101
"""Of all default generators in both runs, so that dropout drops the same."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What a run gave and left.

    Attributes:
        contents: outputs, gradients, buffers and attributes, generators; what other processes have
            is missing, or `NO_VALUES`.
        before: buffers and attributes as they were.
    """

    contents: Contents
    before: Mapping[str, Any]

    def changes(self, but: Collection[str]) -> Contents:
        """No more than which buffers and attributes have changed, but for some.

        That is all that two runs with different random numbers have in common.
        """
        after = self.contents[STATE]
        names = {**self.before, **after}.keys() - set(but)
        return {STATE: {x: self._change(x, after.get(x)) for x in sorted(names)}}

    def _change(self, name: str, value: Any) -> str:
        if is_elsewhere(value):
            return NO_VALUES
        return "as before" if equal(self.before.get(name), value) else "another"


def observe_plain(
    model: nn.Module, captured: Capture, parts: Sequence[Batch], how: RunMode
) -> Observation:
    """Run the model itself on one micro-batch after the other; it is as before afterwards.

    Raises:
        VerificationError: a hook steps in backward.
    """
    retained = dict[str, None]()

    def run() -> Contents:
        found, calls, fresh = [], [], [_fresh(part) for part in parts]
        for part in fresh:
            with called_at_once(model, captured.hooks.hooks) as made:
                found.append(_outputs(model, part)[1])
            calls += made
            if how.backward:
                # `loss_fn` may read what forward leaves on attributes.
                loss = weighted_sum([*found[-1], *captured.assigned.tensors_on(model)])
                (loss / len(parts)).backward()  # type: ignore[no-untyped-call]
                retained.update(_retaining(model))
            found[-1] = [x.detach() for x in found[-1]]
        order = {"order": _named(model, calls)}
        return {OUTPUTS: numbered(found), CALLS: order, INPUTS: _written(parts, fresh)}

    with in_mode(model, training=how.training), on_one_device(model):
        seen = observed(model, run, how)
    for name in retained:
        logger.warning(
            "forward retains the gradient of %r, and stages bring none back: its grad will be None",
            name,
        )
    for name in parameters_with_hooks(model) if how.backward else ():
        if not equal(seen.before.get(name), seen.contents[STATE].get(name)):
            raise VerificationError(
                f"a hook changes the parameter {name!r} in backward, while other micro-batches of "
                "the step still read it.\nLet no hook step (register_post_accumulate_grad_hook), "
                "and call optimizer.step() after train_step"
            )
    return seen


def _retaining(model: nn.Module) -> dict[str, None]:
    """The attributes with a tensor, no parameter, of which autograd keeps the gradient."""
    held = [(x.name, x.value) for x in module_slots(model)]
    return {name: None for name, x in held if isinstance(x, Tensor) and x.retains_grad}


def plain_outputs(model: nn.Module, microbatch: Batch) -> tuple[OutputSpec, list[Tensor]]:
    """What the model returns for a copy of a micro-batch: its form and its tensors."""
    return _outputs(model, _fresh(microbatch))


def _outputs(model: nn.Module, microbatch: Batch) -> tuple[OutputSpec, list[Tensor]]:
    args, kwargs = microbatch.restore()
    if has_cache(model):
        kwargs = {"use_cache": False} | kwargs
    return OutputSpec.of(model(*args, **kwargs))


def observe_staged(
    model: nn.Module,
    pipeline: Pipeline,
    captured: Capture,
    parts: Sequence[Batch],
    how: RunMode,
) -> Observation:
    """Run the stages on all these micro-batches at once; the model is as before afterwards."""
    found: list[list[Tensor]] = []

    def loss_fn(returned: Any, _: Any) -> Tensor:
        _, outputs = OutputSpec.of(returned)
        found.append([x.detach() for x in outputs])
        return weighted_sum([*outputs, *captured.assigned.tensors_on(model)])

    def run() -> Contents:
        fresh = [_fresh(part) for part in parts]
        if how.backward:
            targets = [Batch.of_targets(None) for _ in parts]
            head = LossHead(model, loss_fn, targets, [1 / len(parts)] * len(parts))
            pipeline.runner.train_on(fresh, head)
        else:
            found[:] = pipeline.runner.outputs(fresh, training=how.training)
        order = {"order": _named(model, calls)}
        # In another process the stage that writes has a batch of its own.
        written = {INPUTS: _written(parts, fresh)} if pipeline.group is None else {}
        return {OUTPUTS: numbered(found), CALLS: order, **written}

    with noted_calls() as calls:
        return observed(model, run, how)


def _named(model: nn.Module, calls: Sequence[tuple[nn.Module, Any, Any]]) -> list[str]:
    """The calls of hooks, in order: the module, the hook and what it returned."""
    names = {module: name for name, module in model.named_modules()}
    return [
        f"{names[module]}: {getattr(hook, '__qualname__', type(hook).__qualname__)}: {returned!r}"
        for module, hook, returned in calls
    ]


def numbered(outputs: Sequence[Sequence[Tensor]]) -> Mapping[str, Tensor]:
    """The outputs of each micro-batch by their numbers."""
    return {
        f"{i} of micro-batch {m}" if m else str(i): x
        for m, some in enumerate(outputs)
        for i, x in enumerate(some)
    }


def _written(parts: Sequence[Batch], fresh: Sequence[Batch]) -> Mapping[str, Tensor]:
    """The copies of inputs that somebody has written to."""
    before, after = (numbered([x.tensors for x in some]) for some in (parts, fresh))
    return {name: x for name, x in after.items() if not equal(x, before[name])}


def _fresh(microbatch: Batch) -> Batch:
    """A copy, as a model may write to its inputs."""
    copies = (x.clone() if isinstance(x, Tensor) else x for x in microbatch.leaves)
    return replace(microbatch, leaves=tuple(copies))


def weighted_sum(outputs: Sequence[Tensor]) -> Tensor:
    """A loss with another gradient for each number of the outputs that require one."""
    parts = [
        (x * weights(x)).sum().float().cpu()
        for x in outputs
        if x.requires_grad and x.is_floating_point()
    ]
    return torch.stack(parts).sum() if parts else torch.zeros((), requires_grad=True)


def weights(x: Tensor) -> Tensor:
    """Another factor for each number of a tensor."""
    numbers = torch.arange(x.numel(), device=x.device, dtype=torch.float32)
    return (torch.cos(numbers) / math.sqrt(max(1, x.numel()))).to(x.dtype).reshape(x.shape)


def observed(model: nn.Module, run: Callable[[], Contents], how: RunMode) -> Observation:
    """What a run gives and leaves; the model is as before afterwards.

    Args:
        model: has the parameters whose gradients are read.
        run: returns what it gives, by kind.
        how: with gradients or without.
    """
    with _gradients_apart(model), preserve_state(model, how.written):
        torch.manual_seed(SEED)
        random.seed(SEED)
        numpy.random.seed(SEED)
        before = ModelState.of(model, how.written)
        with torch.set_grad_enabled(how.backward):
            gave = run()
        after = ModelState.of(model, how.written)
        drawn_aside = {"random"} if checks_types(model) else set()
        generators = {x: y for x, y in after.generators.items() if x not in drawn_aside}
        contents = {
            GENERATORS: generators,
            STATE: after.values,
            **{kind: {x: _kept(y) for x, y in some.items()} for kind, some in gave.items()},
        }
        if how.backward:
            gradients = ((x, y if y.is_meta else y.grad) for x, y in model.named_parameters())
            contents[GRADIENTS] = {x: _kept(y) for x, y in gradients}
            contents[UNREGISTERED] = {x: y.grad for x, y in _unregistered(model).items()}
        return Observation(contents, before.values)


def _kept(x: Any) -> Any:
    if not isinstance(x, Tensor):
        return x
    if x.is_meta:
        return NO_VALUES
    return x.detach().to_dense().cpu()


def _unregistered(model: nn.Module) -> Mapping[str, nn.Parameter]:
    """Parameters of modules in attributes that torch does not look into, such as lists."""
    known = set(model.modules())
    return {
        f"{slot.name}.{i}.{name}": x
        for path, module in model.named_modules()
        for slot in attribute_slots(module, f"{path}." if path else "")
        for i, part in enumerate(tree_leaves(slot.value))
        if issubclass(type(part), nn.Module) and part not in known  # a weak proxy has no hash
        for name, x in part.named_parameters()
    }


@contextmanager
def _gradients_apart(model: nn.Module) -> Iterator[None]:
    """Within it, no parameter has a gradient; afterwards each has its own again."""
    every = (*model.parameters(), *_unregistered(model).values())
    kept = [(x, x.grad) for x in every]
    for x, _ in kept:
        x.grad = None
    try:
        yield
    finally:
        for x, gradient in kept:
            x.grad = gradient

"""What only the first call of a model does: it is made for good before the model is captured.

    self.inner.register_forward_hook(...)     hooks, as models of transformers register
    self.attention = Full(self.attention)     another module in the place of one
    self.is_changed = True                    by which forward knows it

Plain torch keeps them from the first call on.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from skyfx.runtime.execution.assigned_attributes import AssignedAttributes
from skyfx.runtime.model_state import preserve_run, registered_tables
from skyfx.runtime.pytree import tree_leaves
from skyfx.solver.errors import CaptureError
from skyfx.tracing.effects.attribute_effects import is_constant
from skyfx.tracing.effects.attribute_watch import AttributeWatch
from skyfx.tracing.failures import line_of

Structure = Callable[[nn.Module], Mapping[str, Any]]
"""What forward may not change, by name."""


class FirstCallError(CaptureError):
    """Forward changes modules or hooks of the model."""


def modules_and_hooks(model: nn.Module) -> dict[str, Any]:
    """Which module, parameter and hooks have which name."""
    found: dict[str, Any] = module_names(model)
    for path, module in model.named_modules():
        found[path] = module
        modules, _, *hooks = registered_tables(module)
        found[f"{path}.hooks"] = [*modules], [list(table) for table in hooks]
    return found


def module_names(model: nn.Module) -> dict[str, Any]:
    """The names of its modules and parameters."""
    names = [name for name, _ in model.named_modules()]
    return dict.fromkeys([*names, *_parameters(model)])


def anything(_: nn.Module) -> dict[str, Any]:
    """Forward may change all."""
    return {}


def check_same(model: nn.Module, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse another structure.

    Raises:
        FirstCallError: names what is new, and the cure.
    """
    different = (x for x in {**now, **before} if x not in now or x not in before)
    changed = next(different, None) or next((x for x in now if now[x] != before[x]), None)
    if changed is not None:
        raise FirstCallError(
            f"forward registers, or takes away, {changed!r} in its first call"
            f"{line_of(model, changed)}.\nCall the model once on such a batch before, so that "
            "all of its modules and parameters are there"
        )


def make_first_call(
    model: nn.Module, run: Callable[[], Sequence[Tensor]], *, training: bool
) -> None:
    """Call a model, and keep the modules and hooks that it has then, not what else has changed.

    The plain values that only this call assigns are kept as well.

    Args:
        model: the model.
        run: calls it.
        training: whether it is to draw in its first step what plain torch draws.

    Raises:
        FirstCallError: only this call makes parameters, or draws numbers for the modules.
    """
    before, names = modules_and_hooks(model), dict.fromkeys(_parameters(model))
    began = torch.get_rng_state()
    with preserve_run(model):
        watch = AttributeWatch(model)
        run()
        first, drawn = watch.changes(), torch.get_rng_state()
        check_same(model, names, dict.fromkeys(_parameters(model)))
        tables = [
            (table, dict(table))
            for module in model.modules()
            for table in registered_tables(module)
        ]
        with preserve_run(model):
            torch.set_rng_state(began)
            watch = AttributeWatch(model)
            run()
            again = watch.changes()
            if training and not torch.equal(drawn, torch.get_rng_state()):
                check_same(model, before, modules_and_hooks(model))
    for table, held in tables:
        table.clear()
        table.update(held)
    only_first = {
        name: change
        for name, change in first.items()
        if name not in again and not any(isinstance(x, Tensor) for x in tree_leaves(change.value))
    }
    AssignedAttributes.of(only_first)[0].leave(model, ())


def check_settled(
    model: nn.Module,
    assigned: AssignedAttributes,
    left: Sequence[fx.Node],
    settled: Collection[str],
) -> None:
    """Refuse an attribute that keeps a value of the first call's inputs or parameters.

    Args:
        model: has the attributes.
        assigned: the form of what forward leaves on them.
        left: the nodes that compute it.
        settled: those that only the first call assigns.

    Raises:
        CaptureError: names it, its line and the cure.
    """
    values = assigned.form.restore(left)
    for (name, _), value in zip(assigned.ways, values, strict=True):
        if name in settled and not all(map(is_constant, tree_leaves(value))):
            raise CaptureError(
                f"forward keeps {name!r} of its first call{line_of(model, name)}, and stages would "
                "compute it in each call: call the model once on such a batch before"
            )


def _parameters(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]

"""What only the first call of a model does: it is made for good before the model is captured.

    self.inner.register_forward_hook(...)     hooks, as models of transformers register
    self.attention = Full(self.attention)     another module in the place of one
    self.is_changed = True                    by which forward knows it
    self.bias = self.table[self.index]        in inference, what it makes of parameters

Plain torch keeps them from the first call on.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import Any, ClassVar
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, fx, nn

from skyfx.runtime.execution.assigned_attributes import AssignedAttributes
from skyfx.runtime.model_state import preserve_run, registered_tables
from skyfx.runtime.pytree import tree_leaves
from skyfx.solver.errors import CaptureError
from skyfx.tracing.effects.attribute_effects import is_constant
from skyfx.tracing.effects.attribute_watch import AttributeWatch
from skyfx.tracing.failures import FinalError, line_of

Structure = Callable[[nn.Module], Mapping[str, Any]]
"""What forward may not change, by name."""


class FirstCallError(FinalError):
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


class FirstValues:
    """Attributes that only the first call of a model assigns, and that it makes of parameters."""

    _of_models: ClassVar[WeakKeyDictionary[nn.Module, "FirstValues"]] = WeakKeyDictionary()

    def __init__(self, model: nn.Module) -> None:
        """None, so far."""
        self._model = ref(model)
        self._made_of: dict[str, Tensor] = {}
        self._put_back: Callable[[], None] | None = None

    @classmethod
    def of(cls, model: nn.Module) -> "FirstValues":
        """Those of a model: a capture that finds them there has the same."""
        return cls._of_models.setdefault(model, cls(model))

    def keep(
        self,
        model: nn.Module,
        assigned: AssignedAttributes,
        left: Sequence[fx.Node],
        settled: Collection[str],
        run: Callable[[], Sequence[Tensor]],
        *,
        training: bool,
    ) -> bool:
        """Call the model, and keep what the call leaves on such attributes; whether there are any.

        Args:
            model: the model.
            assigned: the form of what forward leaves on attributes.
            left: the nodes that compute it.
            settled: those that only the first call assigns.
            run: calls the model.
            training: whether parameters train; then there may be none.

        Raises:
            CaptureError: such an attribute may not be kept; names it, its line and the cure.
        """
        values = zip(assigned.ways, assigned.form.restore(left), strict=True)
        made = {name: tree_leaves(value) for (name, _), value in values if name in settled}
        names = [name for name, nodes in made.items() if not all(map(is_constant, nodes))]
        lacks_values = any(x.is_meta for x in model.parameters())
        for name in names:
            is_kept = all(is_constant(x, in_training=False) for x in made[name])
            if training or lacks_values or self._made_of or not is_kept:
                raise CaptureError(
                    f"forward keeps {name!r} of its first call{line_of(model, name)}, and "
                    "stages would compute it in each call: call the model once on such a batch "
                    "before"
                )
        if names:
            self._put_back = _leave(model, names, run)
            read = {id(x) for name in names for x in _tensors_read(made[name])}
            own = model.named_parameters()
            self._made_of = {name: x.detach().clone() for name, x in own if id(x) in read}
        return bool(names)

    def undo_if_stale(self) -> bool:
        """Undo them if parameters that they are made of have changed since; whether they have.

        Plain torch makes them of what the parameters are when it is called first.
        """
        model = self._model()
        for name, then in self._made_of.items():
            now = then if model is None else model.get_parameter(name).detach()
            if not (now.is_meta or torch.equal(now.to(then.device), then)):
                self.undo()
                return True
        return False

    def undo(self) -> None:
        """Put back what was there before."""
        if self._put_back is not None:
            self._put_back()
        self.settle()

    def settle(self) -> None:
        """Plain torch would have them now, too: they stay."""
        self._put_back, self._made_of = None, {}


def _leave(
    model: nn.Module, names: Collection[str], run: Callable[[], Sequence[Tensor]]
) -> Callable[[], None]:
    """Leave on the model what a call leaves on these attributes; returns what undoes it."""
    watch = AttributeWatch(model)
    with preserve_run(model), torch.no_grad():
        run()
        changes = {name: x for name, x in watch.changes().items() if name in names}
        form, tensors = AssignedAttributes.of(changes)
        kept = [x.detach().clone() for x in tensors]
    form.leave(model, kept)
    return partial(watch.put_back, names)


def _tensors_read(nodes: Sequence[Any]) -> list[Any]:
    """The tensors of the model that nodes of a captured graph are made of."""
    found, left = dict[fx.Node, Any](), [x for x in nodes if isinstance(x, fx.Node)]
    while left:
        node = left.pop()
        if node not in found:
            found[node] = None
            if node.op == "get_attr":
                found[node] = attrgetter(str(node.target))(node.graph.owning_module)
            left += node.all_input_nodes
    return [x for x in found.values() if x is not None]


def _parameters(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]

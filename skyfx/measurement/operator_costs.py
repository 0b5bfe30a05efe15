"""What each operator of a captured graph costs on one device, equal ones measured once.

A model with values is run once, and the first call of each signature is measured on what comes to
it there. A model without any, on torch's meta device, is measured on made-up values.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from skyfx.measurement.call_cost import CallCost, measure_call
from skyfx.measurement.cost_cache import CostCache
from skyfx.passes.call_signature import of_tensors, signature
from skyfx.passes.device_transfer import copy_to, with_device
from skyfx.passes.synthetic_inputs import arguments, parts
from skyfx.runtime.device import LocalDevice
from skyfx.tracing.capture import Capture
from skyfx.tracing.failures import run_failure
from skyfx.tracing.leaves.leaf_calls import leaf_of
from skyfx.tracing.node_names import is_operator

Told = Callable[[int, int], None]
"""Called with how many of how many nodes are done."""


@dataclass(slots=True)
class OperatorCosts:
    """By name of each node: its cost, and whether a gradient flows through each of its tensors."""

    costs: dict[str, CallCost] = field(default_factory=dict)
    flows: dict[str, tuple[bool, ...]] = field(default_factory=dict)


def priced(captured: Capture, place: LocalDevice, store: CostCache, told: Told) -> OperatorCosts:
    """Price every operator of a captured model, in the order of the graph."""
    pricer = _Pricer(captured, place, store, told)
    if has_values(captured):
        module = copy_to(captured.module, place.device)
        # Copies: a model may write to its inputs.
        inputs = [x.to(place.device, copy=True) for x in captured.microbatch.tensors]
        with torch.no_grad():  # what gradients cost is measured apart, and nothing is kept for them
            _Real(module, pricer).run(*inputs)
        return pricer.prices
    tensors = tensors_read(captured)
    for node in captured.module.graph.nodes:
        pricer.price(node, partial(arguments, node, tensors, place.device))
    return pricer.prices


def has_values(captured: Capture) -> bool:
    """Whether the model can be run: nothing of it is on the meta device."""
    tensors = (*captured.module.parameters(), *captured.module.buffers())
    return not any(x.is_meta for x in (*tensors, *captured.microbatch.tensors))


def tensors_read(captured: Capture) -> dict[fx.Node, Any]:
    """What each `get_attr` node reads."""
    return {x: captured.attribute(x) for x in captured.module.graph.find_nodes(op="get_attr")}


class _Real(fx.Interpreter):
    """Runs the graph on its values, and has each operator priced when its arguments are there."""

    def __init__(self, module: fx.GraphModule, pricer: "_Pricer") -> None:
        super().__init__(module)
        self._pricer = pricer
        self.extra_traceback = False  # nothing of torch's in the text of errors

    def run_node(self, n: fx.Node) -> Any:
        self._pricer.price(n, lambda: self.fetch_args_kwargs_from_env(n))
        with self._pricer.explaining(n):
            return super().run_node(n)


class _Pricer:
    """Prices nodes one after the other."""

    def __init__(self, captured: Capture, place: LocalDevice, store: CostCache, told: Told) -> None:
        self.prices = OperatorCosts()
        self._training, self._place = captured.training, place
        self._store, self._told, read = store, told, tensors_read(captured)
        self._parameters = {n.name: x for n, x in read.items() if isinstance(x, nn.Parameter)}
        self._regions = {n.name: x for n, x in read.items() if isinstance(x, nn.Module)}
        self._names = {node.name: name for node, name in captured.ids.items()}
        self._made_up = {} if has_values(captured) else read
        self._total = sum(map(is_operator, captured.module.graph.nodes))

    def price(self, node: fx.Node, fetch: Callable[[], tuple[Any, Any]]) -> None:
        """Price a node after all that it reads; `fetch` gives its arguments."""
        if is_operator(node):
            with self.explaining(node):
                cost = self._cost(node, fetch)
            self.prices.costs[node.name], self.prices.flows[node.name] = cost, cost.flows
            self._told(len(self.prices.costs), self._total)
        elif node.op != "output":
            parameter = self._parameters.get(node.name)
            needs = self._training and parameter is not None and parameter.requires_grad
            self.prices.flows[node.name] = (needs,)

    @contextmanager
    def explaining(self, node: fx.Node) -> Iterator[None]:
        """Within it, an error says which node fails, and where it comes from."""
        try:
            yield
        except Exception as error:
            raise run_failure(node, self._names.get(node.name, node.name), error) from error

    def _cost(self, node: fx.Node, fetch: Callable[[], tuple[Any, Any]]) -> CallCost:
        target: Any = leaf_of(node) or node.target
        needs = of_tensors(node, lambda read: self.prices.flows[read.name])
        key = signature(target, *self._described(node), needs)
        found = self._store.get(key)
        if found is None:
            training, threads = self._training, self._place.num_threads
            found = measure_call(target, *fetch(), needs, training=training, num_threads=threads)
            found = _whole(found, parts(node, self._made_up), target)
            self._store.put(key, found)
        return found

    def _described(self, node: fx.Node) -> tuple[Any, Any]:
        """The arguments without values, as `signature` takes them."""

        def described(read: fx.Node) -> Any:
            if read.name in self._regions:
                return self._regions[read.name]
            return self._parameters.get(read.name, read.meta.get("val"))

        placed = fx.map_arg((node.args, node.kwargs), described)
        args, kwargs = with_device(placed, self._place.device)
        return args, kwargs


def _whole(cost: CallCost, parts: float, target: Any) -> CallCost:
    """The cost of a call that is so many times as large as what was measured of it.

    What an embedding takes does not depend on its table's rows, but its gradient has them all.
    """
    if parts == 1:
        return cost
    forward = 1 if target is torch.ops.aten.embedding.default else parts
    return replace(
        cost,
        forward_s=cost.forward_s * forward,
        backward_s=None if cost.backward_s is None else cost.backward_s * parts,
        workspace_bytes=cost.workspace_bytes * forward,
        flops=round(cost.flops * forward),
        backward_flops=round(cost.backward_flops * parts),
    )

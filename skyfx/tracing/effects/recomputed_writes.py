"""What a checkpoint writes a second time, when it runs again in backward.

    checkpoint(block, h)      forward: batch norm updates its running statistics
                              backward: the block runs again, and updates them again

A captured graph computes a checkpointed block once, and keeps what backward needs. So operators in
it that write to buffers are repeated at the end, of the last checkpoint first, as backward does.
"""

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import torch
from torch import fx, nn
from torch.fx import traceback

from skyfx.tracing.effects.graph_writes import storages_of, subgraphs_of, written_inputs

_CHECKPOINT = "skyfx_checkpoint"
_DETACHING = {torch.ops.aten.detach.default, torch.ops.aten.data.default}
_PLACE = ("nn_module_stack", "stack_trace")
_checkpoints = itertools.count()


@contextmanager
def marked_checkpoint() -> Iterator[None]:
    """Within it, operators that torch.export traces are marked as those of one checkpoint."""
    with traceback.preserve_node_meta(), traceback.annotate({_CHECKPOINT: next(_checkpoints)}):
        yield


class Again:
    """An operator once more, where gradients are on: else there is no backward."""

    __name__ = __qualname__ = "again"

    def __init__(self, operator: Any) -> None:
        self._operator = operator

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Call it for what it writes."""
        if torch.is_grad_enabled():
            with torch.no_grad():
                self._operator(*args, **kwargs)

    def __repr__(self) -> str:
        return f"skyfx.again.{self._operator}"


def repeat_writes(module: fx.GraphModule) -> None:
    """Repeat what checkpoints of a captured graph write to buffers."""
    nodes = [node for node in module.graph.nodes if _checkpoint_of(node) is not None]
    if not nodes:
        return
    reads = {x: attrgetter(str(x.target))(module) for x in module.graph.find_nodes(op="get_attr")}
    kept = {s for x, y in reads.items() if not isinstance(y, nn.Parameter) for s in storages_of(x)}
    flowing = _with_gradients(module.graph, [x for x in reads if _requires_gradient(reads[x])])
    regions = [list(of_one) for _, of_one in itertools.groupby(nodes, _checkpoint_of)]
    (output,) = module.graph.find_nodes(op="output")
    for region in reversed(regions):
        if flowing.isdisjoint(region):
            continue  # nothing in it is computed again
        writers = [
            node
            for node in region
            if node.op == "call_function"
            and any(s in kept for x in written_inputs(node) for s in storages_of(x))
        ]
        with module.graph.inserting_before(output):
            for node in writers:
                args, kwargs = fx.map_arg((node.args, node.kwargs), _before_writes)
                again = module.graph.call_function(Again(node.target), args, kwargs)
                again.meta = {key: x for key, x in node.meta.items() if key in _PLACE}
    module.recompile()


def _checkpoint_of(node: fx.Node) -> Any:
    inner = (x for part in subgraphs_of(node) for x in part.graph.nodes)
    marks = (x.meta.get("custom", {}).get(_CHECKPOINT) for x in (node, *inner))
    return next((mark for mark in marks if mark is not None), None)


def _with_gradients(graph: fx.Graph, trained: Iterable[fx.Node]) -> set[fx.Node]:
    """The nodes that a gradient flows through, on its way to these parameters."""
    found = set(trained)
    for node in graph.nodes:
        is_off = node.target is torch.ops.higher_order.wrap_with_set_grad_enabled
        if (is_off and node.args[0] is False) or node.target in _DETACHING:
            continue
        if not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _requires_gradient(value: Any) -> bool:
    return isinstance(value, nn.Parameter) and value.requires_grad


def _before_writes(node: fx.Node) -> fx.Node:
    """What a node reads, apart from operators that return what they have written to."""
    while written := [
        x for x in written_inputs(node) if set(storages_of(x)) & set(storages_of(node))
    ]:
        node = written[0]
    return node

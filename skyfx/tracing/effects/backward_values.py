"""Copies of buffers and parameters that forward writes to, for backward.

    self.noise.normal_()            backward needs the noise of its own micro-batch, and a stage
    h = h + self.sigma * self.noise     runs the next ones forward before it goes back

So an operator that keeps such a tensor for backward reads a copy of it.
"""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx

from skyfx.tracing.effects.graph_writes import storages_of, written_inputs
from skyfx.tracing.leaves.leaf_calls import leaf_of
from skyfx.tracing.node_names import original_name
from skyfx.tracing.torch_internals import storage_id

_ATEN = torch.ops.aten
_COPIES = {_ATEN.clone.default, _ATEN.detach.default, _ATEN.data.default, _ATEN.copy_.default}
"""Operators that keep nothing for backward."""


_FOR_BACKWARD = "skyfx_for_backward"


def copy_for_backward(module: fx.GraphModule, renewed: Collection[str] = ()) -> None:
    """Let operators read copies of tensors that are written, where they keep them for backward.

    Args:
        module: the captured graph.
        renewed: the names of buffers that each call gives other values, outside of the graph.
    """
    graph, nodes = module.graph, list(module.graph.nodes)
    writes = [{s for x in written_inputs(node) for s in storages_of(x)} for node in nodes]
    data = graph.find_nodes(op="call_function", target=_ATEN.data.default)
    shown = {s for node in data for s in storages_of(node)}
    for kept in graph.find_nodes(op="get_attr"):
        value = kept.meta.get("val")
        if not isinstance(value, Tensor):
            continue
        storage = storage_id(value)
        writers = [i for i, written in enumerate(writes) if storage in written]
        if not writers and original_name(str(kept.target)) not in renewed:
            continue
        # What is written by `.data` later in the same forward, backward of plain torch sees.
        first = writers[-1] if writers and storage in shown else -1
        leading = _leading_to([nodes[i] for i in writers], storage)
        copies: dict[fx.Node, fx.Node] = {}
        for i, node in enumerate(nodes):
            if i in writers:
                copies = {}
            elif i > first and node not in leading:
                for read in node.all_input_nodes:
                    if storage in storages_of(read) and _keeps(node, read):
                        copies[read] = copies.get(read) or _copied(graph, read, node)
                        node.replace_input_with(read, copies[read])
    module.recompile()


def _leading_to(writers: Collection[fx.Node], storage: int) -> set[fx.Node]:
    """The nodes by which writers reach a storage: views of it."""
    found, pending = set[fx.Node](), [x for node in writers for x in written_inputs(node)]
    while pending:
        node = pending.pop()
        if node not in found and storage in storages_of(node):
            found.add(node)
            pending += node.all_input_nodes
    return found


def _keeps(node: fx.Node, read: fx.Node) -> bool:
    """Whether a node may keep what it reads."""
    if node.op == "output" or node.target in _COPIES:
        return False
    if not isinstance(read.meta["val"], Tensor):  # several, of which other nodes read one
        return False
    if leaf_of(node):
        return True
    if node.target is torch.ops.higher_order.wrap_with_set_grad_enabled and node.args[0] is False:
        return False
    kept: list[int] = []

    def bare(x: fx.Node) -> Any:
        value = x.meta.get("val")
        if not isinstance(value, Tensor):
            return value
        tensor = torch.empty_strided(
            value.shape, value.stride(), dtype=value.dtype, device=torch.device("meta")
        )
        return tensor.requires_grad_(value.is_floating_point() or value.is_complex())

    def keep(tensor: Tensor) -> Tensor:
        kept.append(storage_id(tensor))
        return tensor

    given = {x: bare(x) for x in node.all_input_nodes}
    args, kwargs = fx.map_arg((node.args, node.kwargs), given.__getitem__)
    assert callable(node.target)
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            node.target(*args, **kwargs)
    except Exception:
        return True  # not known
    return storage_id(given[read]) in kept


def _copied(graph: fx.Graph, read: fx.Node, reader: fx.Node) -> fx.Node:
    """A copy of what is read, as a part of the reader's module."""
    with graph.inserting_before(reader):
        copy = graph.call_function(_ATEN.clone.default, (read,))
    known = {key: x for key, x in reader.meta.items() if key in ("nn_module_stack", "stack_trace")}
    copy.meta = {**known, "val": read.meta["val"].clone(), _FOR_BACKWARD: True}
    return copy


def is_for_backward(node: fx.Node) -> bool:
    """Whether it makes such a copy. Its readers stay with it, as they would with the original."""
    return _FOR_BACKWARD in node.meta

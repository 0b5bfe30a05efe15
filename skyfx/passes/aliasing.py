"""Which nodes have to share a stage because of in-place writes.

A value is sent between stages once. If it is written afterwards, or is a view of written memory,
the two stages see different numbers. So no cut is allowed between the creation of a storage and
its last in-place write:

    x = conv(...)    ]
    y = x.view(-1)   ]  one stage: the nodes that make, view, read or write the storage,
    r = y + 1        ]             up to its last write
    relu_(x)         ]
    z = x * 2           free: the storage is written no more

A written parameter or buffer outlives the micro-batch, so all its readers share a stage, before the
write and after it. A value that is not a tensor cannot cross a boundary: its readers share its
stage.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from skyfx.runtime.state.reachable_state import parameters_with_hooks
from skyfx.tracing.capture import Capture
from skyfx.tracing.effects.backward_values import is_for_backward
from skyfx.tracing.effects.graph_writes import storages_of, written_inputs
from skyfx.tracing.graph_tidying import reads_part
from skyfx.tracing.node_names import original_name
from skyfx.tracing.torch_internals import may_return_input, schema_of, storage_id


def colocation(graph: fx.Graph, ids: Mapping[fx.Node, str]) -> dict[fx.Node, str]:
    """A label for each placed node that must share a stage with others."""
    position = {node: i for i, node in enumerate(graph.nodes)}
    storages, last_write = Storages(graph.nodes), dict[Hashable, int]()
    for node in graph.nodes:
        for written in written_inputs(node):
            for storage in storages.of(written):
                last_write[storage] = position[node]
    persistent = {s for node in graph.find_nodes(op="get_attr") for s in storages.of(node)}
    groups = _Groups()
    for node in ids:
        is_several = not isinstance(node.meta.get("val"), Tensor)  # tensors, or a number
        if is_several or is_for_backward(node):
            for reader in node.users:
                groups.join(node, reader)
        if reads_part(node):  # they stay with the parameter
            for other in (*node.all_input_nodes, *node.users):
                groups.join(node, other)
        for storage in {s for n in (node, *node.all_input_nodes) for s in storages.of(n)}:
            written_at = last_write.get(storage)
            if written_at is not None and (position[node] <= written_at or storage in persistent):
                groups.join(node, storage)
    return groups.labels(ids)


def written_by(nodes: Iterable[fx.Node], values: Sequence[fx.Node]) -> frozenset[int]:
    """The indices of the values whose storages these nodes write to."""
    storages = Storages(nodes)
    return frozenset(i for i, value in enumerate(values) if storages.written & storages.of(value))


def written_parameters(captured: Capture) -> tuple[str, ...]:
    """The names of the parameters that forward itself writes to, as `max_norm` of embeddings does.

    They are a state of the model, like buffers. Hooks of others may write to them in backward.
    """
    graph = captured.module.graph
    storages = Storages(graph.nodes)
    reads = [x for x in graph.find_nodes(op="get_attr") if storages.written & storages.of(x)]
    named = {original_name(str(x.target)): captured.attribute(x) for x in reads}
    written = [name for name, x in named.items() if isinstance(x, nn.Parameter)]
    hooked = parameters_with_hooks(captured.module) if captured.training else []
    return tuple(dict.fromkeys((*written, *map(original_name, hooked))))


class _Groups:
    """Disjoint sets of nodes and storages."""

    def __init__(self) -> None:
        self._parent: dict[Any, Any] = {}

    def join(self, a: Any, b: Any) -> None:
        """Put two elements into one set."""
        self._parent[self.root(a)] = self.root(b)

    def labels(self, ids: Mapping[fx.Node, str]) -> dict[fx.Node, str]:
        """For each node of a set of two or more: the id of the set's first node."""
        sets: dict[Any, list[fx.Node]] = {}
        for node in ids:
            sets.setdefault(self.root(node), []).append(node)
        return {n: ids[nodes[0]] for nodes in sets.values() if len(nodes) > 1 for n in nodes}

    def root(self, element: Any) -> Any:
        while element in self._parent and self._parent[element] != element:
            element = self._parent[element]
        return element


class Storages:
    """The storages of nodes' values.

    They are shared as torch.export's fake tensors share them, and as real ones do: a dropout that
    is off returns its input, but a fake tensor gets a storage of its own.

    Attributes:
        written: the storages that the nodes write to.
    """

    def __init__(self, nodes: Iterable[fx.Node]) -> None:
        self._groups, nodes = _Groups(), list(nodes)
        written = [x for node in nodes for x in written_inputs(node)]
        for node in nodes if written else ():
            for returned in _returned_inputs(node):
                for storage in storages_of(returned):
                    self._groups.join(storage, next(storages_of(node)))
        self.written = frozenset(s for x in written for s in self.of(x))

    def of(self, node: fx.Node) -> frozenset[Hashable]:
        """The storages of its value."""
        return frozenset(map(self._groups.root, storages_of(node)))


def _returned_inputs(node: fx.Node) -> list[fx.Node]:
    """The inputs that share memory with its result, from a run on tensors without values.

    In eval mode, as a pipeline that trains can infer as well.
    """
    if not may_return_input(node) or not isinstance(node.meta.get("val"), Tensor):
        return []
    inputs = {x: _bare(x.meta.get("val")) for x in node.all_input_nodes}
    args, kwargs = fx.map_arg((node.args, node.kwargs), inputs.__getitem__)
    names = [argument.name for argument in schema_of(node).arguments]
    given = dict(zip(names, args, strict=False)) | kwargs
    given |= {name: False for name in ("train", "training") if name in given}
    call = [given.pop(name) for name in names[: len(args)]]
    assert callable(node.target)
    try:
        with torch.no_grad():
            made = storage_id(node.target(*call, **given))
    except Exception:  # it runs on other devices only
        return []
    tensors = {node: x for node, x in inputs.items() if isinstance(x, Tensor)}
    return [node for node, x in tensors.items() if storage_id(x) == made]


def _bare(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")

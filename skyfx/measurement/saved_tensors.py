"""What one micro-batch keeps: the tensors that autograd saves from forward to backward, by node."""

from collections.abc import Hashable

from torch import Tensor, fx

from skyfx.measurement.operator_costs import OperatorCosts
from skyfx.passes.call_signature import of_tensors
from skyfx.passes.planner_graph import num_bytes
from skyfx.runtime import pytree
from skyfx.tracing.capture import Capture
from skyfx.tracing.torch_internals import storage_id


def saved_tensor_bytes(captured: Capture, prices: OperatorCosts) -> dict[str, float]:
    """Bytes that each node is the first to keep, by its name.

    A storage that several nodes keep counts for the first of them; parameters and buffers do not
    count, they are there anyway.
    """
    graph = captured.module.graph
    counted = {s for node in graph.find_nodes(op="get_attr") for s, _ in _storages(node)}
    kept: dict[str, float] = {}
    for node in graph.nodes:
        cost = prices.costs.get(node.name)
        if cost is None:
            continue
        inputs, outputs = of_tensors(node, _storages), _storages(node)
        found = dict(inputs[i] for i in cost.saves_inputs)
        found |= dict(outputs[i] for i in cost.saves_outputs)
        new = found.keys() - counted
        counted |= new
        kept[node.name] = cost.saves_bytes + sum(found[storage] for storage in new)
    return kept


def _storages(node: fx.Node) -> list[tuple[Hashable, int]]:
    """The storages of the node's value, as torch.export's fake tensors share them, and bytes."""
    leaves = pytree.tree_leaves(node.meta.get("val"))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    return [(storage_id(x), _nbytes(x)) for x in tensors]


def _nbytes(tensor: Tensor) -> int:
    """Bytes of its storage; of an input that is a part of a batch, its own."""
    size = tensor.untyped_storage().nbytes()
    return size if type(size) is int else num_bytes(tensor)

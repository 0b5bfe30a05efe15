"""What one micro-batch keeps: the tensors that autograd saves from forward to backward, by node."""

from torch import Tensor, UntypedStorage, fx
from torch.utils import _pytree as pytree

from skyfx.calls import of_tensors
from skyfx.captures import Capture
from skyfx.pricing import Prices

__all__: list[str] = ["kept_bytes"]


def kept_bytes(captured: Capture, prices: Prices) -> dict[str, float]:
    """Bytes that each node is the first to keep, by its name.

    A storage that several nodes keep counts for the first of them; parameters and buffers do not
    count, they are there anyway.
    """
    graph = captured.module.graph
    counted = {s._cdata for node in graph.find_nodes(op="get_attr") for s in _storages(node)}
    kept: dict[str, float] = {}
    for node in graph.nodes:
        cost = prices.costs.get(node.name)
        if cost is None:
            continue
        inputs, outputs = of_tensors(node, _storages), _storages(node)
        found = {s._cdata: s for s in (inputs[i] for i in cost.keeps_inputs)}
        found |= {s._cdata: s for s in (outputs[i] for i in cost.keeps_outputs)}
        new = found.keys() - counted
        counted |= new
        kept[node.name] = cost.keeps_bytes + sum(found[i].nbytes() for i in new)
    return kept


def _storages(node: fx.Node) -> list[UntypedStorage]:
    """The storages of the node's value, as torch.export's fake tensors share them."""
    leaves = pytree.tree_leaves(node.meta.get("val"))
    return [leaf.untyped_storage() for leaf in leaves if isinstance(leaf, Tensor)]

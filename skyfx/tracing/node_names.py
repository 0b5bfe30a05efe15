"""Names of the nodes of a captured graph, the same in plan files and in other captures.

bert.encoder.layer.3.output.dense.linear      operator `linear` of that module
bert.encoder.layer.3.attention.self.view_2    the third `view` of that module
lm_head.weight                                a parameter that several nodes read
input_ids                                     an input
"""

import inspect
import itertools
import operator
from collections.abc import Collection, Sequence

from torch import Tensor, fx, nn

from skyfx.runtime.batches.batch_dims import BatchDims
from skyfx.runtime.batches.microbatch import Batch

LEAF_NAMESPACE = "submodule"
"""The namespace of leaves in names of operators, where torch's have `aten`."""

ADAPTED = "model"
"""The attribute under which capture's adapter holds the user's model."""


def node_ids(
    graph: fx.Graph, inputs: Sequence[str], apart: Collection[str] = ()
) -> dict[fx.Node, str]:
    """The nodes that a plan places, in order, with their ids.

    A parameter or buffer with one reader belongs to that node. One with several readers, such as a
    tied weight, is a node of its own: it lives on one stage, and its value is relayed to later
    readers like any other. So are those that are named in `apart`.
    """
    returned = {x for output in graph.find_nodes(op="output") for x in output.all_input_nodes}
    names, ids, taken = iter(inputs), dict[fx.Node, str](), set[str]()
    for node in graph.nodes:
        if node.op == "placeholder":
            name = next(names)
        elif is_tensor_attribute(node) and (
            len(node.users) > 1 or node in returned or original_name(str(node.target)) in apart
        ):
            name = original_name(str(node.target))
        elif is_operator(node):
            name = ".".join(filter(None, [module_of(node), op_name(node).split(".")[:2][-1]]))
        else:
            continue
        candidates = (f"{name}_{i}" if i else name for i in itertools.count())
        ids[node] = next(candidate for candidate in candidates if candidate not in taken)
        taken.add(ids[node])
    return ids


def graphs_in(module: fx.GraphModule) -> list[fx.GraphModule]:
    """The graph and its subgraphs, such as the body of a `with torch.no_grad()`."""
    return [part for part in module.modules() if isinstance(part, fx.GraphModule)]


def is_operator(node: fx.Node) -> bool:
    """Whether the node computes: an operator or a leaf."""
    return node.op in ("call_function", "call_module")


def is_tensor_attribute(node: fx.Node) -> bool:
    """Whether the node reads a parameter, a buffer or a constant (and not a submodule)."""
    return node.op == "get_attr" and isinstance(node.meta.get("val"), Tensor)


def module_of(node: fx.Node) -> str:
    """The qualified name of the module that the node came from; empty for the model itself."""
    stack = node.meta.get("nn_module_stack") or {}
    path = str(list(stack.values())[-1][0]) if stack else ""
    return "" if path == ADAPTED else original_name(path)


def original_name(captured: str) -> str:
    """The name that the user's model gives to a parameter, buffer or module of the capture."""
    return captured.removeprefix(f"{ADAPTED}.")


def op_name(node: fx.Node) -> str:
    """The operator as graph files spell it: `input`, `get_attr`, `aten.addmm.default`."""
    if node.op in ("placeholder", "get_attr"):
        return "input" if node.op == "placeholder" else "get_attr"
    if node.target is operator.getitem:
        return "getitem"
    if node.op == "call_module":
        return f"{LEAF_NAMESPACE}.forward"
    return str(node.target)


def input_names(model: nn.Module, microbatch: Batch) -> list[str]:
    """A name for each tensor of the micro-batch: its keyword, or its parameter of `forward`."""
    rule = BatchDims(parameters=tuple(inspect.signature(model.forward).parameters))
    return [rule.name(path) for path, x in microbatch.named_leaves if isinstance(x, Tensor)]

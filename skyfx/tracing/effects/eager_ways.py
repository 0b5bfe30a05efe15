"""Makes a captured graph do what eager torch does, where torch.export notes something else.

try: y = x.view(3, 5)             an operator that failed is noted: it is removed
except RuntimeError: y = x
try: y = self.block(x)            a module that has raised counts as entered: it is left
except Stop: y = self.seen
torch.randint_like(x, 4)          eager torch has no derivative by x, the operator has a failing one
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx

from skyfx.tracing.node_names import graphs_in
from skyfx.tracing.torch_internals import replaced, schema_of

_ATEN = torch.ops.aten
_DRAWN_ALIKE = (_ATEN.randint_like, _ATEN.rand_like, _ATEN.randn_like)


@contextmanager
def modules_left() -> Iterator[None]:
    """Within it, an exception that forward catches has left the modules that it went through."""
    own = fx.Tracer.call_module

    def call_module(tracer: fx.Tracer, *args: Any, **kwargs: Any) -> Any:
        num_around = len(tracer.module_stack)
        try:
            return own(tracer, *args, **kwargs)
        except Exception:
            while len(tracer.module_stack) > num_around:
                tracer.module_stack.popitem()
            raise

    with replaced(fx.Tracer, "call_module", call_module):
        yield


def follow_eager(module: fx.GraphModule) -> None:
    """Change the graph, and the subgraphs in it."""
    for part in graphs_in(module):
        for node in reversed(part.graph.nodes):
            if _has_failed(node):
                part.graph.erase_node(node)
            elif getattr(node.target, "overloadpacket", None) in _DRAWN_ALIKE:
                _detach(node)
        part.recompile()


def _has_failed(node: fx.Node) -> bool:
    """Whether its operator returns something, and nothing has come of it."""
    returns = getattr(schema_of(node), "returns", ())
    return bool(returns) and not node.users and node.meta.get("val", node) is None


def _detach(node: fx.Node) -> None:
    """Let the node read its first argument without its gradient."""
    (read, *rest) = node.args
    assert isinstance(read, fx.Node)
    with node.graph.inserting_before(node):
        detached = node.graph.call_function(_ATEN.detach.default, (read,))
    known = {key: x for key, x in node.meta.items() if key in ("nn_module_stack", "stack_trace")}
    detached.meta = {**known, "val": read.meta["val"].detach()}
    node.args = (detached, *rest)

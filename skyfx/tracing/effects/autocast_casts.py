"""Within `torch.autocast`, a parameter that several operators read is cast once, as torch does it.

    h = self.layer(self.layer(x))     both read one bfloat16 copy of the weight, and its gradient
                                      is the sum of theirs in bfloat16

torch keeps such copies until the outermost autocast ends. Stages begin one for each micro-batch,
and torch keeps no copy of a parameter that came from another stage. So the cast is a node of its
own.
"""

from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn

from skyfx.tracing.node_names import graphs_in

_WITHIN = torch.ops.higher_order.wrap_with_autocast
_CAST = torch.ops.aten._to_copy.default
_OWN_CASTS = (torch.ops.aten.to, torch.ops.aten._to_copy, torch.ops.aten.type_as)


def share_casts(module: fx.GraphModule, around: Mapping[str, torch.dtype]) -> None:
    """Change the graph, and the bodies of `with torch.autocast(...)` in it.

    Args:
        module: the captured graph.
        around: the dtype by device type, for which autocast is on around the model.
    """
    for kind, dtype in around.items():
        _share(module, _parameters(module), kind, dtype)
    for part in graphs_in(module):
        known = _parameters(part)
        for node in part.graph.find_nodes(op="call_function", target=_WITHIN):
            kind, dtype = _mode(node)
            if kind not in around:
                body, given = _body(part, node)
                _share(body, {x: known[y] for x, y in given.items() if y in known}, kind, dtype)


def _parameters(module: fx.GraphModule) -> dict[fx.Node, nn.Parameter]:
    """The nodes that read a parameter of which autocast would keep a copy."""
    read = {x: attrgetter(str(x.target))(module) for x in module.graph.find_nodes(op="get_attr")}
    return {
        node: x
        for node, x in read.items()
        if isinstance(x, nn.Parameter) and x.requires_grad and x.dtype is torch.float32
    }


def _mode(node: fx.Node) -> tuple[Any, Any]:
    """The device type and dtype of an autocast within the graph; None as dtype if it is off."""
    kind, dtype, is_on, *_ = node.args
    return kind, (dtype or torch.get_autocast_dtype(str(kind))) if is_on else None


def _body(module: fx.GraphModule, node: fx.Node) -> tuple[fx.GraphModule, dict[fx.Node, Any]]:
    """The body of an autocast within the graph, and what its placeholders stand for."""
    body, *given = node.args[4:]
    assert isinstance(body, fx.Node)
    inner = getattr(module, str(body.target))
    return inner, dict(zip(inner.graph.find_nodes(op="placeholder"), given, strict=True))


def _share(
    module: fx.GraphModule, read: Mapping[fx.Node, nn.Parameter], kind: Any, dtype: Any
) -> None:
    for node, parameter in read.items():
        if parameter.device.type != kind:
            continue
        users = list(_casting(node, dtype))
        inside = [
            (caller, body, known, list(_casting(known, dtype)))
            for caller in sorted(node.users)
            if caller.target is _WITHIN and _mode(caller) == (kind, dtype)
            for body, given in [_body(module, caller)]
            for known in [x for x, y in given.items() if y is node]
        ]
        if len(users) + sum(len(some) for *_, some in inside) < 2:
            continue
        first = min([*users, *(caller for caller, *_ in inside)])
        with module.graph.inserting_before(first):
            cast = module.graph.call_function(_CAST, (node,), {"dtype": dtype})
        cast.meta = {**first.meta, "val": _CAST(node.meta["val"], dtype=dtype)}
        for user in users:
            user.replace_input_with(node, cast)
        for caller, body, known, some in inside:
            placeholder = _further(body, cast)
            caller.args = (*caller.args, cast)
            for user in some:
                user.replace_input_with(known, placeholder)
            body.recompile()
        module.recompile()


def _further(body: fx.GraphModule, value: fx.Node) -> fx.Node:
    """One more placeholder of a graph, for this value."""
    *_, last = body.graph.find_nodes(op="placeholder")
    with body.graph.inserting_after(last):
        placeholder = body.graph.placeholder(value.name)
    placeholder.meta = dict(value.meta)
    return placeholder


def _casting(node: fx.Node, dtype: Any) -> Iterator[fx.Node]:
    """The operators that would cast this parameter, in order."""
    for user in sorted(node.users):
        given, own = user.meta.get("val"), getattr(user.target, "overloadpacket", None)
        if isinstance(given, Tensor) and given.dtype is dtype and own not in _OWN_CASTS:
            yield user

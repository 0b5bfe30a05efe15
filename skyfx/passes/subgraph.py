"""A part of a captured graph as a graph of its own, on a device."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx

from skyfx.passes.aliasing import written_by
from skyfx.passes.device_transfer import copy_to, with_device
from skyfx.passes.rng_advance import is_random
from skyfx.runtime.recomputation import Recomputed
from skyfx.runtime.rng import generator_lending
from skyfx.tracing.capture import Capture
from skyfx.tracing.tensor_binding import moved
from skyfx.tracing.torch_internals import any_attribute_name


def subgraph(
    captured: Capture,
    part: Iterable[fx.Node],
    received: Sequence[fx.Node],
    sent: Sequence[fx.Node],
    device: torch.device,
    tensors: Mapping[fx.Node, Tensor] | None = None,
    segments: Mapping[fx.Node, int] | None = None,
) -> fx.GraphModule:
    """Copies of some nodes, with the tensors of the model themselves.

    Random ones draw from a stream of their own each.

    Args:
        captured: the model.
        part: the nodes, in their order.
        received: its inputs, in this order.
        sent: its outputs, in this order.
        device: where it runs.
        tensors: other tensors in place of the model's, by the nodes that read those.
        segments: the segment of each node that is recomputed in backward. Where other nodes come
            in between, each run of neighbours is one: no path leads out of it and back.
    """
    graph, attributes = fx.Graph(), dict[str, Any]()
    env = {node: graph.placeholder(node.name) for node in received}

    def copied(node: fx.Node) -> fx.Node:
        if node not in env:  # a parameter that lives with its reader
            value = (tensors or {}).get(node, captured.attribute(node))
            if isinstance(value, Tensor) and value.device != device:
                value = moved(value, device)  # in a stage: a constant of the capture
            if isinstance(value, fx.GraphModule):
                value = copy_to(value, device)
            attributes[str(node.target)] = value
            env[node] = graph.get_attr(str(node.target))
        return env[node]

    def copy(node: fx.Node) -> None:
        if node.op == "call_function":
            args = with_device(fx.map_arg(node.args, copied), device)
            kwargs = with_device(fx.map_arg(node.kwargs, copied), device)
            if is_random(node):
                args = (node.target, captured.ids[node], *args)
            target: Any = generator_lending.draw if is_random(node) else node.target
            env[node] = graph.call_function(target, args, kwargs)
        elif node.op == "call_module":
            attributes[str(node.target)] = captured.attribute(node)
            env[node] = graph.call_module(str(node.target), fx.map_arg(node.args, copied))
        else:
            copied(node)

    def recompute(inside: Sequence[fx.Node], name: str) -> None:
        """Put neighbours into one node that runs them, and once more in backward."""
        own = set(inside)
        read = dict.fromkeys(x for node in inside for x in node.all_input_nodes if x not in own)
        entering = [x for x in read if x in env and env[x].op != "get_attr"]
        leaving = [x for x in inside if x in sent or x.users.keys() - own]
        reads = [x for x in read if x.op == "get_attr" and x not in entering]
        buffers = [reads[i] for i in sorted(written_by(inside, reads))]
        within = subgraph(captured, inside, [*entering, *buffers], leaving, device, tensors)
        attributes[name] = Recomputed(within, len(buffers))
        values = graph.call_module(name, tuple(copied(x) for x in (*entering, *buffers)))
        env.update((x, graph.call_function(getitem, (values, i))) for i, x in enumerate(leaving))

    for label, run in itertools.groupby(part, (segments or {}).get):
        if label is None:
            for node in run:
                copy(node)
        else:
            recompute(list(run), f"recomputed_{label}_{len(attributes)}")
    graph.output(tuple(env[node] for node in sent))
    with any_attribute_name():
        return fx.GraphModule(attributes, graph, class_name=f"{captured.name}Stage")

"""Parts of a captured graph as graphs of their own."""

import torch
from torch import nn

from skyfx.passes.subgraph import subgraph
from skyfx.tracing.capture import capture
from skyfx.tracing.node_names import is_operator


def test_parameters_stay_parameters_on_another_device() -> None:
    """Else a stretch that is timed there would have no gradients of parameters to compute."""
    captured = capture(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), torch.ones(2, 4))
    part = [node for node in captured.ids if is_operator(node)]
    inputs = captured.module.graph.find_nodes(op="placeholder")
    module = subgraph(captured, part, inputs, part[-1:], torch.device("meta"))
    found = list(module.parameters())
    assert len(found) == 4
    assert all(x.is_meta and x.is_leaf and x.requires_grad for x in found)
    (output,) = module(torch.ones(2, 4, device="meta"))
    output.sum().backward()
    assert all(x.grad is not None for x in found)

"""Code of graphs that is written when it is called."""

import threading

import torch
from torch import Tensor, fx, nn

from skyfx.tracing.late_code import late_code


class Net(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1


def changed(module: fx.GraphModule) -> fx.GraphModule:
    for node in module.graph.nodes:
        if node.op == "call_function":
            node.args = (node.args[0], 2)
    module.recompile()
    return module


def test_code_is_that_of_the_graph_when_it_is_called() -> None:
    called: list[int] = []
    with late_code():
        module = changed(fx.symbolic_trace(Net()))
        assert not hasattr(module, "_code")
        module.register_forward_hook(lambda *_: called.append(1))
        assert module(torch.ones(())) == 3
        assert called == [1]
        later = changed(fx.symbolic_trace(Net()))
    assert later(torch.ones(())) == 3
    later.recompile()
    assert "x + 2" in later.code


def test_other_threads_write_theirs_at_once() -> None:
    made: list[fx.GraphModule] = []
    with late_code():
        thread = threading.Thread(target=lambda: made.append(fx.symbolic_trace(Net())))
        thread.start()
        thread.join()
        assert "x + 1" in made[0].code

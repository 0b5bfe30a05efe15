"""Makes a captured graph do what eager torch does, where torch.export notes something else.

try: y = x.view(3, 5)             an operator that failed is noted: it is removed
except RuntimeError: y = x
try: y = self.block(x)            a module that has raised counts as entered: it is left
except Stop: y = self.seen
torch.randint_like(x, 4)          eager torch has no derivative by x, the operator has a failing one
torch.ones(4)                     the default type may be another when the operator runs: it is told
with sdpa_kernel(MATH):           the choice of kernels would be over when the operator runs: it is
    y = attention(q, k, v)        the operator of that kernel
with mkldnn.flags(enabled=False): refused: no operator says so, and other stages run meanwhile
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx
from torch.backends import cuda as attention
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from skyfx.runtime.execution.step import autocast_here
from skyfx.solver.errors import CaptureError
from skyfx.tracing.effects.autocast_casts import share_casts
from skyfx.tracing.failures import FinalError
from skyfx.tracing.node_names import graphs_in
from skyfx.tracing.torch_internals import checked_calls, replaced, schema_of

_ATEN = torch.ops.aten
_KERNELS: dict[str, Callable[[], bool]] = {
    "flash": attention.flash_sdp_enabled,
    "efficient": attention.mem_efficient_sdp_enabled,
    "cudnn": attention.cudnn_sdp_enabled,
    "math": attention.math_sdp_enabled,
}
_SWITCHES = (
    "cuda.matmul.fp32_precision",
    "cudnn.benchmark",
    "cudnn.conv.fp32_precision",
    "cudnn.deterministic",
    "cudnn.enabled",
    "cudnn.rnn.fp32_precision",
    "mkldnn.conv.fp32_precision",
    "mkldnn.deterministic",
    "mkldnn.matmul.fp32_precision",
    "mkldnn.rnn.fp32_precision",
)
"""What chooses kernels for the whole process, in `torch.backends`.

`mkldnn.enabled` is none: torch.export has it off. Its switch is seen instead.
"""

_read_switches = attrgetter(*_SWITCHES)
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


class _SameKernels(TorchFunctionMode):
    """Within it, forward may not choose other kernels than there were when this was made.

    Raises:
        FinalError: a function runs with others.
    """

    def __init__(self) -> None:
        super().__init__()
        self._outside = _switches()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (switches := _switches()) != self._outside:
            raise _switched(*(name for name, x in switches.items() if x != self._outside[name]))
        return func(*args, **(kwargs or {}))


@contextmanager
def same_kernels(*, is_real: bool) -> Iterator[None]:
    """Within it, forward may not choose other kernels than there are now.

    Args:
        is_real: whether it runs with real values. torch's fused kernels are not taken within a mode
            of functions, so only the switch of oneDNN is watched then.
    """

    def refuse(*_: Any) -> None:
        raise _switched("torch.backends.mkldnn.enabled")

    onednn: Any = torch.backends.mkldnn  # an object in the place of its Python module
    with checked_calls(onednn.m, "set_flags", refuse), nullcontext() if is_real else _SameKernels():
        yield


@contextmanager
def same_attention(chosen: set[str]) -> Iterator[None]:
    """Within it, code that stays whole has attention by the kernels that are chosen outside.

    A mode of functions would see more calls, but code may compile itself, and the mode with it.
    """

    def check(*_: Any) -> None:
        if chosen_kernels() != chosen:
            raise _switched("the kernels of attention in code that stays whole")

    with (
        checked_calls(functional, "scaled_dot_product_attention", check),
        checked_calls(functional, "multi_head_attention_forward", check),
    ):
        yield


def _switches() -> dict[str, object]:
    values = zip(_SWITCHES, _read_switches(torch.backends), strict=True)
    deterministic = torch.are_deterministic_algorithms_enabled()
    named = {f"torch.backends.{name}": x for name, x in values}
    return {**named, "torch.use_deterministic_algorithms": deterministic}


def _switched(*names: str) -> FinalError:
    return FinalError(
        f"forward switches {', '.join(names)}, which is of the whole process, in which other "
        "stages run meanwhile.\nSwitch it around the pipeline's calls"
    )


class ChosenAttention(TorchFunctionMode):
    """Within it, attention is computed as forward chooses by `torch.nn.attention.sdpa_kernel`."""

    def __init__(self) -> None:
        super().__init__()
        self._outside = _kernels()
        self._own = functional.scaled_dot_product_attention

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_attention = func is self._own or func is functional.multi_head_attention_forward
        if not is_attention or _kernels() == self._outside:
            return func(*args, **(kwargs or {}))
        func = self._attention if func is self._own else func
        with replaced(functional, "scaled_dot_product_attention", self._attention):
            return func(*args, **(kwargs or {}))

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Any,
    ) -> Any:
        kind, kernels = query.device.type, _kernels()
        given = (query, key, value, attn_mask, dropout_p, is_causal)
        if kind == "cpu" and "flash" in kernels & self._outside:  # it has these two kernels only
            return self._own(*given, **options)
        if kernels != {"math"} or torch.is_autocast_enabled(kind):
            raise CaptureError(
                f"forward chooses the kernels of attention ({', '.join(sorted(kernels))}), and a "
                "captured graph can do so for `SDPBackend.MATH` alone, without autocast: choose "
                "them around the pipeline's calls"
            )
        return torch.ops.aten._scaled_dot_product_attention_math(*given, None, **options)[0]


def _kernels() -> set[str]:
    """The kernels that attention may choose from."""
    return {name for name, is_allowed in _KERNELS.items() if is_allowed()}


def chosen_kernels() -> set[str]:
    """Those of them that decide: on CPUs attention is `flash` wherever it may and can be."""
    return _kernels() if torch.cuda.is_available() else _kernels() & {"flash"}


def follow_eager(module: fx.GraphModule) -> None:
    """Change the graph, and the subgraphs in it."""
    for part in graphs_in(module):
        for node in reversed(part.graph.nodes):
            if _has_failed(node):
                part.graph.erase_node(node)
            elif getattr(node.target, "overloadpacket", None) in _DRAWN_ALIKE:
                _detach(node)
            elif not node.all_input_nodes:
                _tell_type(node)
        part.recompile()
    share_casts(module, dict(autocast_here()))


def _has_failed(node: fx.Node) -> bool:
    """Whether its operator returns something, and nothing has come of it."""
    returns = getattr(schema_of(node), "returns", ())
    return bool(returns) and not node.users and node.meta.get("val", node) is None


def _tell_type(node: fx.Node) -> None:
    """Let an operator that makes a tensor of nothing have the type that it has here."""
    made, known = node.meta.get("val"), [x.name for x in getattr(schema_of(node), "arguments", ())]
    if isinstance(made, Tensor) and "dtype" in known[len(node.args) :]:
        node.kwargs = {**node.kwargs, "dtype": node.kwargs.get("dtype") or made.dtype}


def _detach(node: fx.Node) -> None:
    """Let the node read its first argument without its gradient."""
    (read, *rest) = node.args
    assert isinstance(read, fx.Node)
    with node.graph.inserting_before(node):
        detached = node.graph.call_function(_ATEN.detach.default, (read,))
    known = {key: x for key, x in node.meta.items() if key in ("nn_module_stack", "stack_trace")}
    detached.meta = {**known, "val": read.meta["val"].detach()}
    node.args = (detached, *rest)

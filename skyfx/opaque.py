"""Submodules that stay whole: a node each, which runs the submodule's own code.

torch.export follows no branch on a value, no shape that depends on one, and no gradient of the
model's own making. Where a submodule needs one of these, the rest of the model can still be cut:

    y = attention(x)    # if mask.any(): ...        graph:  linear -> attention -> linear
                                                                        |
    its parameters and buffers are inputs of the node like x, so they have owners, sizes and
    gradients as all others have

What its node looks like to its neighbours (shapes, what it writes, whether it draws random
numbers) is seen in a run of the model; every later call is held against the shapes.
"""

import copy
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from skyfx.runtime import random
from skyfx.runtime.microbatch import CONSTANTS, OutputForm
from skyfx.runtime.nesting import flatten, unflatten
from skyfx.solver.errors import CaptureError

__all__: list[str] = ["Leaf", "Opaque", "leaf_of"]


class Leaf(nn.Module):
    """One call of a submodule as a node: from its tensors, parameters and buffers to its outputs.

    It holds the submodule without any tensor of its own, so that calls in other stages and threads
    do not meet in it.
    """

    def __init__(self, seen: "_Call") -> None:
        super().__init__()
        self._seen = seen

    @property
    def writes(self) -> frozenset[int]:
        """Which of its arguments it writes to in place."""
        return self._seen.writes

    @property
    def is_random(self) -> bool:
        """Whether it draws random numbers."""
        return self._seen.is_random

    @property
    def kind(self) -> str:
        """The class of the submodule."""
        return type(self._seen.run.leaf).__name__

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        """Run the submodule.

        Raises:
            RuntimeError: an output has another shape than when the model was captured.
        """
        seen = self._seen
        run = partial(random.draw, seen, seen.name) if seen.is_random else seen
        outputs = run(*tensors)
        for i, (found, expected) in enumerate(zip(outputs, seen.outputs, strict=True)):
            if found.shape != expected.shape:
                raise RuntimeError(
                    f"output {i} of {seen.name!r} has shape {tuple(found.shape)}, when the model "
                    f"was captured it had {tuple(expected.shape)}: it depends on the values, so "
                    "what follows it cannot be cut off. Pin the whole model to one device"
                )
        return outputs

    def __repr__(self) -> str:
        return f"Leaf({self._seen.name!r}, {self.kind})"


class _Run(nn.Module):
    """The submodule's forward alone, without its hooks: those run around the node."""

    def __init__(self, leaf: nn.Module) -> None:
        super().__init__()
        self.leaf = leaf

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.leaf.forward(*args, **kwargs)


@dataclass(frozen=True, slots=True)
class _Call:
    """One call of a submodule, as it was seen when the model ran."""

    name: str
    run: _Run
    leaves: tuple[Any, ...]
    """The arguments, flattened; None for each tensor."""
    is_tensor: tuple[bool, ...]
    spec: pytree.TreeSpec
    state: tuple[str, ...]
    """Names of its parameters and buffers, each once; their tensors follow the arguments'."""
    form: OutputForm
    outputs: tuple[Tensor, ...]
    """Without values: on torch's meta device."""
    writes: frozenset[int]
    is_random: bool

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        following = iter(tensors)
        leaves = [
            next(following) if is_tensor else leaf
            for leaf, is_tensor in zip(self.leaves, self.is_tensor, strict=True)
        ]
        args, kwargs = unflatten(leaves, self.spec)
        state = {f"leaf.{name}": x for name, x in zip(self.state, following, strict=True)}
        returned = torch.func.functional_call(self.run, state, args, kwargs)
        given = {_storage(x) for x in tensors}
        # A node's outputs share no storage with its inputs: what is written behind it stays there.
        return [x.clone() if _storage(x) in given else x for x in OutputForm.of(returned)[1]]

    def described(self) -> str:
        """The outputs in the words of `_described`."""
        return ";".join(
            f"{str(x.dtype).removeprefix('torch.')}:{_numbers(x.shape)}:{_numbers(x.stride())}"
            for x in self.outputs
        )


@torch.library.custom_op("skyfx::opaque", mutates_args=())
def _opaque(name: str, outputs: str, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Stands for a leaf while torch.export traces the model."""
    raise NotImplementedError(f"{name!r} stands in a graph that is still being captured")


@_opaque.register_fake
def _described(name: str, outputs: str, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors as described, with dtypes, shapes and strides: `float32:4,8:8,1;int64::`."""
    parts = [part.split(":") for part in outputs.split(";") if part]
    return [
        torch.empty_strided(
            [int(size) for size in shape.split(",") if size],
            [int(step) for step in stride.split(",") if step],
            dtype=getattr(torch, kind),
            device=tensors[0].device,
        )
        for kind, shape, stride in parts
    ]


@dataclass(slots=True)
class Opaque:
    """The submodules of a model that stay whole in one capture."""

    model: nn.Module
    paths: list[str] = field(default_factory=list)
    calls: dict[str, list[_Call]] = field(default_factory=dict)
    _next: dict[str, int] = field(default_factory=dict)

    def add(self, error: BaseException) -> bool:
        """Keep the submodule whole whose code has failed, and its like; False where none is left.

        It is the innermost one that is not whole already, and not the model itself.
        """
        inside = _modules_in(error)
        names = {id(module): name for name, module in self.model.named_modules()}
        whole = [self.model.get_submodule(path) for path in self.paths]
        for module in reversed(inside):
            if id(module) in names and module is not self.model and module not in whole:
                self._keep(self._like(module))
                return True
        return False

    def _like(self, module: nn.Module) -> list[str]:
        """The paths of the module, and of those of its class unless that is one of torch's."""
        kind = type(module)
        same = kind if not kind.__module__.startswith("torch.") else None
        return [n for n, m in self.model.named_modules() if m is module or type(m) is same]

    def _keep(self, paths: Sequence[str]) -> None:
        """Add these, and drop what lies inside another."""
        every = sorted({*self.paths, *paths}, key=len)
        kept: list[str] = []
        for path in every:
            if not any(path.startswith(f"{outer}.") for outer in kept):
                kept.append(path)
        self.paths = kept

    def see(self, call: Callable[[], Any]) -> Any:
        """Call the model, and note each call of a submodule that stays whole."""
        self.calls = {path: [] for path in self.paths}
        with self._forward(self._note):
            return call()

    @contextmanager
    def standing_in(self) -> Iterator[None]:
        """Within it, each call is one operator, for torch.export to trace."""
        self._next = dict.fromkeys(self.paths, 0)
        with self._forward(self._stand_in):
            yield

    def resolve(self, module: fx.GraphModule) -> None:
        """Put the leaves into a captured graph, where operators stand for them."""
        seen = {call.name: call for calls in self.calls.values() for call in calls}
        regions = [m for m in module.modules() if isinstance(m, fx.GraphModule)]
        for region in regions:
            for node in region.graph.find_nodes(
                op="call_function", target=torch.ops.skyfx.opaque.default
            ):
                name, _, tensors = node.args
                target = "leaf_" + name.replace(".", "_").replace("/", "_")
                region.add_submodule(target, Leaf(seen[name]))
                with region.graph.inserting_before(node):
                    leaf = region.graph.call_module(target, tuple(tensors))
                leaf.meta = node.meta
                node.replace_all_uses_with(leaf)
                region.graph.erase_node(node)
            region.recompile()

    @contextmanager
    def _forward(self, instead: Callable[..., Any]) -> Iterator[None]:
        """Within it, `instead(path, module, ...)` is called for each submodule that stays whole."""
        with ExitStack() as stack:
            for path in self.paths:
                module = self.model.get_submodule(path)
                stack.enter_context(_forward_is(module, partial(instead, path, module)))
            yield

    def _note(self, path: str, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        leaves, spec = flatten((args, kwargs))
        name = f"{path}/{len(self.calls[path])}" if self.calls[path] else path
        _check_constants(name, "is given", leaves)
        state = _state(module)
        tensors = [*(x for x in leaves if isinstance(x, Tensor)), *state.values()]
        versions = [x._version for x in tensors]
        generator = torch.get_rng_state()
        buffers = dict(module.named_buffers())
        with _own_forward(module):
            returned = module.forward(*args, **kwargs)
        if any(module.get_buffer(key) is not x for key, x in buffers.items()):
            raise CaptureError(f"{name!r} assigns a buffer anew, which a stage cannot")
        _check_constants(name, "returns", flatten(returned)[0], computed=True)
        form, outputs = OutputForm.of(returned)
        self.calls[path].append(
            _Call(
                name=name,
                run=_Run(_without_tensors(module)),
                leaves=tuple(None if isinstance(x, Tensor) else x for x in leaves),
                is_tensor=tuple(isinstance(x, Tensor) for x in leaves),
                spec=spec,
                state=tuple(state),
                form=form,
                outputs=tuple(x.detach().to("meta") for x in outputs),
                writes=_writes(module, tensors, versions, list(state)),
                is_random=not torch.equal(generator, torch.get_rng_state()),
            )
        )
        return returned

    def _stand_in(self, path: str, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        call = self.calls[path][self._next[path]]
        self._next[path] += 1
        tensors = [x for x in flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        outputs = torch.ops.skyfx.opaque(
            call.name, call.described(), [*tensors, *_state(module).values()]
        )
        return call.form.restore(outputs)


def leaf_of(node: fx.Node) -> Leaf | None:
    """The leaf that a node calls."""
    if node.op != "call_module" or node.graph.owning_module is None:
        return None
    found = node.graph.owning_module.get_submodule(str(node.target))
    return found if isinstance(found, Leaf) else None


def _modules_in(error: BaseException) -> list[nn.Module]:
    """The modules whose code was running when it was raised, outermost first."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    called = [f.f_locals.get("self") for f in frames if f.f_code.co_name == "_call_impl"]
    inside = [module for module in called if isinstance(module, nn.Module)]
    if inside or error.__cause__ is None:
        return inside
    return _modules_in(error.__cause__)


def _state(module: nn.Module) -> dict[str, Tensor]:
    """Its parameters and buffers by name, each once."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


@contextmanager
def _forward_is(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    module.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        del module.forward


@contextmanager
def _own_forward(module: nn.Module) -> Iterator[None]:
    """Within it, what `_forward_is` has set is not there."""
    forward = module.forward
    del module.forward
    try:
        yield
    finally:
        module.forward = forward  # type: ignore[method-assign]


def _writes(
    module: nn.Module, tensors: Sequence[Tensor], versions: Sequence[int], state: Sequence[str]
) -> frozenset[int]:
    """Which tensors the call has written to; in training it may write another buffer next time."""
    written = {i for i, x in enumerate(tensors) if x._version != versions[i]}
    if module.training:
        buffers = dict(module.named_buffers())
        first = len(tensors) - len(state)
        written |= {first + i for i, name in enumerate(state) if name in buffers}
    return frozenset(written)


def _numbers(of: Sequence[int]) -> str:
    return ",".join(map(str, of))


def _check_constants(name: str, does: str, leaves: Sequence[Any], *, computed: bool = False) -> None:
    """Refuse what a graph cannot pass on; a number that was computed may be another next time."""
    kept = (str, type(None)) if computed else CONSTANTS
    for leaf in leaves:
        if not isinstance(leaf, (Tensor, *kept)):
            raise CaptureError(f"{name!r} {does} an object of {type(leaf).__name__}")


def _without_tensors(module: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers have no values."""
    memo: dict[int, Any] = {}
    for x in _state(module).values():
        empty = x.detach().to("meta")
        memo[id(x)] = nn.Parameter(empty, x.requires_grad) if isinstance(x, nn.Parameter) else empty
    with _own_forward(module):
        return copy.deepcopy(module, memo)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()

"""Leaves of a captured graph: nodes that run a call of the model's code as Python.

    y = attention(x)    # if mask.any(): ...        graph:  linear -> attention -> linear
                                                                        |
    its parameters and buffers are inputs of the node like x, so that they have owners, sizes and
    gradients like all others

A run of the model records what other nodes see of the call: shapes, writes, and whether it draws
random numbers. Every later call is checked against the shapes.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from skyfx.runtime import pytree
from skyfx.runtime.batches.microbatch import CONSTANTS, OutputSpec
from skyfx.runtime.execution.assigned_attributes import AssignedAttributes, AttributeChange
from skyfx.runtime.rng import generator_lending
from skyfx.runtime.state.python_numbers import traced_value
from skyfx.tracing.leaves.bound_code import BoundCode
from skyfx.tracing.leaves.leaf_arguments import Held, check_unchanged, unflatten_held
from skyfx.tracing.node_names import graphs_in
from skyfx.tracing.torch_internals import num_writes, storage_id

_COMPARED = (Held, *(kind for kind in CONSTANTS if kind is not str))


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """One call, as a run of the model recorded it.

    Attributes:
        name: the name of the code, and the number of the call.
        because: what stands in it that cannot be captured as operators.
        run: the code, with a module of its own, so that stages and threads do not share it.
        leaves: the arguments, flattened, with None for each tensor.
        is_tensor: which arguments are tensors.
        spec: how the arguments nest.
        state: names of the parameters and buffers that follow the arguments' tensors.
        form: the form of the result.
        assigned: the form of what it leaves on attributes of its module.
        outputs: the tensors of both, without values, on torch's meta device.
        writes: the indices of the tensors that it writes to.
        is_random: whether it draws random numbers.
        forks: whether it draws from a fork of torch's generator, the same in each call.
        needs: which tensors require a gradient, if the code computes derivatives; else empty.
        ends: whether it ends forward: its tensors may be longer or shorter in other calls.
    """

    name: str
    because: str
    run: BoundCode
    leaves: tuple[Any, ...]
    is_tensor: tuple[bool, ...]
    spec: pytree.TreeSpec
    state: tuple[str, ...]
    form: OutputSpec
    assigned: AssignedAttributes
    outputs: tuple[Tensor, ...]
    writes: frozenset[int]
    is_random: bool
    forks: bool = False
    needs: tuple[bool, ...] = ()
    ends: bool = False

    def is_given(self, leaves: Sequence[Any], spec: pytree.TreeSpec) -> bool:
        """Whether these are its arguments, apart from the values of tensors.

        Functions, configs and strings need equal types only: many are made again for each call, and
        messages print tensors.
        """
        if spec != self.spec or tuple(isinstance(x, Tensor) for x in leaves) != self.is_tensor:
            return False
        pairs = zip(leaves, self.leaves, strict=True)
        return all(
            x == seen if isinstance(x, _COMPARED) else isinstance(x, (Tensor, type(seen)))
            for x, seen in pairs
        )

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        """Run the code on other tensors of these shapes.

        Raises:
            RuntimeError: the result differs from the recorded one in more than values.
        """
        is_on = torch.is_grad_enabled()
        with torch.set_grad_enabled(is_on or bool(self.needs)):
            returned, changes = self._run(self._differentiable(tensors))
        form, outputs = OutputSpec.of(returned)
        assigned, left = AssignedAttributes.of(changes)
        outputs = [x if is_on else x.detach() for x in (*outputs, *left)]
        found, expected = self._summarize(form, outputs), self._summarize(self.form, self.outputs)
        if form.spec != self.form.spec or found != expected or assigned != self.assigned:
            raise RuntimeError(
                f"{self.name!r} has returned {found}, but {expected} when the model was captured: "
                "the result depends on values, and later stages are made for that. Put what uses "
                "it into one submodule with it, which then stays whole, or pass a batch as "
                "example_inputs that shows such samples"
            )
        given = {storage_id(x) for x in tensors}
        # A node's outputs share no storage with its inputs: later writes must not reach the inputs.
        return [x.clone() if storage_id(x) in given else x for x in outputs]

    def _run(self, tensors: Sequence[Tensor]) -> tuple[Any, Mapping[str, AttributeChange]]:
        following = iter(tensors)
        pairs = zip(self.leaves, self.is_tensor, strict=True)
        leaves = [next(following) if is_tensor else leaf for leaf, is_tensor in pairs]
        args, kwargs = unflatten_held(self.run.owner, leaves, self.spec)
        written = [num_writes(x) for x in tensors]
        returned = self.run(dict(zip(self.state, following, strict=True)), args, kwargs)
        self._check_writes(tensors, written)
        check_unchanged((args, kwargs), leaves, self.spec)
        return returned

    def _differentiable(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The tensors as the code differentiates by them, also where gradients are off."""
        needs = self.needs or (False,) * len(tensors)
        return [
            x.detach().requires_grad_() if need and not x.requires_grad else x
            for x, need in zip(tensors, needs, strict=True)
        ]

    def _check_writes(self, tensors: Sequence[Tensor], written: Sequence[int]) -> None:
        """Refuse a write that no stage was made for: others may have read the tensor already."""
        for i, (x, before) in enumerate(zip(tensors, written, strict=True)):
            if i not in self.writes and num_writes(x) != before:
                raise RuntimeError(
                    f"{self.name!r} writes to a tensor in place, but did not when the model was "
                    "captured: return a new tensor instead"
                )

    def _summarize(self, form: OutputSpec, outputs: Sequence[Tensor]) -> str:
        """The shapes of tensors, and the constants between them."""
        shapes = (
            f"a tensor of {x.ndim} dimensions" if self.ends else f"a tensor {tuple(x.shape)}"
            for x in outputs
        )
        pairs = zip(form.leaves, form.is_tensor, strict=True)
        parts = [next(shapes) if is_tensor else repr(leaf) for leaf, is_tensor in pairs]
        return ", ".join([*parts, *shapes])  # the rest is left on attributes

    def described(self) -> str:
        """The outputs in the form that `_described` reads."""
        kind = {x.dtype: str(x.dtype).removeprefix("torch.") for x in self.outputs}
        return json.dumps([(kind[x.dtype], x.shape, x.stride()) for x in self.outputs])


class Leaf(nn.Module):
    """The code of one call as a node: from its tensors, parameters and buffers to its outputs."""

    def __init__(self, seen: RecordedCall) -> None:
        super().__init__()
        self.seen = seen

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        """Run the code; raises the errors of `RecordedCall`."""
        seen = self.seen
        if seen.is_random:
            return list(generator_lending.draw_anything(seen, seen.name, *tensors))
        with generator_lending.lend_none() if seen.forks else nullcontext():
            return seen(*tensors)

    def __repr__(self) -> str:
        return f"Leaf({self.seen.name!r})"


@torch.library.custom_op("skyfx::leaf", mutates_args=())
def _operator(name: str, outputs: str, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Stands for a leaf while torch.export traces the model."""
    raise NotImplementedError(f"{name!r} stands in a graph that is still being captured")


@_operator.register_fake
def _described(name: str, outputs: str, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors as described, with dtypes, shapes and strides: `[["float32", [4, 8], [8, 1]]]`."""
    device = tensors[0].device if tensors else torch.device("cpu")
    return [
        torch.empty_strided(shape, stride, dtype=getattr(torch, kind), device=device)
        for kind, shape, stride in json.loads(outputs)
    ]


def stand_in(seen: RecordedCall, tensors: Sequence[Tensor], module: nn.Module | None) -> Any:
    """The result of the call as torch.export traces it: from one operator.

    What the call leaves on attributes of its module is there afterwards.
    """
    outputs = torch.ops.skyfx.leaf(seen.name, seen.described(), tensors)
    if module is not None:
        seen.assigned.leave(module, outputs[seen.form.num_tensors :], traced_value)
    return seen.form.restore(outputs[: seen.form.num_tensors])


def put_leaves(module: fx.GraphModule, seen: Sequence[RecordedCall]) -> None:
    """Put leaves into a captured graph where operators stand for them."""
    leaves = {call.name: (f"leaf_{i}", Leaf(call)) for i, call in enumerate(seen)}
    for part in graphs_in(module):
        operator = torch.ops.skyfx.leaf.default
        for node in part.graph.find_nodes(op="call_function", target=operator):
            name, _, tensors = node.args
            part.add_submodule(*leaves[name])
            with part.graph.inserting_before(node):
                leaf = part.graph.call_module(leaves[name][0], tuple(tensors))
            leaf.meta = node.meta
            node.replace_all_uses_with(leaf)
            part.graph.erase_node(node)
        part.recompile()


def leaf_of(node: fx.Node) -> Leaf | None:
    """The leaf that a node calls."""
    if node.op != "call_module" or node.graph.owning_module is None:
        return None
    found = node.graph.owning_module.get_submodule(str(node.target))
    return found if isinstance(found, Leaf) else None

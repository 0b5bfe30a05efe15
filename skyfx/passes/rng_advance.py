"""How far each random node of a captured model advances torch's generator.

The node runs twice, on synthetic values of its shapes, from two states of the generator:

    fresh       s ---- dropout ----> s + 4000      the next 4000 numbers of 32 bits
    used        t ---- dropout ----> t + 4000      the same, where a normal number was left

For most operators a count of 32-bit numbers is enough. Operators that make normal numbers in pairs,
and leave one in the generator, run again where others are skipped.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import fx

from skyfx.passes.call_signature import signature
from skyfx.passes.synthetic_inputs import arguments
from skyfx.runtime import pytree
from skyfx.runtime.rng.generator_lending import borrow_generator
from skyfx.runtime.rng.mt19937 import advance, distance
from skyfx.runtime.rng.step_streams import Advance, Advances
from skyfx.tracing.capture import Capture
from skyfx.tracing.effects.graph_writes import subgraphs_of
from skyfx.tracing.leaves.leaf_calls import leaf_of
from skyfx.tracing.node_names import original_name
from skyfx.tracing.torch_internals import schema_of

_CPU = torch.device("cpu")

_BY_VALUE = {
    *("rrelu", "rrelu_", "rrelu_with_noise", "rrelu_with_noise_", "rrelu_with_noise_functional"),
    *("poisson", "binomial", "_standard_gamma", "_sample_dirichlet"),
}
"""torch's operators whose number of draws depends on values."""

logger = logging.getLogger(__name__)


def is_random(node: fx.Node) -> bool:
    """Whether the node draws random numbers with these arguments."""
    if leaf := leaf_of(node):
        return leaf.seen.is_random
    if node.op != "call_function":
        return False
    schema = schema_of(node)
    if schema is None:
        return any(is_random(inner) for part in subgraphs_of(node) for inner in part.graph.nodes)
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    given = {a.name: v for a, v in zip(schema.arguments, node.args, strict=False)} | node.kwargs
    switch = ("train", "training", "p", "dropout", "dropout_p")
    defaults = {a.name: a.default_value for a in schema.arguments if a.name in switch}
    if given.get("generator") is not None:  # the model's own generator
        return False
    # A dropout that is off, by its flag or its probability, draws nothing.
    return not any((defaults | given).get(name, True) in (False, 0) for name in switch)


def advances(captured: Capture, on_cpu: Callable[[fx.Node], bool]) -> Advances:
    """How far each random node advances the generator of a CPU.

    Args:
        captured: the model for the mode and shapes to run.
        on_cpu: whether a node runs on a CPU, in whatever process.

    Returns:
        None where a state of that generator is not enough: a node is on an accelerator, is a leaf,
        or draws a number of times that depends on values.
    """
    nodes = [node for node in captured.ids if is_random(node)]
    other = draws_by_values(captured) or next((x for x in nodes if not on_cpu(x)), None)
    if other is not None:
        logger.info("%s draws from another generator, or as its values say", captured.ids[other])
        return None
    read = {x: captured.attribute(x) for x in captured.module.graph.find_nodes(op="get_attr")}
    known, found = dict[Any, Advance](), list[Advance]()
    for node in nodes:
        name, key = captured.ids[node], _key_of(node, read)
        try:
            advance = known.get(key) or _measure_advance(name, node, read)
        except (RuntimeError, IndexError, ValueError) as error:
            logger.info("%s cannot be run alone: %s", name, error)
            return None
        known[key] = advance
        found.append(replace(advance, node=name))
    return tuple(found)


def draws_by_values(captured: Capture) -> fx.Node | None:
    """The first node whose draws are not known from shapes: by values, or in whole code."""
    nodes = (node for node in captured.ids if is_random(node))
    return next((node for node in nodes if not _depends_on_shapes(node)), None)


def state_of_draws(captured: Capture) -> frozenset[str]:
    """The names of what random code that stays whole has: whether it writes there may be drawn."""
    nodes = [node for node in captured.ids if leaf_of(node) and is_random(node)]
    return frozenset(
        original_name(str(x.target)) for node in nodes for x in captured.tensors_of(node)
    )


def _depends_on_shapes(node: fx.Node) -> bool:
    """Whether its advance depends on shapes, dtypes and constants alone."""
    if leaf_of(node):
        return False
    schema = schema_of(node)
    if schema is None:  # a subgraph that runs once, such as the body of a `with torch.no_grad()`
        inner = [x for part in subgraphs_of(node) for x in part.graph.nodes if is_random(x)]
        return str(node.target).startswith("wrap_with_") and all(map(_depends_on_shapes, inner))
    space, name = schema.name.split("::")
    return space == "aten" and name not in _BY_VALUE


def _key_of(node: fx.Node, read: Mapping[fx.Node, Any]) -> Any:
    """The same for nodes of equal advance."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda x: read.get(x, x.meta.get("val")))
    return signature(node.target, args, kwargs, [False] * len(pytree.tree_leaves((args, kwargs))))


def _measure_advance(name: str, node: fx.Node, read: Mapping[fx.Node, Any]) -> Advance:
    """How far a node advances the generator when it runs on synthetic values."""
    generator = torch.default_generator
    with borrow_generator(generator), torch.no_grad():
        args, kwargs = arguments(node, read, _CPU)
        assert callable(node.target)
        run = partial(node.target, *args, **kwargs)
        generator.manual_seed(0)
        fresh = _count_numbers(run, generator)
        torch.randn(1)  # leaves another normal number in the generator
        used = _count_numbers(run, generator)
    return Advance(name, fresh, run if fresh is None or used != fresh else None)


def _count_numbers(run: Callable[[], Any], generator: torch.Generator) -> int | None:
    """How many numbers it draws; None if it changes the generator in another way as well."""
    before = generator.get_state()
    run()
    after = generator.get_state()
    numbers = distance(before, after)
    return numbers if numbers is not None and torch.equal(advance(before, numbers), after) else None

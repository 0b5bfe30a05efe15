"""Generators that a forward makes and seeds: each call has to begin anew with them.

    generator = torch.Generator().manual_seed(5)      the same numbers in each call
    x + torch.randn(8, generator=generator)

In a captured graph such a generator is a constant, from which one call would go on where another
one has ended. So a node makes a copy of it in each call. It crosses no boundary, so its readers
share a stage.
"""

from operator import attrgetter

import torch
from torch import fx, nn

from skyfx.runtime.model_state import state_slots
from skyfx.runtime.pytree import tree_leaves


class _FreshGenerator:
    """The operator that copies a generator; it has a name like those of torch."""

    __name__ = __qualname__ = "fresh_generator"

    def __call__(self, generator: torch.Generator) -> torch.Generator:
        return torch.Generator(generator.device).set_state(generator.get_state())

    def __repr__(self) -> str:
        return "skyfx.fresh_generator"


fresh_generator = _FreshGenerator()


def begin_anew(model: nn.Module, module: fx.GraphModule) -> None:
    """Let each call of a captured graph begin anew with generators that the model does not hold."""
    held = [x for slot in state_slots(model) for x in tree_leaves(slot.value)]
    held = [x for x in held if isinstance(x, torch.Generator)]
    for node in module.graph.find_nodes(op="get_attr"):
        value = attrgetter(str(node.target))(module)
        if not isinstance(value, torch.Generator) or any(_are_one(value, x) for x in held):
            continue
        first = min(node.users)
        with module.graph.inserting_before(first):
            fresh = module.graph.call_function(fresh_generator, (node,))
        fresh.meta = {key: x for key, x in first.meta.items() if key != "val"}
        node.replace_all_uses_with(fresh, lambda user, fresh=fresh: user is not fresh)
    module.recompile()


def _are_one(one: torch.Generator, other: torch.Generator) -> bool:
    """Whether two objects are the same generator: torch makes objects for one anew."""
    before = one.get_state(), other.get_state()
    if one.device != other.device or not torch.equal(*before):
        return False
    torch.empty(1, device=one.device).uniform_(generator=one)
    is_one = not torch.equal(before[1], other.get_state())
    one.set_state(before[0])
    return is_one

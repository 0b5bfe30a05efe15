"""Nested values are taken apart and put together again; a test for each private symbol of torch."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import register_pytree_node

from skyfx.runtime.pytree import (
    TreeSpec,
    flatten,
    flatten_with_paths,
    is_object,
    replace_nodes,
    tree_flatten,
    tree_leaves,
    tree_map,
    tree_unflatten,
    unflatten,
)
from tests.support import ROOT


@dataclass(frozen=True)
class Pair:
    """Two values, one of which its `__init__` does not take as it is."""

    tensor: Tensor
    number: int = 0


def test_torchs_trees_open_lists_tuples_and_dicts() -> None:
    value = {"a": [1, (2, None)], "b": 3}
    leaves, spec = tree_flatten(value)
    assert leaves == tree_leaves(value) == [1, 2, None, 3]
    assert isinstance(spec, TreeSpec)
    assert tree_unflatten([x and 10 * x for x in leaves], spec) == {"a": [10, (20, None)], "b": 30}
    assert tree_map(lambda x: x and 10 * x, value) == {"a": [10, (20, None)], "b": 30}
    assert tree_leaves(value, is_leaf=lambda x: isinstance(x, list)) == [[1, (2, None)], 3]


def test_dataclasses_that_hold_tensors_open_as_well() -> None:
    x = torch.zeros(2)
    value = [{"pair": Pair(x, 7)}, Pair]
    leaves, spec = flatten(value)
    assert leaves[0] is x
    assert leaves[1:] == [7, Pair]
    assert unflatten(leaves, spec) == value
    paths = [path for path, _ in flatten_with_paths(value)[0]]
    assert paths == [(0, "pair", "tensor"), (0, "pair", "number"), (1,)]


class Keyed(dict[str, Any]):
    """No dict of torch's trees, and it holds something beside its keys."""

    kind = "a"


def test_objects_that_give_tensors_by_keys_open_as_well() -> None:
    x, value = torch.zeros(2), Keyed(b=3)
    value["a"] = x
    value.kind = "b"
    leaves, spec = flatten((value,))
    assert leaves[0] is x
    assert leaves[1:] == [3]
    (made,) = unflatten([x + 1, 4], spec)
    assert (type(made), made.kind, made["b"]) == (Keyed, "b", 4)
    assert torch.equal(made["a"], x + 1)
    assert value["a"] is x
    other = Keyed(a=x, b=3)
    assert flatten((other,))[1] != spec  # what it holds beside its keys is another kind
    assert is_object(value)
    assert not is_object(Keyed(b=3))
    assert not is_object({"a": x}.keys())


class WithoutKeys:
    """Registered with torch's pytrees as diffusers registers its outputs."""

    def __init__(self, sample: Any) -> None:
        self.sample = sample


register_pytree_node(WithoutKeys, lambda x: ([x.sample], None), lambda x, _: WithoutKeys(*x))


def test_a_type_without_keys_opens_by_numbers() -> None:
    pairs, spec = flatten_with_paths([WithoutKeys(1), 2])
    assert pairs == [((0,), 1), ((1,), 2)]
    assert unflatten([3, 4], spec)[0].sample == 3


def test_parts_of_a_value_are_replaced() -> None:
    value = {"a": [1, 2, 3], "b": (Pair(torch.zeros(2), 7), [4, 5])}
    paths = [("a",), ("b", 1)]
    assert replace_nodes(value, paths, lambda entries: entries[:1]) == value | {
        "a": [1],
        "b": (value["b"][0], [4]),
    }
    assert value["a"] == [1, 2, 3]


def test_nothing_else_imports_torchs_private_trees() -> None:
    found = {
        path.resolve()
        for folder in ("skyfx", "solver", "runtime")
        for path in (ROOT / folder).rglob("*.py")
        if "_pytree" in path.read_text().replace("register_pytree_node", "")
    }
    assert found == {ROOT / "runtime/pytree.py"}

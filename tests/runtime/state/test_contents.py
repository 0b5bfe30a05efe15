"""Each type of the table is copied, compared by value, and put back into the same object."""

import random
import sys
from collections import OrderedDict, defaultdict, deque
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from skyfx.runtime.state.contents import NO_VALUES, content, equal, is_closed, restorer


class Counter:
    """An object of a class that torch does not know."""

    def __init__(self) -> None:
        self.calls, self.seen = 0, [torch.ones(2)]

    def count(self) -> None:
        self.calls += 1
        self.seen.append(torch.zeros(1))


def fill(array: Any) -> None:
    array[0] = 7


CHANGES = {
    "tensor": (torch.ones(2), lambda x: x.add_(1)),
    "bfloat16": (torch.ones(2, dtype=torch.bfloat16), lambda x: x.mul_(2)),
    "with nan": (torch.tensor([float("nan"), 1.0]), lambda x: x.add_(1)),
    "resized": (torch.ones(2), lambda x: setattr(x, "data", torch.zeros(3))),
    "array": (np.arange(3.0), fill),
    "strings": (np.array(["a", "b"], dtype=object), fill),
    "random": (random.Random(1), random.Random.random),
    "numpy": (np.random.default_rng(1), lambda x: x.random()),
    "numpy, old": (np.random.RandomState(1), lambda x: x.rand()),
    "mersenne": (np.random.Generator(np.random.MT19937(1)), lambda x: x.random()),
    "generator": (torch.Generator().manual_seed(1), lambda x: torch.rand(1, generator=x)),
    "list": ([torch.ones(1), 2.0], lambda x: x.append(3)),
    "inside": ({"a": [torch.ones(1)]}, lambda x: x["a"][0].add_(1)),
    "tuple": ((torch.ones(1), [1]), lambda x: x[1].clear()),
    "deque": (deque([1, 2], maxlen=2), lambda x: x.append(3)),
    "dict": ({"calls": 1}, lambda x: x.update(calls=2)),
    "ordered": (OrderedDict(a=1, b=2), lambda x: x.popitem()),
    "default": (defaultdict(int, a=1), lambda x: x["b"]),
    "set": ({1, 2}, lambda x: x.add(3)),
    "object": (Counter(), Counter.count),
    "namespace": (SimpleNamespace(n=1), lambda x: setattr(x, "n", 2)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen_and_undone(name: str) -> None:
    value, change = CHANGES[name]
    before, restore = content(value), restorer(value)
    assert equal(before, content(value))
    change(value)
    assert not equal(before, content(value))
    restore()
    assert equal(before, content(value))
    assert type(content(value)) is type(before)


def test_what_stays_out() -> None:
    assert content(nn.Parameter(torch.ones(1))) == NO_VALUES
    assert content(torch.ones(1, device="meta")) == NO_VALUES
    assert content(nn.Linear(1, 1)) is nn.Linear
    assert not equal(content(1), content(True))
    assert equal(content(float("nan")), content(float("nan")))
    assert not equal(content(torch.float32), content(torch.float16))


def test_what_refers_to_itself_is_read_once() -> None:
    value: list[Any] = [1]
    value.append(value)
    before, restore = content(value), restorer(value)
    value.pop(0)
    assert not equal(before, content(value))
    restore()
    assert equal(before, content(value))
    assert value[1] is value


def test_a_tensor_that_is_as_before_is_not_written() -> None:
    value = torch.ones(1).expand(3)  # which refuses writes
    restorer(value)()
    with torch.inference_mode():
        made = torch.ones(2)
    restorer(made)()


class Frozen(OrderedDict[str, Any]):
    """A config that refuses writes once it is made, as those of diffusers."""

    def update(self, *_: Any, **__: Any) -> None:
        raise RuntimeError("frozen")


class Irreps(tuple[int, ...]):
    """Refuses to tell its length, as those of e3nn."""

    __slots__ = ()

    def __len__(self) -> int:
        raise NotImplementedError


def test_a_container_that_is_as_before_is_not_written() -> None:
    frozen, inner = Frozen(a=1), [1]
    OrderedDict.__setitem__(frozen, "b", inner)
    value = [frozen, Irreps((1, 2))]
    held, restore = content(value), restorer(value)
    assert held == [{"a": 1, "b": [1]}, [1, 2]]
    inner.append(2)
    restore()
    assert equal(content(value), held)
    assert frozen["b"] is inner


class Lazy(ModuleType):
    """A Python module that is loaded when it is asked for anything, as speechbrain has them."""

    def __getattr__(self, name: str) -> Any:
        raise ImportError(f"{name} needs a package that is not there")


def test_a_lazy_python_module_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "needs_another", Lazy("needs_another"))
    assert not is_closed(sys.modules["needs_another"])
    assert is_closed(pytest)
    assert is_closed(np)


class MakesAnew(OrderedDict[str, Any]):
    """Each `[]` makes another object, as the table of activations of transformers does."""

    def __getitem__(self, key: str) -> Any:
        return super().__getitem__(key)()


def test_what_a_mapping_holds_is_read_and_nothing_is_made() -> None:
    calls: list[str] = []
    mapping = MakesAnew(a=lambda: calls.append("a"), b=lambda: calls.append("b"))
    before, undo = content(mapping), restorer(mapping)
    assert equal(before, content(mapping))
    del mapping["a"]
    assert not equal(before, content(mapping))
    undo()
    assert list(mapping) == ["a", "b"]
    assert equal(before, content(mapping))
    assert calls == []

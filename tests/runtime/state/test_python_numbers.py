"""Numbers that are left on attributes, and stand-ins that cannot be read."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from skyfx.runtime.pytree import tree_leaves, tree_map
from skyfx.runtime.state.python_numbers import Added, Computed, names_in, plain_value, traced_value
from skyfx.solver.errors import CaptureError


@pytest.mark.parametrize("number", [True, -7, 2**62 + 1, 0.1, 1e300, 1j])
def test_a_number_comes_back_as_it_was(number: complex) -> None:
    found = plain_value([Computed.of(number)], None)
    assert found == [number]
    assert type(found[0]) is type(number)


def test_numbers_are_added_one_after_the_other() -> None:
    counted = Added() + 0.1 + Computed.of(0.2) - 0.3
    assert plain_value({"sum": counted}, {"sum": 1e-3}) == {"sum": 1e-3 + 0.1 + 0.2 - 0.3}
    assert plain_value(counted, None) == 0 + 0.1 + 0.2 - 0.3
    assert tree_leaves(traced_value((counted,), (Added((1,)),)))[:2] == [1, 0.1]


def test_a_formula_is_computed_from_what_attributes_have_held() -> None:
    total, count = Added(name="sum") + Computed.of(0.3), Added(name="count") + 2
    held = {"sum": 0.1, "count": 1}
    assert plain_value(total / count, None, held) == (0.1 + 0.3) / 3
    assert plain_value(1 - 0.5 * total - 2 / count * 3, 7.0, held) == 1 - 0.5 * 0.4 - 2 / 3 * 3
    assert set(names_in([(total / count - 1,), 3, Added((1,), "no formula")])) == {"sum", "count"}
    elsewhere = Added(name="sum") + Computed(torch.empty((), device="meta"))
    for unknown in (elsewhere / count, total / elsewhere):
        assert isinstance(plain_value(unknown, 1.0, held), Added)
    (made,) = tree_map(lambda x: x, [total / count])
    assert plain_value(made, None, held) == (0.1 + 0.3) / 3


def test_a_number_of_another_process_is_a_tensor_without_values() -> None:
    elsewhere = Computed(torch.empty((), device="meta"))
    assert plain_value(elsewhere, 1.0).is_meta
    counted = plain_value(Added((elsewhere,)), 1.0)
    assert isinstance(counted, Added)
    assert plain_value(Added((1,)), counted).terms == ()


READS: list[Callable[[Any], Any]] = [
    *(bool, int, float, str, repr, hash, range),
    lambda x: x == 0,
    lambda x: x < 1,
    lambda x: x % 2,
    lambda x: x * 2,
    lambda x: f"{x}",
    lambda x: [1][x],
    lambda x: torch.ones(2) * x,
]


@pytest.mark.parametrize("read", READS)
def test_what_is_counted_cannot_be_read(read: Callable[[Any], Any]) -> None:
    with pytest.raises((CaptureError, TypeError)):
        read(Added())

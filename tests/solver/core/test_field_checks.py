"""Numbers that a file or an argument may hold, and the line that refuses others."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from skyfx.solver import Assumptions, Device, solve
from skyfx.solver.core.field_checks import memory_size, non_negative, positive, whole_number
from tests.support.planning_instances import cluster, cpus, graph, node

NO_NUMBERS = ("1", True, None, [1], 1 + 0j, math.nan, math.inf, -math.inf, -1, 10**101)


@pytest.mark.parametrize("value", NO_NUMBERS)
@pytest.mark.parametrize("check", [non_negative, positive])
def test_what_is_no_finite_number_is_refused(check: Callable[[str, Any], None], value: Any) -> None:
    with pytest.raises(ValueError, match=r"^gap: found .*, expected a finite number >=? 0") as told:
        check("gap", value)
    assert len(str(told.value)) < 160
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("value", [*NO_NUMBERS, 2.5, 3.0, 0])
def test_what_is_no_whole_number_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^microbatches: found .*, expected a whole number >= 1$"):
        whole_number("microbatches", value, least=1)


@pytest.mark.parametrize("value", [1, 2.5, 2**70, np.float64(3), np.int64(3)])
def test_every_kind_of_number_is_taken(value: Any) -> None:
    non_negative("gap", value)
    positive("gap", value)
    if value != 2.5 and not isinstance(value, np.floating):
        whole_number("gap", value, least=1)


@pytest.mark.parametrize(
    ("asked", "bytes_"), [("4GB", 4e9), ("1.5 GiB", 1.5 * 2**30), (2**70, 2**70), (0, 0)]
)
def test_memory_is_a_number_of_bytes_or_a_size_with_a_unit(asked: Any, bytes_: float) -> None:
    assert memory_size("memory_bytes", asked) == bytes_
    assert Device(name="a", type="cpu", memory_bytes=asked).memory_bytes == bytes_


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("4", "found '4', expected a value such as 2GiB or 500MB"),
        ("4Gb", "found '4Gb', expected a value such as 2GiB or 500MB"),
        ("1GB:2GB", "found '1GB:2GB', expected one size such as 4GiB"),
        (-1, "found -1, expected a finite number >= 0, up to 1e100"),
        (True, "found True, expected a finite number >= 0, up to 1e100"),
    ],
)
def test_what_is_no_memory_is_refused(asked: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"^memory_bytes: {said}$"):
        memory_size("memory_bytes", asked)


def test_no_memory_means_no_limit() -> None:
    assert memory_size("memory_bytes", None) is None


@pytest.mark.parametrize("mode", ["training", "inference"])
def test_whole_numbers_of_any_length_are_planned_with(mode: Any) -> None:
    """Such as memory of `2**70` bytes, which no 64-bit integer holds."""
    fields = ("output_bytes", "gradient_bytes", "parameter_bytes", "saved_bytes")
    large = dict.fromkeys(fields, 2**70)
    g = graph([node("a", **large), node("b", ("a",), **large), node("c", ("b",))])
    slow, fast = cpus(2**70, 1).devices
    for memory in (2**70, 2**80):
        c = cluster(replace(slow, memory_bytes=2**80), replace(fast, memory_bytes=memory))
        plan = solve(g, c, Assumptions(mode=mode, microbatches=1), enforce_peaks=False).plan
        assert plan.solver.status == "optimal"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"gap": -1}, "gap: found -1"),
        ({"gap": math.nan}, "gap: found nan"),
        ({"gap": "0.1"}, "gap: found '0.1'"),
        ({"gap": True}, "gap: found True"),
        ({"time_limit_s": "5"}, "time_limit_s: found '5'"),
        ({"time_limit_s": None}, "time_limit_s: found None"),
        ({"assumptions": Assumptions(microbatches=2.5)}, "microbatches: found 2.5"),  # type: ignore[arg-type]
        ({"assumptions": Assumptions(pins="a=d0")}, "pins: found 'a=d0', expected a list"),  # type: ignore[arg-type]
        ({"assumptions": Assumptions(pins=(3,))}, r"pins: found \(3,\), expected a list"),  # type: ignore[arg-type]
    ],
)
def test_wrong_arguments_of_solve_are_named(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}"):
        solve(graph([node("a")]), cpus(1.0), **arguments)

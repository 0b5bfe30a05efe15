"""The time of a move for numbers, for arrays and in compiled loops, against the cost model."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from skyfx.solver.core.cluster import Wire
from skyfx.solver.costs.cost_model import transfer_s
from skyfx.solver.costs.moves import Crossing, move_s, send_s

amounts = st.floats(0.0, 1e12)
wires = st.tuples(st.floats(0.0, 10.0), st.floats(1e-12, 10.0))


compiled = njit(move_s)


@given(wires, wires, amounts, amounts)
def test_numbers_arrays_and_compiled_loops_agree(
    there: tuple[float, float], back: tuple[float, float], forward: float, backward: float
) -> None:
    crossing = Crossing(forward, backward, float(forward > 0), float(backward > 0))
    expected = move_s(there, back, crossing)
    assert compiled(there, back, crossing) == expected
    assert list(move_s(there, back, Crossing(*(np.array([x, x]) for x in crossing)))) == [
        expected,
        expected,
    ]


@given(wires, wires, amounts, amounts)
def test_a_move_takes_what_the_cost_model_says(
    there: tuple[float, float], back: tuple[float, float], forward: float, backward: float
) -> None:
    links = [
        Wire(bandwidth_bytes_per_s=1 / per_byte, latency_s=latency)
        for latency, per_byte in (there, back)
    ]
    crossing = Crossing(forward, backward, float(forward > 0), float(backward > 0))
    sizes = zip(links, (forward, backward), strict=True)
    expected = sum(transfer_s(link, size) for link, size in sizes if size > 0)
    assert move_s(there, back, crossing) == pytest.approx(expected)
    assert send_s(there, 1, forward) == pytest.approx(transfer_s(links[0], forward))

"""Clusters that are drawn: their figures, and that they are the same everywhere and always."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyfx.solver import unlike_cluster
from skyfx.solver.core.cluster import Wire
from tests.support.tiers import cases

THREE: dict[str, Any] = {
    "seed": 32,
    "types": {"a100": 2.0, "cpu": 1.0},
    "memory_bytes": (2e9, 8e9),
    "bandwidth_bytes_per_s": (2.5e6, 1.25e8),
    "latency_s": (0.001, 0.05),
}


def test_three_devices_are_these_forever() -> None:
    made = unlike_cluster(3, **THREE)
    assert [(d.name, d.type, d.slowdown, d.memory_bytes) for d in made.devices] == [
        ("d0", "a100", 1.160242830374768, 7800981477.0),
        ("d1", "cpu", 1.572229495472084, 6027790534.0),
        ("d2", "cpu", 1.37713555396147, 6980609395.0),
    ]
    assert [(x.source, x.target, x.bandwidth_bytes_per_s, x.latency_s) for x in made.links] == [
        ("d0", "d1", 15099989.0, 0.0165368),
        ("d0", "d2", 20879821.0, 0.030459945),
        ("d1", "d0", 88949972.0, 0.021014411),
        ("d1", "d2", 21573952.0, 0.02111378),
        ("d2", "d0", 4537805.0, 0.00298656),
        ("d2", "d1", 6224587.0, 0.030781426),
    ]


def test_slowdowns_are_those_of_the_generator_that_numpy_gives() -> None:
    drawn = [d.slowdown for d in unlike_cluster(64, seed=32, slowdown=(1.0, 2.0)).devices]
    assert drawn == (np.random.default_rng(32).random(64) + 1).tolist()


def test_one_option_does_not_change_what_another_makes() -> None:
    plain = unlike_cluster(3, seed=32)
    made = unlike_cluster(3, **THREE)
    assert [d.slowdown for d in plain.devices] == [d.slowdown for d in made.devices]
    other = unlike_cluster(3, **(THREE | {"memory_bytes": None, "types": "cpu"}))
    assert other.links == made.links


def test_a_seed_makes_a_cluster_of_its_own() -> None:
    assert unlike_cluster(3, **THREE) != unlike_cluster(3, **(THREE | {"seed": 33}))


def test_links_differ_by_direction_unless_they_are_symmetric() -> None:
    made, alike = unlike_cluster(4, **THREE), unlike_cluster(4, **THREE, symmetric=True)
    wires = {(x.source, x.target): (x.bandwidth_bytes_per_s, x.latency_s) for x in made.links}
    assert len(set(wires.values())) == len(wires) == 12
    same = {(x.source, x.target): (x.bandwidth_bytes_per_s, x.latency_s) for x in alike.links}
    assert same["d1", "d3"] == same["d3", "d1"] == wires["d1", "d3"]
    assert len(set(same.values())) == 6


def test_links_that_are_all_alike_are_the_default() -> None:
    made = unlike_cluster(3, bandwidth_bytes_per_s=1e6, latency_s=0.01)
    assert made.links == ()
    assert made.default_link == Wire(bandwidth_bytes_per_s=1e6, latency_s=0.01)
    assert unlike_cluster(3).default_link is None


def test_types_are_dealt_by_their_weights() -> None:
    made = unlike_cluster(3000, types={"a100": 2.0, "cpu": 1.0})
    dealt = sum(d.type == "a100" for d in made.devices)
    assert 1900 < dealt < 2100  # of a fixed seed: the same count each time
    assert {d.type for d in unlike_cluster(50, types=["a", "b", "c"]).devices} == {"a", "b", "c"}


def test_bandwidths_span_orders_of_magnitude_evenly() -> None:
    made = unlike_cluster(40, bandwidth_bytes_per_s=(1e4, 1e8))
    slow = sum(x.bandwidth_bytes_per_s < 1e6 for x in made.links)
    assert 0.45 < slow / len(made.links) < 0.55


def spans(low: float, high: float) -> st.SearchStrategy[tuple[float, float]]:
    values = st.floats(low, high, allow_nan=False)
    return st.tuples(values, values).map(lambda pair: (min(pair), max(pair)))


@cases(100)
@given(
    num=st.integers(1, 5),
    seed=st.integers(0, 2**70),
    slowdown=spans(0.01, 1e6),
    memory=st.none() | spans(0.0, 1e12),
    bandwidth=st.none() | spans(0.1, 1e12),
    latency=spans(0.0, 10.0),
    symmetric=st.booleans(),
)
def test_every_figure_lies_in_its_range(
    num: int,
    seed: int,
    slowdown: tuple[float, float],
    memory: tuple[float, float] | None,
    bandwidth: tuple[float, float] | None,
    latency: tuple[float, float],
    symmetric: bool,
) -> None:
    made = unlike_cluster(
        num,
        seed=seed,
        slowdown=slowdown,
        memory_bytes=memory,
        bandwidth_bytes_per_s=bandwidth,
        latency_s=latency if bandwidth else 0.0,
        symmetric=symmetric,
    )
    made.check()
    assert len(made.devices) == num
    for device in made.devices:
        assert slowdown[0] <= device.slowdown <= slowdown[1]
        if memory is None:
            assert device.memory_bytes is None
        else:
            assert device.memory_bytes is not None
            assert memory[0] <= device.memory_bytes <= memory[1]
    wires = {
        (source.name, target.name): made.wiring()(source.name, target.name)
        for source in made.devices
        for target in made.devices
        if source is not target
    }
    for wire in wires.values():
        assert (wire is None) == (bandwidth is None)
        if wire is not None and bandwidth is not None:
            assert bandwidth[0] <= wire.bandwidth_bytes_per_s <= bandwidth[1]
            assert latency[0] <= wire.latency_s <= latency[1]


def test_ranges_may_be_text_as_for_the_command() -> None:
    texts = unlike_cluster(
        3, memory_bytes="2GiB:8GiB", bandwidth_bytes_per_s="20Mbit:1Gbit", latency_s="1ms"
    )
    assert texts == unlike_cluster(
        3,
        memory_bytes=(2 * 2.0**30, 8 * 2.0**30),
        bandwidth_bytes_per_s=(2.5e6, 1.25e8),
        latency_s=0.001,
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"num_devices": 0}, "num_devices: found 0, expected a whole number >= 1"),
        ({"seed": -1}, "seed: found -1, expected a whole number >= 0"),
        ({"name": "a b"}, "name: found 'a b', expected one word"),
        ({"slowdown": (2.0, 1.0)}, "slowdown: found 2 to 1, expected the lower end first"),
        ({"slowdown": 0.0}, "slowdown: found 0.0, expected a finite number > 0"),
        ({"memory_bytes": -1.0}, "memory_bytes: found -1.0, expected a finite number >= 0"),
        ({"bandwidth_bytes_per_s": (0.0, 1.0)}, "bandwidth_bytes_per_s: found 0.0, expected"),
        ({"latency_s": 0.5}, "latency_s: found 0.5 without links, expected a bandwidth, too"),
        ({"num_devices": 2.5}, "num_devices: found 2.5, expected a whole number >= 1"),
        ({"memory_bytes": "2"}, "memory_bytes: found '2', expected a value such as 2GiB or 500MB"),
        ({"types": []}, "types: found none, expected at least one"),
        ({"types": {"a": 0.0}}, "types.'a'.: found 0.0, expected a finite number > 0"),
    ],
)
def test_what_cannot_be_drawn_is_told(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match="^" + said):
        unlike_cluster(**({"num_devices": 3} | arguments))

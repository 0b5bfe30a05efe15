"""Changes of a cluster, read from their text."""

import pytest

from skyfx.solver import Cluster, Device, Link
from skyfx.solver.analysis.cluster_changes import Change, apply_changes
from skyfx.solver.core.cluster import Wire
from tests.support.planning_instances import cluster, graph, node

MODEL = graph([node("a", forward_s={"cpu": 1.0, "gpu": 0.1})])
SLOW, FAST = 10.0, 1000.0


def link(source: str, target: str, rate: float = SLOW) -> Link:
    return Link(source=source, target=target, bandwidth_bytes_per_s=rate, latency_s=0.5)


PAIR = cluster(
    Device(name="a", type="cpu", memory_bytes=100.0),
    Device(name="b", type="cpu", slowdown=3.0),
    links=(link("a", "b"), link("b", "a", FAST)),
)


def after(*texts: str, of: Cluster = PAIR) -> Cluster:
    return apply_changes(of, [Change.of(text, MODEL) for text in texts])


def test_a_device_is_slowed_down() -> None:
    assert [d.slowdown for d in after("slow a x4", "slow b x0.5").devices] == [4.0, 1.5]


def test_a_device_gets_more_memory() -> None:
    assert [d.memory_bytes for d in after("memory a x1.5").devices] == [150.0, None]


def test_a_link_becomes_faster_in_both_directions() -> None:
    found = after("link b a x2")
    assert set(found.links) == {link("a", "b", 2 * SLOW), link("b", "a", 2 * FAST)}


def test_the_default_link_of_a_pair_becomes_its_own() -> None:
    default = Wire(bandwidth_bytes_per_s=SLOW, latency_s=0.5)
    three = cluster(*(Device(name=name, type="cpu") for name in "abc"), default=default)
    found = after("link a c x3", of=three)
    assert set(found.links) == {link("a", "c", 3 * SLOW), link("c", "a", 3 * SLOW)}
    assert found.default_link == default


def test_a_device_goes_with_its_links() -> None:
    found = after("drop a")
    assert [d.name for d in found.devices] == ["b"]
    assert found.links == ()


def test_a_device_comes_with_links_as_the_best() -> None:
    found = after("add gpu")
    assert found.devices[2] == Device(name="gpu+1", type="gpu")
    new = {x for x in found.links if "gpu+1" in (x.source, x.target)}
    assert new == {link(*pair, FAST) for x in "ab" for pair in ((x, "gpu+1"), ("gpu+1", x))}
    assert [d.name for d in after("add gpu", "add gpu").devices[2:]] == ["gpu+1", "gpu+2"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected one of 'add TYPE', 'drop DEVICE', 'link DEVICE DEVICE xFACTOR'"),
        ("grow a x2", "expected one of 'add TYPE'"),
        ("link a x2", "expected one of 'add TYPE'"),
        ("slow a 2", "found '2', expected a factor such as x2"),
        ("slow a x0", "found 'x0', expected a factor such as x2"),
        ("slow a xinf", "found 'xinf', expected a factor such as x2"),
        ("slow c x2", "no device is called 'c'; there are a, b"),
        ("memory b x2", "the memory of 'b' is not limited"),
        ("add tpu", "the graph has times for cpu, gpu, not for 'tpu'"),
    ],
)
def test_what_cannot_be_read_is_told(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"change {text!r}: .*{said}"):
        after(text)


def test_a_cluster_does_not_lose_its_last_device() -> None:
    with pytest.raises(ValueError, match="change 'drop b': devices: found an empty list"):
        after("drop a", "drop b")

"""The cluster of a job is one cluster, whichever of the two classes it is of; its links' speed."""

from typing import Any

import pytest
import torch

import skyfx
from skyfx import solver
from skyfx.devices import cluster_probe
from skyfx.runtime.transport.message import MessageLayout, TensorSpec


def test_clusters_of_both_classes_with_equal_fields_are_equal() -> None:
    devices = (solver.Device(name="a", type="cpu"), solver.Device(name="b", type="cpu"))
    probed, planned = skyfx.Cluster(devices=devices), solver.Cluster(devices=devices)
    assert probed == planned
    assert planned == probed
    assert probed == skyfx.Cluster(devices=devices)
    assert len({probed, planned}) == 1
    other = solver.Cluster(devices=devices[:1])
    assert probed != other
    assert other != probed
    assert probed != devices


@pytest.mark.parametrize("stalled", [None, *range(6)])
def test_a_moment_in_which_nothing_moves_gives_no_absurd_bandwidth(
    monkeypatch: pytest.MonkeyPatch, stalled: int | None
) -> None:
    asked: list[int] = []

    def message_s(hosts: Any, peer: int, there: MessageLayout, *_: Any, **__: Any) -> float:
        """Of a link of 1e9 bytes per second, but for one message."""
        asked.append(there.buffer().numel())
        stall_s = 2.0 if len(asked) - 1 == stalled else 0.0
        return 1e-4 + asked[-1] / 1e9 + stall_s

    monkeypatch.setattr(cluster_probe, "_message_s", message_s)
    small = MessageLayout([TensorSpec((8,), torch.uint8)])
    hosts: Any = None
    found = cluster_probe._bandwidth(hosts, 1, small, leads=True, large_there=True)
    most = max(asked) / (1e-4 + max(asked) / 1e9)
    assert most / 40 < found < 1.3e9
    if stalled is None:
        assert found == pytest.approx(1e9, rel=0.01)

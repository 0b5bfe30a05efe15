"""What users call devices, and what torch has."""

from pathlib import Path

import pytest
import torch

import skyfx
from skyfx.devices.local_links import with_links
from skyfx.devices.resolve import resolve
from skyfx.solver.core import files
from skyfx.solver.core.cluster import Cluster, Device, Wire
from skyfx.solver.errors import FormatError, PlanError


def names(devices: object) -> list[str]:
    return [device.name for device in resolve(devices)[0].devices]


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        (["cpu"], ["cpu"]),
        ("cpu", ["cpu"]),
        (["cpu", "cpu"], ["cpu:0", "cpu:1"]),
        ([torch.device("cpu"), skyfx.Device("cpu")], ["cpu:0", "cpu:1"]),
    ],
)
def test_devices_have_names_of_their_own(devices: object, expected: list[str]) -> None:
    assert names(devices) == expected


def test_limits_and_slowdowns_arrive_in_the_cluster_and_at_the_stage() -> None:
    wanted = [skyfx.Device("cpu", memory_bytes=1e9, slowdown=3), "cpu"]
    cluster, places = resolve(wanted)
    assert [(d.memory_bytes, d.slowdown) for d in cluster.devices] == [(1e9, 3), (None, 1)]
    assert [place.slowdown for place in places.values()] == [3, 1]


def test_a_cluster_file_names_the_devices(tmp_path: Path) -> None:
    path = tmp_path / "two.cluster.toml"
    path.write_text(
        'format = "skyfx.cluster/1"\n'
        'devices = [{name = "big", type = "cpu"}, {name = "cpu:1", type = "old", slowdown = 2.0}]\n'
        "default_link = {bandwidth_bytes_per_s = 1e9, latency_s = 0.0}\n"
    )
    cluster, places = resolve(path)
    assert list(places) == ["big", "cpu:1"]
    assert resolve(str(path))[0] == resolve(cluster)[0] == cluster
    assert with_links(cluster, places) is cluster  # links that are given are not measured


@pytest.mark.parametrize(
    ("devices", "error", "message"),
    [
        ([], ValueError, "devices is empty, expected at least one"),
        (["cuda:63"], PlanError, "no device 'cuda:63' on this machine; it has cpu"),
        (["tpu!"], PlanError, "no device 'tpu!' on this machine"),
        ([skyfx.Device("cpu", slowdown=0)], ValueError, r"slowdown: found 0, expected .* > 0"),
        ([skyfx.Device("cpu", memory_bytes=-1)], ValueError, "memory_bytes: found -1, expected"),
        ("nowhere.toml", FormatError, "nowhere.toml: No such file"),
        (3, TypeError, "devices is an int, expected"),
    ],
)
def test_devices_that_are_none_are_refused(
    devices: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        resolve(devices)


def test_links_are_measured_in_both_directions(tmp_path: Path) -> None:
    cluster, places = resolve(["cpu", "cpu", "cpu"])
    linked = with_links(cluster, places)
    linked.check()
    assert len(linked.links) == 6
    assert all(0 < link.latency_s < 0.1 for link in linked.links)
    files.write(linked, tmp_path / "measured.json")
    assert files.read(tmp_path / "measured.json", Cluster) == linked


def test_a_given_default_link_is_kept() -> None:
    wire = Wire(bandwidth_bytes_per_s=1.0, latency_s=0.0)
    devices = (Device(name="cpu:0", type="cpu"), Device(name="cpu:1", type="cpu"))
    cluster, places = resolve(Cluster(devices=devices, default_link=wire))
    assert with_links(cluster, places).default_link == wire

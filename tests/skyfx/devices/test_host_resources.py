"""What a container leaves a process is found in the kernel's files, of both versions."""

import os
from pathlib import Path

import psutil
import pytest

from skyfx.devices import host_resources

CORES = len(os.sched_getaffinity(0))


def groups(folder: Path, own: str, files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "own").write_text(own)
    monkeypatch.setattr(host_resources, "CGROUPS", folder)
    monkeypatch.setattr(host_resources, "OWN", folder / "own")


def test_limits_of_version_2_hold_from_any_level(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        "outer/cpu.max": "50000 100000\n",
        "outer/inner/cpu.max": "max 100000\n",
        "outer/memory.max": "4096\n",
        "outer/memory.current": "1096\n",
        "outer/inner/memory.max": "max\n",
        "outer/inner/memory.current": "10\n",
    }
    groups(tmp_path, "0::/outer/inner\n", files, monkeypatch)
    assert host_resources.cores() == 0.5
    assert host_resources.available_bytes() == 3000


def test_limits_of_version_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "cpu/mine/cpu.cfs_quota_us": "25000\n",
        "cpu/mine/cpu.cfs_period_us": "100000\n",
        "memory/mine/memory.limit_in_bytes": "5000\n",
        "memory/mine/memory.usage_in_bytes": "1000\n",
        "memory/mine/memory.stat": "cache 700\ninactive_file 500\ntotal_inactive_file 600\n",
    }
    groups(tmp_path, "4:cpu,cpuacct:/mine\n3:memory:/mine\n1:name=systemd:/\n", files, monkeypatch)
    assert host_resources.cores() == 0.25
    assert host_resources.available_bytes() == 4600  # what is kept of files goes when it is needed


def test_without_limits_it_is_the_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}
    groups(tmp_path, "4:cpu:/\n", files, monkeypatch)
    assert host_resources.cores() == CORES
    assert 0 < host_resources.available_bytes() <= psutil.virtual_memory().total

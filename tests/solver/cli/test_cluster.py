"""The commands that make, change and show clusters."""

import json
from pathlib import Path

import pytest

from skyfx.solver import Cluster, read, unlike_cluster
from skyfx.solver.analysis.cluster_changes import Change, apply_changes
from skyfx.solver.core.files import encode
from tests.support.cli_runner import Run

GENERATE = ("cluster", "generate", "-n", "3", "--seed", "32")
SKY = (
    *GENERATE,
    *("--type", "a100=2", "--type", "cpu", "--memory", "2GB:8GB"),
    *("--bandwidth", "20Mbit:1Gbit", "--latency", "1ms:50ms"),
)


def sky() -> Cluster:
    """What `SKY` asks for."""
    return unlike_cluster(
        3,
        seed=32,
        types={"a100": 2.0, "cpu": 1.0},
        memory_bytes=(2e9, 8e9),
        bandwidth_bytes_per_s=(2.5e6, 1.25e8),
        latency_s=(0.001, 0.05),
    )


def test_every_process_generates_the_same_bytes(skyfx_process: Run, folder: Path) -> None:
    done = skyfx_process(*SKY, "-o", "sky.cluster.json")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == (
        "skyfx: wrote sky.cluster.json: 3 devices; 6 links: 36.3 Mbit/s to 712 Mbit/s, "
        "latency 2.99 ms to 30.8 ms; all others: free\n"
    )
    assert (folder / "sky.cluster.json").read_bytes() == encode(sky())
    assert skyfx_process(*SKY, "--json").stdout.encode() == encode(sky())


def test_options_reach_the_devices_and_the_links(skyfx: Run) -> None:
    options = ("--slowdown", "3", "--name", "w", "--bandwidth", "8Mbit:80Mbit", "--symmetric")
    made = json.loads(skyfx(*GENERATE, *options, "--json").stdout)
    assert made["devices"] == [{"name": f"w{d}", "type": "cpu", "slowdown": 3.0} for d in range(3)]
    rates = {(x["source"], x["target"]): x["bandwidth_bytes_per_s"] for x in made["links"]}
    assert all(rates[a, b] == rates[b, a] for a, b in rates)
    assert all(1e6 <= rate <= 1e7 for rate in rates.values())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--memory", "8GiB:2GiB"), "--memory: found '8GiB:2GiB', expected the lower end first"),
        (("--memory", "8"), "--memory: found '8', expected a value such as 2GiB or 500MB"),
        (("--bandwidth", "20Mb"), "--bandwidth: found '20Mb', expected a value such as 20Mbit"),
        (("--slowdown", "fast"), "--slowdown: found 'fast', expected a value such as 2 or 1.5"),
        (("--slowdown", "0:2"), "slowdown: found 0.0, expected a finite number > 0"),
        (("--latency", "1ms"), "--latency: found '1ms' without --bandwidth, expected both"),
        (("--type", "=2"), "--type: found '=2', expected one more type, such as a100=2"),
        (("--type", "a=x"), "--type: found 'x', expected a value such as 2 or 1.5"),
        (("-n", "0"), "num_devices: found 0, expected a whole number >= 1"),
        (("--seed", "-1"), "seed: found -1, expected a whole number >= 0"),
        (("-o", "x.cluster.toml"), "x.cluster.toml: TOML is read but not written"),
    ],
)
def test_what_cannot_be_generated_is_one_line_and_exit_2(
    skyfx: Run, folder: Path, arguments: tuple[str, ...], said: str
) -> None:
    before = sorted(folder.iterdir())
    done = skyfx(*GENERATE, "-o", "new.cluster.json", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"skyfx: error: {said}")
    assert done.stderr.count("\n") == 1
    assert sorted(folder.iterdir()) == before


def test_a_cluster_is_not_replaced_unless_forced(skyfx: Run, folder: Path) -> None:
    for command in (GENERATE, ("cluster", "change", "c.cluster.toml", "add cpu")):
        (folder / "mine.cluster.json").write_text("mine")
        done = skyfx(*command, "-o", "mine.cluster.json")
        assert done.returncode == 2
        assert "mine.cluster.json exists; use --force" in done.stderr
        assert (folder / "mine.cluster.json").read_text() == "mine"
        assert skyfx(*command, "-o", "mine.cluster.json", "--force", "-q").stderr == ""
        assert read(folder / "mine.cluster.json", Cluster).devices


def test_a_cluster_without_a_place_is_refused(skyfx: Run) -> None:
    for command in (GENERATE, ("cluster", "change", "c.cluster.toml", "add cpu")):
        done = skyfx(*command)
        assert done.returncode == 2
        assert done.stderr.startswith("skyfx: error: no output for the cluster: give -o CLUSTER")


def test_changes_are_made_in_turn_as_those_of_what_if(skyfx: Run, folder: Path) -> None:
    skyfx(*SKY, "-o", "sky.cluster.json")
    texts = ("add h100", "drop d2", "slow d1 x2", "memory d0 x0.5", "link d0 h100+1 x3")
    done = skyfx("cluster", "change", "sky.cluster.json", *texts, "-o", "new.cluster.json")
    assert done.returncode == 0
    made = read(folder / "new.cluster.json", Cluster)
    assert made == apply_changes(sky(), [Change.of(text) for text in texts])
    assert [(d.name, d.type, d.slowdown) for d in made.devices] == [
        ("d0", "a100", sky().devices[0].slowdown),
        ("d1", "cpu", 2 * sky().devices[1].slowdown),
        ("h100+1", "h100", 1.0),
    ]


def test_a_cluster_in_toml_is_changed_into_json(skyfx: Run) -> None:
    done = skyfx("cluster", "change", "c.cluster.toml", "drop one", "--json")
    assert [d["name"] for d in json.loads(done.stdout)["devices"]] == ["two"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("grow one x2", "change 'grow one x2': expected one of 'add TYPE', 'drop DEVICE'"),
        ("slow three x2", "change 'slow three x2': no device is called 'three'"),
        ("link one two x2", "change 'link one two x2': transfers from 'one' to 'two' are free"),
    ],
)
def test_a_change_that_cannot_be_made_is_one_line_and_exit_2(
    skyfx: Run, folder: Path, text: str, said: str
) -> None:
    done = skyfx("cluster", "change", "c.cluster.toml", "add cpu", text, "-o", "n.cluster.json")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"skyfx: error: {said}")
    assert done.stderr.count("\n") == 1
    assert not (folder / "n.cluster.json").exists()


def test_show_prints_the_devices_and_the_links_in_short(skyfx: Run, folder: Path) -> None:
    skyfx(*SKY, "-o", "sky.cluster.json")
    done = skyfx("cluster", "show", "sky.cluster.json")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split("  ") for line in done.stdout.splitlines()]
    assert [[cell.strip() for cell in line if cell.strip()] for line in lines] == [
        ["device", "type", "slowdown", "memory", "sends", "receives"],
        ["d0", "a100", "1.16", "7.3 GiB", "121 Mbit/s to 167 Mbit/s", "36.3 Mbit/s to 712 Mbit/s"],
        ["d1", "cpu", "1.57", "5.6 GiB", "173 Mbit/s to 712 Mbit/s", "49.8 Mbit/s to 121 Mbit/s"],
        ["d2", "cpu", "1.38", "6.5 GiB", "36.3 Mbit/s to 49.8 Mbit/s", "167 Mbit/s to 173 Mbit/s"],
        ["6 links: 36.3 Mbit/s to 712 Mbit/s, latency 2.99 ms to 30.8 ms; all others: free"],
    ]
    plain = skyfx("cluster", "show", "c.cluster.toml")
    assert plain.stdout.splitlines()[-1] == "all links: free"
    shown = skyfx("cluster", "show", "sky.cluster.json", "--json").stdout
    assert shown == (folder / "sky.cluster.json").read_text()


def test_a_generated_cluster_is_planned_on(skyfx: Run, folder: Path) -> None:
    skyfx("cluster", "generate", "-n", "2", "--bandwidth", "1kbit:8kbit", "-o", "s.cluster.json")
    done = skyfx("solve", "g.graph.json", "s.cluster.json", "-o", "p.plan.json", "-q")
    assert done.returncode == 0, done.stderr
    assert skyfx("check", "g.graph.json", "s.cluster.json", "p.plan.json").returncode == 0

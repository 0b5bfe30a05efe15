"""The commands `cluster generate`, `cluster change` and `cluster show`."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from rich.table import Table
from rich.text import Text
from typer import Argument, Option, Typer

from skyfx.solver.analysis.cluster_changes import Change, apply_changes
from skyfx.solver.cli import options, terminal
from skyfx.solver.core import files
from skyfx.solver.core.cluster import Cluster, Link, Wire
from skyfx.solver.core.units import PLAIN, RATE, SIZE, TIME, rate, read_span, seconds, size

cluster_app = Typer(
    help="Make a cluster of unlike devices, change one, or look at it.", no_args_is_help=True
)

NewCluster = Annotated[
    Path | None, Option("--output", "-o", metavar="CLUSTER", help="Where the cluster is written.")
]
NumDevices = Annotated[int, Option("--num-devices", "-n", metavar="N", help="How many devices.")]
DrawSeed = Annotated[int, Option(help="Of the draws: equal seeds make equal clusters.")]
Types = Annotated[
    list[str] | None,
    Option(
        "--type",
        metavar="TYPE[=WEIGHT]",
        help="The devices' type, by default cpu; if given several times, each device gets one, all "
        "as likely or by their weights.",
    ),
]
Slowdown = Annotated[str, Option(metavar="LOW:HIGH", help="Of a device, evenly between the two.")]
Memory = Annotated[
    str | None, Option(metavar="LOW:HIGH", help="Of a device, such as 2GiB:8GiB; else unlimited.")
]
Bandwidth = Annotated[
    str | None,
    Option(
        metavar="LOW:HIGH",
        help="Of a link, such as 20Mbit:1Gbit, each ratio as likely; else moving is free.",
    ),
]
Latency = Annotated[str, Option(metavar="LOW:HIGH", help="Of a link, such as 1ms:50ms.")]
Symmetric = Annotated[bool, Option("--symmetric", help="Both directions of a link are alike.")]
Prefix = Annotated[
    str, Option("--name", metavar="NAME", help="What devices are called, before their number.")
]
Changes = Annotated[
    list[str],
    Argument(
        metavar="CHANGE...",
        help="'add a100', 'drop c', 'link a b x2', 'memory a x1.5' or 'slow c x4', in turn.",
    ),
]


@cluster_app.command("generate")
def generate_command(
    num_devices: NumDevices,
    output: NewCluster = None,
    seed: DrawSeed = 0,
    kind: Types = None,
    slowdown: Slowdown = "1:2",
    memory: Memory = None,
    bandwidth: Bandwidth = None,
    latency: Latency = "0",
    symmetric: Symmetric = False,
    name: Prefix = "d",
    json: options.Json = False,
    force: options.Force = False,
    quiet: options.Quiet = False,
) -> None:
    """Draw a cluster of unlike devices and links, the same whenever it is asked for.

    LOW:HIGH may be one value for all.

    For example: skyfx cluster generate -n 63 --seed 32 --memory 2GiB:8GiB --bandwidth 20Mbit:1Gbit
    --latency 1ms:50ms -o sky.cluster.json
    """
    with terminal.exit_codes(quiet=quiet):
        terminal.check_output(output, "cluster", json=json, force=force)
        from skyfx.solver.analysis.random_clusters import unlike_cluster

        if bandwidth is None and latency != "0":
            raise ValueError(f"--latency: found {latency!r} without --bandwidth, expected both")
        made = unlike_cluster(
            num_devices,
            seed=seed,
            types=_weights(kind or ["cpu"]),
            slowdown=read_span(slowdown, PLAIN, "--slowdown"),
            memory_bytes=None if memory is None else read_span(memory, SIZE, "--memory"),
            bandwidth_bytes_per_s=None
            if bandwidth is None
            else read_span(bandwidth, RATE, "--bandwidth"),
            latency_s=read_span(latency, TIME, "--latency") if bandwidth is not None else 0.0,
            symmetric=symmetric,
            name=name,
        )
        _hand_over(made, output, json=json, force=force, quiet=quiet)


@cluster_app.command("change")
def change_command(
    cluster: options.ClusterFile,
    change: Changes,
    output: NewCluster = None,
    json: options.Json = False,
    force: options.Force = False,
    quiet: options.Quiet = False,
) -> None:
    """Change the devices and links of CLUSTER, one change after the other.

    For example: skyfx cluster change lab.cluster.json 'add a100' 'drop c' 'slow b x2'
    'link a b x3' -o new.cluster.json
    """
    with terminal.exit_codes(quiet=quiet):
        terminal.check_output(output, "cluster", json=json, force=force)
        changes = [Change.of(text) for text in change]
        made = apply_changes(files.read(cluster, Cluster), changes)
        _hand_over(made, output, json=json, force=force, quiet=quiet)


@cluster_app.command("show")
def show_command(cluster: options.ClusterFile, json: options.Json = False) -> None:
    """Print the devices of CLUSTER as a table and its links in short, or with --json as JSON.

    For example: skyfx cluster show lab.cluster.toml
    """
    with terminal.exit_codes():
        shown = files.read(cluster, Cluster)
    if json:
        terminal.print_document(shown)
        return
    out = terminal.console(stderr=False)
    out.print(_table(shown))
    out.print(Text(_links(shown)), highlight=False)


def _hand_over(made: Cluster, output: Path | None, *, json: bool, force: bool, quiet: bool) -> None:
    made.check()
    terminal.write_output(made, output, json=json, force=force)
    if not json and not quiet:
        terminal.say(f"skyfx: wrote {output}: {len(made.devices)} devices; {_links(made)}")


def _weights(said: Sequence[str]) -> Mapping[str, float]:
    """The types and their weights."""
    weights: dict[str, float] = {}
    for text in said:
        kind, equals, weight = text.partition("=")
        if not kind or kind in weights:
            raise ValueError(f"--type: found {text!r}, expected one more type, such as a100=2")
        weights[kind] = read_span(weight, PLAIN, "--type")[0] if equals else 1.0
    return weights


def _table(cluster: Cluster) -> Table:
    """A row per device, with the slowest and the fastest of its links."""
    table = Table("device", "type", "slowdown", "memory", "sends", "receives", box=None)
    sends, receives = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    for link in cluster.links:
        sends[link.source].append(link.bandwidth_bytes_per_s)
        receives[link.target].append(link.bandwidth_bytes_per_s)
    for device in cluster.devices:
        room = "unlimited" if device.memory_bytes is None else size(device.memory_bytes)
        moves = (_rates(sends[device.name]), _rates(receives[device.name]))
        row = (device.name, device.type, f"{device.slowdown:.3g}", room, *moves)
        table.add_row(*map(Text, row))  # names are not rich's markup
    return table


def _links(cluster: Cluster) -> str:
    """The number of listed links, the slowest and the fastest, and the default link."""
    wire, links = cluster.default_link, cluster.links
    default = "free" if wire is None else _in_short([wire])
    if not links:
        return f"all links: {default}"
    return f"{len(links)} links: {_in_short(links)}; all others: {default}"


def _in_short(wires: Sequence[Link | Wire]) -> str:
    delays = [wire.latency_s for wire in wires]
    late = dict.fromkeys(map(seconds, (min(delays), max(delays))))
    return f"{_rates([wire.bandwidth_bytes_per_s for wire in wires])}, latency {' to '.join(late)}"


def _rates(bytes_per_s: Sequence[float]) -> str:
    """The slowest and the fastest, once if they are equal; empty if there are none."""
    ends = (min(bytes_per_s), max(bytes_per_s)) if bytes_per_s else ()
    return " to ".join(dict.fromkeys(map(rate, ends)))

"""The command `skyfx`: the planner's commands, and `capture` and `probe`, which need torch."""

import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module, util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Console
from rich.progress import Progress as Bar
from typer import Argument, Option

from skyfx.solver.cli.app import app
from skyfx.solver.cli.options import Force, Microbatches, ModeOption, Quiet, Verbose
from skyfx.solver.cli.terminal import exit_codes
from skyfx.solver.core import files

if TYPE_CHECKING:
    from skyfx.measurement.measure import Progress

EXPECTED = "a function without arguments that returns the model and one batch of inputs"

Model = Annotated[
    str,
    Argument(
        metavar="MODEL",
        help="FILE.py:NAME or MODULE:NAME: a function that returns the model and one batch of "
        "inputs (or a transformers model alone).",
    ),
]
GraphOutput = Annotated[
    Path, Option("--output", "-o", metavar="GRAPH", help="Where the graph is written.")
]
ClusterOutput = Annotated[
    Path | None,
    Option("--cluster", metavar="CLUSTER", help="Also write the devices and their measured links."),
]
DeviceNames = Annotated[
    list[str] | None,
    Option("--device", "-d", help="cpu, cuda:0, ...: once for each device; by default cpu."),
]
BatchDimNames = Annotated[
    list[str] | None,
    Option(
        "--batch-dim",
        metavar="[ARGUMENT=]DIM",
        help="The dimension of the samples, of all tensors or of an argument (a number, `none` for "
        "what is not cut, or `entries`); by default 0.",
    ),
]


def main() -> None:
    """Run the command line."""
    app()


@app.command("capture")
def capture_command(
    model: Model,
    output: GraphOutput,
    cluster: ClusterOutput = None,
    device: DeviceNames = None,
    mode: ModeOption = "training",
    num_microbatches: Microbatches = 8,
    batch_dim: BatchDimNames = None,
    force: Force = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Capture MODEL, measure it on the devices, and write its GRAPH.

    For example: skyfx capture train.py:build -d cpu -d cpu -o bert.graph.json
    --cluster two.cluster.json
    """
    with exit_codes(verbose=verbose, quiet=quiet):
        for path in filter(None, (output, cluster)):
            files.refuse_overwrite(path, force=force)
        dims = _batch_dims(batch_dim or [])
        build = _load(model)
        from skyfx import api
        from skyfx.devices import local_links, resolve  # torch takes seconds to import

        described, places = resolve.resolve(device or ["cpu"])
        built = build()
        network, inputs = built if isinstance(built, tuple) else (built, None)
        with _bar(quiet=quiet) as progress:
            graph = api.capture_and_measure(
                network,
                places.values(),
                example_inputs=inputs,
                mode=mode,
                num_microbatches=num_microbatches,
                batch_dims=dims,
                progress=progress,
            )
        if cluster is not None:
            files.write(local_links.with_links(described, places), cluster, force=force)
        files.write(graph, output, force=force)


@app.command("probe")
def probe_command(
    output: Annotated[
        Path, Option("--output", "-o", metavar="CLUSTER", help="Where the cluster is written.")
    ],
    force: Force = False,
    verbose: Verbose = False,
) -> None:
    """Measure the devices of all processes of a job and the links between them.

    Each process brings the GPU of its local rank, or a share of its host's cores. The first one
    writes the CLUSTER.

    For example: torchrun --nnodes=2 --nproc-per-node=1 --rdzv-endpoint=node1:29500 -m skyfx probe
    -o two.cluster.json
    """
    with exit_codes(verbose=verbose):
        files.refuse_overwrite(output, force=force)
        from skyfx.devices.cluster_probe import probed
        from skyfx.devices.inventory import DeviceInventory  # torch takes seconds to import

        hosts = DeviceInventory.join()
        found = probed(hosts)
        if hosts.group.rank == 0:
            files.write(found, output, force=force)


def _batch_dims(texts: list[str]) -> Any:
    """What `partition` takes as `batch_dims`.

    Raises:
        ValueError: a text is no dimension of anything.
    """
    number = re.compile("-?[0-9]+").fullmatch
    if len(texts) == 1 and number(texts[0]):
        return int(texts[0])
    dims: dict[str | int, Any] = {}
    for text in texts:
        name, _, dim = text.rpartition("=")
        if not name or not (number(dim) or dim in ("none", "entries")):
            raise ValueError(f"--batch-dim {text}: expected ARGUMENT=DIM, or DIM for all tensors")
        key = int(name) if number(name) else name
        dims[key] = int(dim) if number(dim) else None if dim == "none" else dim
    return dims or None


def _load(reference: str) -> Any:
    """Import the function that `FILE.py:NAME` or `MODULE:NAME` names.

    Raises:
        ValueError: there is none, or it cannot be called without arguments.
    """
    place, _, name = reference.rpartition(":")
    if not place:
        raise ValueError(f"{reference!r} names no function, expected FILE.py:NAME or MODULE:NAME")
    try:
        module = _load_file(Path(place)) if place.endswith(".py") else import_module(place)
    except (ImportError, OSError) as error:
        raise ValueError(f"{place}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"{place} has no function {name!r}")
    torch = sys.modules.get("torch")  # a file with a model has imported it
    if torch is not None and isinstance(function, torch.nn.Module):
        raise ValueError(f"{reference} is a model; expected {EXPECTED}")
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise ValueError(f"{reference}: {error}; expected {EXPECTED}") from None
    return function


def _load_file(path: Path) -> Any:
    spec = util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses and pickles look their module up there
    sys.path.insert(0, str(path.parent))
    spec.loader.exec_module(module)
    return module


@contextmanager
def _bar(*, quiet: bool) -> Iterator["Progress"]:
    """A bar for each device type, on standard error, on a terminal only."""
    talk = Console(stderr=True)
    with Bar(console=talk, disable=quiet or not talk.is_terminal, transient=True) as bar:
        tasks: dict[str, Any] = {}

        def tell(kind: str, done: int, total: int) -> None:
            if kind not in tasks:
                tasks[kind] = bar.add_task(f"measuring on {kind}", total=total)
            bar.update(tasks[kind], completed=done)

        yield tell

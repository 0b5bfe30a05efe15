"""A plan with its graph and cluster, which are found beside it by their digests."""

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from skyfx.solver.core import files
from skyfx.solver.core.cluster import Cluster
from skyfx.solver.core.graph import Graph
from skyfx.solver.core.plan import Plan, Reference

T = TypeVar("T", Graph, Cluster)

PATTERNS = {Graph: ("*.graph.json",), Cluster: ("*.cluster.toml", "*.cluster.json")}


def read_with_inputs(
    path: Path, graph: Path | None = None, cluster: Path | None = None
) -> tuple[Plan, Graph, Cluster]:
    """Read a plan, and the graph and the cluster that it was made from.

    Args:
        path: the plan's file; its folder and the current one are searched for the others.
        graph: the graph's file, if it is elsewhere, or to use another graph.
        cluster: the cluster's file, if it is elsewhere, or to use another cluster.

    Raises:
        FormatError: a file cannot be read, or has another format.
        ValueError: the graph or the cluster is not found.
    """
    plan = files.read(path, Plan)
    model = _find_input(path, plan.graph, Graph, graph)
    return plan, model, _find_input(path, plan.cluster, Cluster, cluster)


def _find_input(path: Path, reference: Reference, kind: type[T], given: Path | None) -> T:
    if given is not None:
        return files.read(given, kind)
    for candidate in _candidates(path, kind):
        raw = candidate.read_bytes()
        if files.digest(raw) == reference.sha256:
            return files.decode(raw, kind, str(candidate))
    word = kind.__name__.lower()
    raise ValueError(
        f"{path}: its {word} {reference.name!r} is neither beside it nor in the current folder "
        f"(sha256 {reference.sha256[:12]}...): give --{word} FILE"
    )


def _candidates(path: Path, kind: type[T]) -> Iterator[Path]:
    for folder in dict.fromkeys((path.resolve().parent, Path.cwd())):
        for pattern in PATTERNS[kind]:
            yield from sorted(folder.glob(pattern))

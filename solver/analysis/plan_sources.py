"""The graph and the cluster that a plan was made from, found beside it by their digests."""

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from skyfx.solver.core import files
from skyfx.solver.core.cluster import Cluster
from skyfx.solver.core.graph import Graph
from skyfx.solver.core.plan import Plan, Reference

__all__: list[str] = ["find_inputs"]

T = TypeVar("T", Graph, Cluster)

PATTERNS = {Graph: ("*.graph.json",), Cluster: ("*.cluster.toml", "*.cluster.json")}


def find_inputs(
    path: Path, plan: Plan, graph: Path | None = None, cluster: Path | None = None
) -> tuple[Graph, Cluster]:
    """What the plan of this file was made from.

    Args:
        path: the plan's file; beside it, and in the current folder, graph and cluster are sought.
        plan: what is in it.
        graph: the graph's file, if it is somewhere else, or another.
        cluster: the cluster's, likewise.

    Raises:
        FormatError: a file cannot be read, or is not such a file.
        ValueError: it is not there.
    """
    return (
        _source(path, plan.graph, Graph, graph, "graph"),
        _source(path, plan.cluster, Cluster, cluster, "cluster"),
    )


def _source(path: Path, reference: Reference, kind: type[T], given: Path | None, word: str) -> T:
    if given is not None:
        return files.read(given, kind)
    for candidate in _beside(path, kind):
        raw = candidate.read_bytes()
        if files.digest(raw) == reference.sha256:
            return files.decode(raw, kind, str(candidate))
    raise ValueError(
        f"{path}: the {word} that it was made from, {reference.name!r}, is neither beside it nor "
        f"in the current folder (sha256 {reference.sha256[:12]}...): give --{word} FILE"
    )


def _beside(path: Path, kind: type[T]) -> Iterator[Path]:
    for folder in dict.fromkeys((path.resolve().parent, Path.cwd())):
        for pattern in PATTERNS[kind]:
            yield from sorted(folder.glob(pattern))

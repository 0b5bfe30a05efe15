"""Leaves that take so much of the time that a plan suffers: they cannot be cut."""

import logging

from skyfx.solver.core.graph import Graph
from skyfx.tracing.capture import Capture
from skyfx.tracing.leaves.leaf_calls import leaf_of

LARGE = 0.1
"""The part of the time from which on a leaf is told of."""

logger = logging.getLogger(__name__)


def warn_of_large_leaves(captured: Capture, graph: Graph) -> None:
    """Name each leaf that takes more than a tenth of the measured time, its cause and the cure."""
    seconds = {
        node.id: _seconds(node.forward_s) + _seconds(node.backward_s) for node in graph.nodes
    }
    whole = sum(seconds.values())
    for node, name in captured.ids.items():
        leaf = leaf_of(node)
        if leaf is None or seconds[name] <= LARGE * whole:
            continue
        logger.warning(
            "%s is one node with %.0f %% of the time, which cannot be cut: %s stays whole (%s). "
            "Put what needs that, and no more, into a submodule of its own",
            name,
            100 * seconds[name] / whole,
            leaf.seen.name,
            leaf.seen.because,
        )


def _seconds(by_type: dict[str, float]) -> float:
    """On the fastest type of device."""
    return min(by_type.values(), default=0.0)

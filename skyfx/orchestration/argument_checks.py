"""The arguments of `partition`: checked before anything is captured or measured."""

import os
from collections.abc import Sequence
from typing import get_args

from skyfx.measurement.cost_cache import check_cache_folder
from skyfx.partitioning.weights import Weights
from skyfx.passes.planner_graph import to_planner_graph
from skyfx.solver.core.field_checks import non_negative, one_of
from skyfx.solver.core.files import require_folder
from skyfx.solver.core.pins import Pin
from skyfx.solver.core.plan import Assumptions, Strategy
from skyfx.tracing.capture import Capture

PathLike = str | os.PathLike[str]


def check_files(weights: PathLike | None, keep: PathLike | None) -> None:
    """Refuse weights that cannot be read, and folders that cannot be written to.

    Raises:
        PlanError: the weights.
        ValueError: a folder.
    """
    if weights is not None:
        Weights(weights).close()
    if keep is not None:
        require_folder("keep", keep)
    check_cache_folder()


def check_search(
    assumptions: Assumptions,
    devices: Sequence[str],
    *,
    strategy: Strategy,
    gap: float,
    time_limit_s: float,
) -> None:
    """Refuse numbers, words and pins that no search can be made with.

    Raises:
        ValueError: the argument, its value and what was expected.
    """
    one_of("strategy", strategy, get_args(Strategy))
    non_negative("gap", gap)
    non_negative("time_limit_s", time_limit_s)
    assumptions.check()
    for pin in map(Pin.of, assumptions.pins):
        pin.check_device(devices)


def check_patterns(pins: Sequence[str], captured: Capture) -> None:
    """Refuse pins that match nothing in the model.

    Raises:
        ValueError: the pattern and the names nearest to it.
    """
    if pins:
        nodes = to_planner_graph(captured).nodes
        for pin in map(Pin.of, pins):
            pin.check_pattern(nodes)

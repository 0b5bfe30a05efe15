"""From a captured model to the planner's graph: what each node takes on each device type.

Each operator is priced alone, equal ones once; what it takes in its neighbourhood follows from a
fit to calibration segments. Neither depends on how many equal layers the model has.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from statistics import median
from typing import TypeVar

from torch import fx

from skyfx.measurement.calibration import timed_segments
from skyfx.measurement.calibration_fit import fit
from skyfx.measurement.cost_cache import CostCache, check_cache_folder
from skyfx.measurement.operator_costs import OperatorCosts, priced
from skyfx.measurement.saved_tensors import SavedTensors, saved_tensors
from skyfx.passes.aliasing import written_parameters
from skyfx.passes.gradient_order import with_readers_in_order
from skyfx.passes.planner_graph import num_bytes, to_planner_graph
from skyfx.runtime.device import LocalDevice
from skyfx.runtime.execution.workers import worker
from skyfx.runtime.model_state import preserve_state
from skyfx.solver.core.graph import DeviceCalibration, Graph, LinearFit, Node
from skyfx.tracing.capture import Capture
from skyfx.tracing.node_names import ADAPTED

T = TypeVar("T")

Progress = Callable[[str, int, int], None]
"""Called with the device type and what is measured on it, and how many of how many are done."""

Told = Callable[[int, int], None]
Tell = Callable[[str], Told]


@dataclass(frozen=True, slots=True)
class TypeMeasurement:
    """What was measured on one device type."""

    prices: OperatorCosts
    fits: DeviceCalibration

    def time_s(self, *, by: DeviceCalibration | None = None) -> float:
        """Seconds of all nodes, forward and backward, by these fits or by others."""
        fits, costs = by or self.fits, self.prices.costs.values()
        backward = [cost.backward_s for cost in costs if cost.backward_s is not None]
        return sum(_fitted(cost.forward_s, fits.forward) for cost in costs) + sum(
            _fitted(seconds, fits.backward) for seconds in backward
        )


def measure(
    captured: Capture, places: Iterable[LocalDevice], *, progress: Progress | None = None
) -> Graph:
    """Measure a captured model.

    Args:
        captured: the model, for training or for inference. It may be on the meta device.
        places: where it may run; one of each device type is measured on.
        progress: told of each node that is done.

    Returns:
        The graph, with seconds per device type and bytes, for one micro-batch as captured.

    Raises:
        ValueError: there is no place, or `SKYFX_CACHE` names no folder to write to.
    """
    several = list(places)
    if not several:
        raise ValueError("places is empty, expected at least one device to measure on")
    check_cache_folder()
    found = {}
    for place in {place.type: place for place in several}.values():

        def measured(tell: Tell, place: LocalDevice = place) -> TypeMeasurement:
            prices = price(captured, place, tell)
            return TypeMeasurement(prices, calibrate(captured, place, prices, tell))

        found[place.type] = run_on(place, measured, len(several) == 1, progress)
    return assembled(captured, found)


def assembled(captured: Capture, found: Mapping[str, TypeMeasurement]) -> Graph:
    """The graph from what was measured, by device type."""
    graph, nodes = to_planner_graph(captured), {name: node for node, name in captured.ids.items()}
    prices = next(iter(found.values())).prices
    saved = saved_tensors(captured, prices)
    ordered = with_readers_in_order(graph, captured, lambda x: any(prices.flows.get(x.name, ())))
    return replace(
        graph,
        nodes=tuple(_filled(node, nodes[node.id], saved, found) for node in ordered.nodes),
        measured=tuple(one.fits for one in found.values()),
    )


def price(captured: Capture, place: LocalDevice, tell: Tell) -> OperatorCosts:
    """What each node takes alone."""
    cache = CostCache.opened(place, training=captured.training)
    with _preserved(captured), cache as store:
        return priced(captured, place, store, tell("operators"))


def calibrate(
    captured: Capture, place: LocalDevice, prices: OperatorCosts, tell: Tell
) -> DeviceCalibration:
    """What becomes of these prices in a neighbourhood, on this device."""
    told = tell("calibration segments")
    with _preserved(captured):
        segments = list(timed_segments(captured, prices, place, told))
    return DeviceCalibration(
        type=place.type,
        spread=median([cost.spread for cost in prices.costs.values()] or [0.0]),
        forward=fit([forward for forward, _ in segments]),
        backward=fit([back for _, back in segments if back is not None]),
    )


def _preserved(captured: Capture) -> AbstractContextManager[None]:
    written = written_parameters(captured)
    return preserve_state(captured.module, [f"{ADAPTED}.{name}" for name in written])


def run_on(
    place: LocalDevice, measured: Callable[[Tell], T], alone: bool, progress: Progress | None = None
) -> T:
    """Measure in a thread like those of stages (see `Workers`), which Ctrl-C here ends too."""
    stopped = threading.Event()

    def tell(what: str) -> Told:
        def told(done: int, total: int) -> None:
            if stopped.is_set():
                raise KeyboardInterrupt
            if progress is not None:
                progress(f"{place.type}, {what}", done, total)

        return told

    if alone:
        return measured(tell)
    with worker("skyfx-measuring", place) as executor:
        try:
            return executor.submit(measured, tell).result()
        finally:
            stopped.set()


def _filled(
    node: Node,
    of: fx.Node,
    saved: Mapping[str, SavedTensors],
    found: Mapping[str, TypeMeasurement],
) -> Node:
    known = {kind: one.prices.costs.get(of.name) for kind, one in found.items()}
    costs = {kind: cost for kind, cost in known.items() if cost is not None}
    back = {kind: x.backward_s for kind, x in costs.items() if x.backward_s is not None}
    flows = next(iter(found.values())).prices.flows.get(of.name, ())
    own = saved.get(of.name, SavedTensors())
    return replace(
        node,
        forward_s={k: _fitted(x.forward_s, found[k].fits.forward) for k, x in costs.items()},
        backward_s={k: _fitted(seconds, found[k].fits.backward) for k, seconds in back.items()},
        gradient_bytes=num_bytes(of.meta.get("val")) if flows == (True,) else 0,
        saved_bytes=own.first_bytes,
        kept=own.kept,
        storage=own.storage,
        # Types may have kernels of their own: of each figure the most.
        workspace_bytes=max((cost.workspace_bytes for cost in costs.values()), default=0.0),
        flops=max((cost.flops for cost in costs.values()), default=0),
        backward_flops=max((cost.backward_flops for cost in costs.values()), default=0),
    )


def _fitted(seconds: float, by: LinearFit | None) -> float:
    return seconds if by is None else by.factor * seconds + by.overhead_s

"""From a captured model to the planner's graph: what each node takes on each device type.

Each operator is priced alone, equal ones once; what it takes in its neighbourhood follows from a
fit to stretches of the graph. Neither depends on how many equal layers the model has.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import median

from torch import fx

from skyfx.captures import Capture
from skyfx.devices import device_type
from skyfx.keeping import kept_bytes
from skyfx.outline import num_bytes, outline
from skyfx.pricing import Prices, priced
from skyfx.regions import fit, timed_regions
from skyfx.runtime.stage import Place
from skyfx.runtime.workers import worker
from skyfx.solver.graph import Fit, Graph, Measured, Node
from skyfx.store import Store
from skyfx.undisturbed import undisturbed

__all__: list[str] = ["measure"]

Progress = Callable[[str, int, int], None]
"""Called with the device type, and how many of how many nodes are done."""


@dataclass(frozen=True, slots=True)
class _OnType:
    """What was measured on one device type."""

    prices: Prices
    fits: Measured


def measure(
    captured: Capture, places: Iterable[Place], *, progress: Progress | None = None
) -> Graph:
    """Measure a captured model.

    Args:
        captured: the model, for training or for inference. It may be on the meta device.
        places: where it may run; one of each device type is measured on.
        progress: told of each node that is done.

    Returns:
        The graph, with seconds per device type and bytes, for one micro-batch as captured.
    """
    several = list(places)
    by_type = {device_type(place.device): place for place in several}
    measured = _measured if len(several) == 1 else _measured_where_it_will_run
    with undisturbed(captured.module):
        found = {kind: measured(captured, place, progress) for kind, place in by_type.items()}
    graph, nodes = outline(captured), {name: node for node, name in captured.ids.items()}
    kept = kept_bytes(captured, next(iter(found.values())).prices)
    return replace(
        graph,
        nodes=tuple(_filled(node, nodes[node.id], kept, found) for node in graph.nodes),
        measured=tuple(one.fits for one in found.values()),
    )


def _filled(
    node: Node, of: fx.Node, kept: Mapping[str, float], found: Mapping[str, _OnType]
) -> Node:
    forward, backward = dict[str, float](), dict[str, float]()
    for kind, one in found.items():
        cost = one.prices.costs.get(of.name)
        if cost is not None:
            forward[kind] = _fitted(cost.forward_s, one.fits.forward)
            if cost.backward_s is not None:
                backward[kind] = _fitted(cost.backward_s, one.fits.backward)
    flows = next(iter(found.values())).prices.flows.get(of.name, ())
    return replace(
        node,
        forward_s=forward,
        backward_s=backward,
        gradient_bytes=num_bytes(of.meta.get("val")) if flows == (True,) else 0,
        saved_bytes=kept.get(of.name, 0),
    )


def _fitted(seconds: float, by: Fit | None) -> float:
    return seconds if by is None else by.factor * seconds + by.overhead_s


def _measured_where_it_will_run(
    captured: Capture, place: Place, progress: Progress | None
) -> _OnType:
    """`_measured` in a thread like those of stages (see `Workers`), which Ctrl-C here ends too."""
    stopped = threading.Event()

    def tell(kind: str, done: int, total: int) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        if progress is not None:
            progress(kind, done, total)

    with worker("skyfx-measuring", place) as executor:
        try:
            return executor.submit(_measured, captured, place, tell).result()
        finally:
            stopped.set()


def _measured(captured: Capture, place: Place, progress: Progress | None) -> _OnType:
    """What the model takes on one device."""
    kind = device_type(place.device)

    def tell(done: int, total: int) -> None:
        if progress is not None:
            progress(kind, done, total)

    with Store.opened(place, training=captured.training) as store:
        prices = priced(captured, place, store, tell)
    regions = list(timed_regions(captured, prices, place))
    forward = fit([forward for forward, _ in regions])
    backward = fit([back for _, back in regions if back is not None])
    spread = median([cost.spread for cost in prices.costs.values()] or [0.0])
    return _OnType(prices, Measured(type=kind, spread=spread, forward=forward, backward=backward))

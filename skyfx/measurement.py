"""From a captured model to the planner's graph: what each node takes on each device type.

The graph is run once per device type, node by node, on the example's real values. The first node of
each signature is timed; equal nodes take its time. Then the whole graph is timed, forward and
backward, and the nodes' times are scaled to add up to it: in its neighbourhood a node does not cost
what it costs alone.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from skyfx.captures import Capture
from skyfx.devices import device_type
from skyfx.leaves import leaf_of
from skyfx.names import is_operator
from skyfx.outline import outline
from skyfx.placing import copy_to
from skyfx.runtime.stage import Place
from skyfx.runtime.workers import worker
from skyfx.sizes import Sizes, sizes_of
from skyfx.solver.graph import Graph, Node
from skyfx.timing import CallTime, backward_of, measure_call, seconds, signature
from skyfx.undisturbed import undisturbed

__all__: list[str] = ["calibrated", "measure"]

Progress = Callable[[str, int, int], None]
"""Called with the device type, and how many of how many nodes are done."""

WHOLE_RUN_S = 0.5
"""Least time of measuring the whole graph in each direction."""

logger = logging.getLogger(__name__)


def measure(
    captured: Capture, places: Iterable[Place], *, progress: Progress | None = None
) -> Graph:
    """Measure a captured model.

    Args:
        captured: the model, for training or for inference.
        places: where it may run; one of each device type is measured on.
        progress: told of each node that is done.

    Returns:
        The graph, with seconds per device type and bytes, for one micro-batch as captured.
    """
    several = list(places)
    by_type = {device_type(place.device): place for place in several}
    measured = _times if len(several) == 1 else _times_where_it_will_run
    with undisturbed(captured.module):
        sizes = sizes_of(captured)
        times = {kind: measured(captured, place, progress) for kind, place in by_type.items()}
    graph = outline(captured)
    names = {name: node.name for node, name in captured.ids.items()}
    return replace(
        graph, nodes=tuple(_filled(node, names[node.id], sizes, times) for node in graph.nodes)
    )


def _filled(
    node: Node, name: str, sizes: Sizes, times: Mapping[str, Mapping[str, CallTime]]
) -> Node:
    own = {kind: found[name] for kind, found in times.items() if name in found}
    return replace(
        node,
        forward_s={kind: time.forward_s for kind, time in own.items()},
        backward_s={k: time.backward_s for k, time in own.items() if time.backward_s is not None},
        gradient_bytes=sizes.gradient_bytes[name],
        saved_bytes=sizes.saved_bytes[name],
    )


def _times_where_it_will_run(
    captured: Capture, place: Place, progress: Progress | None
) -> Mapping[str, CallTime]:
    """`_times` in a thread like those of stages (see `Workers`), which Ctrl-C here ends as well."""
    stopped = threading.Event()

    def tell(kind: str, done: int, total: int) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        if progress is not None:
            progress(kind, done, total)

    with worker("skyfx-measuring", place) as executor:
        try:
            return executor.submit(_times, captured, place, tell).result()
        finally:
            stopped.set()


def _times(captured: Capture, place: Place, progress: Progress | None) -> Mapping[str, CallTime]:
    """Seconds of each operator on one device, by its node's name."""
    module = copy_to(captured.module, place.device)
    inputs = [x.to(place.device) for x in captured.microbatch.tensors]
    meter = _Meter(module, captured.training, place, progress)
    meter.run(*inputs)
    whole = _whole(module, inputs, captured.training, place.num_threads)
    return calibrated(meter.times, whole, device_type(place.device))


class _Meter(fx.Interpreter):
    """Runs a graph and times each operator where it stands, equal ones once."""

    def __init__(
        self, module: fx.GraphModule, training: bool, place: Place, progress: Progress | None
    ) -> None:
        super().__init__(module)
        self.times: dict[str, CallTime] = {}
        self._known: dict[tuple[Any, ...], CallTime] = {}
        self._training, self._place, self._progress = training, place, progress
        self._total = sum(map(is_operator, module.graph.nodes))

    def run_node(self, n: fx.Node) -> Any:
        with torch.set_grad_enabled(self._training):
            if is_operator(n):
                self._time(n)
            return super().run_node(n)

    def _time(self, node: fx.Node) -> None:
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        target: Any = leaf_of(node) or node.target
        key = signature(target, args, kwargs)
        if key not in self._known:
            self._known[key] = measure_call(
                target,
                args,
                kwargs,
                training=self._training,
                num_threads=self._place.num_threads,
            )
        self.times[node.name] = self._known[key]
        if self._progress is not None:
            self._progress(device_type(self._place.device), len(self.times), self._total)


def _whole(
    module: fx.GraphModule, inputs: list[torch.Tensor], training: bool, num_threads: int
) -> CallTime:
    """Seconds of the whole graph."""
    with torch.set_grad_enabled(training):
        forward_s = seconds(lambda: module(*inputs), num_threads, WHOLE_RUN_S)
        if not training:
            return CallTime(forward_s, None)
        trained = [x for x in module.parameters() if x.requires_grad]
        backward = backward_of(module(*inputs), trained)
    return CallTime(forward_s, backward and seconds(backward, num_threads, WHOLE_RUN_S))


def calibrated(times: Mapping[str, CallTime], whole: CallTime, kind: str) -> Mapping[str, CallTime]:
    """The nodes' times, scaled so that they add up to the whole graph's."""
    forward_sum = sum(time.forward_s for time in times.values())
    backward_sum = sum(time.backward_s or 0.0 for time in times.values())
    forward = whole.forward_s / forward_sum if forward_sum else 1.0
    backward = whole.backward_s / backward_sum if whole.backward_s and backward_sum else 1.0
    logger.info("%s: nodes' times x %.3f forward, x %.3f backward", kind, forward, backward)
    return {
        name: CallTime(time.forward_s * forward, time.backward_s and time.backward_s * backward)
        for name, time in times.items()
    }

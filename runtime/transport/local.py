"""Links between two stages of one process: two bounded queues, at full or at emulated speed."""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from skyfx.solver.core.cluster import Link, Wire

T = TypeVar("T")

Values = Sequence[Tensor]
Gradients = Sequence[Tensor | None]


class ChannelClosed(Exception):  # noqa: N818 (no error: the step was stopped for another reason)
    """The step was stopped; nothing more can be sent or received."""


class Closing(Protocol):
    """The end of a link's use in a step."""

    def finish(self) -> None:
        """Wait until all that was sent has gone out."""

    def close(self) -> None:
        """The step was stopped: release the stage that waits here."""


class OutboundLink(Closing, Protocol):
    """The link after a stage, as that stage sees it."""

    def send_values(self, values: Values) -> None:
        """Send a micro-batch's values to the next stage."""

    def receive_gradients(self) -> Gradients:
        """Wait for their gradients."""


class InboundLink(Closing, Protocol):
    """The link before a stage, as that stage sees it."""

    def receive_values(self) -> Values:
        """Wait for the next micro-batch's values."""

    def send_gradients(self, gradients: Gradients) -> None:
        """Send their gradients back."""


@dataclass(frozen=True, slots=True)
class Boundaries:
    """The links of the stages of this process, by the numbers of these stages."""

    before: Mapping[int, InboundLink]
    after: Mapping[int, OutboundLink]

    def finish(self) -> None:
        """Wait until all that was sent has gone out."""
        for boundary in (*self.before.values(), *self.after.values()):
            boundary.finish()

    def close(self) -> None:
        """Release every stage that waits for another one."""
        for boundary in (*self.before.values(), *self.after.values()):
            boundary.close()


class BoundedQueue(Generic[T]):
    """A queue of one sender and one receiver.

    With a `wire` its items are tensors, which arrive as over a link that carries them one by one.
    `queue.Queue.shutdown` would serve, but only from Python 3.13 on.
    """

    def __init__(self, capacity: int, wire: Wire | Link | None = None) -> None:
        self._capacity, self._wire = capacity, wire
        self._items: deque[tuple[float, T]] = deque()
        self._changed = threading.Condition()
        self._closed, self._busy_until_s = False, 0.0

    def put(self, item: T) -> None:
        """Add an item; waits while the queue is full, but not for its arrival."""
        arrives_s = self._arrival_s(item)
        with self._changed:
            self._wait_for(lambda: len(self._items) < self._capacity)
            self._items.append((arrives_s, item))
            self._changed.notify_all()

    def get(self) -> T:
        """Remove the next item; waits until it has arrived."""
        with self._changed:
            self._wait_for(lambda: bool(self._items))
            arrives_s, item = self._items.popleft()
            self._changed.notify_all()
            if (late_s := arrives_s - time.perf_counter()) > 0:
                self._wait_for(lambda: False, late_s)
            return item

    def close(self) -> None:
        """Release all who wait; from now on `put` and `get` raise `ChannelClosed`."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()

    def _arrival_s(self, item: Any) -> float:
        if self._wire is None:
            return 0.0
        size_bytes = sum(x.nbytes for x in item if x is not None)
        begins_s = max(time.perf_counter(), self._busy_until_s)
        self._busy_until_s = begins_s + size_bytes / self._wire.bandwidth_bytes_per_s
        return self._busy_until_s + self._wire.latency_s

    def _wait_for(self, ready: Callable[[], bool], at_most_s: float | None = None) -> None:
        self._changed.wait_for(lambda: self._closed or ready(), at_most_s)
        if self._closed:
            raise ChannelClosed


class LocalLink:
    """A link within this process, by a queue in each direction; both stages hold this object."""

    def __init__(self, there: BoundedQueue[Values], back: BoundedQueue[Gradients]) -> None:
        self._values, self._gradients = there, back
        self.send_values, self.receive_values = self._values.put, self._values.get
        self.send_gradients, self.receive_gradients = self._gradients.put, self._gradients.get

    def finish(self) -> None:
        """Nothing to wait for."""

    def close(self) -> None:
        """Release both stages."""
        self._values.close()
        self._gradients.close()

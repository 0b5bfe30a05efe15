"""Links between two stages of one process: two bounded queues, at full or at emulated speed."""

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from torch import Tensor

from skyfx.solver.core.cluster import Link, Wire

__all__: list[str] = [
    "Boundaries",
    "BoundedQueue",
    "ChannelClosed",
    "Gradients",
    "InboundLink",
    "LocalLink",
    "OutboundLink",
    "Values",
]

T = TypeVar("T")

Values = Sequence[Tensor]
Gradients = Sequence[Tensor | None]
Tensors = TypeVar("Tensors", bound=Sequence[Tensor | None])


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

    `queue.Queue.shutdown` would serve, but only from Python 3.13 on.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, item: T) -> None:
        """Add an item; waits while the queue is full."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < self._capacity)
            self._raise_if_closed()
            self._items.append(item)
            self._changed.notify_all()

    def get(self) -> T:
        """Remove the next item; waits while the queue is empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or bool(self._items))
            self._raise_if_closed()
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """Release all who wait; from now on `put` and `get` raise `ChannelClosed`."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()

    def _raise_if_closed(self) -> None:
        if self._closed:
            raise ChannelClosed


class SlowChannel(Generic[Tensors]):
    """A queue of tensors that emulates a link: it carries one item after the other."""

    def __init__(self, capacity: int, wire: Wire | Link) -> None:
        self._channel = BoundedQueue[tuple[float, Tensors]](capacity)
        self._wire = wire
        self._busy_until_s = 0.0
        self._closed = threading.Event()

    def put(self, item: Tensors) -> None:
        """Send tensors; waits while the queue is full, but not for their arrival."""
        wire, size_bytes = self._wire, sum(x.nbytes for x in item if x is not None)
        begins_s = max(time.perf_counter(), self._busy_until_s)
        self._busy_until_s = begins_s + size_bytes / wire.bandwidth_bytes_per_s
        self._channel.put((self._busy_until_s + wire.latency_s, item))

    def get(self) -> Tensors:
        """Wait until the next tensors have arrived."""
        arrives_s, item = self._channel.get()
        if self._closed.wait(max(0.0, arrives_s - time.perf_counter())):
            raise ChannelClosed
        return item

    def close(self) -> None:
        """As `BoundedQueue.close`."""
        self._closed.set()
        self._channel.close()


class LocalLink:
    """A link within this process; both stages hold the same object."""

    def __init__(
        self,
        values_capacity: int,
        gradients_capacity: int,
        there: Wire | Link | None = None,
        back: Wire | Link | None = None,
    ) -> None:
        """A link with these capacities, in items; `there` and `back` are emulated, if given."""
        self._values: BoundedQueue[Values] | SlowChannel[Values] = (
            BoundedQueue(values_capacity) if there is None else SlowChannel(values_capacity, there)
        )
        self._gradients: BoundedQueue[Gradients] | SlowChannel[Gradients] = (
            BoundedQueue(gradients_capacity)
            if back is None
            else SlowChannel(gradients_capacity, back)
        )
        self.send_values, self.receive_values = self._values.put, self._values.get
        self.send_gradients, self.receive_gradients = self._gradients.put, self._gradients.get

    def finish(self) -> None:
        """Nothing to wait for."""

    def close(self) -> None:
        """Release both stages."""
        self._values.close()
        self._gradients.close()

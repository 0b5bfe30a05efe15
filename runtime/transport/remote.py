"""What stands between two stages of different processes: messages over torch.distributed.

        this process, stage k                      the next process, stage k + 1
        send_values        --- tag 2k ------->     receive_values
        receive_gradients  <-- tag 2k + 1 ----     send_gradients

Receives are posted before their values are needed and sends are not waited for, so that transfers
overlap what the stages compute: gloo moves a message in its own threads once both ends have posted.
Each way has a thread that sends.

The shapes of values are known from the capture. Which of them require a gradient is known when they
are there; so that is when the receive of their gradients is posted.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, Future

import torch.distributed as dist
from torch import Tensor

from skyfx.runtime.distributed.process_group import ProcessGroup
from skyfx.runtime.transport.local import Gradients, Values
from skyfx.runtime.transport.message import MessageLayout, TensorSpec

__all__: list[str] = ["ReceiveQueue", "RemoteInbound", "RemoteOutbound", "SendQueue"]

AHEAD = 2
"""Receives that are posted at a time in each direction; each has a buffer."""


class SendQueue:
    """Sends one message after another, in a thread that waits until each has gone out.

    torch says only by waiting whether a message has been sent, and until then it needs its memory.
    Where a peer is lost, all of this raises what `ProcessGroup.watched` does.
    """

    def __init__(
        self, peer: int, tag: int, group: ProcessGroup, sender: Executor, in_flight: int
    ) -> None:
        self._peer, self._tag, self._group = peer, tag, group
        self._sender, self._in_flight = sender, in_flight
        self._sending: deque[Future[None]] = deque()

    def send(self, layout: MessageLayout, values: Gradients) -> None:
        """Send these values; waits only for the oldest of too many that nobody has taken."""
        if layout.is_empty:
            return
        self._sending.append(self._sender.submit(self._send, layout.pack(values)))
        while self._sending and (len(self._sending) > self._in_flight or self._sending[0].done()):
            self._sending.popleft().result()

    def finish(self) -> None:
        """Wait until all has been sent."""
        while self._sending:
            self._sending.popleft().result()

    def _send(self, message: Tensor) -> None:
        with self._group.raising_lost_peers():
            dist.send(message, group=self._group.processes, tag=self._tag, group_dst=self._peer)


class ReceiveQueue:
    """Receives messages in the order of their layouts, `ahead` of them posted in advance."""

    def __init__(
        self, peer: int, tag: int, group: ProcessGroup, layouts: Iterable[MessageLayout], ahead: int
    ) -> None:
        self._peer, self._tag, self._group, self._ahead = peer, tag, group, ahead
        self._expected = deque(layouts)
        self._posted: deque[tuple[MessageLayout, Tensor | None, dist.Work | None]] = deque()
        self._post()

    def expect(self, layout: MessageLayout) -> None:
        """Another message of this layout will come."""
        self._expected.append(layout)
        self._post()

    def receive(self) -> list[Tensor | None]:
        """The next message's values."""
        layout, message, work = self._posted[0]
        if work is not None:
            with self._group.raising_lost_peers():
                work.wait()
        self._posted.popleft()
        self._post()
        return layout.unpack(message)

    def _post(self) -> None:
        while self._expected and len(self._posted) < self._ahead:
            layout = self._expected.popleft()
            message = None if layout.is_empty else layout.room()
            work = None
            if message is not None:
                with self._group.raising_lost_peers():
                    work = dist.irecv(
                        message,
                        group=self._group.processes,
                        tag=self._tag,
                        group_src=self._peer,
                    )
            self._posted.append((layout, message, work))


class RemoteOutbound:
    """Our end of the boundary behind stage `k`, which is here; the next stage is with `peer`."""

    def __init__(
        self,
        k: int,
        peer: int,
        group: ProcessGroup,
        sender: Executor,
        *,
        in_flight: int,
        training: bool,
    ) -> None:
        self._values = SendQueue(peer, 2 * k, group, sender, in_flight)
        self._gradients = ReceiveQueue(peer, 2 * k + 1, group, (), AHEAD)
        self._training = training

    def send_values(self, values: Values) -> None:
        """Hand a micro-batch's values on, and in training get ready for their gradients."""
        if self._training:  # a tied weight among them requires one in inference, too
            self._gradients.expect(_flowing(values))
        self._values.send(MessageLayout.of(values), values)

    def receive_gradients(self) -> Gradients:
        """Take their gradients."""
        return self._gradients.receive()

    def close(self) -> None:
        """Nothing: a receive that was posted cannot be taken back."""

    def finish(self) -> None:
        """Wait until all has been sent."""
        self._values.finish()


class RemoteInbound:
    """Our end of the boundary before stage `k + 1`, which is here; stage `k` is with `peer`."""

    def __init__(
        self,
        k: int,
        peer: int,
        group: ProcessGroup,
        sender: Executor,
        forms: Iterable[Sequence[TensorSpec]],
        *,
        in_flight: int,
    ) -> None:
        self._values = ReceiveQueue(peer, 2 * k, group, map(MessageLayout, forms), AHEAD)
        self._gradients = SendQueue(peer, 2 * k + 1, group, sender, in_flight)
        self._flowing = deque[MessageLayout]()

    def receive_values(self) -> Values:
        """Take the next micro-batch's values."""
        values = [x for x in self._values.receive() if x is not None]
        self._flowing.append(_flowing(values))
        return values

    def send_gradients(self, gradients: Gradients) -> None:
        """Hand their gradients back."""
        self._gradients.send(self._flowing.popleft(), gradients)

    def close(self) -> None:
        """Nothing: a receive that was posted cannot be taken back."""

    def finish(self) -> None:
        """Wait until all has been sent."""
        self._gradients.finish()


def _flowing(values: Values) -> MessageLayout:
    """How the gradients of these values are laid out."""
    return MessageLayout.of([x if x.requires_grad else None for x in values])

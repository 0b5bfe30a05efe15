"""Links between two stages of different processes: messages over torch.distributed.

        this process, stage k                      the next process, stage k + 1
        send_values        --- tag 2k ------->     receive_values
        receive_gradients  <-- tag 2k + 1 ----     send_gradients

Receives are posted before their values are needed, and no stage waits for a send. So transfers
overlap with computation: gloo moves a message in its own threads once both ends have posted. Each
direction has a thread that sends.

The shapes of values are known from the capture. Which of them require a gradient is known when they
arrive; only then the receive of their gradients is posted.
"""

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Executor, Future

import torch.distributed as dist
from torch import Tensor

from skyfx.runtime.distributed.process_group import ProcessGroup
from skyfx.runtime.transport.local import Gradients, Values
from skyfx.runtime.transport.message import MessageLayout

AHEAD = 2
"""Receives that are posted at once in each direction; each has a buffer."""


class SendQueue:
    """Sends one message after another, in a thread that waits until each has gone out.

    Only a wait tells whether torch has sent a message, and its memory is needed until then. When a
    peer is lost, methods raise as `ProcessGroup.raising_lost_peers` does.
    """

    def __init__(
        self, peer: int, tag: int, group: ProcessGroup, sender: Executor, in_flight: int
    ) -> None:
        self._peer, self._tag, self._group = peer, tag, group
        self._sender, self._in_flight = sender, in_flight
        self._sending: deque[Future[None]] = deque()

    def send(self, layout: MessageLayout, values: Gradients) -> None:
        """Send these values; waits only if more than `in_flight` messages are not received yet."""
        if layout.is_empty:
            return
        self._sending.append(self._sender.submit(self._send, layout.pack(values)))
        while self._sending and (len(self._sending) > self._in_flight or self._sending[0].done()):
            self._sending.popleft().result()

    def finish(self) -> None:
        """Wait until all messages have been sent."""
        while self._sending:
            self._sending.popleft().result()

    def _send(self, message: Tensor) -> None:
        with self._group.raising_lost_peers():
            dist.send(message, group=self._group.processes, tag=self._tag, group_dst=self._peer)


class ReceiveQueue:
    """Receives messages in the order of their layouts; `ahead` receives are posted in advance."""

    def __init__(
        self,
        peer: int,
        tag: int,
        group: ProcessGroup,
        layouts: Iterable[MessageLayout] = (),
        ahead: int = AHEAD,
    ) -> None:
        self._peer, self._tag, self._group, self._ahead = peer, tag, group, ahead
        self._expected = deque(layouts)
        self._posted: deque[tuple[MessageLayout, Tensor | None, dist.Work | None]] = deque()
        self._post()

    def expect(self, layout: MessageLayout) -> None:
        """Expect another message, of this layout."""
        self._expected.append(layout)
        self._post()

    def receive(self) -> list[Tensor | None]:
        """Wait for the values of the next message."""
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
            message = work = None
            if not layout.is_empty:
                message = layout.buffer()
                with self._group.raising_lost_peers():
                    work = dist.irecv(
                        message, group=self._group.processes, tag=self._tag, group_src=self._peer
                    )
            self._posted.append((layout, message, work))


class _RemoteLink:
    _sent: SendQueue

    def close(self) -> None:
        """Nothing to do: a posted receive cannot be cancelled."""

    def finish(self) -> None:
        """Wait until all messages have been sent."""
        self._sent.finish()


class RemoteOutbound(_RemoteLink):
    """The link after a stage of this process, to the next stage in another one."""

    def __init__(self, values: SendQueue, gradients: ReceiveQueue, *, training: bool) -> None:
        self._sent, self._gradients, self._training = values, gradients, training

    def send_values(self, values: Values) -> None:
        """Send a micro-batch's values, and in training expect their gradients."""
        if self._training:  # in inference too, a tied weight requires one
            self._gradients.expect(_flowing(values))
        self._sent.send(MessageLayout.of(values), values)

    def receive_gradients(self) -> Gradients:
        """Wait for their gradients."""
        return self._gradients.receive()


class RemoteInbound(_RemoteLink):
    """The link before a stage of this process, from the previous stage in another one."""

    def __init__(self, values: ReceiveQueue, gradients: SendQueue) -> None:
        self._values, self._sent = values, gradients
        self._flowing = deque[MessageLayout]()

    def receive_values(self) -> Values:
        """Wait for the next micro-batch's values."""
        values = [x for x in self._values.receive() if x is not None]
        self._flowing.append(_flowing(values))
        return values

    def send_gradients(self, gradients: Gradients) -> None:
        """Send their gradients back."""
        self._sent.send(self._flowing.popleft(), gradients)


def _flowing(values: Values) -> MessageLayout:
    """The layout of the gradients of these values."""
    return MessageLayout.of([x if x.requires_grad else None for x in values])

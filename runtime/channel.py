"""What stands between two stages: a bounded queue that can be closed from outside."""

import threading
from collections import deque
from typing import Generic, TypeVar

__all__: list[str] = ["Channel", "ChannelClosed"]

T = TypeVar("T")


class ChannelClosed(Exception):  # noqa: N818 (no error: the step was stopped for another reason)
    """The step was stopped; there is nothing more to send or to wait for."""


class Channel(Generic[T]):
    """A queue of one sender and one receiver.

    `queue.Queue.shutdown` would serve, but only from Python 3.13 on.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, item: T) -> None:
        """Hand an item over, waiting for room."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < self._capacity)
            self._raise_if_closed()
            self._items.append(item)
            self._changed.notify_all()

    def get(self) -> T:
        """Take the next item, waiting for one."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or bool(self._items))
            self._raise_if_closed()
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """Wake whoever waits; from now on `put` and `get` raise `ChannelClosed`."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()

    def _raise_if_closed(self) -> None:
        if self._closed:
            raise ChannelClosed

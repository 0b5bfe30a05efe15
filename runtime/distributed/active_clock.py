"""A clock that stands while this process is stopped."""

import threading
import time
from collections import deque

BEAT_S = 0.5
"""Seconds between two beats of a process, and at most between two ticks of its clock."""

PAUSES = 100
"""Number of this process's pauses that are remembered."""


class ActiveClock:
    """Measures time without the pauses in which this process was stopped.

    By other clocks, after a pause, all peers would seem silent and all stages would seem to hang.
    A pause is seen as a gap between two ticks; threads tick at least every `BEAT_S`.
    """

    def __init__(self) -> None:
        self._pauses: deque[tuple[float, float]] = deque(maxlen=PAUSES)
        self._ticked_s = time.perf_counter()
        self._lock = threading.Lock()

    def tick(self) -> float:
        """Note a pause if there was one; returns the time."""
        with self._lock:
            now_s = time.perf_counter()
            if (pause_s := now_s - self._ticked_s - 2 * BEAT_S) > 0:
                self._pauses.append((now_s, pause_s))
            self._ticked_s = now_s
            return now_s

    def active_s(self, since_s: float, until_s: float | None = None) -> float:
        """Active seconds between two times of `time.perf_counter`; until now by default."""
        until_s = self.tick() if until_s is None else until_s
        paused_s = (length for at_s, length in list(self._pauses) if since_s < at_s <= until_s)
        return until_s - since_s - sum(paused_s)

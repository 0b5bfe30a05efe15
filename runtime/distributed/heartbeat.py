"""Who is still there: every process says so twice a second, and looks at what the others say.

    process 0    beat 17   beat 18   beat 19   beat 20
    process 1    beat 12   "stage 1 on 'b/cpu' failed: ..."     -> all others stop, and say so
    process 2    beat 15   (silence)                            -> after `SILENT_S` it is lost

What they say stands in torch's store, under their ranks. One process keeps it: who finds a loss
says so there, and the one that keeps it waits with its end until the others have read that. gloo
itself waits for a peer that was stopped or cut off until its timeout runs out, so that must be
long; and of a broken connection it says neither who broke it nor why. Where a process is lost, the
others close their connections, and whoever waits for a message goes.
"""

import gc
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

import msgspec
import torch.distributed as dist

from skyfx.solver.errors import SkyfxError, StageError, WorkerLostError

__all__: list[str] = ["Heartbeat"]

BEAT_S, SILENT_S = 0.5, 6.0
"""Seconds between two beats, and without one after which a process is lost."""

STOOD = 100
"""Times at which this process stood that are remembered."""


@dataclass(frozen=True, slots=True)
class _Beat:
    """What a process says: that it is there, how it failed, whom it lost, or that it has left."""

    beat: int
    failed: str = ""
    lost: str = ""
    has_left: bool = False

    @property
    def is_ending(self) -> bool:
        """Whether that process needs to hear no more."""
        return bool(self.failed or self.lost or self.has_left)


class Heartbeat:
    """This process's own beats, and what it knows of the others, in a thread.

    Attributes:
        overdue: says what this process is stuck in, if it is.
        closing: close connections to the others.
    """

    def __init__(
        self,
        store: dist.Store,  # type: ignore[name-defined]
        rank: int,
        size: int,
    ) -> None:
        """Say that we are there; all have to before any begins to listen.

        Args:
            store: where all say what they have to; this object's own.
            rank: which process this is.
            size: of how many.
        """
        self.overdue: Callable[[], str | None] = lambda: None
        self.closing: list[Callable[[], None]] = []
        self._store, self._rank = store, rank
        self._store.set_timeout(timedelta(seconds=SILENT_S))
        self._names = {i: f"rank {i}" for i in range(size)}
        self._said: dict[int, bytes] = {}
        # By clocks that stand while this process does: then silence says nothing of the others, and
        # what has not ended does not hang.
        self._stood: deque[tuple[float, float]] = deque(maxlen=STOOD)
        self._awake_s = self._answered_s = 0.0
        self._heard_s: dict[int, float] = {}
        self._beats, self._failed, self._has_left = 0, "", False
        self._lost: SkyfxError | None = None
        self._is_known, self._is_stopped = threading.Event(), threading.Event()
        self._has_news = threading.Event()
        # Two, since a store that was stopped or cut off may never answer the one that asks it.
        self._threads = [
            threading.Thread(target=run, name=f"skyfx-pulse-{run.__name__}", daemon=True)
            for run in (self._beat, self._judge)
        ]
        self._say()

    def start(self) -> None:
        """Begin to listen.

        A collection of garbage looks at all objects and lets no thread say anything meanwhile: with
        torch imported 0.2 s of a processor, which a host that is busy with other things may take
        seconds for. So what is there by now is left alone from now on.
        """
        gc.freeze()
        for thread in self._threads:
            thread.start()

    def call(self, names: Mapping[int, str]) -> None:
        """Say in errors what runs in which process."""
        self._names |= {i: f"rank {i} ({name})" for i, name in names.items()}

    def fail(self, text: str) -> None:
        """Tell the others that this process cannot go on, and why."""
        self._failed = text
        self._has_news.set()

    def leave(self) -> None:
        """Tell the others that the program ends here, and stop.

        After a failure only when they know of it, for as long as they are not silent themselves:
        with this process the store may end.
        """
        end_s = time.monotonic() + SILENT_S
        while (self._failed or self._lost) and self._leaves_any() and time.monotonic() < end_s:
            time.sleep(BEAT_S / 2)
        self._has_left = True
        self._is_stopped.set()
        self._has_news.set()
        for thread in self._threads:
            thread.join(timeout=2 * BEAT_S)

    def lost(self, wait_s: float = 0.0) -> SkyfxError | None:
        """Who was lost or has failed; what is not known yet is waited for."""
        self._is_known.wait(wait_s)
        return self._lost

    def active_s(self, since_s: float) -> float:
        """Seconds since then, by `time.perf_counter`, for which this process did not stand."""
        stood_s = sum(length_s for at_s, length_s in list(self._stood) if at_s > since_s)
        return time.perf_counter() - since_s - stood_s

    def _beat(self) -> None:
        """Say and listen until the program ends; that it does is said as well."""
        is_last, looked_s = False, time.perf_counter()
        while not is_last:
            self._has_news.wait(BEAT_S)
            self._has_news.clear()
            went_by_s, looked_s = time.perf_counter() - looked_s, time.perf_counter()
            if went_by_s > 2 * BEAT_S:
                self._stood.append((looked_s, went_by_s - 2 * BEAT_S))
            is_last = self._is_stopped.is_set()
            with suppress(RuntimeError):  # of the store: then it has not answered
                self._say()
                self._listen()
                self._answered_s = self._awake_s

    def _say(self) -> None:
        self._beats += 1
        failed = self._failed or self.overdue() or ""
        saying = _Beat(self._beats, failed, str(self._lost or ""), self._has_left)
        self._store.set(str(self._rank), msgspec.json.encode(saying).decode())

    def _listen(self) -> None:
        others = [i for i in self._names if i != self._rank]
        for i, said in zip(others, self._store.multi_get([str(i) for i in others]), strict=True):
            if said != self._said.get(i):
                self._said[i], self._heard_s[i] = said, self._awake_s

    def _judge(self) -> None:
        """Look at the clock, whether or not the store answers."""
        looked_s = time.monotonic()
        while self._lost is None and not self._is_stopped.wait(BEAT_S):
            went_by_s, looked_s = time.monotonic() - looked_s, time.monotonic()
            self._awake_s += min(went_by_s, 2 * BEAT_S)
            if (silent_s := self._awake_s - self._answered_s) > SILENT_S:
                self._lose(
                    WorkerLostError(
                        f"{self._names[0]}, on whose host the job's store is, has not answered for "
                        f"{silent_s:.0f} s: it was stopped or cut off, or this host was"
                    )
                )
                return
            sayings = self._sayings()
            for i, saying in sayings.items():
                if saying.failed:
                    self._lose(StageError(f"{self._names[i]}: {saying.failed}"))
            for i, saying in sayings.items():
                if (silent_s := self._silent_s(i)) > SILENT_S:
                    why = (
                        "has left: its program has ended"
                        if saying.has_left
                        else f"has not been heard of for {silent_s:.0f} s: it was killed, stopped "
                        "or cut off. Start the job again from the last checkpoint"
                    )
                    self._lose(WorkerLostError(f"{self._names[i]} {why}"))
                elif saying.lost:
                    self._lose(WorkerLostError(saying.lost))

    def _sayings(self) -> dict[int, _Beat]:
        """What the others said last."""
        said = self._said.copy()
        return {i: msgspec.json.decode(text, type=_Beat) for i, text in said.items()}

    def _silent_s(self, rank: int) -> float:
        """Until the store last answered: of a store that does not, nobody else is to blame."""
        return self._answered_s - self._heard_s[rank]

    def _leaves_any(self) -> bool:
        """Whether others are there that do not know yet why this process ends."""
        return any(
            not saying.is_ending and self._silent_s(i) <= SILENT_S
            for i, saying in self._sayings().items()
        )

    def _lose(self, error: SkyfxError) -> None:
        """Note the first loss, which explains all later ones, and let go whoever waits."""
        if self._lost is None:
            self._lost = error
            self._has_news.set()
            for close in self.closing:
                close()
            self._is_known.set()

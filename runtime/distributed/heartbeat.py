"""Heartbeats: each process of a job beats twice a second and reads the beats of the others.

    process 0    beat 17   beat 18   beat 19   beat 20
    process 1    beat 12   "stage 1 on 'b/cpu' failed: ..."     -> all others stop and report it
    process 2    beat 15   (silence)                            -> lost after `SILENT_S`

Beats stand in torch's store, under the rank of their process. One process keeps the store: a
process that finds a loss writes it there, and the keeper ends only when the others have read it.

gloo itself waits for a peer that was stopped or cut off until its timeout, which has to be long.
When a connection breaks it says neither which process broke it nor why. So when a process is lost,
the others close their connections, and nobody waits for a message any more.
"""

import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta

import msgspec
import torch.distributed as dist

from skyfx.runtime.distributed.active_clock import BEAT_S, ActiveClock
from skyfx.runtime.distributed.whereabouts import Location, Whereabouts
from skyfx.solver.errors import DisagreementError, SkyfxError, StageError, WorkerLostError

SILENT_S = 6.0
"""Seconds of silence after which a process is lost."""

MET_S, WARN_S = 5.0, 10.0
"""Seconds after which two processes that wait for each other in different calls are stuck; seconds
of waiting for another process after which a warning says where that one is."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Beat:
    """The message of a process: its number, why it failed, which loss it found, if it has left.

    Attributes:
        calls: how many calls it has begun.
        at: the line of its program.
        meeting: a collective of the program's own in which it has waited for `MET_S`.
        ranks: the processes that it waits for there.
    """

    beat: int
    failed: str = ""
    lost: str = ""
    has_left: bool = False
    calls: int = 0
    at: str = ""
    meeting: str = ""
    ranks: tuple[int, ...] = ()


@dataclass(slots=True)
class _Waiting:
    """This process waits until all others make the same call."""

    call: str
    since_s: float
    is_told: bool = False


class Heartbeat:
    """The beats of this process, and what it knows of the others; both in threads.

    Attributes:
        overdue: returns which stage of this process hangs, or None.
        closing: functions that close the connections to the others.
        clock: stands while this process is stopped.
        calls: how many calls this process has begun, as all others have to.
    """

    def __init__(self, store: dist.Store, rank: int, size: int) -> None:  # type: ignore[name-defined]
        """Beat once; all processes have to before any of them calls `start`.

        Args:
            store: used by this object only.
            rank: the number of this process.
            size: the number of processes.
        """
        self.overdue: Callable[[], str | None] = lambda: None
        self.closing: list[Callable[[], None]] = []
        self._store, self._rank = store, rank
        store.set_timeout(timedelta(seconds=SILENT_S))
        self._names = {i: f"rank {i}" for i in range(size)}
        self.clock = ActiveClock()
        self._answered_s = 0.0
        self._last_seen: dict[int, tuple[bytes, float]] = {}
        self._beats, self._failed, self._has_left = 0, "", False
        self._lost: SkyfxError | None = None
        self.calls = 0
        self._waiting: _Waiting | None = None
        self._whereabouts, self._location = Whereabouts(), Location()
        self._is_known, self._is_stopped = threading.Event(), threading.Event()
        self._has_news = threading.Event()
        # Two, since a store that was stopped or cut off may never answer the thread that asks it.
        self._threads = [
            threading.Thread(target=run, name=f"skyfx-heartbeat{run.__name__}", daemon=True)
            for run in (self._beat, self._judge)
        ]
        self._write()

    def start(self) -> None:
        """Begin to beat and to judge.

        Garbage collection visits all objects, and stops all threads meanwhile: with torch imported
        for 0.2 s of a core, which can be seconds on a busy host. So the present objects are
        excluded from it.
        """
        gc.freeze()
        self._answered_s = self.clock.tick()
        for thread in self._threads:
            thread.start()

    def name(self, names: Mapping[int, str]) -> None:
        """Add to the errors what runs in each process."""
        self._names |= {i: f"rank {i} ({name})" for i, name in names.items()}

    @contextmanager
    def waiting(self, call: str) -> Iterator[None]:
        """Within it, this process has begun a call and waits until all others have."""
        self.calls += 1
        self._whereabouts.thread = threading.get_ident()
        self._waiting = _Waiting(call, self.clock.tick())
        try:
            yield
        finally:
            self._waiting = None

    def fail(self, text: str) -> None:
        """Tell the others that this process has failed, and why."""
        self._failed = text
        self._has_news.set()

    def leave(self) -> None:
        """Tell the others that the program ends here, and stop.

        After a failure it first waits until the others know of it, except for those that are silent
        themselves: the store may end with this process.
        """
        end_s = time.monotonic() + SILENT_S
        while (self._failed or self._lost) and self._is_awaited() and time.monotonic() < end_s:
            time.sleep(BEAT_S / 2)
        self._has_left = True
        self._is_stopped.set()
        self._has_news.set()
        for thread in self._threads:
            thread.join(timeout=2 * BEAT_S)

    def lost(self, wait_s: float = 0.0) -> SkyfxError | None:
        """The first loss or failure of another process; waits for one at most `wait_s`."""
        self._is_known.wait(wait_s)
        return self._lost

    def _beat(self) -> None:
        """Write and read beats until the program ends; the last beat says that it does."""
        is_last = False
        while not is_last:
            self._has_news.wait(BEAT_S)
            self._has_news.clear()
            is_last = self._is_stopped.is_set()
            with suppress(RuntimeError):  # the store did not answer
                self._write()
                self._read()
                self._answered_s = self.clock.tick()

    def _write(self) -> None:
        self._beats += 1
        failed, lost = self._failed or self.overdue() or "", str(self._lost or "")
        self._location = location = self._whereabouts.look()
        beat = _Beat(self._beats, failed, lost, self._has_left, self.calls, location.line)
        if location.meeting and self.clock.active_s(location.since_s) > MET_S:
            beat = replace(beat, meeting=location.meeting, ranks=location.ranks)
        self._store.set(str(self._rank), msgspec.json.encode(beat).decode())

    def _read(self) -> None:
        others = [i for i in self._names if i != self._rank]
        texts = self._store.multi_get([str(i) for i in others])
        now_s = self.clock.tick()
        for i, text in zip(others, texts, strict=True):
            if i not in self._last_seen or text != self._last_seen[i][0]:
                self._last_seen[i] = text, now_s

    def _judge(self) -> None:
        """Look for a loss, whether or not the store answers."""
        while not self._is_stopped.wait(BEAT_S):
            if (loss := self._loss()) is not None:
                self._lost = loss  # the first one, which explains all later ones
                if self._location.meeting:  # there, torch raises only that a connection was closed
                    logger.error("%s", loss)
                self._has_news.set()
                if isinstance(loss, DisagreementError):  # the others learn why before it happens
                    time.sleep(2 * BEAT_S)
                for close in self.closing:
                    close()
                self._is_known.set()
                return

    def _loss(self) -> SkyfxError | None:
        """A failure or a loss of another process, if there is one."""
        if (silent_s := self.clock.active_s(self._answered_s)) > SILENT_S:
            return WorkerLostError(
                f"{self._names[0]}, whose host keeps the job's store, has not answered for "
                f"{silent_s:.0f} s: it has ended, was stopped or cut off, or this host was. Start "
                "the job again from the last checkpoint"
            )
        beats = self._others()
        for i, beat in beats.items():
            if beat.failed:
                return StageError(f"{self._names[i]}: {beat.failed}")
        for i, beat in beats.items():
            if (silent_s := self._silent_s(i)) > SILENT_S:
                if beat.has_left:
                    waiting = self._waiting
                    call = "" if waiting is None else f", and {waiting.call} needs all processes"
                    text = f"{self._names[i]} has left: its program has ended{call}"
                    return WorkerLostError(text)
                return WorkerLostError(
                    f"{self._names[i]} has not been heard of for {silent_s:.0f} s: it was killed, "
                    "stopped or cut off. Start the job again from the last checkpoint"
                )
            if beat.lost:
                return WorkerLostError(beat.lost)
        return self._absence(beats)

    def _absence(self, beats: Mapping[int, _Beat]) -> SkyfxError | None:
        """Another process that this one waits for, if it can never come; else a warning."""
        waiting = self._waiting
        if waiting is None or (waited_s := self.clock.active_s(waiting.since_s)) < MET_S:
            return None
        absent = {i: beat for i, beat in beats.items() if beat.calls < self.calls}
        for i, beat in absent.items():
            if self._rank in beat.ranks:
                return DisagreementError(
                    f"{self._names[self._rank]} calls {waiting.call}, {self._names[i]} waits in "
                    f"torch's {beat.meeting} ({beat.at}): all processes have to make the same "
                    "calls, in the same order"
                )
        if absent and waited_s > WARN_S and not waiting.is_told:
            waiting.is_told = True
            who = ", ".join(
                f"{self._names[i]}" + f" is at {beat.at}" * bool(beat.at)
                for i, beat in absent.items()
            )
            logger.warning(
                "%s has waited for %.0f s until all processes call it: %s",
                *(waiting.call, waited_s, who),
            )
        return None

    def _others(self) -> dict[int, _Beat]:
        """The last beat of each other process."""
        seen = self._last_seen.copy()
        return {i: msgspec.json.decode(text, type=_Beat) for i, (text, _) in seen.items()}

    def _silent_s(self, rank: int) -> float:
        """Until the store last answered: if it does not, its keeper alone is to blame."""
        return self.clock.active_s(self._last_seen[rank][1], self._answered_s)

    def _is_awaited(self) -> bool:
        """Whether another live process does not know yet why this process ends."""
        return any(
            not (beat.failed or beat.lost or beat.has_left) and self._silent_s(i) <= SILENT_S
            for i, beat in self._others().items()
        )

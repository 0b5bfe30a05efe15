"""Where a thread of this process is: the line of the user's program, and a collective of torch."""

import os
import sys
import sysconfig
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist

MEETINGS = frozenset(
    (
        "all_gather",
        "all_gather_into_tensor",
        "all_gather_object",
        "all_gather_single",
        "all_reduce",
        "all_to_all",
        "barrier",
        "monitored_barrier",
    )
)
"""Collectives of torch that no process can leave before all have come."""

_SKYFX = str(Path(__file__).parents[2]) + os.sep
_LIBRARIES = (
    _SKYFX,
    str(Path(torch.__file__).parent) + os.sep,
    sysconfig.get_path("stdlib") + os.sep,
    "<",
)


@dataclass(frozen=True, slots=True)
class Location:
    """Where a thread is.

    Attributes:
        line: of the program that is neither torch's nor skyfx's own: `train.py:57`.
        meeting: the collective that it has called there, or nothing.
        ranks: the processes that have to come to it.
        since_s: since when, on `time.perf_counter`.
    """

    line: str = ""
    meeting: str = ""
    ranks: tuple[int, ...] = ()
    since_s: float = 0.0


class Whereabouts:
    """Follows the thread that makes the calls.

    Attributes:
        thread: its number.
    """

    def __init__(self) -> None:
        self.thread = threading.main_thread().ident
        self._met: FrameType | None = None
        self._since_s = 0.0

    def look(self) -> Location:
        """Where the thread is now; to be asked by one thread alone."""
        frame = sys._current_frames().get(self.thread or 0)
        met: FrameType | None = None
        while frame is not None and frame.f_code.co_filename.startswith(_LIBRARIES):
            if _is_meeting(frame):
                met = frame
            elif frame.f_code.co_filename.startswith(_SKYFX):
                met = None  # a collective of skyfx's own
            frame = frame.f_back
        if met is not self._met:
            self._met, self._since_s = met, time.perf_counter()
        line = ""
        if frame is not None:
            line = f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
        if met is None:
            return Location(line)
        group = met.f_locals.get("group")
        ranks = tuple(dist.get_process_group_ranks(group))
        return Location(line, met.f_code.co_name, ranks, self._since_s)


def _is_meeting(frame: FrameType) -> bool:
    code = frame.f_code
    return code.co_name in MEETINGS and code.co_filename == dist.distributed_c10d.__file__

"""The anonymous memory that the kernel counts as resident in this process."""

import os
import re
from typing import NamedTuple

STATUS, CLEAR = "/proc/self/status", "/proc/self/clear_refs"

FORGET_PEAK = "5"
"""What tells the kernel, written to `CLEAR`, that the peak begins anew."""

_FIELD = re.compile(rb"^(VmHWM|RssAnon|RssFile|RssShmem):\s+(\d+) kB", re.MULTILINE)


class Resident(NamedTuple):
    """Bytes now, and the most since `forget_peak`."""

    now_bytes: int
    peak_bytes: int


def resident() -> Resident | None:
    """What is resident without files and shared memory; None where the kernel does not say."""
    try:
        with open(STATUS, "rb", buffering=0) as file:
            found = {name: int(kb) * 1024 for name, kb in _FIELD.findall(file.read(8192))}
    except OSError:
        return None
    if len(found) < 4:
        return None
    peak = found[b"VmHWM"] - found[b"RssFile"] - found[b"RssShmem"]
    return Resident(found[b"RssAnon"], max(peak, found[b"RssAnon"]))


def forget_peak() -> bool:
    """Let the peak begin at what is resident now; returns whether the kernel does that."""
    try:
        file = os.open(CLEAR, os.O_WRONLY)
        try:
            os.write(file, FORGET_PEAK.encode())
        finally:
            os.close(file)
    except OSError:
        return False
    return True

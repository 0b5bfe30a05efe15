"""Memory that is freed is kept for the next micro-batch, where there is enough of it."""

import os
import subprocess
import sys

import pytest

# Page faults that two tensors of 16 MB cost once the heap has grown, in a thread as stages are: the
# median of twenty, since the heap may have to grow once more where something small has got between.
SCRIPT = """
import resource, statistics, threading
import torch

{begin}

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(4_000_000) + 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def work():
    counts = [faults() for _ in range(40)]
    print(statistics.median(counts[20:]))

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""
KEEP = "from skyfx.runtime.memory.malloc import keep_freed; print(keep_freed())"
HELD = """
from skyfx.runtime.memory.call_memory import CallMemory, keep_again, learn_heap
from skyfx.runtime.memory.malloc import keep_freed
keep_freed()
learn_heap()
call = CallMemory({limit}, lambda: 0)
with call:
    for _ in range({actions}):  # 104 MB with 32 MB of holes, in use at most 72 MB
        blocks = [torch.ones(1_000_000) for _ in range(16)]
        del blocks[::2]
        blocks += [torch.ones(1_250_000) for _ in range(8)]
        call.check()
        del blocks
{end}
print("held")
"""
PAGES = 4_000_000 * 4 / 4096


def faults(begin: str, **environment: str) -> tuple[str, float]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT.replace("{begin}", begin)],
        env=kept | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    said, number = ran.stdout.split()
    return said, float(number)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="malloc is not glibc's there")
def test_a_stage_gets_memory_that_it_has_used_before() -> None:
    said, number = faults(KEEP)
    assert said == "True"
    assert number < 0.01 * PAGES


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="malloc is not glibc's there")
def test_what_the_environment_says_of_malloc_stands() -> None:
    said, _ = faults(KEEP, MALLOC_ARENA_MAX="2")
    assert said == "False"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="malloc is not glibc's there")
def test_what_is_freed_is_returned_only_where_holes_twice_exceed_the_limit() -> None:
    def number(limit: float, actions: int = 3, end: str = "") -> float:
        return faults(HELD.format(limit=int(limit), actions=actions, end=end))[1] / PAGES

    assert number(112e6) < 0.01
    assert number(80e6) > 0.99
    assert number(80e6, actions=1) < 0.01
    assert number(80e6, end="keep_again()") < 0.01


def test_the_heap_does_not_grow_to_return_what_is_freed() -> None:
    """Where the kernel maps no more blocks, malloc takes new memory into the heap instead."""
    script = """
import ctypes, resource, torch
from skyfx.runtime.memory import malloc
resource.setrlimit(resource.RLIMIT_DATA, (2**32, 2**32))
ctypes.CDLL(None).mallopt(-4, 0)  # M_MMAP_MAX
held = [torch.empty(5_000_000) for _ in range(8)]
del held[::2]
before = malloc._mallinfo().arena
used = malloc.heap_usage().used_bytes
assert malloc.return_freed()
assert abs(malloc.heap_usage().used_bytes - used) < 2**20  # what fills the heap is not in use
print(malloc._mallinfo().arena - before)
"""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    ran = subprocess.run(
        [sys.executable, "-c", script], env=kept, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) <= 0

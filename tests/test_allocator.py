"""Memory that is freed is kept for the next micro-batch."""

import os
import subprocess
import sys

import pytest

# Page faults a megabyte-sized tensor costs once the heap has grown, in a thread as stages are.
SCRIPT = """
import resource, threading
import torch
from skyfx.runtime.allocator import keep_freed

print(keep_freed())

def work():
    def run():
        for _ in range(20):
            y = torch.ones(4_000_000) + 1
    run()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    run()
    print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 20)

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""
PAGES = 4_000_000 * 4 / 4096


def faults(**environment: str) -> tuple[str, float]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=kept | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    said, number = ran.stdout.split()
    return said, float(number)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="malloc is not glibc's there")
def test_a_stage_gets_memory_that_it_has_used_before() -> None:
    said, number = faults()
    assert said == "True"
    assert number < 0.01 * PAGES


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="malloc is not glibc's there")
def test_what_the_environment_says_of_malloc_stands() -> None:
    said, _ = faults(MALLOC_ARENA_MAX="2")
    assert said == "False"

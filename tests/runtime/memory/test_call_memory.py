"""What a call takes of the CPUs' memory, beside other calls and the program's own data."""

import sys

import pytest
import torch

from skyfx.runtime.memory.call_memory import CallMemory, learn_heap

MIB = 2**20


def call(limit_bytes: int | None) -> CallMemory:
    return CallMemory(limit_bytes, lambda: MIB)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is resident")
def test_calls_at_the_same_time_share_and_what_was_there_before_is_free() -> None:
    learn_heap()
    small = call(16 * MIB)
    with small:
        data = torch.ones(16 * MIB)
        with call(1024 * MIB):
            small.check()
        with call(None):
            small.check()
        with pytest.raises(MemoryError, match=r"taken (6[4-9]|7\d) MiB of the CPUs' memory, of 16"):
            small.check()
    with small:
        small.check()
        del data
        small.check()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is resident")
def test_what_comes_and_goes_within_an_action_counts() -> None:
    learn_heap()
    with call(96 * MIB) as account:
        for _ in range(3):
            torch.ones(16 * MIB)
            account.check()
        torch.ones(96 * MIB)  # so much that it counts where the heap keeps all of it as a hole
        with pytest.raises(MemoryError, match="of 96 MiB"):
            account.check()

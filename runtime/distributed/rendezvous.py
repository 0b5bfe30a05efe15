"""How the processes of a job meet, each of which starts in its own time.

    process 0    here . . . . . . . . . . . . . . . . . . met   connects, starts its heartbeat
    process 1                 here . . . . . . . . . . .  met   connects
    process 2                                       here  met   connects

To connect, torch waits for every other process for as long as a message may take. So the processes
meet in its store first. A process that does not come, or that died while it waited, is found there
and named.
"""

import logging
import os
import time
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous as torch_rendezvous

from skyfx.solver.errors import WorkerLostError

COMING_S, MEETING_S = 300.0, 30.0
"""Seconds for all to come, which may load their models first; seconds for all to see that."""

POLL_S = 0.05

SHARED = "TORCHELASTIC_USE_AGENT_STORE"

logger = logging.getLogger(__name__)


def rendezvous() -> tuple[dist.Store, int, int]:  # type: ignore[name-defined]
    """Meet the other processes that a launcher has started; all of them call it.

    Returns:
        The job's store, the rank of this process, and the number of processes.

    Raises:
        WorkerLostError: names the processes that have not come, or that ended meanwhile.
    """
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    _warn_of_restarts(rank)
    try:
        coming = timedelta(seconds=COMING_S)
        found, _, _ = next(iter(torch_rendezvous("env://", timeout=coming)))
        store = dist.PrefixStore(_attempt(), found)  # type: ignore[attr-defined]
        _wait(store, "here", rank, size, COMING_S)
        _wait(store, "met", rank, size, MEETING_S)
    except RuntimeError as error:  # of the store
        raise WorkerLostError(
            f"rank {rank} cannot reach the job's store at {os.environ['MASTER_ADDR']}:"
            f"{os.environ['MASTER_PORT']}, which rank 0 keeps: {error}"
        ) from error
    return store, rank, size


def _attempt() -> str:
    """A prefix for the store's keys that differs between restarts of the processes.

    A store that torchrun's agent keeps still has the keys of earlier attempts. A store of the
    processes' own ends with them, and needs none: there the agents' counts of restarts differ.
    """
    if os.environ.get(SHARED) != "True":
        return "job"
    return f"attempt {os.environ['TORCHELASTIC_RESTART_COUNT']}"


def _wait(store: dist.Store, word: str, rank: int, size: int, patience_s: float) -> None:  # type: ignore[name-defined]
    """Write this word to the store and wait until all have."""
    store.set(f"{word} {rank}", "")
    keys, end_s = [f"{word} {other}" for other in range(size)], time.monotonic() + patience_s
    while not store.check(keys):
        if time.monotonic() > end_s:
            missing = [str(other) for other in range(size) if not store.check([keys[other]])]
            raise WorkerLostError(
                f"rank {', '.join(missing)} of {size} {'has' if len(missing) == 1 else 'have'} "
                f"not come within {patience_s:.0f} s of rank {rank}, or ended before all were "
                "there. Start the job again"
            )
        time.sleep(POLL_S)


def _warn_of_restarts(rank: int) -> None:
    """Warn that a restart may fail: torchrun's agents then disagree about the store."""
    num_agents = int(os.environ.get("GROUP_WORLD_SIZE", "1"))
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
    if rank == 0 and os.environ.get(SHARED) == "True" and num_agents > 1 and restarts > 0:
        logger.warning(
            "torchrun may fail to restart the processes of several hosts: set "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 on each of them, before it is started"
        )

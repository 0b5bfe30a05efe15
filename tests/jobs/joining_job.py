"""A process that joins a job, and does no more: `test_rendezvous`."""

import sys

from skyfx.runtime.distributed import rendezvous
from skyfx.runtime.distributed.process_group import ProcessGroup

if __name__ == "__main__":
    rendezvous.COMING_S, rendezvous.MEETING_S = map(float, sys.argv[1:])
    ProcessGroup.join()

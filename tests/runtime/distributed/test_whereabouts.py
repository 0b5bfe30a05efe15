"""A process can say which line of the user's program it is at."""

import threading

import torch.distributed as dist

from skyfx.runtime.distributed import whereabouts
from skyfx.runtime.distributed.whereabouts import MEETINGS, Whereabouts


def test_the_line_of_the_program_and_not_of_a_library() -> None:
    location = Whereabouts().look()
    assert location.line.startswith("test_whereabouts.py:")
    assert location.meeting == ""


def test_a_thread_that_waits_within_a_library_is_where_the_program_called_it() -> None:
    followed, end = Whereabouts(), threading.Event()

    def program() -> None:
        followed.thread = threading.get_ident()
        end.wait()

    thread = threading.Thread(target=program)
    thread.start()
    while followed.thread != thread.ident:
        pass
    line = program.__code__.co_firstlineno
    assert followed.look().line in {f"test_whereabouts.py:{line + i}" for i in (1, 2)}
    end.set()
    thread.join()
    assert followed.look() == whereabouts.Location()


def test_torch_has_all_collectives_that_are_looked_for() -> None:
    assert all(callable(getattr(dist, name)) for name in MEETINGS)

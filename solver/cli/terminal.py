"""What commands say and how they end: exit codes, lines on standard error, the live line."""

import enum
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from skyfx.solver.core import plan_table, units
from skyfx.solver.core.plan import relative_gap
from skyfx.solver.errors import InfeasibleError, NoPlanError, SkyfxError

if TYPE_CHECKING:
    from skyfx.solver.methods.limits import Progress

__all__: list[str] = ["ExitCode", "console", "exit_codes", "live_line", "say"]


class ExitCode(enum.IntEnum):
    """How a command ended."""

    DONE = 0
    NOT_RIGHT = 1
    UNUSABLE = 2
    INFEASIBLE = 3
    NO_PLAN = 4
    INTERRUPTED = 130


@contextmanager
def exit_codes(*, verbose: bool = False) -> Iterator[None]:
    """End the command with a line on standard error and the exit code of what was raised.

    If asked to be `verbose`, say what skyfx logs: a command is a program, and may set handlers.
    """
    if verbose:
        logging.getLogger("skyfx").setLevel(logging.INFO)
        logging.getLogger("skyfx").addHandler(_Talk())
    try:
        yield
    except KeyboardInterrupt:
        fault, code = "interrupted, and nothing was written", ExitCode.INTERRUPTED
    except InfeasibleError as error:
        fault, code = str(error), ExitCode.INFEASIBLE
    except NoPlanError as error:
        fault, code = str(error), ExitCode.NO_PLAN
    except BrokenPipeError:  # the reader has gone, as in `skyfx show PLAN | head`: typer's matter
        raise
    except (SkyfxError, ValueError, OSError) as error:
        fault, code = str(error), ExitCode.UNUSABLE
    else:
        return
    say(f"skyfx: error: {fault}")
    raise typer.Exit(code)


def say(line: str) -> None:
    """Print a line on standard error."""
    console(stderr=True).print(line, markup=False, highlight=False, soft_wrap=True)


class _Talk(logging.Handler):
    """Says on standard error what a module logs."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print it."""
        say(f"{record.name}: {self.format(record)}")


def console(*, stderr: bool) -> Console:
    """As wide as the terminal; where there is none, wide enough for a plan."""
    found = Console(stderr=stderr)
    return found if found.is_terminal else Console(stderr=stderr, width=plan_table.WIDTH)


@contextmanager
def live_line(*, quiet: bool) -> "Iterator[Progress | None]":
    """One line with incumbent, bound and gap while the block runs; on a terminal only."""
    talk = console(stderr=True)
    if quiet or not talk.is_terminal:
        yield None
        return
    with talk.status("planning") as status:

        def tell(value: float, bound: float) -> None:
            status.update(_progress_line(value, max(0.0, bound)))

        yield tell


def _progress_line(value: float, bound: float) -> str:
    if math.isinf(value):
        return f"planning: no plan yet, none is below {units.seconds(bound)}"
    return (
        f"planning: {units.seconds(value)}, none is below {units.seconds(bound)}, "
        f"gap {units.percent(relative_gap(value, bound))}"
    )

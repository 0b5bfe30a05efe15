"""Exit codes, lines on standard error and the progress line of the commands."""

import enum
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import typer
from rich.console import Console

from skyfx.solver.core import files, plan_table, units
from skyfx.solver.core.plan import relative_gap
from skyfx.solver.errors import InfeasibleError, NoPlanError, SkyfxError

if TYPE_CHECKING:
    from skyfx.solver.methods.limits import Progress


class ExitCode(enum.IntEnum):
    """How a command ended."""

    DONE = 0
    NOT_RIGHT = 1
    UNUSABLE = 2
    INFEASIBLE = 3
    NO_PLAN = 4
    INTERRUPTED = 130


@contextmanager
def exit_codes(*, verbose: bool = False, quiet: bool = False) -> Iterator[None]:
    """Run a command; an error ends it with one line on standard error and its exit code.

    A command is a program, so it may set a handler: skyfx's warnings go to standard error, with
    `verbose` all that is logged, with `quiet` nothing.
    """
    log, lines = logging.getLogger("skyfx"), _LogLines(logging.ERROR if quiet else logging.NOTSET)
    log.addHandler(lines)
    if verbose:
        log.setLevel(logging.INFO)
    try:
        yield
    except KeyboardInterrupt:
        fault, code = "interrupted, and nothing was written", ExitCode.INTERRUPTED
    except InfeasibleError as error:
        fault, code = str(error), ExitCode.INFEASIBLE
    except NoPlanError as error:
        fault, code = str(error), ExitCode.NO_PLAN
    except BrokenPipeError:  # the reader is gone, as in `skyfx show PLAN | head`: typer handles it
        raise
    except (SkyfxError, ValueError, OSError) as error:
        fault, code = str(error), ExitCode.UNUSABLE
    else:
        return
    finally:
        log.removeHandler(lines)
    say(f"skyfx: error: {fault}")
    raise typer.Exit(code)


def check_output(output: Path | None, name: str, *, json: bool, force: bool) -> None:
    """Refuse an output that cannot be written, before any work; `name` is such as `plan`."""
    if output is not None:
        files.refuse_overwrite(output, force=force)
    elif not json:
        raise ValueError(f"no output for the {name}: give -o {name.upper()}, or --json to print it")


def write_output(document: files.Document, output: Path | None, *, json: bool, force: bool) -> None:
    """Write a document to its file, and with `json` print it."""
    if output is not None:
        files.write(document, output, force=force)
    if json:
        print_document(document)


def print_document(document: files.Document) -> None:
    """Print a document as it is in its file."""
    typer.echo(files.encode(document).decode(), nl=False)


def print_json(value: object) -> None:
    """Print a value as one line of JSON."""
    typer.echo(msgspec.json.encode(value).decode())


def say(line: str) -> None:
    """Print a line on standard error."""
    console(stderr=True).print(line, markup=False, highlight=False, soft_wrap=True)


class _LogLines(logging.Handler):
    """Prints log records on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        warns = record.levelno >= logging.WARNING
        say(f"{'skyfx: warning' if warns else record.name}: {self.format(record)}")


def console(*, stderr: bool) -> Console:
    """As wide as the terminal; without one, wide enough for a plan."""
    found = Console(stderr=stderr)
    return found if found.is_terminal else Console(stderr=stderr, width=plan_table.WIDTH)


@contextmanager
def live_line(*, quiet: bool) -> "Iterator[Progress | None]":
    """Show a line with value, bound and gap while the block runs; on a terminal only."""
    talk = console(stderr=True)
    if quiet or not talk.is_terminal:
        yield None
        return
    with talk.status("planning") as status:

        def tell(value: float, bound: float) -> None:
            least, gap = units.seconds(max(0.0, bound)), relative_gap(value, max(0.0, bound))
            line = f"{units.seconds(value)}, none is below {least}, gap {units.percent(gap)}"
            unknown = f"no plan yet, none is below {least}"
            status.update(f"planning: {unknown if math.isinf(value) else line}")

        yield tell

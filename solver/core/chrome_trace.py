r"""A timeline as a Chrome trace, which https://ui.perfetto.dev opens: a row for each device.

device a   | F0 | F1 | ..... | B0 |        a slice an action, coloured by its micro-batch
               \    \        /             an arrow a message
device b        | F0 | B0 | F1 |
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from skyfx.solver.core.plan import Plan
from skyfx.solver.core.schedule import Action, Kind
from skyfx.solver.core.timeline import CompletedAction
from skyfx.solver.errors import FormatError

COLOURS = (
    *("thread_state_running", "rail_response", "rail_animation", "rail_load", "cq_build_passed"),
    *("thread_state_runnable", "vsync_highlight_color", "cq_build_attempt_passed"),
)
"""Names that the trace viewers know; micro-batches take them in turn."""

ROUNDING_US = 1e-3
"""Arrows begin and end so far inside of the slices that they join; outside they belong to none."""

Event = dict[str, Any]


def chrome_trace(runs: dict[str, tuple[Sequence[str], Sequence[CompletedAction]]]) -> bytes:
    """The trace file of one or more runs of a step, above each other.

    Args:
        runs: by their names, such as `predicted` and `measured`: the device of each stage,
            `(num_stages,)`, and the actions.
    """
    events = [
        event
        for number, (name, (devices, done)) in enumerate(runs.items(), start=1)
        for event in _run(number, name, devices, done)
    ]
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}).encode() + b"\n"


def read_trace(path: str | os.PathLike[str], plan: Plan) -> tuple[CompletedAction, ...]:
    """The actions of the last run in a trace file, of a step by this plan.

    Raises:
        FormatError: it is no such file, or another plan's.
    """
    try:
        events = msgspec.json.decode(Path(path).read_bytes(), type=_File).traceEvents
        slices = [event for event in events if event.ph == "X"]
        last = max((event.pid for event in slices), default=0)
        found = tuple(_done(event) for event in slices if event.pid == last)
    except OSError as error:
        raise FormatError(f"{path}: {error.strerror or error}") from None
    except (msgspec.MsgspecError, KeyError, ValueError) as error:
        raise FormatError(f"{path}: no trace of a step: {error}") from None
    stages = {done.action.stage for done in found}
    if stages != set(range(len(plan.stages))):
        raise FormatError(
            f"{path}: the trace has actions of stages {sorted(stages)}, the plan has "
            f"{len(plan.stages)} stages"
        )
    return found


class _Event(msgspec.Struct):
    """What is read of an event; the format has more."""

    ph: str
    pid: int = 0
    ts: float = 0.0
    dur: float = 0.0
    cat: str = ""
    args: dict[str, Any] = {}


class _File(msgspec.Struct):
    traceEvents: list[_Event]  # noqa: N815 - the format's own name


def _done(event: _Event) -> CompletedAction:
    action = Action(int(event.args["stage"]), Kind(event.cat), int(event.args["micro-batch"]))
    began_s = event.ts / 1e6
    return CompletedAction(action, began_s, began_s + event.dur / 1e6)


def _run(
    number: int, name: str, devices: Sequence[str], done: Sequence[CompletedAction]
) -> Iterator[Event]:
    """A process of the trace; its threads are the devices."""
    rows = {device: row for row, device in enumerate(dict.fromkeys(devices), start=1)}
    yield {"ph": "M", "pid": number, "name": "process_name", "args": {"name": name}}
    for device, row in rows.items():
        at = {"pid": number, "tid": row}
        yield {"ph": "M", **at, "name": "thread_name", "args": {"name": device}}
        yield {"ph": "M", **at, "name": "thread_sort_index", "args": {"sort_index": row}}
    known, tids = {one.action: one for one in done}, [rows[device] for device in devices]
    for one in done:
        action = one.action
        at = {"pid": number, "tid": tids[action.stage]}
        yield {
            "ph": "X",
            **at,
            "ts": 1e6 * one.began_s,
            "dur": 1e6 * (one.ended_s - one.began_s),
            "name": f"{action.kind.value} {action.microbatch}",
            "cat": action.kind.value,
            "cname": COLOURS[action.microbatch % len(COLOURS)],
            "args": {"stage": action.stage, "micro-batch": action.microbatch},
        }
        before = action.stage + (-1 if action.kind is Kind.FORWARD else 1)
        if (reads := known.get(action._replace(stage=before))) is not None:
            yield from _arrow(number, tids, reads, one)


def _arrow(
    number: int, tids: Sequence[int], made: CompletedAction, read: CompletedAction
) -> Iterator[Event]:
    """From the end of what was made to the beginning of what reads it."""
    action = read.action
    same = {
        "pid": number,
        "cat": "message",
        "name": "values" if action.kind is Kind.FORWARD else "gradients",
        "id": f"{number}.{action.stage}.{action.kind.value}.{action.microbatch}",
    }
    begin, end = 1e6 * made.ended_s - ROUNDING_US, 1e6 * read.began_s + ROUNDING_US
    yield {**same, "ph": "s", "tid": tids[made.action.stage], "ts": begin}
    yield {**same, "ph": "f", "bp": "e", "tid": tids[action.stage], "ts": end}

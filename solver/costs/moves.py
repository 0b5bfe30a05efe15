"""The time of a move: one formula for numbers, for arrays, and in compiled loops."""

from typing import Any, NamedTuple

from numba.extending import register_jitable


class Crossing(NamedTuple):
    """What crosses one boundary in `relay`, or arrays of it for many boundaries."""

    forward_bytes: Any
    backward_bytes: Any
    """Gradients."""
    forward: Any
    """1 where any value crosses, else 0."""
    backward: Any
    """1 where any gradient crosses, else 0."""


@register_jitable
def send_s(wire: Any, count: Any, size_bytes: Any) -> Any:
    """Seconds to send `count` messages of `size_bytes` in total over one direction of a link.

    `wire` is its latency in seconds and its seconds per byte.
    """
    return wire[0] * count + wire[1] * size_bytes


@register_jitable
def move_s(there: Any, back: Any, crossing: Any) -> Any:
    """Seconds to move what crosses a boundary, and its gradients back.

    `there` and `back` are the two directions of the link, as in `send_s`.
    """
    forward_s = send_s(there, crossing.forward, crossing.forward_bytes)
    return forward_s + send_s(back, crossing.backward, crossing.backward_bytes)

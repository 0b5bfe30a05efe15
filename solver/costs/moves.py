"""The time of a move in `relay`: the values that cross a boundary, and their gradients back."""

from typing import Any, NamedTuple

from numba import njit

__all__: list[str] = ["Crossing", "compiled_move_s", "move_s"]


class Crossing(NamedTuple):
    """What crosses one boundary, or an array of boundaries."""

    forward_bytes: Any
    backward_bytes: Any
    """Gradients."""
    forward: Any
    """1 where any value crosses, else 0."""
    backward: Any
    """1 where any gradient crosses, else 0."""


def move_s(there: Any, back: Any, crossing: Any) -> Any:
    """Seconds to move what crosses, and its gradients back.

    Args:
        there: latency and seconds per byte of the link forward; numbers or arrays.
        back: latency and seconds per byte of the link backward.
        crossing: `Crossing`.
    """
    forward_s = there[0] * crossing.forward + there[1] * crossing.forward_bytes
    backward_s = back[0] * crossing.backward + back[1] * crossing.backward_bytes
    return forward_s + backward_s


compiled_move_s = njit(cache=True)(move_s)
"""`move_s` of numbers, for compiled loops."""

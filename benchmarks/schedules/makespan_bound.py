"""What no order of the actions can be faster than: each stage and each link does its whole share.

way there   before the first micro-batch reaches it
all of it   one micro-batch after another
way back    after the last one has left it
"""

from skyfx.solver.core.cluster import transfer_s
from skyfx.solver.core.schedule import Kind
from skyfx.solver.costs.action_times import ActionTimes, Message

__all__: list[str] = ["lowest_s"]


def lowest_s(pace: ActionTimes, num_microbatches: int) -> float:
    """Seconds that a step takes at least, where transfers overlap."""
    num = len(pace.devices)
    trip: list[tuple[float, float]] = []  # what a micro-batch passes: all of it, and how long alone
    for k in range(num):
        trip.append((pace.seconds[k][Kind.FORWARD],) * 2)
        if k < num - 1:
            trip.append((_wire_s(pace.forward[k]), _arrives_s(pace.forward[k])))
    for k in reversed(range(num)):
        trip.append((pace.seconds[k][Kind.BACKWARD],) * 2)
        if k:
            trip.append((_wire_s(pace.backward[k - 1]), _arrives_s(pace.backward[k - 1])))
    alone = sum(arrives for _, arrives in trip)
    parts = [alone + (num_microbatches - 1) * busy for busy, _ in trip]
    for k in range(num):  # a device does both its forwards and its backwards
        both = sum(pace.seconds[k].values())
        beyond = sum(arrives for _, arrives in trip[2 * k + 1 : len(trip) - 2 * k - 1])
        parts.append(alone - beyond + (num_microbatches - 1) * both)
    return max(parts)


def _wire_s(message: Message) -> float:
    """How long the wire is busy."""
    return _arrives_s(message) - (message.wire.latency_s if message.wire else 0.0)


def _arrives_s(message: Message) -> float:
    return transfer_s(message.wire, message.size_bytes)

"""What happened when in a step, simulated or measured."""

from dataclasses import dataclass

from skyfx.solver.schedule import Action

__all__: list[str] = ["Done", "Sent", "Timeline"]


@dataclass(frozen=True, slots=True)
class Done:
    """An action, from when to when, in seconds from the beginning of the step."""

    action: Action
    began_s: float
    ended_s: float


@dataclass(frozen=True, slots=True)
class Sent:
    """A message that was moved while both ends computed, from when to when.

    Attributes:
        enables: the action that reads it.
        began_s: when it began to leave.
        arrived_s: when all of it was there.
    """

    enables: Action
    began_s: float
    arrived_s: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """A simulated step.

    Attributes:
        done: its actions, in the order in which they end.
        sent: its messages that were moved meanwhile, in the order in which they had left.
        step_s: what it takes.
        waiting: of each stage, `(num_stages,)`: the most messages with values that have not gone
            out when it ends a forward, and when it begins a backward.
    """

    done: tuple[Done, ...]
    sent: tuple[Sent, ...]
    step_s: float
    waiting: tuple[tuple[int, int], ...]

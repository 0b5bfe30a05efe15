"""When each action of a step ran, simulated or measured."""

from dataclasses import dataclass

from skyfx.solver.core.schedule import Action


@dataclass(frozen=True, slots=True)
class CompletedAction:
    """An action with its begin and end, in seconds since the begin of the step."""

    action: Action
    began_s: float
    ended_s: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """A simulated step.

    Attributes:
        done: its actions, in the order in which they end.
        step_s: its duration.
        max_queued: per stage, `(num_stages,)`: the most messages with values that are not sent yet
            at the end of a forward, and at the begin of a backward.
    """

    done: tuple[CompletedAction, ...]
    step_s: float
    max_queued: tuple[tuple[int, int], ...]

"""What happened when in a step, simulated or measured."""

from dataclasses import dataclass

from skyfx.solver.core.schedule import Action

__all__: list[str] = ["CompletedAction", "Timeline"]


@dataclass(frozen=True, slots=True)
class CompletedAction:
    """An action, from when to when, in seconds from the beginning of the step."""

    action: Action
    began_s: float
    ended_s: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """A simulated step.

    Attributes:
        done: its actions, in the order in which they end.
        step_s: what it takes.
        waiting: of each stage, `(num_stages,)`: the most messages with values that have not gone
            out when it ends a forward, and when it begins a backward.
    """

    done: tuple[CompletedAction, ...]
    step_s: float
    waiting: tuple[tuple[int, int], ...]

"""What skyfx raises on purpose.

SkyfxError
 +-- CaptureError               the model, its inputs or its outputs cannot be captured
 +-- CheckpointError (ValueError)  a checkpoint cannot be saved, or is not one of this training
 +-- DisagreementError (ValueError)  the processes of a job do not do the same
 +-- FormatError (ValueError)   a graph, cluster or plan file is not what the format asks for
 +-- PlanError (ValueError)     a plan does not belong to this graph or cluster, or breaks a rule
 +-- InfeasibleError            no plan can exist
 +-- NoPlanError                no plan was found within the time limit
 +-- VerificationError          the stages would not compute what the model computes
 +-- StageError                 a stage of a running pipeline failed
 +-- WorkerLostError            a process of the job is gone or silent

A class stands here only if a caller would catch it; every other misuse is a `ValueError` or
`TypeError`, as in torch.
"""

__all__ = [
    "CaptureError",
    "CheckpointError",
    "DisagreementError",
    "FormatError",
    "InfeasibleError",
    "NoPlanError",
    "PlanError",
    "SkyfxError",
    "StageError",
    "VerificationError",
    "WorkerLostError",
]


class SkyfxError(Exception):
    """The base of all errors that skyfx raises on purpose."""


class CaptureError(SkyfxError):
    """The model, its inputs or its outputs cannot be captured."""


class CheckpointError(SkyfxError, ValueError):
    """A checkpoint cannot be saved, is damaged, or is one of another model or optimizer."""


class DisagreementError(SkyfxError, ValueError):
    """The processes of a job make different calls, or are given different models or data."""


class FormatError(SkyfxError, ValueError):
    """A file breaks the format of `docs/formats.md`: the file, the field and its value."""


class PlanError(SkyfxError, ValueError):
    """A plan does not belong to this graph or cluster, or breaks one of the rules of a plan."""


class InfeasibleError(SkyfxError):
    """No plan can exist; the message has the resource that is missing, with both numbers."""


class NoPlanError(SkyfxError):
    """No plan was found within the time limit; a plan may still exist."""


class StageError(SkyfxError):
    """A stage of a running pipeline failed; the stage's own exception is the cause."""


class VerificationError(SkyfxError):
    """The stages would not compute what the model computes; what differs, and the cure."""


class WorkerLostError(SkyfxError):
    """A process of the job is gone or silent; begin again from the last checkpoint."""

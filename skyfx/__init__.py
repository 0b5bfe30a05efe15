"""Split any PyTorch model over unequal devices, with a proof of how good the split is.

    pipeline = skyfx.partition(model, ["cuda:0", "cpu"], example_inputs=batch)
    print(pipeline.plan)
    outputs = pipeline(batch)

    model -> capture -> measure -> Graph -> solve (with Cluster) -> Plan -> split -> Pipeline

Names are loaded when they are first used, so that `skyfx.solver` works without torch.
"""

from typing import TYPE_CHECKING

from skyfx.solver.lazy_imports import lazily

if TYPE_CHECKING:
    from skyfx.api import partition as partition
    from skyfx.devices.cluster_probe import Cluster as Cluster
    from skyfx.devices.resolve import Device as Device
    from skyfx.measurement.measure import measure as measure
    from skyfx.partitioning.weights import empty_weights as empty_weights
    from skyfx.runtime.checkpoint.checkpoints import Checkpoints as Checkpoints
    from skyfx.runtime.checkpoint.layout import saved_state as saved_state
    from skyfx.runtime.pipeline import Pipeline as Pipeline
    from skyfx.solver.core.graph import Graph as Graph
    from skyfx.solver.core.plan import Plan as Plan
    from skyfx.solver.errors import CaptureError as CaptureError
    from skyfx.solver.errors import CheckpointError as CheckpointError
    from skyfx.solver.errors import DisagreementError as DisagreementError
    from skyfx.solver.errors import FormatError as FormatError
    from skyfx.solver.errors import InfeasibleError as InfeasibleError
    from skyfx.solver.errors import NoPlanError as NoPlanError
    from skyfx.solver.errors import PlanError as PlanError
    from skyfx.solver.errors import SkyfxError as SkyfxError
    from skyfx.solver.errors import StageError as StageError
    from skyfx.solver.errors import WorkerLostError as WorkerLostError
    from skyfx.solver.planning.planner import solve as solve
    from skyfx.tracing.capture import capture as capture
    from skyfx.training.callbacks import Callback as Callback
    from skyfx.training.callbacks import Checkpointing as Checkpointing
    from skyfx.training.callbacks import Evaluate as Evaluate
    from skyfx.training.callbacks import StopFlag as StopFlag
    from skyfx.training.callbacks import Timer as Timer
    from skyfx.training.log_files import log_to as log_to
    from skyfx.training.trainer import Trainer as Trainer

__version__ = "0.1.0"

_HOMES = {
    "Callback": "skyfx.training.callbacks",
    "CaptureError": "skyfx.solver.errors",
    "CheckpointError": "skyfx.solver.errors",
    "Checkpointing": "skyfx.training.callbacks",
    "Checkpoints": "skyfx.runtime.checkpoint.checkpoints",
    "Cluster": "skyfx.devices.cluster_probe",
    "Device": "skyfx.devices.resolve",
    "DisagreementError": "skyfx.solver.errors",
    "Evaluate": "skyfx.training.callbacks",
    "FormatError": "skyfx.solver.errors",
    "Graph": "skyfx.solver.core.graph",
    "InfeasibleError": "skyfx.solver.errors",
    "NoPlanError": "skyfx.solver.errors",
    "Pipeline": "skyfx.runtime.pipeline",
    "Plan": "skyfx.solver.core.plan",
    "PlanError": "skyfx.solver.errors",
    "SkyfxError": "skyfx.solver.errors",
    "StopFlag": "skyfx.training.callbacks",
    "Timer": "skyfx.training.callbacks",
    "Trainer": "skyfx.training.trainer",
    "StageError": "skyfx.solver.errors",
    "WorkerLostError": "skyfx.solver.errors",
    "capture": "skyfx.tracing.capture",
    "empty_weights": "skyfx.partitioning.weights",
    "log_to": "skyfx.training.log_files",
    "measure": "skyfx.measurement.measure",
    "partition": "skyfx.api",
    "saved_state": "skyfx.runtime.checkpoint.layout",
    "solve": "skyfx.solver.planning.planner",
}

__all__ = [
    "Callback",
    "CaptureError",
    "CheckpointError",
    "Checkpointing",
    "Checkpoints",
    "Cluster",
    "Device",
    "Evaluate",
    "FormatError",
    "Graph",
    "InfeasibleError",
    "NoPlanError",
    "Pipeline",
    "Plan",
    "PlanError",
    "SkyfxError",
    "StageError",
    "StopFlag",
    "Timer",
    "Trainer",
    "WorkerLostError",
    "capture",
    "empty_weights",
    "log_to",
    "measure",
    "partition",
    "saved_state",
    "solve",
]

__getattr__ = lazily(__name__, _HOMES)

"""Split any PyTorch model over unequal devices, with a proof of how good the split is.

    pipeline = skyfx.partition(model, ["cuda:0", "cpu"], example_inputs=batch)
    print(pipeline.plan)
    outputs = pipeline(batch)

    model -> capture -> measure -> Graph -> solve (with Cluster) -> Plan -> split -> Pipeline

Names are loaded when they are first used, so that `skyfx.solver` works without torch.
"""

from typing import TYPE_CHECKING

from skyfx.solver.lazily import lazily

if TYPE_CHECKING:
    from skyfx.api import partition as partition
    from skyfx.callbacks import Callback as Callback
    from skyfx.callbacks import Checkpointing as Checkpointing
    from skyfx.callbacks import Evaluate as Evaluate
    from skyfx.callbacks import StopFlag as StopFlag
    from skyfx.callbacks import Timer as Timer
    from skyfx.captures import capture as capture
    from skyfx.devices import Device as Device
    from skyfx.logs import log_to as log_to
    from skyfx.measurement import measure as measure
    from skyfx.probe import Cluster as Cluster
    from skyfx.runtime.checkpoint import Checkpoints as Checkpoints
    from skyfx.runtime.folder import saved_state as saved_state
    from skyfx.runtime.pipeline import Pipeline as Pipeline
    from skyfx.solver.errors import CaptureError as CaptureError
    from skyfx.solver.errors import CheckpointError as CheckpointError
    from skyfx.solver.errors import FormatError as FormatError
    from skyfx.solver.errors import InfeasibleError as InfeasibleError
    from skyfx.solver.errors import NoPlanError as NoPlanError
    from skyfx.solver.errors import PlanError as PlanError
    from skyfx.solver.errors import SkyfxError as SkyfxError
    from skyfx.solver.errors import StageError as StageError
    from skyfx.solver.errors import WorkerLostError as WorkerLostError
    from skyfx.solver.graph import Graph as Graph
    from skyfx.solver.plan import Plan as Plan
    from skyfx.solver.solving import solve as solve
    from skyfx.trainer import Trainer as Trainer
    from skyfx.weights import empty_weights as empty_weights

__version__ = "0.1.0"

_HOMES = {
    "Callback": "skyfx.callbacks",
    "CaptureError": "skyfx.solver.errors",
    "CheckpointError": "skyfx.solver.errors",
    "Checkpointing": "skyfx.callbacks",
    "Checkpoints": "skyfx.runtime.checkpoint",
    "Cluster": "skyfx.probe",
    "Device": "skyfx.devices",
    "Evaluate": "skyfx.callbacks",
    "FormatError": "skyfx.solver.errors",
    "Graph": "skyfx.solver.graph",
    "InfeasibleError": "skyfx.solver.errors",
    "NoPlanError": "skyfx.solver.errors",
    "Pipeline": "skyfx.runtime.pipeline",
    "Plan": "skyfx.solver.plan",
    "PlanError": "skyfx.solver.errors",
    "SkyfxError": "skyfx.solver.errors",
    "StopFlag": "skyfx.callbacks",
    "Timer": "skyfx.callbacks",
    "Trainer": "skyfx.trainer",
    "StageError": "skyfx.solver.errors",
    "WorkerLostError": "skyfx.solver.errors",
    "capture": "skyfx.captures",
    "empty_weights": "skyfx.weights",
    "log_to": "skyfx.logs",
    "measure": "skyfx.measurement",
    "partition": "skyfx.api",
    "saved_state": "skyfx.runtime.folder",
    "solve": "skyfx.solver.solving",
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

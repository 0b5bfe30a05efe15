"""Split any PyTorch model over unequal devices, with a proof of how good the split is.

    pipeline = skyfx.partition(model, ["cuda:0", "cpu"], example_inputs=batch)
    print(pipeline.plan)
    outputs = pipeline(batch)

    model -> capture -> measure -> Graph -> solve (with Cluster) -> Plan -> split -> Pipeline

Names are loaded when they are first used, so that `skyfx.solver` works without torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skyfx.api import partition as partition
    from skyfx.captures import capture as capture
    from skyfx.devices import Device as Device
    from skyfx.measurement import measure as measure
    from skyfx.probe import Cluster as Cluster
    from skyfx.runtime.checkpoint import Checkpoints as Checkpoints
    from skyfx.runtime.folder import saved_state as saved_state
    from skyfx.runtime.pipeline import Pipeline as Pipeline
    from skyfx.solver.graph import Graph as Graph
    from skyfx.solver.plan import Plan as Plan
    from skyfx.solver.solve import solve as solve
    from skyfx.weights import empty_weights as empty_weights

__version__ = "0.1.0"

_HOMES = {
    "Checkpoints": "skyfx.runtime.checkpoint",
    "Cluster": "skyfx.probe",
    "Device": "skyfx.devices",
    "Graph": "skyfx.solver.graph",
    "Pipeline": "skyfx.runtime.pipeline",
    "Plan": "skyfx.solver.plan",
    "capture": "skyfx.captures",
    "empty_weights": "skyfx.weights",
    "measure": "skyfx.measurement",
    "partition": "skyfx.api",
    "saved_state": "skyfx.runtime.folder",
    "solve": "skyfx.solver.solve",
}

__all__ = [
    "Checkpoints",
    "Cluster",
    "Device",
    "Graph",
    "Pipeline",
    "Plan",
    "capture",
    "empty_weights",
    "measure",
    "partition",
    "saved_state",
    "solve",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'skyfx' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)

"""The planner: from a graph and a cluster to a plan with a certificate. Never imports torch."""

from typing import TYPE_CHECKING

from skyfx.solver.lazily import lazily

if TYPE_CHECKING:
    from skyfx.solver.cluster import Cluster as Cluster
    from skyfx.solver.cluster import Device as Device
    from skyfx.solver.cluster import Link as Link
    from skyfx.solver.cost import Cost as Cost
    from skyfx.solver.cost import evaluate as evaluate
    from skyfx.solver.files import read as read
    from skyfx.solver.files import write as write
    from skyfx.solver.graph import Graph as Graph
    from skyfx.solver.graph import Node as Node
    from skyfx.solver.plan import Assumptions as Assumptions
    from skyfx.solver.plan import Plan as Plan
    from skyfx.solver.plan import Stage as Stage
    from skyfx.solver.solving import solve as solve
    from skyfx.solver.unlike import unlike_cluster as unlike_cluster
    from skyfx.solver.validation import validate as validate

_HOMES = {
    "Assumptions": "skyfx.solver.plan",
    "Cluster": "skyfx.solver.cluster",
    "Cost": "skyfx.solver.cost",
    "Device": "skyfx.solver.cluster",
    "Graph": "skyfx.solver.graph",
    "Link": "skyfx.solver.cluster",
    "Node": "skyfx.solver.graph",
    "Plan": "skyfx.solver.plan",
    "Stage": "skyfx.solver.plan",
    "evaluate": "skyfx.solver.cost",
    "read": "skyfx.solver.files",
    "solve": "skyfx.solver.solving",
    "unlike_cluster": "skyfx.solver.unlike",
    "validate": "skyfx.solver.validation",
    "write": "skyfx.solver.files",
}

__all__ = [
    "Assumptions",
    "Cluster",
    "Cost",
    "Device",
    "Graph",
    "Link",
    "Node",
    "Plan",
    "Stage",
    "evaluate",
    "read",
    "solve",
    "unlike_cluster",
    "validate",
    "write",
]

__getattr__ = lazily(__name__, _HOMES)

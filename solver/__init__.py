"""The planner: from a graph and a cluster to a plan with a certificate. Never imports torch."""

from typing import TYPE_CHECKING

from skyfx.solver.lazy_imports import lazily

if TYPE_CHECKING:
    from skyfx.solver.analysis.random_clusters import unlike_cluster as unlike_cluster
    from skyfx.solver.analysis.validation import validate as validate
    from skyfx.solver.core.cluster import Cluster as Cluster
    from skyfx.solver.core.cluster import Device as Device
    from skyfx.solver.core.cluster import Link as Link
    from skyfx.solver.core.files import read as read
    from skyfx.solver.core.files import write as write
    from skyfx.solver.core.graph import Graph as Graph
    from skyfx.solver.core.graph import Node as Node
    from skyfx.solver.core.plan import Assumptions as Assumptions
    from skyfx.solver.core.plan import Plan as Plan
    from skyfx.solver.core.plan import Stage as Stage
    from skyfx.solver.costs.cost_model import Cost as Cost
    from skyfx.solver.costs.cost_model import evaluate as evaluate
    from skyfx.solver.planning.planner import solve as solve

_HOMES = {
    "Assumptions": "skyfx.solver.core.plan",
    "Cluster": "skyfx.solver.core.cluster",
    "Cost": "skyfx.solver.costs.cost_model",
    "Device": "skyfx.solver.core.cluster",
    "Graph": "skyfx.solver.core.graph",
    "Link": "skyfx.solver.core.cluster",
    "Node": "skyfx.solver.core.graph",
    "Plan": "skyfx.solver.core.plan",
    "Stage": "skyfx.solver.core.plan",
    "evaluate": "skyfx.solver.costs.cost_model",
    "read": "skyfx.solver.core.files",
    "solve": "skyfx.solver.planning.planner",
    "unlike_cluster": "skyfx.solver.analysis.random_clusters",
    "validate": "skyfx.solver.analysis.validation",
    "write": "skyfx.solver.core.files",
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

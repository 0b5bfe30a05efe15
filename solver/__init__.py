"""The planner: from a graph and a cluster to a plan with a certificate. Never imports torch."""

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
from skyfx.solver.solve import solve as solve
from skyfx.solver.validate import validate as validate

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
    "validate",
    "write",
]

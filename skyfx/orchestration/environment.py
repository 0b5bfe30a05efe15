"""The devices of a pipeline: those of this process alone, or those of all processes of a job."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from skyfx.devices.inventory import DeviceInventory, is_cpu
from skyfx.devices.local_links import with_links
from skyfx.devices.resolve import DeviceList, given_cluster, resolve
from skyfx.measurement.distributed import measure_distributed
from skyfx.measurement.measure import Progress, measure
from skyfx.runtime.device import LocalDevice
from skyfx.runtime.distributed.process_group import ProcessGroup
from skyfx.runtime.execution.distributed_workers import DistributedWorkers
from skyfx.runtime.execution.workers import Workers
from skyfx.solver.core import files
from skyfx.solver.core.cluster import Cluster
from skyfx.solver.core.graph import Graph
from skyfx.solver.core.plan import Overlap, Plan
from skyfx.solver.errors import PlanError
from skyfx.tracing.capture import Capture


@dataclass(frozen=True, slots=True)
class Environment:
    """The devices that a pipeline is planned for, and all that depends on where they are.

    In this class all are this process's; a stage copies its inputs before it computes.

    Attributes:
        cluster: the devices.
        local: the devices of this process, by name.
        group: the processes that plan and move together.
    """

    cluster: Cluster
    local: Mapping[str, LocalDevice]
    group: ProcessGroup = field(default_factory=ProcessGroup.alone)

    @property
    def overlap(self) -> Overlap:
        """Whether values move while the stages compute."""
        return "full" if self.cluster.emulated_links else "none"

    def measure(self, captured: Capture, progress: Progress | None) -> tuple[Graph, Cluster]:
        """The model's graph, and the devices with their speeds and links."""
        graph = measure(captured, self.local.values(), progress=progress)
        return graph, with_links(self.cluster, self.local)

    def plan_together(self, make: Callable[[], Plan]) -> Plan:
        """The plan that the first process makes, in all processes; or its error in all."""
        return make()

    def on_cpu(self, plan: Plan) -> Sequence[bool]:
        """Whether each stage runs on a CPU, here or elsewhere, `(num_stages,)`."""
        return [self.local[stage.device].device.type == "cpu" for stage in plan.stages]

    def start_workers(self, plan: Plan) -> Workers:
        """Start the workers for the stages of this process."""
        wiring = [self.cluster.wiring()] if self.cluster.emulated_links else []
        return Workers(local_stages(self, plan), *wiring)

    def ranks(self, plan: Plan) -> Sequence[int]:
        """The rank that runs each stage, `(num_stages,)`."""
        return [0] * len(plan.stages)


@dataclass(frozen=True, slots=True)
class _DistributedEnvironment(Environment):
    """The devices belong to several processes, all of which make the same calls."""

    inventory: DeviceInventory = field(kw_only=True)

    @property
    def overlap(self) -> Overlap:
        return "full"

    def measure(self, captured: Capture, progress: Progress | None) -> tuple[Graph, Cluster]:
        return measure_distributed(captured, self.inventory, self.cluster, progress=progress)

    def plan_together(self, make: Callable[[], Plan]) -> Plan:
        text = self.group.broadcast_from_first(lambda: files.encode(make()).decode())
        return files.decode(text.encode(), Plan, "the plan of rank 0")

    def on_cpu(self, plan: Plan) -> Sequence[bool]:
        return [is_cpu(stage.device) for stage in plan.stages]

    def start_workers(self, plan: Plan) -> Workers:
        ours = local_stages(self, plan)
        return DistributedWorkers(ours, plan.stages, self.ranks(plan), self.group)

    def ranks(self, plan: Plan) -> Sequence[int]:
        return [self.inventory.owner_rank[stage.device] for stage in plan.stages]


def environment_of(devices: DeviceList) -> Environment:
    """The processes of the job where the cluster's devices are theirs, else this process.

    Raises:
        PlanError: no process has one of the devices.
    """
    cluster = given_cluster(devices)
    if cluster is None or not ProcessGroup.is_launched():
        return Environment(*resolve(cluster or devices))
    inventory = DeviceInventory.join(call="partition")
    owner_rank = inventory.owner_rank
    missing = [device.name for device in cluster.devices if device.name not in owner_rank]
    if missing:
        raise PlanError(
            f"no process of this job has a device {missing[0]!r}; they have "
            f"{', '.join(owner_rank)}. Take names from `skyfx probe`, or pass a list of devices "
            "to stay in one process"
        )
    local = {
        device.name: replace(inventory.local[device.name], memory_bytes=device.memory_bytes)
        for device in cluster.devices
        if device.name in inventory.local
    }
    return _DistributedEnvironment(cluster, local, inventory.group, inventory=inventory)


def local_stages(environment: Environment, plan: Plan) -> dict[int, LocalDevice]:
    """The devices of the stages that run in this process, by the numbers of the stages."""
    local = environment.local
    return {k: local[x.device] for k, x in enumerate(plan.stages) if x.device in local}

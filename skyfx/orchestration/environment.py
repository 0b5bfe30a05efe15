"""Where a pipeline is made and run: in this process alone, or in all processes of a job."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from skyfx.devices.inventory import DeviceInventory, is_cpu
from skyfx.devices.local_links import with_links
from skyfx.devices.resolve import DeviceList, given_cluster, resolve
from skyfx.measurement.distributed import measure_distributed
from skyfx.measurement.measure import Progress, measure
from skyfx.partitioning.migration import move
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

__all__: list[str] = ["Environment", "site_of"]

Places = Sequence[LocalDevice | None]
"""Where each stage runs, `(num_stages,)`; None in another process."""


class Environment(Protocol):
    """The devices that a pipeline is planned for, and what differs with where they are."""

    @property
    def cluster(self) -> Cluster:
        """The devices."""

    @property
    def here(self) -> Mapping[str, LocalDevice]:
        """The devices of this process, by name."""

    @property
    def overlap(self) -> Overlap:
        """Whether values move while the stages compute."""

    def measured(self, captured: Capture, progress: Progress | None) -> tuple[Graph, Cluster]:
        """The model's graph, and the devices with their speeds and links."""

    def agreed(self, make: Callable[[], Plan]) -> Plan:
        """One plan for all processes."""

    def places(self, plan: Plan) -> Places:
        """Where each stage of the plan runs."""

    def on_cpu(self, plan: Plan) -> Sequence[bool]:
        """Which stages run on a CPU, here or elsewhere, `(num_stages,)`."""

    def workers(self, places: Places, plan: Plan) -> Workers:
        """Who runs the stages that are here."""

    def moved(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        owners: Mapping[str, int],
        plan: Plan,
    ) -> Mapping[int, Tensor]:
        """Bring tensors to where another plan has them, owned by these stages of it.

        Returns:
            Those that have taken the place of others, by the `id`s of these.
        """


def site_of(devices: DeviceList) -> Environment:
    """All processes of the job where the cluster's devices are theirs, else this process.

    Raises:
        PlanError: a device is nowhere.
    """
    cluster = given_cluster(devices)
    if cluster is None or not ProcessGroup.is_launched():
        return LocalEnvironment(*resolve(devices if cluster is None else cluster))
    hosts = DeviceInventory.join()
    missing = [device.name for device in cluster.devices if device.name not in hosts.rank_of]
    if missing:
        raise PlanError(
            f"no process of this job has a device {missing[0]!r}; they have "
            f"{', '.join(hosts.rank_of)}. Take names from `skyfx probe`, or pass a list of devices "
            "to stay in one process"
        )
    return DistributedEnvironment(cluster, hosts)


@dataclass(frozen=True, slots=True)
class LocalEnvironment:
    """All devices are this process's; a stage copies what it receives before it computes."""

    cluster: Cluster
    here: Mapping[str, LocalDevice]

    @property
    def overlap(self) -> Overlap:
        return "full" if self.cluster.emulated_links else "none"

    def measured(self, captured: Capture, progress: Progress | None) -> tuple[Graph, Cluster]:
        graph = measure(captured, self.here.values(), progress=progress)
        return graph, with_links(self.cluster, self.here)

    def agreed(self, make: Callable[[], Plan]) -> Plan:
        return make()

    def places(self, plan: Plan) -> Places:
        return [self.here[stage.device] for stage in plan.stages]

    def on_cpu(self, plan: Plan) -> Sequence[bool]:
        return [self.here[stage.device].device.type == "cpu" for stage in plan.stages]

    def workers(self, places: Places, plan: Plan) -> Workers:
        used = {k: place for k, place in enumerate(places) if place is not None}
        return (
            Workers(used, self.cluster.wiring()) if self.cluster.emulated_links else Workers(used)
        )

    def moved(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        owners: Mapping[str, int],
        plan: Plan,
    ) -> Mapping[int, Tensor]:
        return {}  # the same tensors go to other devices


@dataclass(frozen=True, slots=True)
class DistributedEnvironment:
    """The devices are those of several processes, which do all this together."""

    cluster: Cluster
    hosts: DeviceInventory
    overlap: Overlap = "full"

    def measured(self, captured: Capture, progress: Progress | None) -> tuple[Graph, Cluster]:
        return measure_distributed(captured, self.hosts, self.cluster, progress=progress)

    def agreed(self, make: Callable[[], Plan]) -> Plan:
        text = self.hosts.group.broadcast_from_first(lambda: files.encode(make()).decode())
        return files.decode(text.encode(), Plan, "the plan of rank 0")

    def places(self, plan: Plan) -> Places:
        here = self.here
        return [here.get(stage.device) for stage in plan.stages]

    @property
    def here(self) -> Mapping[str, LocalDevice]:
        places, devices = self.hosts.places, self.cluster.devices
        return {
            device.name: replace(places[device.name], memory_bytes=device.memory_bytes)
            for device in devices
            if device.name in places
        }

    def on_cpu(self, plan: Plan) -> Sequence[bool]:
        return [is_cpu(stage.device) for stage in plan.stages]

    def workers(self, places: Places, plan: Plan) -> Workers:
        here = {k: place for k, place in enumerate(places) if place is not None}
        return DistributedWorkers(here, plan.stages, self._rank_of(plan), self.hosts.group)

    def moved(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        owners: Mapping[str, int],
        plan: Plan,
    ) -> Mapping[int, Tensor]:
        rank_of = self._rank_of(plan)
        theirs = {name: rank_of[k] for name, k in owners.items()}
        return move(model, optimizers, theirs, self.hosts.group)

    def _rank_of(self, plan: Plan) -> Sequence[int]:
        """Whose each stage is, `(num_stages,)`."""
        return [self.hosts.rank_of[stage.device] for stage in plan.stages]

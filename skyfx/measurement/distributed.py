"""Measuring a model on several hosts: each operator once on each type, speeds on every device.

The first process that has a device of a type prices the model's operators there. Every process then
times calibration segments on its own devices, which says how much slower each is than the first.
"""

from dataclasses import replace

from skyfx.devices.cluster_probe import SAME
from skyfx.devices.inventory import DeviceInventory
from skyfx.measurement.measure import Progress, TypeMeasurement, assembled, calibrate, price, run_on
from skyfx.measurement.operator_costs import OperatorCosts
from skyfx.runtime.device import LocalDevice
from skyfx.solver.core.cluster import Cluster
from skyfx.solver.core.graph import DeviceCalibration, Graph
from skyfx.tracing.capture import Capture


def measure_distributed(
    captured: Capture, hosts: DeviceInventory, cluster: Cluster, *, progress: Progress | None = None
) -> tuple[Graph, Cluster]:
    """Measure a captured model on all devices of a job; every process calls it.

    Returns:
        The graph, and the cluster with the slowdowns that this model has.
    """
    leaders: dict[str, str] = {}
    for device in hosts.devices:
        leaders.setdefault(device.type, device.name)
    alone = len(hosts.local) == 1

    def priced(place: LocalDevice) -> OperatorCosts:
        return run_on(place, lambda tell: price(captured, place, tell), alone, progress)

    def calibrated(place: LocalDevice) -> DeviceCalibration:
        prices = known[place.type]
        return run_on(place, lambda tell: calibrate(captured, place, prices, tell), alone, progress)

    ours = hosts.local.values()
    prices = {place.type: priced(place) for place in ours if leaders[place.type] == place.name}
    known = hosts.group.all_gather_dict(prices, dict[str, OperatorCosts])
    fits = {name: calibrated(place) for name, place in hosts.local.items()}
    fits = hosts.group.all_gather_dict(fits, dict[str, DeviceCalibration])
    found = {kind: TypeMeasurement(known[kind], fits[name]) for kind, name in leaders.items()}
    slower = {
        device.name: found[device.type].time_s(by=fits[device.name]) / found[device.type].time_s()
        for device in hosts.devices
    }
    devices = tuple(
        replace(device, slowdown=1.0 if abs(times - 1) < SAME else times)
        for device in cluster.devices
        for times in [slower[device.name]]
    )
    return assembled(captured, found), replace(cluster, devices=devices)

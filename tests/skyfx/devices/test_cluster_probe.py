"""The cluster of a job is one cluster, whichever of the two classes it is of."""

import skyfx
from skyfx import solver


def test_clusters_of_both_classes_with_equal_fields_are_equal() -> None:
    devices = (solver.Device(name="a", type="cpu"), solver.Device(name="b", type="cpu"))
    probed, planned = skyfx.Cluster(devices=devices), solver.Cluster(devices=devices)
    assert probed == planned
    assert planned == probed
    assert probed == skyfx.Cluster(devices=devices)
    assert len({probed, planned}) == 1
    other = solver.Cluster(devices=devices[:1])
    assert probed != other
    assert other != probed
    assert probed != devices

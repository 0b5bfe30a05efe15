"""What the format refuses: the field's path, what stood there and what was expected."""

import json
from typing import Any

import pytest

from skyfx.solver import Assumptions, Cluster, Graph, Plan
from skyfx.solver.core.files import decode, encode
from skyfx.solver.errors import FormatError
from tests.support.planning_instances import cpus, graph, node, plan_of


def a_graph() -> Graph:
    return graph([node("x", op="input"), node("y", ("x",)), node("z", ("y",))])


def a_plan() -> Plan:
    return plan_of(a_graph(), cpus(1.0, 1.0), Assumptions(), [("d0", ["x"]), ("d1", ["y", "z"])])


def documents() -> dict[type, Any]:
    link = {"source": "d0", "target": "d1", "bandwidth_bytes_per_s": 1.0, "latency_s": 0.0}
    wire = {"bandwidth_bytes_per_s": 1.0, "latency_s": 0.0}
    plain = {
        kind: json.loads(encode(document))
        for kind, document in ((Graph, a_graph()), (Cluster, cpus(1.0, 2.0)), (Plan, a_plan()))
    }
    plain[Cluster] |= {"links": [link, link | {"source": "d1", "target": "d0"}]}
    plain[Cluster] |= {"default_link": wire}
    return plain


def refusal(kind: type, document: object) -> str:
    raw = document if isinstance(document, bytes) else json.dumps(document).encode()
    with pytest.raises(FormatError) as caught:
        decode(raw, kind, "some.json")
    line = str(caught.value)
    assert line.startswith("some.json: ")
    assert "\n" not in line
    return line.removeprefix("some.json: ")


def changed(kind: type, path: tuple[str | int, ...], value: object) -> Any:
    """A good document with `value` at `path`; without it where the value is `...`."""
    document = documents()[kind]
    parent = document
    for key in path[:-1]:
        parent = parent[key]
    if value is ...:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    return document


NOT_NEGATIVE = "found -1.0, expected a finite number >= 0"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("format",), "skyfx.graph/2", "format: found 'skyfx.graph/2', expected 'skyfx.graph/1'"),
        (("format",), ..., "format: found nothing, expected 'skyfx.graph/1'"),
        (("nodes",), [], "nodes: found an empty list, expected at least one node"),
        (("nodes", 1, "id"), ..., "nodes[1]: found no field 'id', expected one"),
        (("nodes", 1, "output_bytes"), "1", "nodes[1].output_bytes: found '1', expected float"),
        (("nodes", 1, "id"), "x", "nodes[1].id: 'x' is already nodes[0]"),
        (("nodes", 1, "inputs"), ["q"], "nodes[1].inputs[0]: 'q' is no node's id"),
        (("nodes", 1, "inputs"), ["z"], "nodes[1].inputs[0]: 'z' is node 2 and node 1 reads it"),
        (("nodes", 1, "inputs"), ["y"], "nodes[1].inputs[0]: 'y' is node 1 and node 1 reads it"),
        (("nodes", 1, "after"), ["q"], "nodes[1].after[0]: 'q' is no node's id"),
        (("nodes", 1, "after"), ["z"], "nodes[1].after[0]: 'z' is node 2 and node 1 comes after"),
        (
            ("nodes", 1, "trainable_bytes"),
            2.0,
            "nodes[1].trainable_bytes: found 2, expected at most its parameter_bytes, 0",
        ),
        (("outputs",), ["q"], "outputs[0]: 'q' is no node's id"),
        (("microbatch_size",), 0, "microbatch_size: found 0, expected a finite number > 0"),
        (("nodes", 1, "forward_s"), {"cpu": -1}, f"nodes[1].forward_s['cpu']: {NOT_NEGATIVE}"),
        (("nodes", 1, "backward_s"), {"cpu": -1}, f"nodes[1].backward_s['cpu']: {NOT_NEGATIVE}"),
        *(
            (("nodes", 2, field), -1, f"nodes[2].{field}: {NOT_NEGATIVE}")
            for field in (
                "output_bytes",
                "gradient_bytes",
                "parameter_bytes",
                "saved_bytes",
                "workspace_bytes",
                "flops",
                "backward_flops",
            )
        ),
    ],
)
def test_a_graph_is_refused(path: tuple[str | int, ...], value: object, message: str) -> None:
    assert message in refusal(Graph, changed(Graph, path, value))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("format",), "skyfx.graph/1", "found 'skyfx.graph/1', expected 'skyfx.cluster/1'"),
        (("devices",), [], "devices: found an empty list, expected at least one device"),
        (("devices", 1, "name"), "d0", "devices[1].name: 'd0' is already devices[0]"),
        (("devices", 1, "name"), "host", "devices[1].name: 'host' is reserved and is no device"),
        (("devices", 1, "type"), ..., "devices[1]: found no field 'type', expected one"),
        (("devices", 0, "memory_bytes"), -1, f"devices[0].memory_bytes: {NOT_NEGATIVE}"),
        (("devices", 0, "slowdown"), 0, "devices[0].slowdown: found 0.0, expected a finite"),
        (("links", 0, "source"), "d7", "links[0].source: 'd7' is no device's name"),
        (("links", 0, "target"), "d7", "links[0].target: 'd7' is no device's name"),
        (("links", 0, "latency_s"), -1, f"links[0].latency_s: {NOT_NEGATIVE}"),
        (
            ("links", 1, "bandwidth_bytes_per_s"),
            0,
            "links[1].bandwidth_bytes_per_s: found 0.0, expected a finite number > 0",
        ),
        (("default_link", "latency_s"), -1, f"default_link.latency_s: {NOT_NEGATIVE}"),
        (("default_link", "bandwidth_bytes_per_s"), 0, "default_link.bandwidth_bytes_per_s: found"),
    ],
)
def test_a_cluster_is_refused(path: tuple[str | int, ...], value: object, message: str) -> None:
    assert message in refusal(Cluster, changed(Cluster, path, value))


def test_a_second_link_of_one_pair_is_refused() -> None:
    document = documents()[Cluster]
    document["links"].append(document["links"][0])
    assert "links[2].source, target: 'd0 -> d1' is already links[0]" in refusal(Cluster, document)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("format",), 1, "format: found 1, expected 'skyfx.plan/1'"),
        (("stages",), [], "stages: found an empty list, expected at least one stage"),
        (
            ("assumptions", "mode"),
            "both",
            "assumptions.mode: found 'both', expected 'training' or 'inference'",
        ),
        (("assumptions", "microbatches"), 0, "assumptions.microbatches: found 0"),
        *(
            (("stages", 1, field), -1, f"stages[1].{field}: {NOT_NEGATIVE}")
            for field in ("send_s", "peak_bytes", "limit_bytes", "flops")
        ),
        (("lower_bound",), -1, f"lower_bound: {NOT_NEGATIVE}"),
        (("gap",), -1, f"gap: {NOT_NEGATIVE}"),
        (("solver", "wall_s"), -1, f"solver.wall_s: {NOT_NEGATIVE}"),
        (("alternatives", "even"), -1, f"alternatives.even: {NOT_NEGATIVE}"),
        (("stages", 0, "device"), ..., "stages[0]: found no field 'device', expected one"),
    ],
)
def test_a_plan_is_refused(path: tuple[str | int, ...], value: object, message: str) -> None:
    assert message in refusal(Plan, changed(Plan, path, value))


def test_fields_may_be_added_and_are_not_refused() -> None:
    document = changed(Graph, ("nodes", 0, "colour"), "red")
    assert decode(json.dumps(document).encode(), Graph, "x.json") == a_graph()


UNKNOWN = [
    (Cluster, ("devices", 0, "slowdwon"), "devices[0].slowdwon", "slowdown"),
    (Cluster, ("default_link", "bandwidth"), "default_link.bandwidth", "bandwidth_bytes_per_s"),
    (Cluster, ("links", 1, "latency"), "links[1].latency", "latency_s"),
    (Cluster, ("default_links",), "default_links", "default_link"),
    (Graph, ("nodes", 2, "worskpace_bytes"), "nodes[2].worskpace_bytes", "workspace_bytes"),
    (Plan, ("assumptions", "pin"), "assumptions.pin", "pins"),
    (Plan, ("stages", 1, "Live"), "stages[1].Live", "live"),
]


@pytest.mark.parametrize(("kind", "path", "where", "near"), UNKNOWN)
def test_an_unknown_field_is_ignored_and_named_with_the_nearest_known_one(
    caplog: pytest.LogCaptureFixture, kind: type, path: tuple[str | int, ...], where: str, near: str
) -> None:
    raw = json.dumps(changed(kind, path, 1.0)).encode()
    assert decode(raw, kind, "some.json") == decode(encode_plain(kind), kind, "some.json")
    said = f"some.json: {where}: no such field, it is ignored; the nearest one is {near!r}"
    assert [record.getMessage() for record in caplog.records] == [said]


def test_a_field_that_many_objects_have_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    document = documents()[Graph]
    for each in document["nodes"]:
        each["note"] = {"id": "x"}
    decode(json.dumps(document).encode(), Graph, "some.json")
    assert len(caplog.records) == 1
    assert "nodes[0].note: " in caplog.text


@pytest.mark.parametrize("kind", [Graph, Cluster, Plan])
def test_known_fields_are_read_without_a_word(kind: type, caplog: pytest.LogCaptureFixture) -> None:
    decode(encode_plain(kind), kind, "some.json")
    assert caplog.records == []


def encode_plain(kind: type) -> bytes:
    return json.dumps(documents()[kind]).encode()


@pytest.mark.parametrize("kind", [Graph, Cluster, Plan])
def test_a_byte_order_mark_is_no_fault(kind: type) -> None:
    """Editors on Windows begin a file with one."""
    raw = encode_plain(kind)
    assert decode(b"\xef\xbb\xbf" + raw, kind, "some.json") == decode(raw, kind, "some.json")


def test_a_byte_order_mark_is_no_fault_of_toml() -> None:
    text = 'format = "skyfx.cluster/1"\n[[devices]]\nname = "a"\ntype = "cpu"\n'
    read_back = decode(b"\xef\xbb\xbf" + text.encode(), Cluster, "some.cluster.toml")
    assert [device.name for device in read_back.devices] == ["a"]

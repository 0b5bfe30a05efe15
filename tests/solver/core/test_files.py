"""Files: what is written can be read again, and what the format refuses is refused in one line."""

import re
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from skyfx.solver import Assumptions, Cluster, Graph, Plan, read, write
from skyfx.solver.core.files import decode, digest, encode, load
from skyfx.solver.errors import FormatError
from tests.support import ROOT
from tests.support.planning_instances import (
    assumptions,
    clusters,
    cpus,
    graph,
    graphs,
    node,
    plan_of,
)
from tests.support.tiers import cases

TOML = """
format = "skyfx.cluster/1"
default_link = { bandwidth_bytes_per_s = 1e9, latency_s = 0.001 }

[[devices]]
name = "a"
type = "gpu"
memory_bytes = 8_000_000_000
slowdown = SLOWDOWN

[[devices]]
name = "b"
type = "cpu"

[[links]]
source = "a"
target = "b"
bandwidth_bytes_per_s = 1e6
latency_s = 0
"""


def a_graph() -> Graph:
    return graph([node("x", op="input"), node("y", ("x",)), node("z", ("y",))])


def a_plan() -> Plan:
    return plan_of(a_graph(), cpus(1.0, 1.0), Assumptions(), [("d0", ["x"]), ("d1", ["y", "z"])])


def assert_refused(kind: type, raw: bytes) -> None:
    with pytest.raises(FormatError, match=r"^some\.json: [^\n]+$"):
        decode(raw, kind, "some.json")


@cases(50)
@given(graphs())
def test_a_graph_survives_a_file(g: Graph) -> None:
    assert decode(encode(g), Graph, "x.graph.json") == g


@cases(50)
@given(clusters())
def test_a_cluster_survives_a_file(c: Cluster) -> None:
    assert decode(encode(c), Cluster, "x.cluster.json") == c


@cases(50)
@given(graphs(), assumptions())
def test_a_plan_survives_a_file(g: Graph, a: Assumptions) -> None:
    p = plan_of(g, cpus(1.0), a, [("d0", [n.id for n in g.nodes])])
    if p.objective_value != float("inf"):
        assert decode(encode(p), Plan, "x.plan.json") == p


@cases(50)
@given(clusters())
def test_equal_documents_have_equal_bytes(c: Cluster) -> None:
    again = decode(encode(c), Cluster, "x.cluster.json")
    assert digest(encode(again)) == digest(encode(c))


def test_a_cluster_may_be_toml(tmp_path: Path) -> None:
    path = tmp_path / "x.cluster.toml"
    path.write_text(TOML.replace("SLOWDOWN", "2"))
    c, sha256 = load(path, Cluster)
    assert [(d.name, d.memory_bytes, d.slowdown) for d in c.devices] == [
        ("a", 8e9, 2.0),
        ("b", None, 1.0),
    ]
    assert c.wiring()("a", "b").bandwidth_bytes_per_s == 1e6
    assert c.default_link.latency_s == 0.001
    assert sha256 == digest(path.read_bytes())


def test_the_examples_of_the_documentation_are_read() -> None:
    page = (ROOT / "docs" / "formats.md").read_text()
    examples = dict(re.findall(r"```(json|toml)\n(.*?)```", page, re.DOTALL))
    assert decode(examples["json"].encode(), Graph, "x.graph.json").nodes[1].id == "linear"
    assert decode(examples["toml"].encode(), Cluster, "x.cluster.toml").devices[1].slowdown == 2.5


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "-1.5", "0.0"])
def test_toml_cannot_smuggle_a_number_in(number: str) -> None:
    with pytest.raises(FormatError, match=r"devices\[0\].slowdown: found .*, expected a finite"):
        decode(TOML.replace("SLOWDOWN", number).encode(), Cluster, "x.cluster.toml")


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"1e999", b"1" + 400 * b"0"])
def test_json_cannot_smuggle_a_number_in(number: bytes) -> None:
    raw = encode(a_graph()).replace(b'"output_bytes": 1.0', b'"output_bytes": ' + number)
    assert number in raw
    assert_refused(Graph, raw)


def test_toml_with_a_number_too_large_for_a_float_is_refused() -> None:
    huge = TOML.replace("SLOWDOWN", "1" + 400 * "0").encode()
    with pytest.raises(FormatError, match=r"x\.cluster\.toml"):
        decode(huge, Cluster, "x.cluster.toml")


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"null", b'"skyfx.graph/1"', b"\xff\xfe", b"[" * 100_000]
)
def test_what_is_no_such_document_is_refused(raw: bytes) -> None:
    assert_refused(Graph, raw)


@pytest.mark.parametrize("raw", [b"format = ", b"\xff\xfe", b"", b"format = 1"])
def test_broken_toml_is_refused(raw: bytes) -> None:
    with pytest.raises(FormatError, match=r"^x.toml: "):
        decode(raw, Cluster, "x.toml")


def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"nowhere.json: No such file or directory"):
        read(tmp_path / "nowhere.json", Graph)
    with pytest.raises(FormatError, match="Is a directory"):
        read(tmp_path, Graph)


def test_nothing_is_overwritten_without_force(tmp_path: Path) -> None:
    path = tmp_path / "x.graph.json"
    write(a_graph(), path)
    before = path.read_bytes()
    other = graph([node("other")])
    with pytest.raises(FileExistsError, match="use --force"):
        write(other, path)
    assert path.read_bytes() == before
    write(other, path, force=True)
    assert read(path, Graph) == other


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"the folder .* does not exist"):
        write(a_graph(), tmp_path / "none" / "x.json")


def unencodable() -> Graph:
    return Graph(name="\ud800", microbatch_size=1, nodes=a_graph().nodes, outputs=("z",))


def test_a_half_written_file_is_never_left(tmp_path: Path) -> None:
    path = tmp_path / "x.graph.json"
    with pytest.raises(UnicodeEncodeError):
        write(unencodable(), path)
    assert list(tmp_path.iterdir()) == []
    write(a_graph(), path)
    with pytest.raises(UnicodeEncodeError):
        write(unencodable(), path, force=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.graph.json"]
    assert read(path, Graph) == a_graph()


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    infinite = replace(a_plan(), step_s=float("inf"))
    with pytest.raises(ValueError, match="step_s: found inf"):
        write(infinite, tmp_path / "x.plan.json")
    assert list(tmp_path.iterdir()) == []


def test_a_written_file_has_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    write(a_graph(), tmp_path / "x.json")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("usual", "x.json")]
    assert modes[0] == modes[1]


@pytest.mark.parametrize(
    ("fields", "same"),
    [
        ({"forward_s": {"cpu": 9.0}, "saved_bytes": 5.0, "output_bytes": 7.0}, True),
        ({"op": "other"}, False),
        ({"parameter_bytes": 0}, True),
        ({"parameter_bytes": 1.0}, False),
        ({"inputs": ("x", "y")}, False),
        ({"id": "w"}, False),
    ],
)
def test_the_structure_is_what_is_computed_and_not_how_fast(
    fields: dict[str, Any], same: bool
) -> None:
    g = a_graph()
    last = replace(g.nodes[2], **fields)
    other = replace(g, nodes=(*g.nodes[:2], last), outputs=(last.id,), microbatch_size=4)
    assert (other.structure() == g.structure()) == same

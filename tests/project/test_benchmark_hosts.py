"""The comparison with rivals, as far as it needs no root: clusters, cuts, torch's engine."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.hosts.block_times import states_of, weighed
from benchmarks.hosts.clusters import CORES, clusters
from benchmarks.hosts.manual_splits import Weights, balanced, rules
from benchmarks.hosts.models import SUBJECTS, Chain
from benchmarks.hosts.table import text
from tests.support.launcher import launch

QUOTA_MS, PERIOD_MS = 1, 1000
"""The kernel allows no smaller quota and no longer period."""


def test_the_clusters_are_as_they_are_said_to_be() -> None:
    found = clusters()
    assert len(found) == len({one.name for one in found}) == 30
    assert [sum(one.model == name for one in found) for name in SUBJECTS] == [10, 10, 10]
    assert sum(one.limits is not None for one in found) == 10
    assert sum(one.spread == 8 for one in found) == 12
    for one in found:
        shares = [host.share for host in one.hosts]
        assert len(shares) in (4, 8)
        assert max(shares) / min(shares) == pytest.approx(one.spread)
        assert 2 <= one.spread <= 8
        assert sum(shares) == pytest.approx(CORES)
        assert min(shares) >= QUOTA_MS / PERIOD_MS
        assert all(20 <= host.mbit <= 1000 for host in one.hosts)
        assert one.limits is None or len(one.limits) == len(shares)


def test_the_clusters_are_the_same_on_every_run() -> None:
    first = clusters()[0]
    assert clusters() == clusters()
    assert (first.name, first.limits) == ("bert x 4, 2", None)
    assert [host.mbit for host in first.hosts] == [444, 231, 468, 95]
    assert [round(host.share, 3) for host in first.hosts] == [0.303, 0.44, 0.237, 0.22]


@pytest.mark.parametrize(
    ("weights", "rooms", "cut"),
    [
        ([1, 1, 1, 1], [1, 1], (2, 2)),
        ([1] * 9, [1] * 4, (2, 2, 2, 3)),
        ([5, 1, 1, 1, 1, 1], [1, 1], (1, 5)),
        ([1] * 6, [1, 2], (2, 4)),
        ([4, 3, 2, 1], [1, 1, 1], (1, 1, 2)),
        ([0, 0, 9], [1, 1, 1], (1, 1, 1)),
    ],
)
def test_a_cut_makes_the_fullest_worker_as_empty_as_can_be(
    weights: list[float], rooms: list[float], cut: tuple[int, ...]
) -> None:
    assert balanced(weights, rooms) == cut


def test_rules_that_cut_alike_are_one() -> None:
    weights = Weights(
        size_bytes=[4, 1, 1, 1, 1, 4], parameters=[2, 1, 1, 1, 1, 6], time_s=[1, 1, 1, 1, 1, 1]
    )
    alike, unlike = rules(weights, [1, 1]), rules(weights, [1, 3])
    assert alike == {(3, 3): "blocks, bytes, time, memory", (5, 1): "parameters"}
    assert unlike == {(3, 3): "blocks, bytes, time", (5, 1): "parameters", (1, 5): "memory"}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Several wait for each other, long where the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", SUBJECTS)
def test_the_blocks_compute_what_the_model_does(name: str) -> None:
    torch.manual_seed(0)
    subject = SUBJECTS[name]()
    blocks = subject.blocks_of(subject.model)
    batch, targets = subject.batch[:2], subject.targets[:2]
    whole = subject.loss_fn(subject.model(batch), targets)
    torch.testing.assert_close(subject.loss_fn(Chain(blocks)(batch), targets), whole)
    weights = weighed(subject, states_of(subject))
    numbers = [sum(p.numel() for p in block.parameters()) for block in blocks]
    assert weights.parameters == numbers
    assert sum(numbers) == sum(p.numel() for p in subject.model.parameters())
    sizes = zip(weights.size_bytes, numbers, weights.time_s, strict=True)
    assert all(size > 8 * number and seconds > 0 for size, number, seconds in sizes)


def test_torchs_engine_has_the_unsplit_models_losses(tmp_path: Path) -> None:
    done = launch(2, "tests/jobs/manual_pipeline_job.py", str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    first, last = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    for name in SUBJECTS:
        for schedule in ("1f1b", "gpipe"):
            assert first[name][schedule] == [None, None]
            assert last[name][schedule] == pytest.approx(last[name]["whole"], rel=1e-5)


def test_the_table_tells_ratios_and_what_falls_short() -> None:
    """Of a cluster where skyfx takes 2 s, by hand 3, the even split 4, the bound 1.5."""

    def ran(*steps_s: float, charged: tuple[float, ...] = ()) -> dict[str, object]:
        told = {"step_s": steps_s[0], "steps_s": steps_s, "losses": [1.0], "charged": charged}
        return told | {"cpu": [0.3, 0.1], "throttled": [3, 4], "update_s": 0.02}

    cuts = {"blocks, bytes, time, memory": [3, 3], "parameters": [5, 1]}
    by_hand = {f"{name} ({how})": cut for name, cut in cuts.items() for how in ("1f1b", "gpipe")}
    rivals = {
        "skyfx": ran(2.0, 2.2, charged=(90, 50)),
        "even": ran(4.0),
        "original": ran(8.0),
        "one device": ran(3.5, charged=(0, 110)),
        **dict.fromkeys(by_hand, ran(3.0)),
    }
    row = {
        "one_device_s": 2.0,
        **{"cluster": "bert x 2, 8", "spread": 8.0, "shares": [0.4, 0.1], "mbit": [50, 100]},
        **{"limits": [100, 100], "cuts": by_hand, "rivals": rivals, "wall_s": 60.0},
        "plan": {"stages": [["h0/cpu", 4]], "bound_s": 1.5, "simulated_s": 1.9},
    }
    document = text([row])
    ratios = "1.50 / 1.50 | " * 5
    assert (
        f"| bert x 2, 8, limited | 40 10 | 50 100 | 2.00 | 1 | 1.33 | 2.00 | {ratios}1.50 | 4.00 "
        "| 1.75\\* |"
    ) in document
    for line in (
        "| even split, spread 8 | 60 % less in the geometric mean | 50 % less | no | 1 |",
        "| best of torch.distributed.pipelining | 25 % less in the geometric mean | 33 % less |",
        "bound allows**, within 5 points of that saving on each cluster: bert x 2, 8: 12.5",
    ):
        assert line in document
    assert document.index("geometric mean, spread 8") < document.index("geometric mean, all")

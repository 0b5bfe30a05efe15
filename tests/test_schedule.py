"""Orders of forwards and backwards, drawn as they are taken."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyfx.solver.schedule import Kind, orders


def drawn(schedule: str, num_stages: int, m: int) -> list[str]:
    return [
        " ".join(f"{action.kind.name[0]}{action.microbatch}" for action in order)
        for order in orders(schedule, num_stages, m)
    ]


def test_gpipe_runs_all_forwards_first() -> None:
    assert drawn("gpipe", 2, 3) == ["F0 F1 F2 B0 B1 B2"] * 2


def test_1f1b_fills_the_pipeline_and_then_takes_turns() -> None:
    assert drawn("1f1b", 3, 4) == [
        "F0 F1 F2 B0 F3 B1 B2 B3",
        "F0 F1 B0 F2 B1 F3 B2 B3",
        "F0 B0 F1 B1 F2 B2 F3 B3",
    ]


def test_inference_runs_forwards_alone() -> None:
    assert drawn("inference", 2, 2) == ["F0 F1", "F0 F1"]


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="schedule is 'zigzag', expected"):
        orders("zigzag", 2, 2)


@given(st.sampled_from(["gpipe", "1f1b"]), st.integers(1, 6), st.integers(1, 9))
def test_every_order_ends_and_keeps_no_more_live_than_it_may(
    schedule: str, num_stages: int, m: int
) -> None:
    actions = orders(schedule, num_stages, m)
    done: set[tuple[int, Kind, int]] = set()
    place = [0] * num_stages
    while any(place[k] < len(actions[k]) for k in range(num_stages)):
        ready = [k for k in range(num_stages) if can_go(actions, place, done, k)]
        assert ready, "the stages wait for each other"
        for k in ready:
            kind, i = actions[k][place[k]]
            done.add((k, kind, i))
            place[k] += 1
            live = sum((k, Kind.FORWARD, i) in done for i in range(m)) - sum(
                (k, Kind.BACKWARD, i) in done for i in range(m)
            )
            assert live <= (m if schedule == "gpipe" else min(m, num_stages - k))
    assert len(done) == 2 * num_stages * m


def can_go(
    actions: list[list[tuple[Kind, int]]],
    place: list[int],
    done: set[tuple[int, Kind, int]],
    k: int,
) -> bool:
    if place[k] == len(actions[k]):
        return False
    kind, i = actions[k][place[k]]
    if kind is Kind.FORWARD:
        return k == 0 or (k - 1, kind, i) in done
    last = k == len(actions) - 1
    return (k, Kind.FORWARD, i) in done and (last or (k + 1, kind, i) in done)

"""Orders of forwards and backwards, drawn as they are taken."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyfx.solver.core.schedule import Action, Kind, Orders, forwards, in_flight_counts, orders

CAPACITY = 2
"""Values that may wait between two stages in inference (`runtime/execution/workers.py`)."""


def drawn(actions: Orders) -> list[str]:
    return [
        " ".join(f"{a.kind.name[0]}{a.microbatch}" for a in order) for order in actions.values()
    ]


def with_stages(actions: Orders) -> list[str]:
    """`1F0`: the forward of micro-batch 0 on stage 1."""
    return [
        " ".join(f"{a.stage}{a.kind.name[0]}{a.microbatch}" for a in order)
        for order in actions.values()
    ]


def of_schedule(schedule: str, num_stages: int, m: int) -> Orders:
    return orders(in_flight_counts(schedule, num_stages, m), m, names(num_stages))


def names(num_stages: int, num_devices: int | None = None) -> list[str]:
    return [f"d{k % (num_devices or num_stages)}" for k in range(num_stages)]


def test_gpipe_runs_all_forwards_first() -> None:
    assert drawn(of_schedule("gpipe", 2, 3)) == ["F0 F1 F2 B0 B1 B2"] * 2


def test_1f1b_fills_the_pipeline_and_then_takes_turns() -> None:
    assert drawn(of_schedule("1f1b", 3, 4)) == [
        "F0 F1 F2 B0 F3 B1 B2 B3",
        "F0 F1 B0 F2 B1 F3 B2 B3",
        "F0 B0 F1 B1 F2 B2 F3 B3",
    ]


def test_a_stage_fills_up_to_what_may_be_live_and_then_takes_turns() -> None:
    assert drawn(orders((4, 3, 1), 5, names(3))) == [
        "F0 F1 F2 F3 B0 F4 B1 B2 B3 B4",
        "F0 F1 F2 B0 F3 B1 F4 B2 B3 B4",
        "F0 B0 F1 B1 F2 B2 F3 B3 F4 B4",
    ]


def test_a_short_batch_has_fewer_live() -> None:
    assert drawn(orders((4, 3, 1), 2, names(3))) == ["F0 F1 B0 B1"] * 2 + ["F0 B0 F1 B1"]


def test_two_stages_of_a_device_take_turns_as_in_megatron() -> None:
    """As many micro-batches as there are devices, then the same on the device's next stage."""
    assert with_stages(orders((4, 4, 4, 3), 4, names(4, 2))) == [
        "0F0 0F1 2F0 2F1 0F2 0F3 2F2 2F3 2B0 2B1 0B0 0B1 2B2 2B3 0B2 0B3",
        "1F0 1F1 3F0 3F1 1F2 1F3 3F2 3B0 3F3 3B1 1B0 1B1 3B2 3B3 1B2 1B3",
    ]


def test_inference_runs_forwards_alone() -> None:
    assert drawn(forwards(2, names(2))) == ["F0 F1", "F0 F1"]
    assert with_stages(forwards(3, names(4, 2))) == [
        "0F0 0F1 2F0 2F1 0F2 2F2",
        "1F0 1F1 3F0 3F1 1F2 3F2",
    ]


@pytest.mark.parametrize(
    ("live", "message"),
    [
        (
            (2, 3),
            "stage 1: found 3 micro-batches in flight, expected 1 to 2, at most as",
        ),
        ((2, 0), "stage 1: found 0 micro-batches in flight, expected 1 to 2"),
        ((0, 0), "stage 0: found 0 micro-batches in flight, expected at least 1"),
    ],
)
def test_numbers_with_which_stages_wait_for_each_other_are_refused(
    live: Sequence[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        orders(live, 4, names(2))


@st.composite
def pipelines(draw: st.DrawFn) -> tuple[list[int], list[str]]:
    """Live micro-batches and devices of some stages."""
    live = sorted(draw(st.lists(st.integers(1, 6), min_size=1, max_size=8)), reverse=True)
    return live, names(len(live), draw(st.integers(1, len(live))))


@given(pipelines(), st.integers(1, 9))
def test_every_order_ends_and_keeps_no_more_live_than_it_may(
    pipeline: tuple[list[int], list[str]], m: int
) -> None:
    live, devices = pipeline
    most = [0] * len(live)
    now = [0] * len(live)
    for action in taken(orders(live, m, devices), len(live)):
        now[action.stage] += 1 if action.kind is Kind.FORWARD else -1
        most[action.stage] = max(most[action.stage], now[action.stage])
    assert most == [min(count, m) for count in live]


@given(pipelines(), st.integers(1, 9))
def test_each_stage_does_each_forward_and_backward_once_in_order(
    pipeline: tuple[list[int], list[str]], m: int
) -> None:
    live, devices = pipeline
    for kinds, actions in (
        (list(Kind), orders(live, m, devices)),
        ([Kind.FORWARD], forwards(m, devices)),
    ):
        found = [action for order in actions.values() for action in order]
        assert len(found) == len(kinds) * m * len(live)
        for k in range(len(live)):
            for kind in kinds:
                of_stage = [a.microbatch for a in found if (a.stage, a.kind) == (k, kind)]
                assert of_stage == list(range(m))
        assert all(devices[a.stage] == name for name, order in actions.items() for a in order)


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 12))
def test_inference_ends_though_little_may_wait_between_two_stages(
    num_devices: int, turns: int, m: int
) -> None:
    num_stages = num_devices * turns
    actions = forwards(m, names(num_stages, num_devices))
    assert len(taken(actions, num_stages, CAPACITY)) == m * num_stages


def taken(actions: Orders, num_stages: int, capacity: int = 100) -> list[Action]:
    """All actions in an order in which they can be taken; fails where the devices wait for ever."""
    place = dict.fromkeys(actions, 0)
    done: list[Action] = []
    while any(place[name] < len(order) for name, order in actions.items()):
        ready = [
            name
            for name, order in actions.items()
            if place[name] < len(order)
            and can_be_taken(order[place[name]], set(done), num_stages, capacity)
        ]
        assert ready, "the devices wait for each other"
        name = ready[0]
        done.append(actions[name][place[name]])
        place[name] += 1
    return done


def can_be_taken(action: Action, done: set[Action], num_stages: int, capacity: int) -> bool:
    k, kind, i = action
    if kind is Kind.BACKWARD:
        last = k == num_stages - 1
        return Action(k, Kind.FORWARD, i) in done and (last or Action(k + 1, kind, i) in done)
    waiting = i - sum((k + 1, kind, j) in done for j in range(i))
    has_room = k == num_stages - 1 or waiting < capacity
    return has_room and (k == 0 or Action(k - 1, kind, i) in done)

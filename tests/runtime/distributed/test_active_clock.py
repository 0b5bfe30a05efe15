"""The clock of heartbeats stands while its process is stopped."""

import time

import pytest

from skyfx.runtime.distributed.active_clock import BEAT_S, ActiveClock


def test_a_pause_counts_as_two_beats_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now_s[0])
    clock = ActiveClock()
    now_s[0] = 100.5
    assert clock.active_s(100.0) == 0.5
    now_s[0] = 130.5  # the process was stopped
    assert clock.active_s(100.0) == 0.5 + 2 * BEAT_S
    assert clock.active_s(100.0) == 0.5 + 2 * BEAT_S  # seen once, whoever looks
    now_s[0] = 131.0
    assert clock.active_s(130.5) == 0.5  # a pause that was over before does not count
    assert clock.active_s(100.0, 100.5) == 0.5  # nor one that came after
    assert clock.active_s(100.0, 131.0) == 1.0 + 2 * BEAT_S

"""Skipping random numbers comes to the state that drawing them comes to."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from skyfx.runtime.rng.mt19937 import JUMP, N, advance, distance, holds_normal

BLOCK = 2**20


def seeded(seed: int) -> Tensor:
    return torch.Generator().manual_seed(seed).get_state()


def drawn(state: Tensor, numbers: int) -> Tensor:
    """The state behind so many numbers, by drawing each."""
    generator = torch.Generator()
    generator.set_state(state)
    for start in range(0, numbers, BLOCK):
        size = min(BLOCK, numbers - start)
        torch.empty(size, dtype=torch.int32).random_(generator=generator)
    return generator.get_state()


@given(st.integers(0, 2**63), st.integers(0, 3 * N), st.integers(0, 9 * N))
def test_skipping_is_as_good_as_drawing(seed: int, first: int, second: int) -> None:
    begin = drawn(seeded(seed), first)
    end = drawn(begin, second)
    assert torch.equal(advance(begin, second), end)
    assert distance(begin, end) == second


@pytest.mark.parametrize("first", [0, 1, N // 2, N])
@pytest.mark.parametrize("more", [0, 1, N - 1, 1000 * N + 7])
def test_so_is_jumping(first: int, more: int) -> None:
    begin, numbers = drawn(seeded(3), first), JUMP * N + more
    end = drawn(begin, numbers)
    assert torch.equal(advance(begin, numbers), end)
    assert distance(begin, end) == numbers


def test_two_jumps_are_one() -> None:
    far, further = 10**12 + 1, 3 * 10**12 + 5
    twice = advance(advance(seeded(4), far), further)
    assert torch.equal(twice, advance(seeded(4), far + further))


def test_no_numbers_lie_between_unrelated_states() -> None:
    assert distance(seeded(1), seeded(2)) is None
    assert distance(drawn(seeded(1), 5), drawn(seeded(1), 3)) is None


def test_a_normal_number_in_a_state_is_seen_and_kept() -> None:
    generator = torch.Generator().manual_seed(5)
    assert not holds_normal(generator.get_state())
    torch.randn(1, generator=generator)
    state = generator.get_state()
    assert holds_normal(state)
    assert holds_normal(advance(state, 1000))
    torch.randn(1, generator=generator)
    assert not holds_normal(generator.get_state())

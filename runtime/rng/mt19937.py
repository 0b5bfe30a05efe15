"""torch's generator on a CPU, the Mersenne Twister MT19937, advanced without drawing.

    words     w0 w1 ... w623 | w624 ... w1247 | ...           a state has one block of 624 of them
    twisted   a block follows from the one before it, in a tenth of a nanosecond per word
    jumped    w[n + j] = the sum, without carry, of w[i + j] for all i in the polynomial t^n, modulo
              the twister's own of degree 19937: under a millisecond, however far (Haramoto et al.,
              "Efficient jump ahead for F2-linear random number generators", 2008)

Drawing a number takes some nanoseconds, and a dropout draws up to two per element: too long for
all numbers that the other stages of a large model draw.

A state from `torch.Generator.get_state` may also hold a normally distributed number: small
operators make two at a time and leave one for the next operator.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit
from torch import Tensor

N, M, DEGREE = 624, 397, 19937
MATRIX = 0x9908B0DF

BITS, ONE = 64, np.uint64(1)
LONG = DEGREE // BITS + 1
"""64-bit words of a polynomial."""

JUMP = 4096
"""From this number of blocks on, jumping is faster than twisting."""

FAR = 2**24
"""Blocks after which the search for a state ends: ten thousand million numbers."""

_STATE = np.dtype(
    [
        ("seed", "u8"),
        ("left", "i4"),
        ("seeded", "i4"),
        ("next", "u8"),
        ("words", "u8", N),
        ("normals", "f8", 3),
        ("holds_double", "i4"),
        ("unused", "i4"),
        ("normal", "f4"),
        ("holds_float", "u4"),
    ]
)
"""The layout of a state in torch."""


def advance(state: Tensor, numbers: int) -> Tensor:
    """The state after this many 32-bit numbers."""
    found = state.clone()
    view = found.numpy().view(_STATE)
    if numbers:
        blocks, place = divmod(_drawn(view) + numbers - 1, N)
        words = view["words"][0].astype(np.uint32)
        if numbers >= JUMP * N:  # by whole blocks: one power, wherever in its block it begins
            words = _jumped(words, _power(numbers // N * N - 1))
            blocks -= numbers // N
        _twist(words, blocks)
        view["words"], view["left"], view["next"] = words, N - place, place + 1
    return found


def distance(before: Tensor, after: Tensor) -> int | None:
    """The 32-bit numbers between two states; None where `before` does not lead to `after`."""
    first, second = (state.numpy().view(_STATE) for state in (before, after))
    words = [view["words"][0].astype(np.uint32) for view in (first, second)]
    numbers = _blocks_between(words[0], words[1], FAR) * N + _drawn(second) - _drawn(first)
    return None if numbers < 0 else int(numbers)


def holds_normal(state: Tensor) -> bool:
    """Whether the state holds a normally distributed number."""
    view = state.numpy().view(_STATE)
    return bool(view["holds_double"][0] or view["holds_float"][0] & 1)


def _drawn(view: Any) -> int:
    """The number of words of the block that are drawn; the first block of a seed never is."""
    return N + 1 - int(view["left"][0])


@njit(cache=True, nogil=True)
def _twist(words: Any, blocks: int) -> None:
    """Replace a block, in place, by the one that comes `blocks` later."""
    upper, lower = np.uint32(1 << 31), np.uint32((1 << 31) - 1)
    for _ in range(blocks):
        for i in range(N - M):
            y = (words[i] & upper) | (words[i + 1] & lower)
            words[i] = words[i + M] ^ (y >> np.uint32(1)) ^ ((y & np.uint32(1)) * np.uint32(MATRIX))
        for i in range(N - M, N - 1):
            y = (words[i] & upper) | (words[i + 1] & lower)
            words[i] = (
                words[i + M - N] ^ (y >> np.uint32(1)) ^ ((y & np.uint32(1)) * np.uint32(MATRIX))
            )
        y = (words[N - 1] & upper) | (words[0] & lower)
        words[N - 1] = words[M - 1] ^ (y >> np.uint32(1)) ^ ((y & np.uint32(1)) * np.uint32(MATRIX))


@njit(cache=True, nogil=True)
def _blocks_between(words: Any, later: Any, at_most: int) -> int:
    """The number of twists from one block to the other; negative if more than `at_most`."""
    for blocks in range(at_most + 1):
        if words[0] == later[0] and (words == later).all():
            return blocks
        _twist(words, 1)
    return -1 - at_most


@njit(cache=True, nogil=True)
def _jumped(words: Any, power: Any) -> Any:
    """The words from w[n + 1] on, by the polynomial t^n.

    They do not begin at w[n]: the twister uses only the first bit of w[0].
    """
    row, found = np.empty(DEGREE + 2 * N, dtype=np.uint32), np.zeros(N, dtype=np.uint32)
    for start in range(0, DEGREE + N + 1, N):
        row[start : start + N] = words
        _twist(words, 1)
    for i in range(DEGREE):
        if (power[i // BITS] >> np.uint64(i % BITS)) & ONE:
            for j in range(N):
                found[j] ^= row[i + 1 + j]
    return found


@lru_cache(maxsize=256)
def _power(n: int) -> Any:
    """The polynomial t^n modulo the twister's own, one bit per coefficient."""
    own = np.frombuffer(_own_polynomial().to_bytes(LONG * 8, "little"), dtype="<u8")
    found = np.zeros(LONG, dtype=np.uint64)
    found[0] = 1
    for bit in f"{n:b}":
        found = _squared(found, own, bit == "1")
    return found


def _own_polynomial() -> int:
    """The twister's characteristic polynomial (Matsumoto and Nishimura, 1998), as bits."""
    inner = 1
    for i in range(31):
        inner = inner << (N - 1) ^ inner << (M - 1) ^ (MATRIX >> i & 1)
    return inner << N ^ inner << M ^ MATRIX >> 31


@njit(cache=True, nogil=True)
def _squared(power: Any, own: Any, times_t: bool) -> Any:
    """The square of a polynomial, times t if `times_t`, modulo another."""
    wide = np.zeros(2 * LONG + 1, dtype=np.uint64)
    for i in range(DEGREE):  # the square of a sum without carry is the sum of the squares
        if (power[i // BITS] >> np.uint64(i % BITS)) & ONE:
            k = 2 * i + times_t
            wide[k // BITS] |= ONE << np.uint64(k % BITS)
    for k in range(2 * DEGREE, DEGREE - 1, -1):
        if (wide[k // BITS] >> np.uint64(k % BITS)) & ONE:
            start, shift = (k - DEGREE) // BITS, np.uint64((k - DEGREE) % BITS)
            for i in range(LONG):
                wide[start + i] ^= own[i] << shift
                if shift:
                    wide[start + i + 1] ^= own[i] >> (np.uint64(BITS) - shift)
    return wide[:LONG]

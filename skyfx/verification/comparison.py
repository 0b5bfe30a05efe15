"""What the stages do otherwise than plain torch: one walk through all that both gave and left."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from skyfx.runtime.state.contents import NO_VALUES, equal

Contents = Mapping[str, Mapping[str, Any]]
"""What a run gave and left, by kind and name."""

STATE, GENERATORS, OUTPUTS = "buffers and attributes", "generators", "outputs"
CALLS, INPUTS = "calls of hooks", "inputs that forward writes to"
UNREGISTERED = "gradients of modules that are not registered"
VALUES, GRADIENTS, FLOWING = "values between stages", "gradients", "gradients between stages"


@dataclass(frozen=True, slots=True)
class ComparedKind:
    """A kind of contents.

    Attributes:
        says: what it means where one of them differs, with its `name` and by how much, `off`.
        cure: what to do then.
        floor: a number so small beside the largest one of all of this kind is rounding.
    """

    says: str
    cure: str
    floor: float = 0.0


_GRADIENT = (
    "forward has gradients of its own, or switches them, and a captured graph does not. Put these "
    "lines into a submodule of their own, or write them with torch's operators"
)
_STAGE = (
    "The stage's device computes otherwise than plain torch, or this is a fault of skyfx. Try "
    "another device for these nodes (pins=), and report it"
)
BUFFER = (
    "Plain torch writes this buffer otherwise than the stages, such as by a checkpoint, which runs "
    "in part again in backward. Keep what writes it out of the checkpoint, or put it into eval mode"
)
_FLOOR = 1e-6

KINDS = {
    STATE: ComparedKind(
        "forward changes {name!r}",
        "stages do not keep such an object. Keep the tensor or the number that it is made of on "
        "the attribute, write that to a buffer in place, or return it; remove hooks that collect",
    ),
    CALLS: ComparedKind(
        "forward hooks are called otherwise",
        "This is a fault of skyfx. Take the hooks out, and report it",
    ),
    GENERATORS: ComparedKind(
        "forward leaves {name}'s generator in another state",
        "forward seeds a generator, or sets its state back. Draw such numbers once, and keep them "
        "in a buffer",
    ),
    OUTPUTS: ComparedKind(
        "output {name} differs by {off:.0e} of its largest number",
        "forward reads what the stages do not have, such as a seed, a generator of its own or "
        "numbers from outside torch. Pass it in as an input, or draw from torch's default "
        "generator",
    ),
    INPUTS: ComparedKind(
        "forward writes to input {name}, which its caller would not have",
        "The stage that writes has a copy. Write to a clone, and return it if it is needed",
    ),
    VALUES: ComparedKind("{name} differs by {off:.0e} of its largest number", _STAGE),
    UNREGISTERED: ComparedKind(
        "{name!r} belongs to a module that is not registered, and has another gradient",
        "No stage owns its parameters. Keep modules in an nn.ModuleList or nn.ModuleDict",
    ),
    GRADIENTS: ComparedKind("{name!r} has another gradient", _GRADIENT, _FLOOR),
    FLOWING: ComparedKind("{name} has another gradient", _STAGE, _FLOOR),
}
"""The most telling first."""


@dataclass(frozen=True, slots=True)
class Deviation:
    """One thing that differs: what it is, what plain torch has, what the stages have, the cure.

    Attributes:
        cure: what to do.
        place: the line of the model that does it, if known.
    """

    kind: str
    name: str
    what: str
    plain: str
    staged: str
    cure: str
    place: str = ""

    def __str__(self) -> str:
        both = f"(plain torch: {self.plain}, stages: {self.staged})"
        return f"{self.what} {both}{self.place}.\n{self.cure}"

    def at(self, line: str) -> "Deviation":
        """The same with the line of the model, ` at FILE:LINE` or empty."""
        return replace(self, place=line)

    def of_buffer(self) -> "Deviation":
        """The same with the cure for a buffer."""
        return replace(self, cure=BUFFER)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two runs of the same micro-batch have in common, and what not.

    Attributes:
        names: of the tensors that were compared, by kind.
        largest: their largest difference that is still rounding, in parts of the largest number.
        where: which tensor has that.
        deviations: all that differs by more, the most telling first.
    """

    names: Mapping[str, Sequence[str]]
    largest: float
    where: str
    deviations: Sequence[Deviation]


def compare(plain: Contents, staged: Contents, tolerance: float) -> Comparison:
    """Hold what the stages gave and left against what plain torch did.

    Args:
        plain: all of it.
        staged: what other processes have is missing, or `NO_VALUES`.
        tolerance: how far two tensors may differ, in parts of the largest number.
    """
    names: dict[str, list[str]] = {}
    largest, where = 0.0, ""
    deviations = []
    for kind in KINDS:
        ours, theirs = staged.get(kind, {}), plain.get(kind, {})
        floor = _Floor(KINDS[kind].floor, theirs)
        for name in dict.fromkeys((*theirs, *ours)) if ours else ():
            expected, found = theirs.get(name), ours.get(name)
            off = difference(expected, found)
            if off > tolerance and not floor.covers(expected, found, off):
                what = KINDS[kind].says.format(name=name, off=off)
                has, gets = map(_said, _innermost(expected, found))
                deviations.append(Deviation(kind, name, what, has, gets, KINDS[kind].cure))
            elif isinstance(expected, Tensor) and not is_elsewhere(found):
                names.setdefault(kind, []).append(name)
                if tolerance >= off > largest:
                    largest, where = off, f"{kind}: {name}"
    return Comparison(names, largest, where, deviations)


class _Floor:
    """The size of numbers that are rounding beside the largest one of a kind."""

    def __init__(self, share: float, contents: Mapping[str, Any]) -> None:
        self._share, self._contents = share, contents

    @cached_property
    def _size(self) -> float:
        sizes = (_largest(x) for x in self._contents.values() if _is_rounded(x))
        return self._share * max(sizes, default=0.0)

    def covers(self, expected: Any, found: Any, off: float) -> bool:
        """Whether two contents that differ are both so small, or differ by so little."""
        known = [x for x in (expected, found) if x is not None]
        if not self._share or not known or not all(map(_is_rounded, known)):
            return False
        if len(known) == 1:
            return _largest(known[0]) <= self._size
        return off * _largest(expected) <= self._size


def difference(expected: Any, found: Any) -> float:
    """How far two contents are apart, in parts of a tensor's largest number; 0 where equal.

    Infinite where they differ in more than their numbers.
    """
    if is_elsewhere(found) or is_elsewhere(expected):
        return 0.0
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        return max(map(difference, expected, found), default=0.0)
    if isinstance(expected, dict) and isinstance(found, dict) and expected.keys() == found.keys():
        return max((difference(expected[k], found[k]) for k in expected), default=0.0)
    if _is_rounded(expected) and _is_rounded(found):
        same_form = (expected.shape, expected.dtype) == (found.shape, found.dtype)
        return distance(expected, found) if same_form else float("inf")
    if isinstance(expected, float) and isinstance(found, float):
        return distance(*(torch.tensor(x, dtype=torch.float64) for x in (expected, found)))
    return 0.0 if equal(expected, found) else float("inf")


def is_elsewhere(value: Any) -> bool:
    """Whether another process has the value, and compares it."""
    return isinstance(value, str) and value == NO_VALUES


def distance(expected: Tensor, found: Tensor) -> float:
    """The largest difference in parts of the largest number; infinite where only one is finite."""
    if not _is_rounded(expected) or not expected.numel():
        return 0.0
    one, other = expected.detach().cpu(), found.detach().cpu()
    if torch.equal(one, other):  # as stages on CPUs are nearly always
        return 0.0
    one, other = _numbers(one), _numbers(other)
    is_finite = one.isfinite()
    if not torch.equal(is_finite, other.isfinite()):
        return float("inf")
    if not is_finite.any():
        return 0.0
    off = float((one - other)[is_finite].abs().max())
    return off / (_largest(one) or 1.0)


def _is_rounded(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def _numbers(x: Tensor) -> Tensor:
    return (torch.view_as_real(x) if x.is_complex() else x).double()


def _largest(x: Tensor) -> float:
    """The largest finite number."""
    x = _numbers(x)
    finite = x[x.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def _innermost(expected: Any, found: Any) -> tuple[Any, Any]:
    """The first entries of two containers that differ; other contents themselves."""
    pairs: list[tuple[Any, Any]] = []
    if isinstance(expected, dict) and isinstance(found, dict):
        pairs = [(expected.get(key), found.get(key)) for key in {**expected, **found}]
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        pairs = list(zip(expected, found, strict=True))
    return next((_innermost(*pair) for pair in pairs if difference(*pair)), (expected, found))


def _said(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, Tensor):
        norm = f" and norm {float(_numbers(value).norm()):.4g}" if _is_rounded(value) else ""
        return f"a tensor of shape {tuple(value.shape)}{norm}"
    if isinstance(value, list | dict):
        return f"{len(value)} entr{'y' if len(value) == 1 else 'ies'}"
    if isinstance(value, bytes | tuple):  # of a generator
        return f"state {zlib.crc32(repr(value).encode()):08x}"
    return f"{value!r:.40}"

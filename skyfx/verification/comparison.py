"""What the stages do otherwise than the model."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from skyfx.runtime.contents import NO_VALUES, equal
from skyfx.verification.observation import Observation

PRECISION = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""How far two runs may differ by rounding, in parts of a tensor's largest number, by type."""

FLOOR = 1e-6
"""A gradient so small beside the largest one of all is rounding."""

ATTRIBUTE = (
    "stages do not keep what forward leaves on Python objects. Keep it in a buffer that forward "
    "writes in place, or return it; remove hooks that collect"
)
OUTPUT = (
    "forward reads what the stages do not have, such as a seed, a generator of its own or numbers "
    "from outside torch. Pass it in as an input, or draw from torch's default generator"
)
GRADIENT = (
    "forward has gradients of its own, or switches them, and a captured graph does not. Put these "
    "lines into a submodule of their own, or write them with torch's operators"
)
DRAWS = (
    "forward seeds a generator, or sets its state back. Draw such numbers once, and keep them in a "
    "buffer"
)


@dataclass(frozen=True, slots=True)
class Deviation:
    """One thing that differs: what it is, what plain torch has, what the stages have, the cure."""

    what: str
    plain: str
    staged: str
    cure: str

    def __str__(self) -> str:
        return f"{self.what} (plain torch: {self.plain}, stages: {self.staged}).\n{self.cure}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two observations of the same micro-batch.

    Attributes:
        plain: the model in plain torch.
        staged: its stages, as far as they are in this process.
        tolerance: in parts of a tensor's largest number.
        same_draws: whether both have drawn the same random numbers; else it is only compared which
            attributes have changed.
        settled: attributes that the model assigns once, and no stage does.
    """

    plain: Observation
    staged: Observation
    tolerance: float
    same_draws: bool
    settled: frozenset[str] = frozenset()

    def differences(self) -> Iterator[Deviation]:
        """All that differs, the most telling first."""
        yield from self._of_attributes()
        if self.same_draws:
            yield from self._of_generators()
            yield from self._of_outputs()
            yield from self._of_gradients()

    def largest(self) -> float:
        """The largest difference of outputs and gradients, in parts of the largest number."""
        pairs = list(zip(self.plain.outputs, self.staged.outputs, strict=False))
        for name, found in self.staged.gradients.items():
            expected = self.plain.gradients.get(name)
            if expected is not None and found is not None:
                pairs.append((expected, found))
        return max((distance(*pair) for pair in pairs), default=0.0)

    def _of_attributes(self) -> Iterator[Deviation]:
        before, then = self.plain.before.values, self.plain.after.values
        for name in dict.fromkeys((*then, *self.staged.after.values)):
            if name in self.settled:
                continue
            expected, found = then.get(name), self.staged.after.values.get(name)
            if self.same_draws:
                is_same = self._same(expected, found)
            else:  # changed, or not, by both
                was = before.get(name)
                is_same = equal(was, expected) == equal(was, found)
            if not is_same:
                what = f"forward changes {name!r}"
                yield Deviation(what, _said(expected), _said(found), ATTRIBUTE)

    def _of_generators(self) -> Iterator[Deviation]:
        # Draws from Python's and numpy's generators are refused when the model is captured.
        if self.staged.after.generators["torch"] != self.plain.after.generators["torch"]:
            what = "forward leaves torch's generator in another state"
            yield Deviation(what, "its own", "another", DRAWS)

    def _of_outputs(self) -> Iterator[Deviation]:
        if not self.staged.outputs:
            return  # another process has them
        pairs = zip(self.plain.outputs, self.staged.outputs, strict=True)
        for i, (expected, found) in enumerate(pairs):
            if not self._same(expected, found):
                what = (
                    f"output {i} differs by {distance(expected, found):.0e} of its largest number"
                )
                yield Deviation(what, _said(expected), _said(found), OUTPUT)

    def _of_gradients(self) -> Iterator[Deviation]:
        sizes = [_largest(x) for x in self.plain.gradients.values() if x is not None]
        floor = FLOOR * max(sizes, default=0.0)
        for name, found in self.staged.gradients.items():
            expected = self.plain.gradients.get(name)
            known = [x for x in (expected, found) if x is not None]
            if len(known) == 1:
                is_same = _largest(known[0]) <= floor
            else:
                is_same = self._same(expected, found, floor)
            if not is_same:
                what = f"{name!r} has another gradient"
                yield Deviation(what, _said(expected), _said(found), GRADIENT)

    def _same(self, expected: Any, found: Any, floor: float = 0.0) -> bool:
        """Whether two contents are equal but for rounding."""
        if isinstance(expected, list) and isinstance(found, list):
            return len(expected) == len(found) and all(map(self._same, expected, found))
        if isinstance(expected, dict) and isinstance(found, dict):
            same_keys = expected.keys() == found.keys()
            return same_keys and all(self._same(expected[k], found[k]) for k in expected)
        if isinstance(found, str) and found == NO_VALUES:
            return True  # another process compares it
        if not (_is_real(expected) and _is_real(found)):
            return equal(expected, found)
        if (expected.shape, expected.dtype) != (found.shape, found.dtype):
            return False
        off = distance(expected, found)
        return off <= self.tolerance or off * _largest(expected) <= floor


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _largest(x: Tensor) -> float:
    """The largest finite number."""
    finite = x[x.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def distance(expected: Tensor, found: Tensor) -> float:
    """The largest difference in parts of the largest number; infinite where only one is finite."""
    if not _is_real(expected) or not expected.numel():
        return 0.0
    one, other = expected.detach().cpu().double(), found.detach().cpu().double()
    is_finite = one.isfinite()
    if not torch.equal(is_finite, other.isfinite()):
        return float("inf")
    if not is_finite.any():
        return 0.0
    off = float((one - other)[is_finite].abs().max())
    return off / (_largest(one) or 1.0)


def _said(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, Tensor):
        norm = f" and norm {float(value.double().norm()):.4g}" if _is_real(value) else ""
        return f"a tensor of shape {tuple(value.shape)}{norm}"
    if isinstance(value, list | dict):
        return f"{len(value)} entries"
    return f"{value!r:.40}"

"""What plain torch does, micro-batch by micro-batch, and how a pipeline's step differs from it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from benchmarks.coverage.tiny_models import Subject, seed
from skyfx.runtime.batches.microbatch import OutputSpec
from skyfx.runtime.batches.output_joins import OutputJoin
from skyfx.runtime.model_state import ModelState, equal
from skyfx.runtime.pipeline import Pipeline
from skyfx.tracing.adapter import has_cache

__all__: list[str] = ["Differences", "PlainModel", "Step", "mixes_samples"]

CLOSE = 1e-6
"""How far a gradient may be off, relative to its norm."""

LATER = 1e-5
"""How far an output may be off after a step of the optimizer, relative to its largest number."""

ROUNDING = 1e-4
"""What is off by more is no rounding error."""

NEGLIGIBLE = 1e-4
"""Gradients this much smaller than the model's largest are rounding errors of others."""

RATE = 1e-2
"""Of the optimizer's step."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one batch gave and left."""

    outputs: Sequence[Tensor]
    gradients: dict[str, Tensor]
    changed: dict[str, Any]
    """Buffers and attributes of modules that are not as before."""
    made: frozenset[str] = frozenset()
    """Attributes that were not there before: a table that is made once may be made again."""
    is_later: bool = False
    """Whether an optimizer has stepped before."""

    @classmethod
    def of_inference(cls, pipeline: Pipeline, batch: Any, num: int, k: int) -> "Step":
        """Call `k` of the pipeline; part by part where outputs have no dimension of samples."""
        seed(k)
        try:
            outputs = OutputSpec.of(pipeline(batch))[1]
        except ValueError as error:
            if "no batch dimension to be joined along" not in str(error):
                raise
            parts = split(batch, num)
            seed(k)
            outputs = joined([OutputSpec.of(pipeline(x))[1] for x, _ in parts], sizes(parts))
        return cls(outputs, {}, {})

    @classmethod
    def of_training(
        cls, model: nn.Module, k: int, sizes: Sequence[int], step: Callable[[Any], Any]
    ) -> "Step":
        """Step `k` by a function of the loss, and one of the optimizer."""
        seed(k)
        before, parts = ModelState.of(model), []

        def loss_fn(outputs: Any, _: Any) -> Tensor:
            parts.append([x.detach().clone() for x in OutputSpec.of(outputs)[1]])
            return loss(outputs)

        step(loss_fn)
        after = ModelState.of(model).values
        changed = {
            name: after.get(name)
            for name in {*before.values, *after}
            if not equal(before.values.get(name), after.get(name))
        }
        gradients = {
            n: p.grad.to_dense().clone() for n, p in model.named_parameters() if p.grad is not None
        }
        torch.optim.SGD(model.parameters(), lr=RATE).step()
        model.zero_grad()
        made = frozenset(name for name in changed if before.values.get(name) is None)
        return cls(joined(parts, sizes), gradients, changed, made, k > 0)


class PlainModel:
    """The model of a subject, run by plain torch."""

    def __init__(self, subject: Subject, *, dropout: bool = True) -> None:
        self.model = subject.model(dropout=dropout)

    def take(self, other: nn.Module) -> None:
        """Take the values of another's parameters, where making the model twice makes others."""
        with torch.no_grad():
            for ours, theirs in zip(self.model.parameters(), other.parameters(), strict=True):
                if type(ours.data) is Tensor and not torch.equal(ours, theirs):
                    ours.copy_(theirs)

    def run(self, batch: Any, num: int, mode: str, k: int) -> Step:
        """One batch, or one step."""
        if mode == "inference":
            return self.infer(batch, num, k)
        return self.train_step(batch, num, k)

    def infer(self, batch: Any, num: int, k: int = 0) -> Step:
        """In eval mode and without gradients."""
        self.model.eval()
        seed(k)
        with torch.no_grad():
            parts = split(batch, num)
            outputs = [OutputSpec.of(self.call(part))[1] for part, _ in parts]
        return Step(joined(outputs, sizes(parts)), {}, {})

    def train_step(self, batch: Any, num: int, k: int) -> Step:
        """In training mode: all micro-batches, and one step of the optimizer."""
        self.model.train()
        parts = split(batch, num)

        def step(loss_fn: Callable[[Any, Any], Tensor]) -> None:
            for part, share in parts:
                (loss_fn(self.call(part), None) * share).backward()

        return Step.of_training(self.model, k, sizes(parts), step)

    def call(self, batch: Any) -> Any:
        """As a pipeline does: without storing keys and values for another call."""
        more = {"use_cache": False} if has_cache(self.model) else {}
        batch = tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, batch)
        if isinstance(batch, dict):
            return self.model(**(more | batch))
        return self.model(*(batch if isinstance(batch, tuple) else (batch,)), **more)


@dataclass(frozen=True, slots=True)
class Differences:
    """Between two steps: that of a pipeline, and what is expected."""

    found: Step
    expected: Step

    def worst(self) -> tuple[str, str]:
        """Right, rounding or wrong; and what differs."""
        names = self.of_names() or self.of_values()
        outputs, gradients = self.of_outputs(), self.of_gradients()
        if names or outputs > ROUNDING or gradients > ROUNDING:
            return "wrong", names or _numbers(outputs, gradients)
        allowed = LATER if self.expected.is_later else 0.0
        if outputs > allowed or gradients > CLOSE:
            return "rounding", _numbers(outputs, gradients)
        return "right", ""

    def of_names(self) -> str:
        """What is there on one side only, or has another form."""
        found, expected = self.found, self.expected
        shapes = [[tuple(x.shape) for x in one.outputs] for one in (found, expected)]
        if shapes[0] != shapes[1]:
            return f"outputs of shapes {shapes[0]}, plain torch: {shapes[1]}"
        if found.gradients.keys() != expected.gradients.keys():
            one = min(found.gradients.keys() ^ expected.gradients.keys())
            where = "the pipeline" if one in found.gradients else "plain torch"
            return f"{one} has a gradient in {where} only"
        unlike = (found.changed.keys() ^ expected.changed.keys()) - expected.made
        if unlike:
            one = min(unlike)
            where = "the pipeline" if one in found.changed else "plain torch"
            return f"{one} is changed in {where} only"
        return ""

    def of_values(self) -> str:
        """The buffer or attribute that both change, but not to the same."""
        found, expected = self.found, self.expected
        for name, value in expected.changed.items():
            if name in found.changed and not _close(found.changed[name], value):
                return f"{name} is changed to something else"
        return ""

    def of_outputs(self) -> float:
        """The largest difference, relative to the largest number of an output."""
        same = [x.shape for x in self.found.outputs] == [x.shape for x in self.expected.outputs]
        pairs = zip(self.found.outputs, self.expected.outputs, strict=True)
        return max((_error(*pair) for pair in pairs), default=0.0) if same else float("inf")

    def of_gradients(self) -> float:
        """The largest relative error of a gradient, by its norm."""
        expected, found = self.expected.gradients, self.found.gradients
        sizes = {n: float(x.norm()) for n, x in expected.items()}
        least = NEGLIGIBLE * max(sizes.values(), default=0.0)
        return max(
            (
                0.0
                if _same(found[n], x)
                else float((found[n] - x).norm()) / max(sizes[n], least, 1e-30)
                for n, x in expected.items()
                if n in found
            ),
            default=0.0,
        )


def mixes_samples(subject: Subject, num: int) -> str:
    """Why plain torch cannot do a batch in micro-batches either; empty if it can."""
    plain, batch = PlainModel(subject), subject.batch(0)
    whole = plain.infer(batch, 1)
    try:
        parts = plain.infer(batch, num)
    except Exception as error:
        return f"plain torch fails on a micro-batch: {str(error).splitlines()[:1]}"
    differences = Differences(parts, whole)
    off = differences.of_outputs()
    return differences.of_names() or (f"samples mix: {off:.0e}" if off > ROUNDING else "")


def split(batch: Any, num: int) -> list[tuple[Any, float]]:
    """Micro-batches, and their parts of the batch: of tensors as long as the first one."""
    total = _length(batch)
    size = -(-total // num)

    def part(start: int) -> Any:
        def cut(x: Any) -> Any:
            is_cut = num > 1 and isinstance(x, Tensor) and x.ndim and x.shape[0] == total
            return x[start : start + size] if is_cut else x

        return tree_map(cut, batch)

    return [(part(start), min(size, total - start) / total) for start in range(0, total, size)]


def sizes(parts: Sequence[tuple[Any, float]]) -> list[int]:
    """The number of samples of each micro-batch."""
    return [_length(part) for part, _ in parts]


def _length(batch: Any) -> int:
    return next(x.shape[0] for x in tree_flatten(batch)[0] if isinstance(x, Tensor) and x.ndim)


def joined(parts: Sequence[Sequence[Tensor]], sizes: Sequence[int]) -> list[Tensor]:
    """The outputs of all micro-batches, of so many samples each."""
    return [_joined([x.detach() for x in pieces], sizes) for pieces in zip(*parts, strict=True)]


def _joined(pieces: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    pairs = list(zip(pieces, sizes, strict=True))
    dims = [d for d in range(pieces[0].ndim) if all(x.shape[d] == size for x, size in pairs)]
    if 0 in dims:
        return torch.cat(list(pieces))
    if all(torch.equal(x, pieces[0]) for x in pieces[1:]):
        return pieces[0]
    if pieces[0].numel() == 1 and pieces[0].is_floating_point():  # a loss beside outputs
        return OutputJoin(None)(pieces, sizes)
    if dims:  # as the state of an LSTM has samples
        return torch.cat(list(pieces), dims[0])
    return torch.cat([x.flatten() for x in pieces])


def loss(outputs: Any) -> Tensor:
    """A number in which every output has a weight of its own."""
    total = torch.zeros(())
    for x in OutputSpec.of(outputs)[1]:
        if x.requires_grad:
            weights = torch.arange(x.numel(), dtype=torch.float32).cos().view(x.shape)
            real = torch.view_as_real(x).sum(-1) if x.is_complex() else x
            total = total + (real.float() * weights).sum() / x.numel() ** 0.5
    return total


def _numbers(outputs: float, gradients: float) -> str:
    return f"outputs differ by {outputs:.1e}, gradients by {gradients:.1e}"


def _close(found: Any, expected: Any) -> bool:
    if isinstance(found, Tensor) and isinstance(expected, Tensor):
        return found.shape == expected.shape and _error(found, expected) <= LATER
    if isinstance(found, list) and isinstance(expected, list):
        return len(found) == len(expected) and all(map(_close, found, expected))
    if isinstance(found, dict) and isinstance(expected, dict):
        same = found.keys() == expected.keys()
        return same and all(_close(found[key], expected[key]) for key in found)
    return isinstance(found, frozenset) or equal(found, expected)


def _error(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value; 0.0 if every bit is equal."""
    if found.dtype != expected.dtype:
        return float("inf")
    if _same(found, expected):
        return 0.0
    wide = torch.complex128 if found.is_complex() else torch.float64
    one, other = found.to(wide), expected.to(wide)
    return float((one - other).abs().max() / other.abs().max().clamp(min=1e-30)) or 1e-30


def _same(found: Tensor, expected: Tensor) -> bool:
    """Equal in every bit, or not a number at the same places."""
    if not found.is_floating_point():
        return torch.equal(found, expected)
    numbers = torch.equal(found.nan_to_num(), expected.nan_to_num())
    return numbers and torch.equal(found.isnan(), expected.isnan())

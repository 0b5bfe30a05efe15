"""Cuts batches and targets into micro-batches, all of a pipeline by the same rule."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy

from skyfx.runtime.batches.batch_dims import BatchDims, Dim
from skyfx.runtime.batches.microbatch import Batch
from skyfx.runtime.batches.output_joins import OutputJoins

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class BatchCutter:
    """The rule of a pipeline, which learns where the samples of new arguments are.

    Attributes:
        rule: where the samples of a batch are.
        size: the samples of a micro-batch; None: nothing is cut.
        joins: how outputs are joined.
        targets: where the samples of the targets are; None: dimension 0, or one of the inputs'.
    """

    rule: BatchDims
    size: int | None
    joins: OutputJoins = field(default_factory=OutputJoins)
    targets: BatchDims | None = None

    def placed(self, batch: Batch) -> Batch:
        """The batch with its samples where the rule has them.

        Raises:
            ValueError: it contradicts the rule.
        """
        if self.size is None:
            return batch
        rule = self.rule.extended(batch.named_leaves)
        placed = batch.placed(rule)
        self.rule = rule
        return placed

    def parts(self, batch: Batch) -> list[Batch]:
        """The micro-batches of a batch; raises as `placed`."""
        return [batch] if self.size is None else self.placed(batch).split(self.size)

    def target_parts(self, targets: Any, parts: Sequence[Batch]) -> list[Batch]:
        """The targets of each micro-batch.

        Raises:
            ValueError: there is not a target for each sample, or it is not clear where they are.
        """
        whole = Batch.of_targets(targets)
        is_asked = self.targets is not None and bool(self.targets.asked)
        num_samples = sum(part.batch_size for part in parts)
        has_samples = any(x.ndim for x in whole.tensors) or is_asked
        has_samples |= BatchDims.of_targets(None).has_entries(whole.named_leaves, num_samples)
        if self.size is None:
            return [whole] * len(parts)
        if any(
            isinstance(x, numpy.ndarray) and x.shape[:1] == (num_samples,) for x in whole.leaves
        ):
            raise ValueError(
                "the targets hold an array of numpy, which no micro-batch would have its part of: "
                "give a tensor (torch.as_tensor)"
            )
        if not has_samples:
            return [whole] * len(parts)
        rule = self._extended(whole, num_samples)
        placed = whole.placed(rule)
        if placed.batch_size != num_samples:
            raise ValueError(
                f"the batch holds {num_samples} samples, but the targets hold {placed.batch_size}: "
                "give a target for each sample"
            )
        self.targets = rule
        return placed.split(self.size)

    def _extended(self, targets: Batch, num_samples: int) -> BatchDims:
        """The rule for targets, with what is new in these."""
        rules = [self.targets] if self.targets else [BatchDims.of_targets(None)]
        if self.targets is None:
            dims = dict.fromkeys(dim for dim in self.dims.values() if isinstance(dim, int))
            rules += [replace(rules[0], default=dim) for dim in dims if dim]
        ways = [rule.extended(targets.named_leaves, num_samples) for rule in rules]
        cutting = [
            way
            for way in ways
            if any(x is not None for x in (*way.found.values(), *way.asked.values()))
        ]
        shapes = " and ".join(str(tuple(x.shape)) for x in targets.tensors[:2])
        if not cutting:
            raise ValueError(
                f"the batch holds {num_samples} samples, but the targets have shape {shapes}: give "
                "a target for each sample"
            )
        if len({tuple(way.found.items()) for way in cutting}) > 1:
            raise ValueError(
                f"the samples of targets of shape {shapes} may be along dimension "
                f"{' or '.join(str(way.default) for way in cutting)}: say which by target_dims"
            )
        return cutting[0]

    def __str__(self) -> str:
        if self.size is None:
            return "batches are not cut"
        cut = ", ".join(f"{name} {_said(dim)}" for name, dim in self.dims.items())
        return f"micro-batches of {self.size} samples: {cut}"

    @property
    def dims(self) -> dict[str, Dim]:
        """By the name of a tensor, a list or an argument, how it is cut."""
        if self.size is None:
            return dict.fromkeys((*self.rule.found, *self.rule.asked))
        return {**self.rule.found, **self.rule.asked}


def _said(dim: Dim) -> str:
    if isinstance(dim, int):
        return f"along dimension {dim}"
    return "whole" if dim is None else "between entries"

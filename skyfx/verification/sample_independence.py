"""Whether a batch may be cut as a rule says: each sample's outputs are its own.

In training mode batch normalisation mixes samples, in plain torch as well. So this is about eval
mode.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from skyfx.runtime.batches.batch_dims import BatchDims, Path
from skyfx.runtime.batches.microbatch import Batch, OutputSpec
from skyfx.runtime.batches.output_joins import OutputJoin, OutputJoins, possible_joins
from skyfx.runtime.model_state import preserve_run
from skyfx.runtime.pytree import flatten_with_paths
from skyfx.tracing.capture import check_returned
from skyfx.tracing.failures import model_line
from skyfx.verification.comparison import distance
from skyfx.verification.observation import plain_outputs
from skyfx.verification.tolerance import rounding

COARSEST = rounding([torch.bfloat16])
"""More than this is no rounding, whatever types the model computes in."""

FEW = 1e-2
"""The share of whole numbers that may differ, as rounding decides between two of them."""


@dataclass(frozen=True, slots=True)
class BatchCut:
    """How batches are cut, and what speaks for it.

    Attributes:
        rule: where the samples are.
        size: of a micro-batch; None: nothing is cut.
        joins: how outputs are joined.
        fault: why a batch cannot be cut so; empty if it can, or if that is not known.
        off: how much outputs of samples together differ from those apart at most, in parts of an
            output's largest number. It may be rounding, if the model computes in such a type.
        doubt: what to say if it does not.
        is_seen: whether the parts of any output have been joined.
    """

    rule: BatchDims
    size: int | None
    joins: OutputJoins = field(default_factory=OutputJoins)
    fault: str = ""
    off: float = 0.0
    doubt: str = ""
    is_seen: bool = False

    @classmethod
    def of(cls, batch: Batch, rule: BatchDims, num_microbatches: int) -> "BatchCut":
        """Into so many micro-batches; with 1, nothing is cut.

        Raises:
            ValueError: the batch contradicts the rule.
        """
        placed = batch.placed(rule)
        size = math.ceil(placed.batch_size / num_microbatches)
        dims = [dim for dim in placed.dims if dim is not None]
        likely = max(sorted(set(dims)), key=dims.count, default=0)
        return cls(rule, size if num_microbatches > 1 else None, OutputJoins(likely))

    @property
    def dims(self) -> set[int]:
        """The dimensions that outputs are joined along."""
        return {join.dim for join in self.joins.seen if join and join.dim is not None}


def samples_apart(model: nn.Module, batch: Batch, cut: BatchCut, *, training: bool) -> BatchCut:
    """Hold two micro-batches together against each alone.

    Args:
        model: in eval mode.
        batch: the example.
        cut: how it is cut.
        training: whether an output may be a loss or a mean, which is not joined.

    Returns:
        The same with what was found.
    """
    assert cut.size is not None
    both = batch.placed(cut.rule).split(2 * cut.size)[0]
    if both.batch_size <= cut.size:
        return cut
    fault, apart = "", told_apart(both)
    for samples in [apart] if apart is both else [apart, both]:
        parts = samples.split(cut.size)
        try:
            form, together = _outputs(model, samples)
            alone = [_outputs(model, part)[1] for part in parts]
        except Exception as error:
            text = (str(error).strip() or repr(error)).splitlines()[0].rstrip(".")
            fault = f"a part of it fails{model_line(error)}: {type(error).__name__}: {text}"
        else:
            check_returned(model, form)
            sizes = [part.batch_size for part in parts]
            return _compared(cut, form.form, together, alone, sizes, training=training)
    return replace(cut, fault=fault)


def told_apart(batch: Batch) -> Batch:
    """The batch, with other values if all its samples are alike, so that mixing them shows."""
    held = [(i, x, d) for i, (x, d) in enumerate(zip(batch.leaves, batch.dims, strict=True))]
    cut = [(i, x, dim) for i, x, dim in held if dim is not None]
    alike = (torch.equal(x, x.narrow(dim, 0, 1).expand_as(x)) for _, x, dim in cut)
    if batch.lists or not all(alike):
        return batch
    has_reals = any(x.is_floating_point() for _, x, _ in cut)
    leaves = list(batch.leaves)
    for i, x, dim in cut:
        if has_reals and x.is_floating_point():
            leaves[i] = x + 0.1 * torch.cos(torch.arange(x.numel()).reshape(x.shape)).to(x)
        elif not has_reals and x.dtype != torch.bool:
            first = (torch.arange(x.shape[dim]) == 0).to(x)
            leaves[i] = x + first.reshape([-1 if d == dim else 1 for d in range(x.ndim)])
    return replace(batch, leaves=tuple(leaves))


def _outputs(model: nn.Module, part: Batch) -> tuple[OutputSpec, Mapping[Path, Tensor]]:
    """What the model returns for a part; the next one begins with the same state."""
    with preserve_run(model):
        form, tensors = plain_outputs(model, part)
    pairs, _ = flatten_with_paths(form.restore(tensors))
    return form, {path: x for path, x in pairs if isinstance(x, Tensor)}


def _compared(
    cut: BatchCut,
    form: str,
    together: Mapping[Path, Tensor],
    alone: Sequence[Mapping[Path, Tensor]],
    sizes: Sequence[int],
    *,
    training: bool,
) -> BatchCut:
    names = " + ".join(map(str, sizes))
    joins: list[OutputJoin | None] = []
    off, doubt, unjoined, is_used = 0.0, "", "", False
    for i, (path, whole) in enumerate(together.items()):
        parts = [outputs[path] for outputs in alone if path in outputs]
        if len(parts) < len(alone):
            unjoined = f"{names} samples have other outputs together than apart"
            joins.append(None)
            continue
        join, differs = _joined(whole, parts, sizes)
        joins.append(join)
        what = f"output {i} of {names} samples together"
        shapes = " and ".join(str(tuple(x.shape)) for x in parts)
        shape = f"{what} has shape {tuple(whole.shape)}, and {shapes} apart"
        if join is None and any(x.shape != whole.shape for x in parts):
            return replace(cut, fault=shape)
        is_used = is_used or join is not None or differs > 0
        if join is None and differs and not (training and whole.numel() == 1):
            unjoined = unjoined or f"{shape}, but not the same: there is nothing to join"
        if join is not None and join.dim is not None and differs > off:
            off = differs
            doubt = f"{what} differs from that apart by {off:.0e} of its largest number"
    is_seen = any(join is not None and join.dim is not None for join in joins)
    if training and is_seen:  # what is not joined may be a loss, or a part of one
        unjoined = ""
    fault = unjoined or (doubt if off > COARSEST else "")
    if not is_used:
        fault = f"no output depends on which of {names} samples are given"
    known = OutputJoins(cut.joins.default, form, tuple(joins))
    return replace(cut, joins=known, fault=fault, off=off, doubt=doubt, is_seen=is_seen)


def _joined(
    whole: Tensor, parts: Sequence[Tensor], sizes: Sequence[int]
) -> tuple[OutputJoin | None, float]:
    """How parts are joined, and how much the result differs from the whole."""
    ways = [(_off(whole, way(parts, sizes)), way) for way in possible_joins(whole, parts, sizes)]
    if ways:
        off, way = min(ways, key=lambda pair: pair[0])
        if way.dim is not None or off <= rounding([whole.dtype]):
            return way, off
    same = [x for x in parts if x.shape == whole.shape]
    return None, max((_off(whole, x) for x in same), default=0.0)


def _off(whole: Tensor, found: Tensor) -> float:
    if whole.is_floating_point() or whole.is_complex():
        return distance(whole, found)
    share = float((whole != found).double().mean()) if whole.numel() else 0.0
    return share if share > FEW else 0.0

"""Where the samples of a batch are: decided once, by what its parts give together and apart.

    rule 1: dimension 0 of x and table    part fails         no
    rule 2: dimension 0 of x              equal to 1e-07     yes: outputs are joined along 0

In training mode batch normalisation mixes samples, in plain torch as well. So this is about eval
mode.
"""

import inspect
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from skyfx.runtime.distributed.process_group import ProcessGroup
from skyfx.runtime.execution.batch_dims import BatchDims
from skyfx.runtime.execution.microbatch import Batch, OutputSpec
from skyfx.runtime.execution.output_joins import OutputJoin, OutputJoins, possible_joins
from skyfx.runtime.model_state import preserve_state
from skyfx.solver.core.plan import Assumptions
from skyfx.solver.errors import VerificationError
from skyfx.tracing.capture import Capture, capture, in_mode, on_one_device
from skyfx.verification.check import tolerance
from skyfx.verification.comparison import PRECISION, distance
from skyfx.verification.observation import plain_outputs

COARSEST = max(PRECISION.values())
"""More than this is no rounding, whatever types the model computes in."""

FEW = 1e-2
"""The share of whole numbers that may differ, as rounding decides between two of them."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CutDecision:
    """How batches are cut, and how sure that is.

    Attributes:
        rule: where the samples are.
        size: of a micro-batch; None: nothing is cut.
        joins: how outputs are joined.
        off: how much samples together differ from each alone, in parts of an output's largest
            number: by rounding, if the model computes in a type as coarse as that.
        doubt: what to say if it does not.
    """

    rule: BatchDims
    size: int | None
    joins: OutputJoins
    off: float = 0.0
    doubt: str = ""


@dataclass(frozen=True, slots=True)
class _Evidence:
    """What two micro-batches give together and apart, if a batch is cut in one way."""

    decision: CutDecision
    fault: str = ""
    has_samples: bool = True


def decide(
    model: nn.Module,
    batch: Batch,
    rule: BatchDims,
    num_microbatches: int,
    *,
    training: bool,
    verify: bool = True,
) -> CutDecision:
    """Decide how the batches of a model are cut.

    Args:
        model: it is as before afterwards.
        batch: the example.
        rule: what the caller says about it.
        num_microbatches: parts to cut the example into; with 1, no batch is ever cut.
        training: whether outputs may be losses, which are not joined.
        verify: whether to run the model; else the likeliest rule is taken.

    Raises:
        ValueError: the example contradicts the rule.
        VerificationError: it cannot be cut.
    """
    leaves = batch.named_leaves
    rules = rule.candidates(leaves)
    if not rules:
        raise ValueError(f"no tensor of the batch has a dimension {rule.default} to be cut along")
    first = _unverified(batch, rules[0], num_microbatches)
    if first.size is None or not verify or batch.placed(first.rule).batch_size <= first.size:
        return first
    if any(x.is_meta for x in (*model.parameters(), *model.buffers(), *batch.tensors)):
        return first
    trial = _Trial(model, batch, num_microbatches, training)
    with (
        preserve_state(model),
        in_mode(model, training=False),
        on_one_device(model),
        torch.no_grad(),
    ):
        return trial.best(rules) or first


def _unverified(batch: Batch, rule: BatchDims, num_microbatches: int) -> CutDecision:
    placed = batch.placed(rule)
    dims = [dim for dim in placed.dims if dim is not None]
    size = math.ceil(placed.batch_size / num_microbatches) if num_microbatches > 1 else None
    return CutDecision(rule, size, OutputJoins(max(set(dims), key=dims.count, default=0)))


@dataclass(frozen=True, slots=True)
class _Trial:
    """Runs the model on parts of a batch that is cut in one way or another."""

    model: nn.Module
    batch: Batch
    num_microbatches: int
    training: bool

    def best(self, rules: Sequence[BatchDims]) -> CutDecision | None:
        """The first rule that holds, None if that cannot be known.

        Raises:
            VerificationError: none does.
        """
        first: _Evidence | None = None
        likely: list[_Evidence] = []
        for rule in rules:
            found = self._evidence(rule)
            first = first or found
            if found is None or found.fault:
                continue
            if found.has_samples and found.decision.off <= self._tolerance:
                return found.decision
            likely.append(found)
        if likely:
            return likely[0].decision
        if first is None or not self._is_repeatable():
            logger.info("whether samples are independent is not known: eval mode fails or varies")
            return None
        raise VerificationError(self._refusal(first.fault, first.decision.rule))

    @property
    def _tolerance(self) -> float:
        """Of the least precise type that can be seen from outside."""
        tensors = (*self.model.parameters(), *self.model.buffers(), *self.batch.tensors)
        return max((PRECISION[x.dtype] for x in tensors if x.dtype in PRECISION), default=0.0)

    def _evidence(self, rule: BatchDims) -> _Evidence | None:
        """What cutting by a rule gives; None if the batch contradicts it or is too small."""
        try:
            decision = _unverified(self.batch, rule, self.num_microbatches)
        except ValueError:
            return None
        assert decision.size is not None
        both = self.batch.placed(rule).split(2 * decision.size)[0]
        parts = both.split(decision.size)
        if len(parts) < 2:
            return None
        try:
            form, together = self._outputs(both)
            alone = [self._outputs(part)[1] for part in parts]
        except Exception as error:
            text = (str(error).strip() or repr(error)).splitlines()[0]
            return _Evidence(decision, f"a part of it fails ({type(error).__name__}: {text})")
        sizes = [part.batch_size for part in parts]
        return self._compared(decision, form, together, alone, sizes)

    def _compared(
        self,
        decision: CutDecision,
        form: OutputSpec,
        together: Sequence[Tensor],
        alone: Sequence[Sequence[Tensor]],
        sizes: Sequence[int],
    ) -> _Evidence:
        names = " + ".join(map(str, sizes))
        if any(len(outputs) != len(together) for outputs in alone):
            return _Evidence(decision, f"the outputs of {names} samples are not as many apart")
        joins: list[OutputJoin | None] = []
        largest, doubt, unjoined = 0.0, "", ""
        for i, (whole, *parts) in enumerate(zip(together, *alone, strict=True)):
            what = f"output {i} of {names} samples together"
            shapes = f"has shape {tuple(whole.shape)}, and {_shapes(parts)} apart"
            join, off = _joined(whole, parts, sizes)
            joins.append(join)
            if join is None and any(x.shape != whole.shape for x in parts):
                return _Evidence(decision, f"{what} {shapes}")
            said = f"{what} differs from that apart by {off:.0e} of its largest number"
            if join is None and off > COARSEST and not (self.training and whole.numel() == 1):
                unjoined = unjoined or f"{what} {shapes}, with other values"
            elif join is not None and off > largest:
                largest, doubt = off, said
        has_samples = any(join is not None for join in joins)
        fault = doubt if largest > COARSEST else ""
        if unjoined and not (self.training and has_samples):
            fault = fault or unjoined
        known = OutputJoins(decision.joins.default, form.form, tuple(joins))
        made = replace(decision, joins=known, off=largest)
        return _Evidence(replace(made, doubt=self._text(doubt)), fault, has_samples)

    def _outputs(self, part: Batch) -> tuple[OutputSpec, Sequence[Tensor]]:
        return plain_outputs(self.model, part)

    def _is_repeatable(self) -> bool:
        """Whether eval mode runs on the whole batch, and gives the same once more."""
        try:
            _, once = self._outputs(self.batch)
            _, again = self._outputs(self.batch)
        except Exception:
            return False
        pairs = list(zip(once, again, strict=False))
        return all(x.shape == y.shape and distance(x, y) <= COARSEST for x, y in pairs)

    def _refusal(self, fault: str, rule: BatchDims) -> str:
        works = next(self._cures(rule), None)
        return self._text(fault, works)

    def _cures(self, rule: BatchDims) -> Iterator[str]:
        """What a caller may say so that the batch can be cut."""
        if not rule.asked and rule.default == 0:
            others = BatchDims(default=1, parameters=rule.parameters)
            for other in others.candidates(self.batch.named_leaves):
                if self._holds(other):
                    yield "batch_dims=1"
        for name, other in rule.without_one():
            if self._holds(other):
                yield f"batch_dims={{{name!r}: None}}"

    def _holds(self, rule: BatchDims) -> bool:
        found = self._evidence(rule)
        if found is None or found.fault or not found.has_samples:
            return False
        return found.decision.off <= self._tolerance

    @staticmethod
    def _text(fault: str, works: str | None = None) -> str:
        cure = f"Pass {works}, with which it can be" if works else "Say where by batch_dims="
        return (
            f"a batch cannot be computed in micro-batches: {fault}.\nEither forward mixes samples "
            "(a mean over the batch, a softmax along dimension 0), or they are elsewhere in its "
            f"inputs.\n{cure}, or use num_microbatches=1"
        )


def _joined(
    whole: Tensor, parts: Sequence[Tensor], sizes: Sequence[int]
) -> tuple[OutputJoin | None, float]:
    """How parts are joined, and how much the result differs from the whole."""
    ways = [(_off(whole, way(parts, sizes)), way) for way in possible_joins(whole, parts, sizes)]
    if ways:
        off, way = min(ways, key=lambda pair: pair[0])
        return way, off
    same = [x for x in parts if x.shape == whole.shape]
    return None, max((_off(whole, x) for x in same), default=0.0)


def _off(whole: Tensor, found: Tensor) -> float:
    if whole.is_floating_point():
        return distance(whole, found)
    share = float((whole != found).double().mean()) if whole.numel() else 0.0
    return share if share > FEW else 0.0


def _shapes(parts: Sequence[Tensor]) -> str:
    return " and ".join(str(tuple(x.shape)) for x in parts)


def batch_rule(model: nn.Module, batch: Batch, asked: Any) -> BatchDims:
    """The rule that a caller asks for.

    Raises:
        ValueError: it is none, or names what is no argument.
    """
    parameters = inspect.signature(model.forward).parameters
    rule = BatchDims.of(asked, tuple(parameters))
    takes_any = any(x.kind in (x.VAR_KEYWORD, x.VAR_POSITIONAL) for x in parameters.values())
    known = {*parameters, *(rule.name(path[:1]) for path in batch.paths)}
    for name in rule.asked:
        if name.split(".")[0] not in known and not takes_any:
            raise ValueError(
                f"batch_dims names {name!r}, which is no argument: there are {', '.join(known)}"
            )
    return rule


def decided(
    model: nn.Module,
    batch: Batch,
    rule: BatchDims,
    assumptions: Assumptions,
    group: ProcessGroup,
    check: str,
) -> CutDecision:
    """What the first process decides, in all processes; raises as `decide`."""

    def made() -> str:
        number, training = assumptions.microbatches, assumptions.training
        decision = decide(model, batch, rule, number, training=training, verify=check != "off")
        return msgspec.json.encode(decision).decode()

    return msgspec.json.decode(group.broadcast_from_first(made), type=CutDecision)


def capture_microbatch(
    model: nn.Module, batch: Batch, decision: CutDecision, *, training: bool
) -> Capture:
    """Capture the model on the first micro-batch.

    Raises:
        VerificationError: the model computes in finer types than what was taken for rounding.
    """
    placed = batch.placed(decision.rule)
    microbatch = placed.split(decision.size or placed.batch_size)[0]
    captured = capture(model, microbatch, training=training)
    if decision.off > tolerance(captured):
        raise VerificationError(decision.doubt)
    return captured

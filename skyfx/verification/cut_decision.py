"""Where the samples of batches are: decided once at the example, by evidence, for all that follow.

rule                              two micro-batches, together and apart
dimension 0 of x and of table     a part fails                              no
dimension 0 of x                  equal to 1e-07                            yes
"""

import inspect
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import msgspec
import torch
from torch import nn

from skyfx.devices.host_resources import free_bytes
from skyfx.runtime.batches.batch_dims import BatchDims
from skyfx.runtime.batches.microbatch import Batch
from skyfx.runtime.distributed.process_group import ProcessGroup
from skyfx.runtime.model_state import ModelState, preserve_run
from skyfx.solver.core.plan import Assumptions
from skyfx.solver.errors import VerificationError
from skyfx.tracing.capture import Capture, capture, on_one_device
from skyfx.tracing.training_mode import switched
from skyfx.verification.comparison import distance
from skyfx.verification.observation import plain_outputs
from skyfx.verification.sample_independence import BatchCut, samples_apart
from skyfx.verification.tolerance import rounding, tolerance

MOST_OTHERS = 3
"""How many micro-batches are held against the one that is captured."""

MOST_CURES = 12
"""How many other rules are tried to find one to name in a refusal."""

SHARE = 0.5
"""Of the free memory that copies of parameters on other devices may take."""

_DRAWN = 1e-3
"""Outputs that are so far apart from call to call are drawn, and not rounded otherwise."""

logger = logging.getLogger(__name__)


def batch_rule(model: nn.Module, batch: Batch, asked: Any) -> BatchDims:
    """The rule that a caller asks for.

    Raises:
        ValueError: it is none, or names what is no argument.
    """
    parameters = inspect.signature(model.forward).parameters
    rule = BatchDims.of(asked, tuple(parameters))
    takes_any = any(x.kind in (x.VAR_KEYWORD, x.VAR_POSITIONAL) for x in parameters.values())
    known = dict.fromkeys([*parameters, *(rule.name(path[:1]) for path in batch.paths)])
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
    *,
    verify: bool,
) -> BatchCut:
    """What the first process decides, in all processes; raises as `decide`."""

    def made() -> str:
        number, training = assumptions.microbatches, assumptions.training
        cut = decide(model, batch, rule, number, training=training, verify=verify)
        return msgspec.json.encode(cut).decode()

    return msgspec.json.decode(group.broadcast_from_first(made), type=BatchCut)


def decide(
    model: nn.Module,
    batch: Batch,
    rule: BatchDims,
    num_microbatches: int,
    *,
    training: bool,
    verify: bool = True,
) -> BatchCut:
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
    rules = rule.candidates(batch.named_leaves)
    if not rules:
        raise ValueError(f"no tensor of the batch has a dimension {rule.default} to be cut along")
    first = BatchCut.of(batch, rules[0], num_microbatches)
    if first.size is None or not verify or not _can_run(model, batch):
        return first
    trial = _Trial(model, batch, num_microbatches, training)
    with (
        switched(model) as change,
        on_one_device(model),
        torch.no_grad(),
    ):
        if change:
            logger.warning("%s", change)
        return trial.best(rules) or first


def capture_microbatch(model: nn.Module, batch: Batch, cut: BatchCut, *, training: bool) -> Capture:
    """Capture the model on the first micro-batch.

    Raises:
        VerificationError: it computes in finer types than the evidence allowed for.
    """
    placed = batch.placed(cut.rule)
    first, *others = placed.split(cut.size or placed.batch_size)
    captured = capture(model, first, training=training, others=others[:MOST_OTHERS])
    if cut.off > tolerance(captured):
        raise VerificationError(_said(cut.doubt))
    return captured


def _can_run(model: nn.Module, batch: Batch) -> bool:
    """Whether the model has values, and this process room for those on other devices."""
    tensors = [*model.parameters(), *model.buffers()]
    elsewhere = sum(x.nbytes for x in tensors if x.device.type != "cpu")
    if any(x.is_meta for x in (*tensors, *batch.tensors)):
        logger.info("where samples are is not checked: the model has no values")
    elif elsewhere > SHARE * free_bytes(torch.device("cpu")):
        logger.info("where samples are is not checked: the model is too large for this process")
    else:
        return True
    return False


@dataclass(frozen=True, slots=True)
class _Trial:
    """Cuts a batch by one rule after another."""

    model: nn.Module
    batch: Batch
    num_microbatches: int
    training: bool

    def best(self, rules: Sequence[BatchDims]) -> BatchCut | None:
        """By the first rule that holds, else one that may; None if that cannot be known.

        Raises:
            VerificationError: none does.
        """
        tried: list[BatchCut] = []
        for rule in rules:
            if (cut := self._cut(rule)) is not None:
                if self._holds(cut):
                    return cut
                tried.append(cut)
        possible = [cut for cut in tried if not cut.fault]
        if not tried or (possible and not possible[0].doubt):
            return next(iter(possible), None)
        if not self._is_fixed():
            logger.info("where samples are is not known: eval mode fails, draws or has state")
            return replace(possible[0], off=0.0, doubt="") if possible else None
        if possible:
            return possible[0]
        raise VerificationError(_said(tried[0].fault, next(self._cures(tried[0].rule), "")))

    def _cut(self, rule: BatchDims) -> BatchCut | None:
        """What cutting by a rule gives; None if the batch contradicts it."""
        try:
            cut = BatchCut.of(self.batch, rule, self.num_microbatches)
        except ValueError:
            return None
        return samples_apart(self.model, self.batch, cut, training=self.training)

    def _holds(self, cut: BatchCut) -> bool:
        """Whether it is seen to be exact, but for rounding of the types that are seen."""
        tensors = (*self.model.parameters(), *self.model.buffers(), *self.batch.tensors)
        return cut.is_seen and not cut.fault and cut.off <= rounding({x.dtype for x in tensors})

    def _is_fixed(self) -> bool:
        """Whether eval mode runs on the whole batch alike each time, and leaves no trace."""
        found: list[Sequence[torch.Tensor]] = []
        try:
            for _ in range(2):
                with preserve_run(self.model) as written:
                    torch.manual_seed(len(found))
                    before = ModelState.of(self.model)
                    found.append(plain_outputs(self.model, self.batch)[1])
                    if written.changed() or not before.equals(ModelState.of(self.model)):
                        return False
        except Exception:
            return False
        return all(distance(x, y) < _DRAWN for x, y in zip(*found, strict=True))

    def _cures(self, rule: BatchDims) -> Iterator[str]:
        """What a caller may say instead so that the batch can be cut."""
        for other, is_plain in islice(self._others(rule), MOST_CURES):
            cut = self._cut(other)
            # Outputs along several dimensions may be similarities of each sample with each other.
            if cut is not None and self._holds(cut) and (is_plain or len(cut.dims) == 1):
                yield other.told

    def _others(self, rule: BatchDims) -> Iterator[tuple[BatchDims, bool]]:
        """Other rules, and whether they only differ in the dimension to look at."""
        leaves = self.batch.named_leaves
        yield from ((other, False) for other in rule.neighbours(leaves))
        if not rule.asked and rule.default == 0:
            for base in replace(rule, found={}, default=1).candidates(leaves):
                yield base, True
                yield from ((other, False) for other in base.neighbours(leaves))


def _said(fault: str, cure: str = "") -> str:
    """A refusal: what, why and what to do."""
    if cure:
        return (
            f"a batch cannot be computed in micro-batches: {fault}.\nThe samples seem to be "
            f"elsewhere in its inputs: pass {cure}, or use num_microbatches=1"
        )
    return (
        f"a batch cannot be computed in micro-batches: {fault}.\nEither forward mixes samples (a "
        "mean over the batch, a softmax along dimension 0), or they are elsewhere in its inputs "
        "(say where by batch_dims).\nElse use num_microbatches=1"
    )

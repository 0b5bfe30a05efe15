"""Holds a pipeline against the model that it was made from, before anyone trains."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from skyfx.measurement.operator_costs import has_values
from skyfx.orchestration.environment import Environment
from skyfx.passes.aliasing import written_parameters
from skyfx.passes.rng_advance import draws_by_values, state_of_draws
from skyfx.runtime.batches.microbatch import Batch
from skyfx.runtime.execution.verified import Verified
from skyfx.runtime.model_state import state_slots
from skyfx.runtime.pipeline import Pipeline
from skyfx.runtime.state.reachable_state import changed_in_backward
from skyfx.solver.core.plan import Plan
from skyfx.solver.errors import StageError, VerificationError
from skyfx.tracing.capture import Capture
from skyfx.tracing.failures import line_of
from skyfx.verification.capacity import lacking
from skyfx.verification.comparison import (
    CALLS,
    GENERATORS,
    GRADIENTS,
    OUTPUTS,
    STATE,
    Contents,
    Deviation,
    compare,
)
from skyfx.verification.fused_eval import check_fused_eval
from skyfx.verification.model_line import deviating_line
from skyfx.verification.observation import Observation, RunMode, observe_plain, observe_staged
from skyfx.verification.stage_parts import StageParts
from skyfx.verification.tolerance import tolerance

Check = Literal["full", "outputs", "off"]
"""What is checked before a pipeline is handed over: all, all but gradients, or nothing."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PipelineCheck:
    """Two micro-batches through plain torch and through the stages; both have to agree.

    Attributes:
        model: before `make` moves its parameters to the devices of their stages.
        captured: the model as captured, with the micro-batch.
        batch: the example, of which the micro-batch is a part.
        plan: of the stages.
        environment: its processes agree on what was found.
        make: splits the model.
    """

    model: nn.Module
    captured: Capture
    batch: Batch
    plan: Plan
    environment: Environment
    make: Callable[[], Pipeline]

    def pipeline(self, check: Check) -> Pipeline:
        """The pipeline, once its stages have done to two micro-batches what the model does.

        Raises:
            VerificationError: the stages do something else; the pipeline is closed then.
        """
        if check == "off":
            return self._made(Verified(remark="check='off'"))
        training, written = self.captured.training, written_parameters(self.captured)
        how = RunMode(training, training and check == "full", written)
        if any(x.is_meta for x in self.batch.tensors):
            return self._made(Verified(remark="the example inputs have no values"))
        if not (why := self._too_large(how)):
            return self._as_whole(how)
        forward = how._replace(backward=False)
        if how.backward and not self._too_large(forward):
            return self._as_whole(forward, how, f"that gradients are the model's, as {why}")
        return self._by_stage(how, why)

    def _too_large(self, how: RunMode) -> str:
        """Why the whole model cannot be run in each process; the same text in all."""

        def lacks() -> str:
            if not has_values(self.captured):
                return "the model has no values before its stages read them"
            return lacking(self.model, self.captured, self.plan, self.environment, how)

        return next(filter(None, self.environment.group.run_together(lacks)), "")

    def _as_whole(
        self, how: RunMode, by_stage: RunMode | None = None, remark: str = ""
    ) -> Pipeline:
        """Hold the stages against the model, and then each against its part, if asked to."""
        model, captured, group = self.model, self.captured, self.environment.group
        parts, allowed = self._parts(), tolerance(captured)
        group.run_together(partial(check_fused_eval, model, captured.microbatch, allowed))
        plain = group.barrier_after(partial(observe_plain, model, captured, parts, how))
        if not remark and how.training and not how.backward:
            remark = "gradients (check='outputs')"
        with self._opened() as pipeline:
            pipeline.verified = self.held(pipeline, plain, parts, how, by_stage, remark)
            return pipeline

    def held(
        self,
        pipeline: Pipeline,
        plain: Observation,
        parts: Sequence[Batch],
        how: RunMode,
        by_stage: RunMode | None = None,
        remark: str = "",
    ) -> Verified:
        """What the stages of a pipeline have in common with a run of plain torch.

        Args:
            pipeline: runs the same micro-batches.
            plain: what plain torch did.
            parts: the micro-batches.
            how: both run them.
            by_stage: also hold each stage against its part, so run.
            remark: what is not verified.

        Raises:
            VerificationError: they differ.
        """
        staged = observe_staged(self.model, pipeline, self.captured, parts, how)
        if pipeline.runner.draws_as_plain_torch:
            both = plain.contents, staged.contents
        else:
            drawn = state_of_draws(self.captured)
            both = plain.changes(drawn), staged.changes(drawn)
            by_stage = by_stage or how
            remark = "that outputs are the model's, whose random numbers are others"
        verified = self._agreed(*both, how, remark)
        if by_stage is None:
            return verified
        return verified.joined(self.parts_agreed(pipeline, parts[0], by_stage, remark))

    def _parts(self) -> list[Batch]:
        """Two micro-batches of the form that was captured, if the batch has two; else one.

        The second comes to a stage before the first has gone backward, and finds what it left.
        """
        first = self.captured.microbatch
        following = self.batch.split(first.batch_size)[1:2]
        # A generator that forward makes begins anew in each call of the model, but not in stages.
        others = following or ([first] if has_generators(self.captured) else [])
        return [first, *(x for x in others if x.signature == first.signature)]

    def _by_stage(self, how: RunMode, why: str) -> Pipeline:
        """Hold each stage against its part of the captured graph."""
        size = self.captured.microbatch.batch_size
        microbatch = self.batch.split(size)[0].to(torch.device("cpu"))
        with self._opened() as pipeline:
            remark = not_the_graph(why)
            pipeline.verified = self.parts_agreed(pipeline, microbatch, how, remark)
            return pipeline

    def parts_agreed(
        self, pipeline: Pipeline, microbatch: Batch, how: RunMode, remark: str
    ) -> Verified:
        """What each stage has in common with its part of the captured graph; raises as `held`."""
        parts = StageParts.of(self.model, self.captured, pipeline)
        return self._agreed(*parts.observe(pipeline, microbatch, how), how, remark)

    @contextmanager
    def _opened(self) -> Iterator[Pipeline]:
        """The pipeline, which is closed if it is refused."""
        pipeline = self.make()
        try:
            yield pipeline
        except StageError as error:
            pipeline.close()
            raise _failing(self.captured.name, error) from error
        except BaseException:
            pipeline.close()
            raise
        self._tell(pipeline)

    def _made(self, verified: Verified) -> Pipeline:
        pipeline = self.make()
        pipeline.verified = verified
        self._tell(pipeline)
        return pipeline

    def _tell(self, pipeline: Pipeline) -> None:
        """Say what is verified, and what differs although it is right."""
        logger.info("%s", pipeline.verified)
        if pipeline.runner.draws_as_plain_torch or self.environment.group.rank:
            return
        node = draws_by_values(self.captured)
        where = "on a device that is no CPU"
        if node is not None:
            where = f"in {self.captured.ids[node]!r}, which draws as values say or stays whole"
        logger.warning(
            "%s draws other random numbers than plain torch, the same under any plan: %s",
            *(self.captured.name, where),
        )

    def _agreed(self, plain: Contents, staged: Contents, how: RunMode, remark: str) -> Verified:
        """What all processes have compared together.

        Raises:
            VerificationError: it differs, in one of them.
        """
        allowed = tolerance(self.captured, self.environment.on_cpu(self.plan))

        def compared() -> tuple[Mapping[str, Sequence[str]], float, str]:
            found = compare(self._comparable(plain), self._comparable(staged), allowed)
            if found.deviations:
                name, first = self.captured.name, self._located(found.deviations[0], how)
                same_mode = self.captured.training == self.plan.assumptions.training
                does = f"{name} does{'' if same_mode else ' in inference'}"
                raise VerificationError(f"the stages would not do what {does}: {first}")
            return found.names, found.largest, found.where

        return merged(self.environment.group.run_together(compared), remark)

    def _comparable(self, contents: Contents) -> Contents:
        """But for attributes that stages need not have, and the order of calls in backward."""
        ignored, unordered = self._ignored(), changed_in_backward(self.model)
        if self.plan.stages[-1].device not in self.environment.local:  # where hooks are called
            contents = {kind: some for kind, some in contents.items() if kind != CALLS}
        state = {
            name: sorted(x, key=repr) if name in unordered and isinstance(x, list) else x
            for name, x in contents.get(STATE, {}).items()
            if name not in ignored
        }
        return {**contents, STATE: state}

    def _ignored(self) -> frozenset[str]:
        """Attributes that stages need not have, or that other processes change."""
        captured, ignored = self.captured, self.captured.settled
        if self.plan.stages[-1].device not in self.environment.local:
            ignored |= captured.assigned.names | captured.hooks.changes
        if self.environment.group.size > 1:  # a generator moves on where its stage is
            ignored |= changed_in_backward(self.model)
            slots = state_slots(self.model)
            ignored |= {x.name for x in slots if isinstance(x.value, torch.Generator)}
        return ignored

    def _located(self, deviation: Deviation, how: RunMode) -> Deviation:
        """With the line of the model that does it, where that can be found."""
        is_whole = self.environment.group.size == 1 and all(self.environment.on_cpu(self.plan))
        line = ""
        try:
            if deviation.kind == STATE and deviation.name in dict(self.model.named_buffers()):
                deviation = deviation.of_buffer()
            elif deviation.kind == STATE:
                line = line_of(self.model, deviation.name)
            elif deviation.kind in (GENERATORS, OUTPUTS, GRADIENTS) and is_whole:
                line = deviating_line(self.model, self.captured, how, tolerance(self.captured))
        except Exception as error:  # the deviation is to be told anyway
            logger.info("the line that differs is not known: %r", error)
        return deviation.at(line)


def not_the_graph(why: str) -> str:
    """What is not verified where each stage is held against its own part, and why."""
    return f"that the captured graph is what forward does, as {why}"


def _failing(name: str, error: StageError) -> VerificationError:
    said = (str(error.__cause__ or error).strip() or repr(error)).splitlines()[0]
    cure = "Try other stages (pins=), and report it: this is a fault of skyfx"
    return VerificationError(
        f"the stages of {name} fail where plain torch does not: {said}.\n{cure}"
    )


def merged(found: Sequence[Any], remark: str) -> Verified:
    """What several processes have compared: names by kind, the largest difference and its place."""
    kinds = dict.fromkeys(kind for names, _, _ in found for kind in names)
    tensors = {
        kind: len({x for names, _, _ in found for x in names.get(kind, ())}) for kind in kinds
    }
    largest, where = max((one[1:] for one in found), default=(0.0, ""))
    return Verified(tensors, largest, where, remark)


def has_generators(captured: Capture) -> bool:
    """Whether the graph draws from generators other than torch's default ones."""
    constants = captured.module.graph.find_nodes(op="get_attr")
    return any(isinstance(captured.attribute(x), torch.Generator) for x in constants)

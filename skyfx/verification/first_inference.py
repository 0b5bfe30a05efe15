"""The first inference by a pipeline that was made for training, held against plain torch.

It is captured when it comes, and the model has other parameters then than at first. Each process
has those of its own stages; for the run in plain torch it gets the others.
"""

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import torch

from skyfx.partitioning.splitter import Splitter
from skyfx.partitioning.whole_model import whole_model
from skyfx.passes.aliasing import written_parameters
from skyfx.runtime.batches.microbatch import Batch
from skyfx.runtime.execution.verified import AT_FIRST_CALL, Verified
from skyfx.runtime.pipeline import Pipeline
from skyfx.tracing.capture import Capture
from skyfx.verification.capacity import lacking
from skyfx.verification.check import PipelineCheck, has_generators, not_the_graph
from skyfx.verification.fused_eval import check_fused_eval
from skyfx.verification.observation import Observation, RunMode, observe_plain
from skyfx.verification.tolerance import tolerance

logger = logging.getLogger(__name__)

_HOW = RunMode(training=False, backward=False)


@dataclass(frozen=True, slots=True)
class FirstInference:
    """Runs a micro-batch of the first inference through plain torch and through the stages.

    Attributes:
        check: that of the pipeline when it was made.
        pipeline: for training.
    """

    check: PipelineCheck
    pipeline: Pipeline

    def await_it(self) -> Pipeline:
        """The pipeline, which calls this when it first infers."""
        self.pipeline.runner.first_inference = self
        self.pipeline.verified = replace(self.pipeline.verified, inference=AT_FIRST_CALL)
        return self.pipeline

    def __call__(self, parts: Sequence[Batch]) -> bool:
        """Hold one of these micro-batches against plain torch; all processes call it.

        Returns:
            Whether that was possible: not where plain torch fails, as on an index out of range.

        Raises:
            VerificationError: the stages do something else.
        """
        pipeline, group = self.pipeline, self.check.environment.group
        # A process that was given no batch has values of the last micro-batch of each form.
        microbatch = {part.signature: part for part in parts}[parts[0].signature]
        with torch.inference_mode(False):
            captured = group.barrier_after(partial(self._captured, microbatch))
            captured = replace(captured, microbatch=microbatch)
            found = self._held(replace(self.check, captured=captured, plan=pipeline.plan))
        if found is not None:
            pipeline.verified = replace(pipeline.verified, inference=found)
            logger.info("%s", pipeline.verified)
        return found is not None

    def _captured(self, microbatch: Batch) -> Capture:
        """What the stages that run such a micro-batch are made of."""
        runner = self.pipeline.runner
        runner.staged(microbatch, training=False)
        assert isinstance(runner.split, Splitter)
        latest = runner.split.latest
        if latest is None or latest.training or latest.microbatch.signature != microbatch.signature:
            return runner.split.capture(microbatch, training=False)  # it was split before
        return latest

    def _held(self, check: PipelineCheck) -> Verified | None:
        """What agrees; None if plain torch fails."""
        model, group, microbatch = check.model, check.environment.group, check.captured.microbatch
        planned = self.check  # its capture has all nodes that were planned
        lacks = partial(lacking, model, planned.captured, planned.plan, planned.environment, _HOW)
        why = next(filter(None, group.run_together(lacks)), "")
        how = _HOW._replace(written=written_parameters(check.captured))
        if group.size > 1 and has_generators(check.captured):
            why = why or "its generator is where its stage is"
        plain: list[Observation] = []

        def run() -> bool:
            with suppress(Exception):
                plain.append(observe_plain(model, check.captured, [microbatch], how))
            return bool(plain)

        if not why:
            with whole_model(model, group) as whole:
                why = f"no process has the values of {whole.missing!r}" if whole.missing else ""
                if not why and not all(group.run_together(run)):
                    return None
                allowed = tolerance(check.captured)
                group.run_together(partial(check_fused_eval, model, microbatch, allowed))
        if why:
            return check.parts_agreed(self.pipeline, microbatch, how, not_the_graph(why))
        return check.held(self.pipeline, plain[0], [microbatch], how)

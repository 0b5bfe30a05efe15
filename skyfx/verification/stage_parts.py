"""Each stage against its own part of the captured graph, for models that are too large as a whole.

    stages        x --> stage 0 --> y --> stage 1 --> z        one micro-batch, as in any step
    plain torch   x --> part 0  --> y'    y --> part 1 --> z'  y' = y and z' = z?

A part runs operator after operator on the values that came to its stage, and backward from the
gradients that came. No process needs more than its own stages.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from skyfx.partitioning.splitter import Splitter
from skyfx.partitioning.stage_builder import boundaries
from skyfx.passes.device_transfer import copy_to, with_device
from skyfx.passes.planner_graph import to_planner_graph
from skyfx.passes.rng_advance import is_random
from skyfx.runtime.batches.microbatch import Batch
from skyfx.runtime.execution.stage import Stage
from skyfx.runtime.execution.workers import with_torch_threads
from skyfx.runtime.pipeline import Pipeline
from skyfx.runtime.rng import generator_lending
from skyfx.runtime.rng.step_streams import Draws, begin_step_streams
from skyfx.runtime.transport.local import Gradients, Values
from skyfx.tracing.capture import Capture
from skyfx.tracing.tensor_binding import moved
from skyfx.verification.comparison import CALLS, FLOWING, OUTPUTS, VALUES, Contents
from skyfx.verification.observation import RunMode, observe_staged, observed


@dataclass(slots=True)
class StageRecord:
    """What came to a stage and what it gave, for one micro-batch."""

    received: list[Tensor] = field(default_factory=list)
    needs: list[bool] = field(default_factory=list)
    sent: list[Tensor] = field(default_factory=list)
    gradients: list[Tensor | None] = field(default_factory=list)
    returned: list[Tensor | None] = field(default_factory=list)

    def ran_forward(self, values: Values, sent: Values) -> None:
        """Note both; the memory is that of the stage's own values."""
        self.received, self.needs = [x.detach() for x in values], [x.requires_grad for x in values]
        self.sent = [x.detach() for x in sent]

    def ran_backward(self, gradients: Gradients, returned: Gradients) -> None:
        """Note both."""
        self.gradients, self.returned = list(gradients), list(returned)


@dataclass(frozen=True, slots=True)
class StageParts:
    """The parts of the captured graph that stages of this process run.

    Attributes:
        model: has the parameters.
        captured: the graph.
        stages: by their numbers.
        nodes: of each stage, in order, `(num_stages,)`.
        between: the values at each boundary, `(num_stages + 1,)`.
    """

    model: nn.Module
    captured: Capture
    stages: Mapping[int, Stage]
    nodes: Sequence[Sequence[fx.Node]]
    between: Sequence[Sequence[fx.Node]]

    @classmethod
    def of(cls, model: nn.Module, captured: Capture, pipeline: Pipeline) -> "StageParts":
        """The parts by the pipeline's plan."""
        graph, num = to_planner_graph(captured), len(pipeline.plan.stages)
        splitter = pipeline.runner.split
        assert isinstance(splitter, Splitter)
        stage_of = splitter.assign(captured, graph)
        nodes = [[x for x in captured.ids if stage_of[x] == k] for k in range(num)]
        staged = pipeline.runner.staged(captured.microbatch, training=captured.training)
        between = boundaries(captured, graph, stage_of, num)
        return cls(model, captured, staged.stages, nodes, between)

    def observe(
        self, pipeline: Pipeline, microbatch: Batch, how: RunMode
    ) -> tuple[Contents, Contents]:
        """What the parts give and leave, and what the stages do."""
        records = {k: StageRecord() for k in self.stages}
        with self._recording(records):
            staged = observe_staged(self.model, pipeline, self.captured, [microbatch], how).contents

        def run() -> Contents:
            whole = pipeline.runner.staged(microbatch, training=how.training)
            draws = begin_step_streams([whole.advances], pipeline.runner.workers.agree)
            gave: dict[str, dict[str, Any]] = {VALUES: {}, FLOWING: {}}
            for k, record in records.items():
                with self._as_stage(k, draws):
                    sent, returned = self._run(k, record, how)
                gave[VALUES] |= self._named(k, k + 1, sent)
                gave[FLOWING] |= self._named(k, k, returned)
                if k == len(self.nodes) - 1:
                    whole.leave(self.model, sent)
            if len(self.nodes) - 1 not in records:
                whole.leave_empty(self.model)
            return gave

        plain = observed(self.model, run, how).contents
        found: dict[str, dict[str, Any]] = {VALUES: {}, FLOWING: {}}
        for k, record in records.items():
            found[VALUES] |= self._named(k, k + 1, record.sent)
            found[FLOWING] |= self._named(k, k, record.returned)
        apart = {kind: some for kind, some in staged.items() if kind not in (OUTPUTS, CALLS)}
        return plain, {**apart, **found}

    def _named(self, k: int, boundary: int, values: Gradients) -> dict[str, Any]:
        names = (f"{self.captured.ids[x]!r} of stage {k}" for x in self.between[boundary])
        return dict(zip(names, values, strict=False))

    @contextmanager
    def _recording(self, records: Mapping[int, StageRecord]) -> Iterator[None]:
        for k, stage in self.stages.items():
            stage.observer = records[k]
        try:
            yield
        finally:
            for stage in self.stages.values():
                stage.observer = None

    @contextmanager
    def _as_stage(self, k: int, draws: Draws | None) -> Iterator[None]:
        """The threads, modes and random numbers with which a stage runs."""
        stage, around = self.stages[k], ExitStack()
        with around:
            around.enter_context(with_torch_threads(stage.local_device.num_threads))
            around.enter_context(torch.inference_mode(False))
            if stage.is_random and draws is not None:
                around.enter_context(generator_lending.use_source(draws(k, 0)))
            yield

    def _run(self, k: int, record: StageRecord, how: RunMode) -> tuple[Values, Gradients]:
        """What a part gives, and the gradients of what came to it."""
        stage, between = self.stages[k], self.between
        device = stage.local_device.device
        leaves = [
            x.to(device).detach().requires_grad_(how.backward and needs)
            for x, needs in zip(record.received, record.needs, strict=True)
        ]
        # What a part writes to has to be a copy: of another stage's value, and of a leaf.
        given = [x.clone() if i in stage.written else x for i, x in enumerate(leaves)]
        with torch.set_grad_enabled(how.backward):
            sent = self._operators(k, dict(zip(between[k], given, strict=True)), device)
        roots, flowing = [], []
        for x, gradient in zip(sent, record.gradients, strict=False):
            if gradient is not None and x.requires_grad:
                roots.append(x)
                flowing.append(gradient.to(device))
        if roots:
            torch.autograd.backward(roots, flowing)
        return [x.detach() for x in sent], [x.grad for x in leaves]

    def _operators(
        self, k: int, known: dict[fx.Node, Any], device: torch.device
    ) -> Sequence[Tensor]:
        """Run the nodes of a part one after the other; a value is dropped after its last reader."""
        captured, sent = self.captured, self.between[k + 1]
        last = {x: node for node in self.nodes[k] for x in node.all_input_nodes}

        def value(node: fx.Node) -> Any:
            if node not in known:
                known[node] = _on(captured.attribute(node), device)
            return known[node]

        for node in self.nodes[k]:
            target: Any = node.target
            if node.op in ("call_function", "call_module"):
                args, kwargs = with_device(fx.map_arg((node.args, node.kwargs), value), device)
                if node.op == "call_module":
                    target = captured.attribute(node)
                elif is_random(node):
                    target = partial(generator_lending.draw, target, captured.ids[node])
                known[node] = target(*args, **kwargs)
                del args, kwargs
            else:
                value(node)
            for x in node.all_input_nodes:
                if last[x] is node and x not in sent:
                    known.pop(x, None)
        return [known[x] for x in sent]


def _on(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor) and value.device != device:
        return moved(value, device)
    return copy_to(value, device) if isinstance(value, fx.GraphModule) else value

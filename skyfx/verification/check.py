"""Holds a pipeline against the model that it was made from, before anyone trains."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from skyfx.measurement.operator_costs import has_values
from skyfx.orchestration.environment import Environment
from skyfx.runtime.pipeline import Pipeline
from skyfx.solver.errors import VerificationError
from skyfx.tracing.capture import Capture
from skyfx.verification.comparison import PRECISION, Comparison
from skyfx.verification.observation import observe_plain, observe_staged

Check = Literal["full", "off"]
"""What is checked before a pipeline is handed over: all, or nothing."""

BETWEEN_DEVICES = 2e-2
"""The least tolerance where a stage is on a GPU, which may round products to ten bits (TF32)."""

logger = logging.getLogger(__name__)


def checked(
    model: nn.Module,
    captured: Capture,
    environment: Environment,
    check: Check,
    make: Callable[[], Pipeline],
) -> Pipeline:
    """The pipeline, once its stages have done to one micro-batch what the model does.

    Args:
        model: before `make` moves its parameters to the devices of their stages.
        captured: the model as captured, with the micro-batch.
        environment: its processes agree on what was found.
        check: `off` makes the pipeline and no more.
        make: splits the model.

    Raises:
        VerificationError: the stages do something else; the pipeline is closed then.
    """
    if check == "off":
        return make()
    group, training = environment.group, captured.training
    if not all(group.run_together(lambda: has_values(captured))):
        logger.info("the stages are not held against the model, which has no values yet")
        return make()
    run = partial(observe_plain, model, captured.microbatch, training=training)
    plain = group.barrier_after(run)
    if training and not all(group.run_together(lambda: plain.has_gradients)):
        logger.info("the stages are not held against the model, whose outputs need no gradient")
        return make()
    pipeline = make()
    try:
        allowed = tolerance(captured)
        if not all(environment.on_cpu(pipeline.plan)):
            allowed = max(allowed, BETWEEN_DEVICES)
        # A generator that forward makes begins anew in each call of the model, but not in stages.
        for _ in range(1 + has_generators(captured)):
            staged = observe_staged(model, pipeline, captured.microbatch, training=training)
            both = Comparison(plain, staged, allowed, pipeline.draws_as_plain_torch)
            group.run_together(partial(_refuse, captured.name, both))
    except BaseException:
        pipeline.close()
        raise
    return pipeline


def tolerance(captured: Capture) -> float:
    """How far two runs may differ by rounding: that of the least precise type in the graph."""
    values = (x.meta.get("val") for x in captured.module.graph.nodes)
    types = {x.dtype for x in values if isinstance(x, Tensor)}
    return max((PRECISION[kind] for kind in types if kind in PRECISION), default=0.0)


def has_generators(captured: Capture) -> bool:
    """Whether the graph draws from generators other than torch's default ones."""
    constants = captured.module.graph.find_nodes(op="get_attr")
    return any(isinstance(captured.attribute(x), torch.Generator) for x in constants)


def _refuse(name: str, both: Comparison) -> None:
    first = next(both.differences(), None)
    if first is not None:
        raise VerificationError(f"the stages would not do what {name} does: {first}")
    logger.info("the stages do what plain torch does, to %.0e", both.largest())

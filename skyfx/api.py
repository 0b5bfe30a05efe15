"""The one call: capture a model, measure it, solve for a plan, split it, start the pipeline."""

import logging
import os
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Literal, get_args

from torch import nn

from skyfx.devices.resolve import DeviceList
from skyfx.measurement.cost_cache import check_cache_folder
from skyfx.measurement.measure import Progress, measure
from skyfx.measurement.optimizer_state import OptimizerFactory, state_ratio
from skyfx.orchestration.agreement import Initial, agree
from skyfx.orchestration.assembly import assemble
from skyfx.orchestration.environment import environment_of
from skyfx.orchestration.plan_resolution import (
    PlanSource,
    check_patterns,
    check_request,
    read_arguments,
)
from skyfx.orchestration.rebalancing import Rebalancing
from skyfx.partitioning.plan_matching import check_plan
from skyfx.passes.large_leaves import warn_of_large_leaves
from skyfx.runtime.batches.batch_cutter import BatchCutter
from skyfx.runtime.batches.batch_dims import AskedDims, BatchDims
from skyfx.runtime.device import LocalDevice
from skyfx.runtime.model_state import preserve_state
from skyfx.runtime.pipeline import Pipeline
from skyfx.solver.core.field_checks import one_of, text_sequence, whole_number
from skyfx.solver.core.graph import Graph
from skyfx.solver.core.plan import (
    Assumptions,
    Mode,
    Objective,
    Plan,
    Recompute,
    Schedule,
    Strategy,
)
from skyfx.solver.errors import VerificationError
from skyfx.tracing.capture import example_batch
from skyfx.verification.check import Check, PipelineCheck
from skyfx.verification.cut_decision import batch_rule, capture_microbatch, decide, decided
from skyfx.verification.first_inference import FirstInference

logger = logging.getLogger(__name__)


def partition(
    model: nn.Module,
    devices: DeviceList,
    *,
    example_inputs: Any = None,
    plan: Plan | str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    mode: Mode = "training",
    objective: Objective = "throughput",
    schedule: Schedule = "1f1b",
    strategy: Strategy = "optimal",
    num_microbatches: int = 8,
    batch_dims: AskedDims = None,
    target_dims: AskedDims | Literal["entries"] = None,
    optimizer: OptimizerFactory | None = None,
    optimizer_state_ratio: float | None = None,
    pins: Sequence[str] = (),
    recompute: Recompute = "auto",
    gap: float = 0.01,
    time_limit_s: float = 20.0,
    keep: str | os.PathLike[str] | None = None,
    check: Check = "full",
    initial: Initial = "same",
    progress: Progress | None = None,
) -> Pipeline:
    """Split a model over devices and get it ready to run.

    Args:
        model: any module. Its parameters stay its own; they move to the devices of their stages.
        devices: torch devices (`["cuda:0", "cpu"]`), `skyfx.Device`s, a `Cluster` or its file.
        example_inputs: one batch: a tensor, a tuple, a dict; transformers models have their own.
        plan: a plan or its file, instead of measuring and solving.
        weights: a safetensors file, or a folder of them, for a model without values (see
            `empty_weights`): each stage reads its own tensors.
        mode: `training` (which infers as well) or `inference`.
        objective: `throughput`, `step` or `latency`, to be minimised.
        schedule: `1f1b`, `gpipe`, `generated` (made for the plan, within its memory), `tapered`
            (the stages made for that, too: the shortest step, whatever the objective) or
            `interleaved` (two stages a device).
        strategy: `optimal`, or the baselines `even` or `dynamic`.
        num_microbatches: parts that a batch is split into; with 1 no batch is ever cut.
        batch_dims: the dimension of the samples: a number for all tensors, or a dict by argument's
            name or position, with None for what is not cut and `"entries"` for a list that has
            one entry for each sample. By default, and for arguments that a dict leaves out,
            dimension 0 of tensors that share the batch size in `example_inputs`; see
            `Pipeline.batch_dims`.
        target_dims: the same for the targets of a loss, by their keys or positions.
        optimizer: the class of the optimizer that will train the model, or a function that makes
            one of a list of parameters. The memory of its state is seen in one small step.
        optimizer_state_ratio: instead of `optimizer`, bytes of its state per byte of parameters
            that train. Without either it is 2, as for Adam.
        pins: `PATTERN=DEVICE` or `PATTERN!=DEVICE`: nodes or modules that have to be on a device,
            or must not be, such as `embeddings=cpu`.
        recompute: `auto` runs parts of stages again in backward, instead of keeping their values,
            where that makes a plan fit or faster within the memory that there is; `never`;
            `always`, wherever it saves memory. Results are the same to the last bit.
        gap: how far the plan may be from the best, relatively, to stop searching.
        time_limit_s: seconds after which the best plan so far is taken, with its true gap.
        keep: folder that graph, cluster and plan are written to (by the first process), as from
            `skyfx capture` and `skyfx solve`; earlier ones of the same name are replaced.
        check: `full` runs two micro-batches through plain torch and through the stages before the
            pipeline is handed over, and compares outputs, gradients, buffers, attributes of
            modules and random generators; `outputs` runs no backward, and compares
            all but gradients; `off` compares nothing. Where the whole model does not fit this
            process, each stage is held against its own part. `Pipeline.verified` says what was
            compared, and to what digit. Of a pipeline that trains, the first inference is
            compared when it comes.
        initial: in several processes, parameters and buffers have to be the `same` in all, or are
            those of the `first` one.
        progress: told of each node that has been measured.

    Returns:
        The pipeline; its workers are started.

    Raises:
        CaptureError: the model cannot be captured.
        DisagreementError: another process has another model, or asks for something else.
        VerificationError: the stages would not do what the model does; the model is as before.
        ValueError: an argument is wrong; nothing has been captured or measured then, but for a
            pin that matches nothing.
        PlanError: a device is not on this machine, the weights cannot be read, or the plan is not
            one for this model.
        InfeasibleError: the model does not fit the devices (`NoPlanError`: no plan was found
            in time, or none within its memory peaks).
    """
    one_of("check", check, get_args(Check))
    one_of("initial", initial, get_args(Initial))
    environment = environment_of(devices)
    group = environment.group
    read = partial(read_arguments, model, example_inputs, plan, weights, keep)
    batch, given = group.barrier_after(read)
    state = group.barrier_after(partial(state_ratio, optimizer, optimizer_state_ratio, model))
    asked = {
        "devices": [device.name for device in environment.cluster.devices],
        "plan": None if given is None else [(x.device, x.nodes) for x in given.stages],
        "mode": mode,
        "objective": objective,
        "schedule": schedule,
        "strategy": strategy,
        "num_microbatches": num_microbatches,
        "optimizer_state_ratio": state,
        "pins": pins,
        "recompute": recompute,
        "gap": gap,
        "time_limit_s": time_limit_s,
        "check": check,
        "batch_dims": batch_dims,
        "target_dims": target_dims,
    }
    batch = agree(model, batch, asked, group, initial)
    rule = batch_rule(model, batch, batch_dims)
    targets = None if target_dims is None else BatchDims.of_targets(target_dims)
    rebalancer: Rebalancing | None = None
    if given is not None:
        agreed, assumptions = given, given.assumptions
        cut = decided(model, batch, rule, assumptions, group, verify=check != "off")
        captured = capture_microbatch(model, batch, cut, training=assumptions.training)
        check_plan(agreed, captured, [device.name for device in environment.cluster.devices])
    else:
        whole_number("num_microbatches", num_microbatches, least=1)
        text_sequence("pins", pins)
        assumptions = Assumptions(
            mode=mode,
            objective=objective,
            schedule=schedule,
            overlap=environment.overlap,
            microbatches=num_microbatches,
            optimizer_state_ratio=state,
            pins=tuple(pins),
            recompute=recompute,
        )
        check_request(assumptions, environment.cluster, strategy, gap, time_limit_s)
        cut = decided(model, batch, rule, assumptions, group, verify=check != "off")
        captured = capture_microbatch(model, batch, cut, training=assumptions.training)
        check_patterns(assumptions.pins, captured)
        with preserve_state(model):  # what stays whole runs, and hooks in backward
            graph, cluster = environment.measure(captured, progress)
        warn_of_large_leaves(captured, graph)
        whole = batch.placed(cut.rule)
        source = PlanSource(graph, whole, assumptions, strategy, gap, time_limit_s)
        agreed = environment.plan_together(lambda: source.first_plan(cluster, keep))
        rebalancer = Rebalancing(model, environment, captured, source, cluster)

    cutter = BatchCutter(cut.rule, cut.size, cut.joins, targets)
    logger.info("%s", cutter)

    def make() -> Pipeline:
        return assemble(model, agreed, captured, environment, cutter, weights, rebalancer)

    whole = batch.placed(cut.rule)
    checked = PipelineCheck(model, captured, whole, agreed, environment, make)
    pipeline = checked.pipeline(check)
    if check == "off" or not assumptions.training:
        return pipeline
    return FirstInference(checked, pipeline).await_it()


def capture_and_measure(
    model: nn.Module,
    places: Iterable[LocalDevice],
    *,
    example_inputs: Any = None,
    mode: Mode = "training",
    num_microbatches: int = 8,
    batch_dims: AskedDims = None,
    progress: Progress | None = None,
) -> Graph:
    """The first half of `partition`, for planning offline: the measured graph.

    Raises:
        ValueError: an argument is wrong; nothing has been captured then.
        CaptureError: the model cannot be captured.
    """
    one_of("mode", mode, get_args(Mode))
    whole_number("num_microbatches", num_microbatches, least=1)
    check_cache_folder()
    batch = example_batch(model, example_inputs)
    rule, training = batch_rule(model, batch, batch_dims), mode == "training"
    try:
        cut = decide(model, batch, rule, num_microbatches, training=training)
    except VerificationError:  # `partition` says it
        cut = decide(model, batch, rule, num_microbatches, training=training, verify=False)
    captured = capture_microbatch(model, batch, cut, training=training)
    return measure(captured, places, progress=progress)

"""One model of the sweep: partitioned as a user would, and held against plain torch.

Plain torch runs the same micro-batches one by one. Compared are, for inference, the outputs of two
batches; for training, two steps with different batches: outputs, gradients, buffers, and what else
forward leaves on the modules. `partition` has its own check on; this one does not trust it.
"""

import logging
import os
import re
import time
import warnings
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import nn

from benchmarks.common.documents import ROOT
from benchmarks.coverage.plain_torch import (
    Differences,
    PlainModel,
    Step,
    mixes_samples,
    sizes,
    split,
)
from benchmarks.coverage.printed import Printed
from benchmarks.coverage.tiny_models import Subject
from benchmarks.coverage.unmeasured import operators_take_a_second
from skyfx.api import partition
from skyfx.devices import inventory, resolve
from skyfx.runtime.pipeline import Pipeline
from skyfx.solver.errors import SkyfxError, StageError
from skyfx.tracing.capture import Capture
from skyfx.tracing.leaves.leaf_calls import leaf_of

__all__: list[str] = ["Result", "report"]

NUM_STAGES = 3
MOST_LINES = 3
"""Of a refusal."""

KINDS = ("right", "rounding", "refused", "wrong", "ugly")
"""From best to worst. Rounding: outputs are not equal in every bit. Ugly: a raw or long error, one
that comes after `partition`, a hang or a crash."""


@dataclass(slots=True)
class Result:
    """What came out."""

    family: str
    name: str
    runs_eagerly: bool = False
    kind: str = "right"
    reason: str = ""
    """Why it is not right."""
    untrained: str = ""
    """Why it does not even train eagerly on this batch."""
    num_microbatches: int = 0
    unsaid: str = ""
    """Why it had to be one micro-batch, where the refusal did not say so."""
    random: str = ""
    """Where random numbers are drawn otherwise, so that values could not be compared."""
    printed: str = ""
    """What `partition` or a step printed that plain torch does not."""
    num_nodes: int = 0
    num_stages: int = 0
    whole: list[str] = field(default_factory=list)
    """Submodules that stay whole."""
    in_whole: float = 0.0
    """The part of the parameters that is theirs."""
    output_error: float = 0.0
    gradient_error: float = 0.0
    seconds: float = 0.0

    def becomes(self, kind: str, reason: str) -> None:
        """Keep the worst kind, with the first reason for it."""
        if KINDS.index(kind) > KINDS.index(self.kind):
            self.kind, self.reason = kind, reason


class _RefusedError(Exception):
    """`partition` raised; the kind of its error and its text."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def check(family: str, name: str, printed: Printed) -> Result:
    """Build, partition, run and compare one model, in both modes."""
    result = Result(family, name)
    try:
        subject = Subject(family, name)
        plain = PlainModel(subject)
        plain.infer(subject.batch(0), 1)
    except Exception as error:
        result.reason = _told(error)
        return result
    result.runs_eagerly = True
    try:
        plain.train_step(subject.batch(0), 1, 0)
    except Exception as error:
        result.untrained = _told(error)
    began = time.monotonic()
    printed.forget()
    for mode in ("inference", "training"):
        if mode == "inference" or not result.untrained:
            try:
                _check_mode(subject, mode, result)
            except _RefusedError as refused:
                result.becomes(refused.kind, f"{mode}: {refused}")
    result.printed = printed.new()
    result.seconds = round(time.monotonic() - began, 1)
    return result


def _check_mode(subject: Subject, mode: str, result: Result) -> None:
    num = result.num_microbatches or subject.num_microbatches
    try:
        _check_cut(subject, mode, num, result)
    except _RefusedError as refused:
        if num == 1:
            raise
        mixed = mixes_samples(subject, num)
        if "num_microbatches=1" not in str(refused):
            if not mixed:
                raise
            result.unsaid = f"{mixed}; told: {refused}"
        elif not mixed:
            result.becomes("refused", f"{mode}: samples do not mix, but: {refused}")
        _check_cut(subject, mode, 1, result)


def _check_cut(subject: Subject, mode: str, num: int, result: Result) -> None:
    """Partition into so many micro-batches and compare two batches or steps."""
    for dropout in (True, False):
        model = subject.model(dropout=dropout).train(mode == "training")
        example = subject.batch(0)
        plain = PlainModel(subject, dropout=dropout)
        plain.take(model)
        pipeline = _partitioned(model, example, mode, num, result)
        result.num_microbatches = num
        with pipeline:
            if dropout and not pipeline.runner.draws_as_plain_torch:
                continue  # without dropout there may be nothing that is drawn
            for k in (0, 1):
                try:
                    found = _run(pipeline, model, subject.batch(k), mode, num, k)
                except Exception as error:
                    result.becomes("ugly", f"{mode}, batch {k}: {_told(error)}")
                    return
                expected = plain.run(subject.batch(k), num, mode, k)
                _compare(found, expected, pipeline, f"{mode}, batch {k}", result)
        return


def _partitioned(model: nn.Module, example: Any, mode: Any, num: int, result: Result) -> Pipeline:
    captured: list[Capture] = []
    try:
        with operators_take_a_second(captured):
            pipeline = partition(
                model,
                ["cpu"] * NUM_STAGES,
                example_inputs=example,
                mode=mode,
                strategy="even",
                num_microbatches=num,
                check="full",
            )
    except Exception as error:
        ours = isinstance(error, SkyfxError) and not isinstance(error, StageError)
        ours = ours or (isinstance(error, ValueError | TypeError) and _is_from_skyfx(error))
        short = len(str(error).splitlines()) <= MOST_LINES
        raise _RefusedError("refused" if ours and short else "ugly", _told(error)) from error
    _describe(model, captured[0], result)
    result.num_stages = sum(1 for stage in pipeline.plan.stages if stage.nodes)
    return pipeline


def _run(pipeline: Pipeline, model: nn.Module, batch: Any, mode: str, num: int, k: int) -> Step:
    if mode == "inference":
        return Step.of_inference(pipeline, batch, num, k)
    parts = sizes(split(batch, num))
    return Step.of_training(model, k, parts, lambda f: pipeline.train_step(batch, None, f))


def _compare(found: Step, expected: Step, pipeline: Pipeline, where: str, result: Result) -> None:
    differences = Differences(found, expected)
    if not pipeline.runner.draws_as_plain_torch:
        result.random = where
        if differences.of_names():
            result.becomes("wrong", f"{where}: {differences.of_names()}")
        return
    kind, reason = differences.worst()
    result.output_error = max(result.output_error, differences.of_outputs())
    result.gradient_error = max(result.gradient_error, differences.of_gradients())
    result.becomes(kind, f"{where}: {reason}")


def _describe(model: nn.Module, captured: Capture, result: Result) -> None:
    leaves = [node for node in captured.ids if leaf_of(node)]
    inside = {x.target for node in leaves for x in captured.tensors_of(node)}
    numel = {f"model.{n}": p.numel() for n, p in model.named_parameters()}
    result.num_nodes = len(captured.ids)
    result.whole = [captured.ids[node].removesuffix(".forward") for node in leaves]
    result.in_whole = sum(numel.get(str(x), 0) for x in inside) / max(1, sum(numel.values()))


def _is_from_skyfx(error: Exception) -> bool:
    """Whether the line that raised it is one of skyfx's."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    path = "" if trace is None else trace.tb_frame.f_code.co_filename
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return path.startswith(tuple(os.path.join(root, x) for x in ("skyfx/", "solver/", "runtime/")))


def _told(error: BaseException) -> str:
    """The kind of an error and its text on one line, without the folders of packages."""
    text = " / ".join(str(error).strip().splitlines()) or repr(error)
    text = text.replace(f"{ROOT}/", "")
    cause = error.__cause__
    if isinstance(error, StageError) and cause is not None:
        text += f" ({type(cause).__name__}: {str(cause).strip().splitlines()[:1]})"
    return re.sub(r"/\S*/(site-packages|site)/", "", f"{type(error).__name__}: {text}")[:600]


def report(family: str, name: str, to: Connection) -> None:
    """Check one model and send the result as a dict."""
    torch.set_num_threads(1)
    # Each stage has one thread, too: torch adds up in another order on more.
    resolve.cores = inventory.cores = lambda: 1.0
    logging.getLogger("transformers").setLevel(logging.ERROR)
    logging.getLogger("skyfx").setLevel(logging.ERROR)  # it may say a line of its own
    warnings.filterwarnings("ignore", module="transformers|timm")
    with to, Printed() as printed:
        to.send(asdict(check(family, name, printed)))

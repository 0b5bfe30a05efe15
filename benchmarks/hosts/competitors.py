"""Ways to train one model on several hosts, all from the same parameters on the same batch."""

import copy
from collections.abc import Iterator
from typing import Protocol

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

import skyfx
from benchmarks.hosts.block_times import MICROBATCHES, States
from benchmarks.hosts.manual_splits import Cut
from benchmarks.hosts.models import Chain, Subject
from skyfx.solver import Cluster, Plan

__all__: list[str] = ["SCHEDULES", "Alone", "Engine", "Planned", "Rival", "update"]

SCHEDULES = {"1f1b": Schedule1F1B, "gpipe": ScheduleGPipe}

RATE = 0.01


class Rival(Protocol):
    """One way to train; every process has its part of it and calls it together with the others."""

    def step(self) -> float | None:
        """All micro-batches forward and backward; the batch's mean loss where it is known."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Those that this process holds."""

    def close(self) -> None:
        """End it."""


class Planned:
    """A plan, run by skyfx."""

    def __init__(self, subject: Subject, cluster: Cluster, plan: Plan) -> None:
        self._subject = subject
        self._pipeline = skyfx.partition(
            copy.deepcopy(subject.model), cluster, example_inputs=subject.batch, plan=plan
        )

    def step(self) -> float | None:
        """As `Rival` says."""
        subject = self._subject
        return float(self._pipeline.train_step(subject.batch, subject.targets, subject.loss_fn))

    def parameters(self) -> Iterator[nn.Parameter]:
        """As `Rival` says."""
        return (x for x in self._pipeline.parameters() if not x.is_meta)

    def close(self) -> None:
        """As `Rival` says."""
        self._pipeline.close()


class Engine:
    """A cut by hand, run by torch.distributed.pipelining: each rank its own part of the blocks."""

    def __init__(self, subject: Subject, states: States, cut: Cut, schedule: str) -> None:
        rank = dist.get_rank()
        begin = sum(cut[:rank])
        end = begin + cut[rank]
        self._chain = Chain(subject.blocks_of(copy.deepcopy(subject.model))[begin:end])
        stage = PipelineStage(
            self._chain,
            rank,
            len(cut),
            torch.device("cpu"),
            input_args=states[begin],
            output_args=states[end],
        )
        self._subject, self._is_first, self._is_last = subject, rank == 0, rank == len(cut) - 1
        self._schedule = SCHEDULES[schedule](stage, MICROBATCHES, loss_fn=subject.loss_fn)

    def step(self) -> float | None:
        """As `Rival` says."""
        losses: list[torch.Tensor] = []
        inputs = [self._subject.batch] if self._is_first else []
        if self._is_last:
            self._schedule.step(*inputs, target=self._subject.targets, losses=losses)
            return float(torch.stack([loss.detach() for loss in losses]).mean())
        self._schedule.step(*inputs)
        return None

    def parameters(self) -> Iterator[nn.Parameter]:
        """As `Rival` says."""
        return self._chain.parameters()

    def close(self) -> None:
        """As `Rival` says."""


class Alone:
    """One process trains the whole model as one does without skyfx, the others wait."""

    def __init__(self, subject: Subject, *, here: bool) -> None:
        self._subject = subject
        self._model = copy.deepcopy(subject.model) if here else None

    def step(self) -> float | None:
        """As `Rival` says."""
        if self._model is None:
            return None
        total, subject = 0.0, self._subject
        parts = zip(
            subject.batch.chunk(MICROBATCHES), subject.targets.chunk(MICROBATCHES), strict=True
        )
        for batch, targets in parts:
            loss = subject.loss_fn(self._model(batch), targets) / MICROBATCHES
            loss.backward()
            total += float(loss.detach())
        return total

    def parameters(self) -> Iterator[nn.Parameter]:
        """As `Rival` says."""
        return iter(()) if self._model is None else self._model.parameters()

    def close(self) -> None:
        """As `Rival` says."""


def update(rival: Rival) -> None:
    """Plain gradient descent, which keeps nothing."""
    with torch.no_grad():
        for parameter in rival.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=RATE)
                parameter.grad = None

"""Scripts whose processes do not all do the same: what each process is told, see `test_careless`.

Situations that end with an error in all processes at once follow each other in one job. Those that
end it are the last.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

import skyfx
from skyfx.runtime.batches.microbatch import Batch
from skyfx.runtime.distributed.process_group import ProcessGroup
from skyfx.runtime.execution.shared_data import Reads
from skyfx.runtime.pipeline import Pipeline
from skyfx.solver import Plan
from skyfx.tracing.capture import capture
from tests.support.plans import even_plan

SAMPLES, FEATURES, SIZE = 8, 8, 2


class Job:
    """A small model over all processes; the first stage is on the last rank."""

    def __init__(self) -> None:
        self.cluster = skyfx.Cluster.from_environment()
        self.group = ProcessGroup.join()
        self.rank, self.size = self.group.rank, self.group.size
        self.first, self.last = self.size - 1, 0
        self.own = self.model()

    def model(self, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        blocks = (
            nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.Tanh(), nn.Dropout(0.25))
            for _ in range(self.size)
        )
        return nn.Sequential(*blocks)

    def data(self, samples: int = SAMPLES, seed: int = 1) -> tuple[Tensor, Tensor]:
        made = torch.Generator().manual_seed(seed)
        return tuple(torch.randn(samples, FEATURES, generator=made) for _ in range(2))  # type: ignore[return-value]

    @cached_property
    def plan(self) -> Plan:
        captured = capture(self.model(), Batch.of(self.data(SIZE)[0]))
        plan = even_plan(captured, self.size)
        names = [device.name for device in self.cluster.devices][::-1]
        stages = [replace(s, device=name) for s, name in zip(plan.stages, names, strict=True)]
        return replace(plan, stages=tuple(stages))

    def partition(self, model: nn.Module | None = None, **options: Any) -> Pipeline:
        options = {"example_inputs": self.data()[0], "plan": self.plan, "check": "off"} | options
        return skyfx.partition(model or self.model(), self.cluster, **options)

    def step(self, pipeline: Pipeline, samples: int = SAMPLES, seed: int = 1) -> Tensor:
        return pipeline.train_step(*self.data(samples, seed), functional.mse_loss)


MADE: dict[str, Callable[[Job], Any]] = {
    "other seeds": lambda job: job.partition(job.model(seed=job.rank)),
    "other arguments": lambda job: job.partition(gap=0.01 * (1 + job.rank)),
    "other widths": lambda job: job.partition(nn.Linear(FEATURES, FEATURES + job.rank), plan=None),
    "other example shapes": lambda job: job.partition(
        example_inputs=job.data(SAMPLES + 2 * job.rank)[0]
    ),
    "a wrong example on rank 0": lambda job: job.partition(
        example_inputs=job.data()[0] if job.rank else torch.zeros(0, FEATURES)
    ),
}
"""Before there is a pipeline."""

CALLS: dict[str, Callable[[Job, Pipeline], Any]] = {
    "other batches": lambda job, p: job.step(p, seed=job.rank),
    "other batch sizes": lambda job, p: job.step(p, samples=SAMPLES + 2 * job.rank),
    "other targets": lambda job, p: p.train_step(
        job.data()[0], job.data(seed=job.rank)[1], functional.mse_loss
    ),
    "state_dict on rank 0": lambda job, p: p.state_dict() if job.rank == 0 else job.step(p),
    "evaluation on rank 0": lambda job, p: ((job.rank == 0 and p(job.data()[0]), job.step(p))),
    "other modules": lambda job, p: p.state_dict("0" if job.rank else "1"),
    "other states": lambda job, p: p.load_state_dict(job.model(seed=job.rank).state_dict()),
    "other norms": lambda job, p: p.clip_grad_norm_(1.0 + job.rank),
    "shorter stream": lambda job, p: [*p.stream([job.data()[0]] * (2 + job.rank))],
    "stream left early": lambda job, p: (
        next(iter(p.stream([job.data()[0]] * 3))) if job.rank else [*p.stream([job.data()[0]] * 3)],
        job.step(p),
    ),
    "profile on rank 0": lambda job, p: (
        p.profile(*job.data(), functional.mse_loss) if job.rank == 0 else p.clip_grad_norm_(1.0)
    ),
    "partition on rank 0": lambda job, p: job.partition() if job.rank == 0 else job.step(p),
    "no batch at the first stage": lambda job, p: p.train_step(
        None if job.rank == job.first else job.data()[0], job.data()[1], functional.mse_loss
    ),
    "no batch at all": lambda job, p: p(None),
    "no targets at the last stage": lambda job, p: p.train_step(
        job.data()[0], None if job.rank == job.last else job.data()[1], functional.mse_loss
    ),
    "more targets than samples": lambda job, p: p.train_step(
        job.data()[0] if job.rank == job.first else None,
        job.data(SAMPLES + 1)[1] if job.rank == job.last else None,
        functional.mse_loss,
    ),
    "a batch that one rank cannot read": lambda job, p: p(
        "text" if job.rank == 0 else job.data()[0]
    ),
    "another nesting and None": lambda job, p: p(
        {"input": job.data()[0]} if job.rank == job.first else None
    ),
    "autocast on rank 0": lambda job, p: autocast_on_first(job, p),
    "another rate on rank 0": lambda job, p: rate_on_first(job, p),
    "checkpoint on rank 0": lambda job, p: (
        p.checkpoints("unused") if job.rank == 0 else job.step(p)
    ),
}
"""With a pipeline."""


def autocast_on_first(job: Job, pipeline: Pipeline) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=job.rank == 0):
        job.step(pipeline)


def rate_on_first(job: Job, pipeline: Pipeline) -> None:
    dropout = next(x for x in job.own.modules() if isinstance(x, nn.Dropout))
    if job.rank == 0:
        dropout.p = 0.5
    try:
        job.step(pipeline)
    finally:
        dropout.p = 0.25


def told(action: Callable[[], Any]) -> dict[str, Any]:
    """How long it took, and the error that it ended with."""
    began = time.perf_counter()
    error = ""
    try:
        action()
    except Exception as found:
        error = f"{type(found).__name__}: {found}"
    return {"seconds": time.perf_counter() - began, "error": error}


def mismatches(job: Job) -> dict[str, Any]:
    """One error in all processes, after which they can go on."""
    found = {name: told(lambda: make(job)) for name, make in MADE.items()}  # noqa: B023
    with job.partition(job.own) as pipeline:
        for name, call in CALLS.items():
            found[name] = told(lambda: call(job, pipeline))  # noqa: B023
        found["the same again"] = told(lambda: job.step(pipeline))
    return found


def losses(pipeline: Pipeline, job: Job, *, where_read: bool = False) -> list[float]:
    """Trains, with other shapes at the end; data are given everywhere, or where they are read."""
    reads = pipeline.reads if where_read else Reads(batch=True, targets=True)
    torch.manual_seed(3)
    optimizer = torch.optim.SGD(pipeline.parameters(), lr=0.1)
    found = []
    for samples in (SAMPLES, SAMPLES, SAMPLES - 1, SAMPLES - 1, 2):
        batch, targets = job.data(samples, seed=samples)
        loss = pipeline.train_step(
            batch if reads.batch else None, targets if reads.targets else None, functional.mse_loss
        )
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
        dist.barrier()  # of the program's own
    given = job.data(seed=9)[0] if reads.batch else None
    return [*found, *(x.sum().item() for x in (pipeline(given), *pipeline.stream([given] * 3)))]


def right(job: Job) -> dict[str, Any]:
    """What need not be the same: data that a process does not read, and initial values."""
    with job.partition() as pipeline:
        everywhere = losses(pipeline, job)
    with job.partition() as pipeline:
        assert pipeline.reads == (job.rank == job.first, job.rank == job.last)
        where_read = losses(pipeline, job, where_read=True)
    with job.partition(job.model(seed=job.rank), initial="first") as pipeline:
        first = losses(pipeline, job)
    torch.manual_seed(job.rank)
    example = torch.randn(SAMPLES, FEATURES)
    with job.partition(example_inputs=example, check="full") as pipeline:
        examples = losses(pipeline, job)
    return {"everywhere": everywhere, "others": [where_read, first, examples]}


def ending(job: Job, how: str) -> dict[str, Any]:
    """One process calls, the others do something else for ever, or end."""
    with job.partition() as pipeline:
        job.step(pipeline)
        if how == "fewer steps":
            return told(lambda: [job.step(pipeline) for _ in range(4 - job.rank)])
        if job.rank == 0:
            return told(pipeline.state_dict)
        return told(dist.barrier if how == "barrier" else lambda: None)


def main(folder: str, how: str) -> None:
    torch.set_num_threads(1)
    job = Job()
    report = {"mismatches": mismatches, "right": right}.get(how, lambda job: ending(job, how))(job)
    Path(folder, f"{job.rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])

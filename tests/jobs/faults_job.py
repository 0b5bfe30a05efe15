"""One process of a job to which a fault comes; says how it learned of it: `test_faults`."""

import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

import skyfx
from skyfx.runtime.batches.microbatch import Batch
from skyfx.runtime.distributed.process_group import ProcessGroup
from skyfx.solver.errors import StageError, WorkerLostError
from skyfx.tracing.capture import capture
from tests.support.plans import NUM_MICROBATCHES, even_plan

FEATURES = 16


class Trap(nn.Module):
    """Passes on what it gets, taking its time if told to; a huge number springs it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if bool((x > 1e6).any()):
            if self.how == "hang":
                time.sleep(1000)
            raise ValueError("the trap has sprung")
        if self.how == "slow":
            time.sleep(0.2)
        return x


def model(how: str, num_stages: int) -> nn.Module:
    blocks = [nn.Linear(FEATURES, FEATURES) for _ in range(num_stages)]
    return nn.Sequential(*blocks, Trap(how))


def main(how: str, who: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cluster = skyfx.Cluster.from_environment()
    group = ProcessGroup.join()
    whole = model(how, group.size)
    batch = torch.randn(NUM_MICROBATCHES, FEATURES)
    captured = capture(whole, Batch.of(batch).split(1)[0])
    plan = even_plan(captured, group.size)
    names = [device.name for device in cluster.devices]
    stages = [
        replace(stage, device=name, compute_s=1e-3)
        for stage, name in zip(plan.stages, names, strict=True)
    ]
    said = Path(folder, f"{group.rank}.json")
    with skyfx.partition(
        whole, cluster, example_inputs=batch, plan=replace(plan, stages=tuple(stages)), check="off"
    ) as pipeline:
        pipeline.train_step(batch, torch.zeros_like(batch), functional.mse_loss)
        if group.rank == who:
            Path(folder, "fault").write_text(str(time.time()))
            fault(how)
        springs = (
            batch if how in ("kill", "stop", "leave", "slow") else torch.full_like(batch, 1e20)
        )
        try:
            while True:
                pipeline.train_step(springs, torch.zeros_like(batch), functional.mse_loss)
                Path(folder, f"{group.rank}.step").touch()
        except (StageError, WorkerLostError) as error:
            text = {"at": time.time(), "error": f"{type(error).__name__}: {error}"}
            said.write_text(json.dumps(text))
            sys.exit(3)


def fault(how: str) -> None:
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if how == "leave":
        sys.exit(0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])

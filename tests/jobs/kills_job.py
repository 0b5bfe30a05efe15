"""Trains and saves at every step, killed at random moments over and over: run by the tests.

Each life is forked from this process, which has torch but has not used it.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import torch._dynamo  # capturing imports it, and each life would anew
import torch.distributed as dist
import torch.export._trace
from torch import Tensor, nn
from torch.nn import functional

import skyfx
from skyfx.devices.inventory import DeviceInventory
from skyfx.solver.core.cluster import Cluster
from tests.jobs.ranks_job import plan_for
from tests.support.models import BATCH, Case
from tests.support.plans import split_evenly

END = 60
"""Steps of the whole training."""


def case() -> Case:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 64), nn.Dropout(0.2), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)
    )
    return Case(model, torch.randn(BATCH, 8), torch.randn(BATCH, 1), functional.mse_loss)


def pipeline_of(trained: Case, rank: int, size: int, store: Path) -> skyfx.Pipeline:
    if size == 1:
        return split_evenly(trained, 2)
    shared = dist.FileStore(str(store), size)
    dist.init_process_group("gloo", store=shared, rank=rank, world_size=size)
    cluster = Cluster(devices=DeviceInventory.join().devices)
    plan = plan_for(trained, [device.name for device in cluster.devices], "given")
    return skyfx.partition(
        trained.model, cluster, example_inputs=trained.batch, plan=plan, check="off"
    )


def live(folder: Path, rank: int, size: int, store: Path, stepped: Callable[[], None]) -> None:
    """Go on from the latest checkpoint to the end; the losses so far go with it."""
    torch.set_num_threads(1)
    trained = case()
    with pipeline_of(trained, rank, size, store) as pipeline:
        optimizer = torch.optim.AdamW(pipeline.parameters(), lr=1e-3)
        checkpoints = pipeline.checkpoints(folder, optimizer=optimizer)
        found = checkpoints.load()
        losses = found.extra["losses"] if found else []
        assert len(losses) == (found.step if found else 0)
        for step in range(len(losses), END):
            loss: Tensor = pipeline.train_step(trained.batch, trained.targets, trained.loss_fn)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            checkpoints.save(step + 1, {"losses": losses}, wait=step % 3 == 0)
            stepped()


def born(folder: Path, size: int, store: Path, out: int) -> list[int]:
    """Fork a process for each rank; each writes a byte for every step."""
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            os.environ |= {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size)}
            try:
                live(folder, rank, size, store, lambda: os.write(out, b".") and None)
                os._exit(0)  # what this process has at its exit is not the child's
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        children.append(child)
    return children


def main(folder: str, size: int, lives: int, seed: int) -> None:
    chance = random.Random(seed)
    run, codes = Path(folder, "run"), []
    for life in range(lives + 1):
        steps, out = os.pipe()
        children = born(run, size, Path(folder, f"store-{life}"), out)
        os.close(out)
        if life < lives:
            for _ in range(chance.randint(1, 5)):
                os.read(steps, 1)
            time.sleep(chance.uniform(0, 0.03))
            os.kill(chance.choice(children), signal.SIGKILL)
        codes.append(sorted(os.waitstatus_to_exitcode(os.waitpid(c, 0)[1]) for c in children))
        os.close(steps)
    print(json.dumps(codes))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))

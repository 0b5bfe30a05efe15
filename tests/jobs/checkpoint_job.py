"""Trains, saves and goes on as every process of a job: run by `test_checkpoint_ranks`."""

import json
import sys
from pathlib import Path
from typing import Any

import torch

import skyfx
from skyfx.devices.inventory import DeviceInventory
from skyfx.solver.core.cluster import Cluster
from skyfx.solver.errors import CheckpointError
from tests.jobs.ranks_job import plan_for
from tests.support import models
from tests.support.models import Case
from tests.support.plans import split_evenly

SAVED, END = 2, 5
"""The step of which there is a checkpoint, and the last one."""


def case_of(name: str, seed: int) -> Case:
    """Data are the same for any seed; values and masks are not."""
    torch.manual_seed(0)
    case = models.bert(dropout=0.2) if name == "bert" else models.CASES[name]()
    torch.manual_seed(seed)
    for parameter in case.model.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.01)
    return case


def train(pipeline: skyfx.Pipeline, case: Case, folder: Path, phase: str) -> dict[str, Any]:
    """Begin, saving on the way, or go on from there; returns the losses by step."""
    optimizer = torch.optim.AdamW(pipeline.parameters(), lr=1e-2, weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=10)
    checkpoints = pipeline.checkpoints(folder, optimizer=optimizer, scheduler=scheduler)
    is_found = phase == "begin" or "elsewhere" in folder.name
    try:
        found = checkpoints.load(None if is_found else SAVED)
    except CheckpointError as error:
        return {"error": str(error)}
    losses = {}
    for step in range(found.step if found else 0, END):
        loss = pipeline.train_step(case.batch, case.targets, case.loss_fn)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses[step + 1] = loss.item()
        if phase == "begin" and step < SAVED:
            checkpoints.save(step + 1, {"seen": 8 * (step + 1)}, wait=False)
    return {"losses": losses, "extra": found and found.extra, "latest": checkpoints.latest()}


def alone(name: str, folder: Path, phase: str, num_stages: int) -> dict[str, Any]:
    """The same in one process."""
    case = case_of(name, seed=1 if phase == "begin" else 2)
    with split_evenly(case, num_stages) as pipeline:
        return train(pipeline, case, folder, phase)


def main(folder: str, phase: str, *jobs: str) -> None:
    torch.set_num_threads(1)
    hosts = DeviceInventory.join()
    cluster, rank = Cluster(devices=hosts.devices), hosts.group.rank
    names = [device.name for device in cluster.devices]
    said = {}
    for job in jobs:
        name, _, where = job.partition("@")
        place = Path(folder, str(rank) if where in ("apart", "elsewhere") else "", job)
        case = case_of(name, seed=1 if phase == "begin" else 2)
        plan = plan_for(case, names, "given")
        with skyfx.partition(
            case.model, cluster, example_inputs=case.batch, plan=plan, check="off"
        ) as pipeline:
            said[job] = train(pipeline, case, place, phase)
            state = case.model.state_dict().items()
            said[job]["held"] = sorted(key for key, value in state if not value.is_meta)
    Path(folder, f"{phase}-{rank}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""What each process of a job sees of the check, run by `test_check_together`."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import skyfx
from skyfx.partitioning import splitter
from skyfx.runtime.distributed.process_group import ProcessGroup
from skyfx.runtime.execution.stage import StagedModel
from skyfx.runtime.pytree import parts_of
from skyfx.solver import Plan
from skyfx.solver.errors import VerificationError
from skyfx.tracing.capture import Capture
from skyfx.tracing.torch_internals import replaced
from skyfx.verification import capacity
from tests.support.int8_weights import quantise
from tests.support.plans import capture_first, even_plan

WIDTH, BATCH = 8, torch.linspace(-1, 1, 64).reshape(8, 8)


class Net(nn.Module):
    """Has random numbers, a buffer, and an attribute for the loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)
        self.drop, self.last = nn.Dropout(0.5), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(torch.relu(self.norm(self.first(x))))
        self.l_aux = h.pow(2).mean()
        return self.last(h)


class TimeFirst(nn.Module):
    """Its samples are in dimension 1, and those of its table nowhere."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.last = nn.RNN(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        return self.last(self.layer(x + table[: len(x), None])[0])


def time_first(cluster: skyfx.Cluster) -> bool:
    """Whether a step and an inference are those of plain torch; who reads no data gives none."""
    model, plain, dims = TimeFirst(), TimeFirst(), {"x": 1, "table": None}
    x, table = torch.linspace(-1, 1, 5 * 8 * WIDTH).reshape(5, 8, WIDTH), BATCH
    batch = {"x": x, "table": table}
    plan = on_all(cluster, capture_first(model, batch, batch_dims=dims))
    loss_fn = torch.nn.functional.mse_loss
    with skyfx.partition(
        model, cluster, example_inputs=batch, plan=plan, batch_dims=dims, target_dims=1
    ) as pipeline:
        given = batch if pipeline.reads.batch else None
        loss = pipeline.train_step(given, x if pipeline.reads.targets else None, loss_fn)
        outputs = pipeline(given)
    parts = x.split(2, dim=1)
    expected = sum(loss_fn(plain(part, table), part) / len(parts) for part in parts)
    alone = torch.cat([plain(part, table) for part in parts], dim=1)
    return bool(loss == expected) and torch.equal(outputs, alone)


def quantised(cluster: skyfx.Cluster, rank: int) -> bool:
    """Whether frozen 8-bit weights of the first process, and what trains, are as in plain torch."""

    def made(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        frozen = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(2)))
        quantise(frozen)
        return nn.Sequential(frozen[0], nn.Linear(WIDTH, WIDTH), frozen[1])

    model, plain, loss_fn = made(rank), made(0), torch.nn.functional.mse_loss
    plan = on_all(cluster, capture_first(model, BATCH))
    with skyfx.partition(
        model, cluster, example_inputs=BATCH, plan=plan, initial="first"
    ) as pipeline:
        loss = pipeline.train_step(BATCH, BATCH, loss_fn)
        state = pipeline.state_dict()
    expected = sum(loss_fn(plain(part), part) / 4 for part in BATCH.split(2))
    codes = (state["2.weight"], plain.state_dict()["2.weight"])
    same = all(map(torch.equal, *map(parts_of, codes)))
    return bool(loss == expected) and same


def on_all(cluster: skyfx.Cluster, captured: Capture) -> Plan:
    """A plan with a stage on each device."""
    names = [device.name for device in cluster.devices]
    plan = even_plan(captured, len(names))
    stages = [replace(s, device=name) for s, name in zip(plan.stages, names, strict=True)]
    return replace(plan, stages=tuple(stages))


def main(folder: str) -> None:
    torch.set_num_threads(1)
    cluster, group = skyfx.Cluster.from_environment(), ProcessGroup.join()
    options: dict[str, Any] = {"plan": on_all(cluster, capture_first(Net(), BATCH))}

    def report(name: str, model: nn.Module, *, infers: bool = False, **more: Any) -> None:
        try:
            with skyfx.partition(
                model, cluster, example_inputs=BATCH, **options, **more
            ) as pipeline:
                found[name] = str(pipeline.verified)
                if infers:
                    pipeline(BATCH if pipeline.reads.batch else None)
                    found[f"{name}, inference"] = str(pipeline.verified.inference)
        except VerificationError as error:
            found[name] = str(error)

    found: dict[str, str] = {}
    right, is_training = splitter.split, True

    def wrong(captured: Capture, *args: Any) -> StagedModel:
        staged = right(captured, *args)
        for stage in staged.stages.values() if captured.training == is_training else ():
            for node in stage.module.graph.nodes:
                if "relu" in node.name:  # in one process alone
                    node.target = torch.nn.functional.gelu
            stage.module.recompile()
        return staged

    if group.rank == 0:
        save_file(Net().state_dict(), Path(folder, "net.safetensors"))
    group.run_together(lambda: None)
    report("whole", Net(), infers=True)
    report("outputs", Net(), check="outputs")
    with replaced(splitter, "split", wrong):
        report("wrong", Net())
        is_training = False
        report("wrong inference", Net(), infers=True)
        is_training = True
    # One process alone has no memory left.
    few = (lambda _: -1.0) if group.rank == 1 else capacity.free_bytes
    with replaced(capacity, "free_bytes", few):
        report("parts", Net(), infers=True)
        with replaced(splitter, "split", wrong):
            report("wrong parts", Net())
    with skyfx.empty_weights():
        empty = Net()
    report("weights", empty, weights=str(Path(folder, "net.safetensors")))
    found["batch_dims"] = str(time_first(cluster))
    found["quantised"] = str(quantised(cluster, group.rank))
    Path(folder, f"{group.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])

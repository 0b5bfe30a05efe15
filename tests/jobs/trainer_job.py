"""A training by every process of a job, which may be asked to stop: run by `test_trainer_ranks`."""

import json
import os
import sys
from pathlib import Path

import torch
from torch.nn import functional
from torch.utils.data import DataLoader

import skyfx
from skyfx.training.trainer import Trainer
from tests.support.models import BATCH
from tests.support.training import FEATURES, Losses, model, rows


class Puts(skyfx.Callback):
    """A file that one process alone sees, after the third batch."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def after_iteration(self, trainer: Trainer) -> None:
        if trainer.iteration == 3:
            self._path.touch()


def main(folder: Path, stopping: int) -> None:
    torch.set_num_threads(1)
    rank = int(os.environ.get("RANK", "0"))
    skyfx.log_to(folder / "logs")
    whole, losses = model(), Losses()
    flag = folder / f"stop-{rank}"
    callbacks = [skyfx.Checkpointing(folder / "run"), losses, skyfx.Timer(every=1)]
    callbacks += [Puts(flag)] if rank == stopping else []
    cluster = skyfx.Cluster.from_environment()
    with skyfx.partition(
        whole,
        cluster,
        example_inputs=torch.zeros(BATCH, FEATURES),
        num_microbatches=2,
        strategy="even",
    ) as pipeline:
        torch.manual_seed(100 + rank)  # the first process's counts
        trainer = skyfx.Trainer(
            pipeline,
            torch.optim.AdamW(pipeline.parameters(), lr=0.05),
            functional.cross_entropy,
            max_grad_norm=0.5,
            callbacks=[*callbacks, skyfx.StopFlag(flag)],
        )
        trainer.fit(DataLoader(rows(), BATCH, shuffle=True), epochs=2)
        head = pipeline.state_dict("3")
        pipeline.load_state_dict({name: 2 * value for name, value in head.items()}, "3")
        doubled = pipeline.state_dict()
    said = {
        "losses": losses.found,
        "stages": len(pipeline.plan.stages),
        "head": {name: list(value.shape) for name, value in head.items()},
        "doubled": all(torch.equal(doubled[f"3.{name}"], 2 * x) for name, x in head.items()),
    }
    (folder / f"{rank}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

"""One of two processes, neither of which may hold the model: run by `test_limited`."""

import json
import os
import sys
from pathlib import Path

import torch
from torch import nn

import skyfx

FEATURES, LAYERS, BATCH = 2048, 32, 8


def model() -> nn.Module:
    """512 MiB of parameters."""
    layers = [nn.Linear(FEATURES, FEATURES, bias=False) for _ in range(LAYERS)]
    return nn.Sequential(*layers)


def batch() -> torch.Tensor:
    return torch.linspace(-1, 1, BATCH * FEATURES).reshape(BATCH, FEATURES)


def main(weights: str, folder: str, limits: str) -> None:
    rank = os.environ["RANK"]
    torch.set_num_threads(1)
    cluster = skyfx.Cluster.from_environment()
    Path(limits + rank, "cgroup.procs").write_text(str(os.getpid()))
    with skyfx.empty_weights():
        whole = model()
    with skyfx.partition(
        whole,
        cluster,
        example_inputs=batch(),
        weights=weights,
        mode="inference",
        strategy="even",
        num_microbatches=2,
    ) as pipeline:
        outputs = pipeline(batch())
    held = sum(not x.is_meta for x in whole.parameters())
    said = {"outputs": outputs[:, :4].tolist(), "held": held}
    Path(folder, f"{rank}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Trains within the limits of its devices; then the loss wants 256 MiB that nobody has planned for.

Run by `test_limits`; an argument per device, its limit in MiB or `none`.
"""

import resource
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import skyfx

SIZE = 1024


def greedy(outputs: Tensor, targets: Any) -> Tensor:
    return mse_loss(outputs, targets) + 0 * torch.empty(2**26)[0]


def main(*words: str) -> None:
    torch.set_num_threads(1)
    model = nn.Sequential(*(nn.Linear(SIZE, SIZE) for _ in range(4)))
    x = torch.ones(64, SIZE)
    limits = [None if word == "none" else float(word) * 2**20 for word in words]
    devices = [skyfx.Device("cpu", memory_bytes=limit) for limit in limits]
    with skyfx.partition(model, devices, example_inputs=x, num_microbatches=2) as pipeline:
        optimizer = torch.optim.AdamW(pipeline.parameters())
        for _ in range(3):
            pipeline.train_step(x, x, mse_loss)
            optimizer.step()
            optimizer.zero_grad()
        try:
            pipeline.train_step(x, x, greedy)
            print("trained")  # noqa: T201
        except skyfx.StageError as error:
            print(error)  # noqa: T201
        pipeline.train_step(x, x, mse_loss)  # goes on
    torch.empty(2**27)
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY


if __name__ == "__main__":
    main(*sys.argv[1:])

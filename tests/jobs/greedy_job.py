"""Trains within the limits of its devices; then the loss takes 256 MiB that nobody has planned for.

Run by `test_limits`; an argument per device, its limit in MiB or `none`; before them `hard` has the
kernel enforce them.
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
    return mse_loss(outputs, targets) + 0 * torch.ones(2**26)[0]


def greedy_in_parts(outputs: Tensor, targets: Any) -> Tensor:
    """As much at a time, in blocks of the heap."""
    parts = [torch.ones(2**20) for _ in range(64)]
    return mse_loss(outputs, targets) + 0 * parts[0][0]


def data_limit() -> int:
    return resource.getrlimit(resource.RLIMIT_DATA)[0]


def main(*words: str) -> None:
    torch.set_num_threads(1)
    model = nn.Sequential(*(nn.Linear(SIZE, SIZE) for _ in range(4)))
    x = torch.ones(64, SIZE)
    is_hard = words[0] == "hard"
    limits = [None if word == "none" else float(word) * 2**20 for word in words[is_hard:]]
    devices = [skyfx.Device("cpu", memory_bytes=limit, hard=is_hard) for limit in limits]
    with skyfx.partition(model, devices, example_inputs=x, num_microbatches=2) as pipeline:
        assert (data_limit() != resource.RLIM_INFINITY) == is_hard
        optimizer = torch.optim.AdamW(pipeline.parameters())
        data = [] if is_hard else [bytes(b"1" * 2**20) for _ in range(300)]  # the program's own
        for _ in range(6):
            pipeline.train_step(x, x, mse_loss)
            optimizer.step()
            optimizer.zero_grad()
        for loss_fn in (greedy, greedy_in_parts):
            try:
                pipeline.train_step(x, x, loss_fn)
                print("trained")  # noqa: T201
            except skyfx.StageError as error:
                print(error)  # noqa: T201
            optimizer.zero_grad()
            pipeline.train_step(x, x, mse_loss)  # goes on
        del data
    torch.empty(2**27)
    assert data_limit() == resource.RLIM_INFINITY


if __name__ == "__main__":
    main(*sys.argv[1:])

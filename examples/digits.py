"""Train an image model over two unequal devices: a residual network that reads handwritten digits.

    python examples/digits.py

It takes 60 steps, or as many as `--steps` says. The 1,797 digits of 8 x 8 pixels lie in
`examples/data`.
"""

import argparse
import csv
import gzip
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

import skyfx

DATA = Path(__file__).parent / "data" / "digits.csv.gz"
BATCH, HELD_BACK = 64, 297


def read() -> tuple[Tensor, Tensor]:
    """Images from 0 to 1, `(num_rows, 1, 8, 8)`, and the digits that they show."""
    with gzip.open(DATA, "rt", encoding="ascii", newline="") as file:
        rows = torch.tensor([[int(float(cell)) for cell in row] for row in csv.reader(file)])
    return rows[:, :-1].reshape(-1, 1, 8, 8) / 16, rows[:, -1]


class Block(nn.Module):
    """Two convolutions beside a connection that skips them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Of the shape of `x`."""
        return functional.relu(x + self.inner(x))


def network(width: int = 32, depth: int = 4) -> nn.Module:
    """A small residual network, `(samples, 1, 8, 8)` to `(samples, 10)`."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        *(Block(width) for _ in range(depth)),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * width, 10),
    )


def accuracy(pipeline: skyfx.Pipeline, images: Tensor, digits: Tensor) -> float:
    """Share of right answers; the last batch is a shorter one."""
    batches = zip(images.split(BATCH), digits.split(BATCH), strict=True)
    right = sum(int((pipeline(x).argmax(1) == y).sum()) for x, y in batches)
    return right / len(digits)


def main() -> None:
    """Plan, train, and say how many digits it reads that it has never seen."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    steps = parser.parse_args().steps
    torch.manual_seed(0)
    images, digits = read()
    unseen = slice(len(images) - HELD_BACK, None)
    devices = ["cpu", skyfx.Device("cpu", slowdown=2)]
    with skyfx.partition(
        network(), devices, example_inputs=images[:BATCH], num_microbatches=4
    ) as pipeline:
        print(pipeline.plan)
        optimizer = torch.optim.AdamW(pipeline.parameters(), lr=3e-3)
        for step in range(steps):
            rows = torch.randint(0, len(images) - HELD_BACK, (BATCH,))
            loss = pipeline.train_step(images[rows], digits[rows], functional.cross_entropy)
            optimizer.step()
            optimizer.zero_grad()
            if step % 10 == 0:
                print(f"step {step}  loss {loss.item():.4f}")
        share = accuracy(pipeline, images[unseen], digits[unseen])
    print(f"right about {share:.1%} of {HELD_BACK} digits that it has never seen")


if __name__ == "__main__":
    main()

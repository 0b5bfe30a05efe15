"""Train a residual network on CIFAR-10 over two unequal devices, in the data set's own format.

    python examples/cifar.py

No part of CIFAR-10 lies here: its pictures are others' photographs. Without `--data` random ones in
the same files stand in for it, ten colours under noise. `--data` takes a folder with the real ones:
the "binary version" of https://www.cs.toronto.edu/~kriz/cifar.html, which needs more `--epochs`.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

import skyfx

SIDE, CLASSES, PAD = 32, 10, 4
RECORD = 1 + 3 * SIDE * SIDE
TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
TEST = ("test_batch.bin",)
BATCH, MICROBATCHES, RATE = 64, 4, 3e-3


def read(folder: Path, names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Pictures `(num_rows, 3, 32, 32)` of 0 to 255, and their classes `(num_rows,)`.

    A row of a file is a byte for the class, then 1,024 each of red, green and blue.

    Raises:
        ValueError: a file is not in this format.
    """
    parts = []
    for name in names:
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{path} is missing; unpack CIFAR-10's binary version there")
        raw = np.fromfile(path, dtype=np.uint8)
        if raw.size == 0 or raw.size % RECORD:
            raise ValueError(
                f"{path} has {raw.size} bytes, which is no multiple of {RECORD}, those of a "
                "picture; unpack it again"
            )
        rows = raw.reshape(-1, RECORD)
        if rows[:, 0].max() >= CLASSES:
            worst = int(rows[:, 0].argmax())
            raise ValueError(
                f"{path}: picture {worst} is of class {rows[worst, 0]}, the last is "
                f"{CLASSES - 1}; is this CIFAR-10's binary version?"
            )
        parts.append(rows)
    rows = np.concatenate(parts)
    pictures = torch.from_numpy(rows[:, 1:].reshape(-1, 3, SIDE, SIDE).copy())
    return pictures, torch.from_numpy(rows[:, 0].astype(np.int64))


def stand_in(folder: Path, rows: int, seed: int = 0) -> None:
    """Write files of so many random pictures each: a colour for each class, under noise."""
    draw = np.random.default_rng(seed)
    colours = draw.integers(64, 192, (CLASSES, 3, 1))
    for name in (*TRAIN, *TEST):
        classes = draw.integers(0, CLASSES, rows)
        noise = draw.normal(0, 48, (rows, 3, SIDE * SIDE))
        pixels = np.clip(colours[classes] + noise, 0, 255).reshape(rows, -1)
        np.column_stack([classes, pixels]).astype(np.uint8).tofile(folder / name)


class Pictures(Dataset[tuple[Tensor, Tensor]]):
    """Pictures by the mean and deviation of each colour, moved and mirrored where they train."""

    def __init__(self, pixels: Tensor, classes: Tensor, colours: Tensor, *, moved: bool) -> None:
        self._pixels, self._classes, self._moved = pixels, classes, moved
        self._mean, self._deviation = colours

    def __len__(self) -> int:
        return len(self._classes)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        picture = (self._pixels[i] - self._mean) / self._deviation
        return moved(picture) if self._moved else picture, self._classes[i]


def colours(pixels: Tensor) -> Tensor:
    """Mean and deviation of each colour, `(2, 3, 1, 1)`."""
    of_colour = pixels.float().transpose(0, 1).flatten(1)
    return torch.stack([of_colour.mean(1), of_colour.std(1)])[..., None, None]


def moved(picture: Tensor) -> Tensor:
    """The picture by up to four pixels elsewhere, and every other one mirrored.

    Torch's own generator says how: a training that is resumed draws what it would have drawn.
    """
    top, left, mirror = (int(torch.randint(n, ())) for n in (2 * PAD + 1, 2 * PAD + 1, 2))
    large = functional.pad(picture, (PAD,) * 4)
    cut = large[:, top : top + SIDE, left : left + SIDE]
    return cut.flip(2) if mirror else cut


class Block(nn.Module):
    """Two convolutions beside a connection that skips them, which halves the sides if asked to."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outside),
            nn.ReLU(),
            nn.Conv2d(outside, outside, 3, padding=1, bias=False),
            nn.BatchNorm2d(outside),
        )
        same = inside == outside and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(inside, outside, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`(samples, inside, side, side)` to `(samples, outside, side / stride, ...)`."""
        return functional.relu(self.skip(x) + self.inner(x))


def resnet(depth: int, width: int) -> nn.Module:
    """Three groups of so many blocks, as He et al. (2015) have for CIFAR-10.

    Its batch norms take each micro-batch by itself, as they do in plain torch that accumulates.
    """
    sizes = [(width, width, 1), (width, 2 * width, 2), (2 * width, 4 * width, 2)]
    blocks = [
        Block(inside if i == 0 else outside, outside, stride if i == 0 else 1)
        for inside, outside, stride in sizes
        for i in range(depth)
    ]
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, CLASSES),
    )


def accuracy(outputs: Tensor, classes: Tensor) -> Tensor:
    """Share of right answers."""
    return (outputs.argmax(1) == classes).float().mean()


class Prints(skyfx.Callback):
    """Says what the loss is, now and then."""

    def after_iteration(self, trainer: skyfx.Trainer) -> None:
        """A line for each tenth step."""
        if trainer.step % 10 == 0:
            print(f"step {trainer.step}  loss {trainer.loss:.4f}", flush=True)


def main() -> None:
    """Read, plan, train, and say how many pictures it tells that it has never seen."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a folder of CIFAR-10's binary version")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--depth", type=int, default=1, help="blocks of each group; 3: ResNet-20")
    parser.add_argument("--width", type=int, default=16, help="channels of the first group")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as written:
        folder = options.data or Path(written)
        if options.data is None:
            stand_in(folder, rows=384)
            print("random pictures in the format of CIFAR-10; give it yourself by --data")
        try:
            (pixels, classes), unseen = read(folder, TRAIN), read(folder, TEST)
        except ValueError as error:
            parser.error(str(error))
    torch.manual_seed(0)
    scale = colours(pixels)
    train = DataLoader(Pictures(pixels, classes, scale, moved=True), BATCH, shuffle=True)
    test = DataLoader(Pictures(*unseen, scale, moved=False), BATCH)
    example = torch.stack([train.dataset[i][0] for i in range(BATCH)])
    model = resnet(options.depth, options.width)
    devices = ["cpu", skyfx.Device("cpu", slowdown=2)]
    with skyfx.partition(
        model, devices, example_inputs=example, num_microbatches=MICROBATCHES
    ) as pipeline:
        print(pipeline.plan)
        optimizer = torch.optim.AdamW(pipeline.parameters(), lr=RATE)
        num_steps = options.epochs * len(train)
        trainer = skyfx.Trainer(
            pipeline,
            optimizer,
            functional.cross_entropy,
            scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps),
            callbacks=[Prints()],
        )
        trainer.fit(train, epochs=options.epochs)
        found = trainer.evaluate(test, {"accuracy": accuracy})
    print(f"right about {found['accuracy']:.1%} of {len(unseen[1])} pictures it has never seen")


if __name__ == "__main__":
    main()

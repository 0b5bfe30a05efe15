"""Measure where the devices are, plan anywhere, run later.

The planner needs neither torch nor the devices, only the files:

    skyfx capture examples/offline_plan.py:build -d cpu -d cpu -o net.graph.json \
        --cluster two.cluster.json
    skyfx solve net.graph.json two.cluster.json -o net.plan.json
    skyfx check net.graph.json two.cluster.json net.plan.json
    skyfx explain net.plan.json
    python examples/offline_plan.py net.plan.json
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

import skyfx


class Network(nn.Module):
    """Two branches of unlike depth: what a list of layers could not say."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.stem = nn.Linear(32, width)
        self.deep = nn.Sequential(*(Block(width) for _ in range(6)))
        self.shallow = Block(width)
        self.head = nn.Linear(2 * width, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Scores, `(samples, 4)`."""
        x = self.stem(x)
        scores: Tensor = self.head(torch.cat([self.deep(x), self.shallow(x)], dim=1))
        return scores


class Block(nn.Module):
    """A residual block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Of the shape of `x`."""
        changed: Tensor = x + self.inner(x)
        return changed


def build() -> tuple[nn.Module, Tensor]:
    """The model and one batch, as `skyfx capture` asks for them."""
    torch.manual_seed(0)
    return Network(), torch.randn(64, 32)


def main() -> None:
    """Run a step by the plan in the file: nothing is measured or solved."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plan", type=Path, help="what `skyfx solve` has written")
    plan = parser.parse_args().plan
    model, batch = build()
    labels = torch.randint(0, 4, (64,))
    with skyfx.partition(model, ["cpu", "cpu"], example_inputs=batch, plan=plan) as pipeline:
        loss = pipeline.train_step(batch, labels, nn.functional.cross_entropy)
        print(pipeline.plan)
    print(f"loss {loss.item():.4f}")


if __name__ == "__main__":
    main()

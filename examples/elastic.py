"""Train over several hosts, and go on with those that are left when one is lost, or comes back.

The task: from a dictionary's definition, letter by letter, tell the part of speech. Alone, in this
process, or on each of two to four hosts, of which `node1` is one:

    python examples/elastic.py run/

    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    torchrun --nnodes=2:4 --nproc-per-node=1 --max-restarts=10 --monitor-interval=0.5 \
        --rdzv-backend=c10d --rdzv-endpoint=node1:29500 --rdzv-id=senses \
        --rdzv-conf=last_call_timeout=5,keep_alive_interval=1,keep_alive_max_attempt=5 \
        examples/elastic.py run/

The script knows nothing of what may happen. Each time torchrun starts it, it takes the devices that
are there, plans for them, loads the latest checkpoint and goes on from there.
"""

import argparse
import csv
import os
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

import skyfx

DATA = Path(__file__).parent / "data" / "senses-train.tsv"
LABELS = ("noun", "verb", "adjective", "adverb")
LETTERS, BATCH = 64, 32


def read() -> tuple[Tensor, Tensor]:
    """Definitions as the codes of their letters, `(num_rows, LETTERS)`, and their labels."""
    with DATA.open(encoding="ascii", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    texts = [row["definition"][:LETTERS].ljust(LETTERS).encode() for row in rows]
    labels = [LABELS.index(row["label"]) for row in rows]
    return torch.tensor([list(text) for text in texts]), torch.tensor(labels)


def rows_of(step: int, num_rows: int) -> Tensor:
    """The rows of a step's batch: whoever is there and whenever it began, they are the same."""
    epoch, batch = divmod(step, num_rows // BATCH)
    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(epoch))
    return order[batch * BATCH : (batch + 1) * BATCH]


class Classifier(nn.Module):
    """A small transformer over letters."""

    def __init__(self, width: int = 32, layers: int = 4) -> None:
        super().__init__()
        self.letters = nn.Embedding(128, width)
        self.places = nn.Parameter(torch.randn(LETTERS, width) * 0.02)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.head = nn.Linear(width, len(LABELS))

    def forward(self, codes: Tensor) -> Tensor:
        """Scores, `(batch, labels)`."""
        x = self.letters(codes) + self.places
        for layer in self.layers:
            x = layer(x)
        scores: Tensor = self.head(x.mean(1))
        return scores


def train(pipeline: skyfx.Pipeline, texts: Tensor, labels: Tensor, run: Path, steps: int) -> None:
    """Go on from the latest checkpoint, if there is one, to the last step."""
    optimizer = torch.optim.AdamW(pipeline.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=20)
    checkpoints = pipeline.checkpoints(run, optimizer=optimizer, scheduler=scheduler)
    found = checkpoints.load()
    losses: list[float] = found.extra["losses"] if found else []
    is_first = os.environ.get("RANK", "0") == "0"
    for step in range(len(losses), steps):
        rows = rows_of(step, len(labels))
        loss = pipeline.train_step(texts[rows], labels[rows], functional.cross_entropy)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        checkpoints.save(step + 1, {"losses": losses}, wait=False)
        if is_first:
            num_stages = len(pipeline.plan.stages)
            print(f"step {step + 1}  loss {loss.item():.4f}  stages {num_stages}", flush=True)


def main() -> None:
    """Find the devices, plan for them, and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the folder of the checkpoints, seen by all hosts")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--layers", type=int, default=4)
    options = parser.parse_args()
    texts, labels = read()
    torch.manual_seed(0)  # the same parameters in all processes
    model = Classifier(layers=options.layers)
    cluster = skyfx.Cluster.from_environment()
    with skyfx.partition(
        model,
        cluster,
        example_inputs=texts[:BATCH],
        strategy="even",  # the best plan for a model as small as this would use one host alone
    ) as pipeline:
        train(pipeline, texts, labels, options.run, options.steps)


if __name__ == "__main__":
    main()

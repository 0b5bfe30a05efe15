"""Train over your own hosts: a GPT-2 that learns to spell definitions, letter by letter.

On one machine, as two processes; then on two, of which `node1` is one (the same line on both):

    torchrun --standalone --nproc-per-node=2 examples/hosts.py

    torchrun --nnodes=2 --nproc-per-node=1 --rdzv-backend=c10d --rdzv-endpoint=node1:29500 \
        examples/hosts.py

Alone, `python examples/hosts.py`, it runs as well. What goes on when a host is lost:
`examples/elastic.py`.
"""

import csv
import os
from pathlib import Path

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import skyfx

DATA = Path(__file__).parent / "data" / "senses-train.tsv"
LETTERS, BATCH, STEPS = 48, 16, 10


def read() -> Tensor:
    """Definitions as the codes of their letters, `(num_rows, LETTERS)`."""
    with DATA.open(encoding="ascii", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        texts = [row["definition"][:LETTERS].ljust(LETTERS).encode() for row in rows]
    return torch.tensor([list(text) for text in texts])


def main() -> None:
    """Find the devices, plan for them, and train; every process runs the same lines."""
    torch.manual_seed(0)  # the same parameters in all processes
    texts = read()
    model = GPT2LMHeadModel(GPT2Config(vocab_size=128, n_embd=128, n_layer=2, n_head=4))
    cluster = skyfx.Cluster.from_environment()
    first = {"input_ids": texts[:BATCH], "labels": texts[:BATCH]}
    with skyfx.partition(model, cluster, example_inputs=first, num_microbatches=4) as pipeline:
        is_first = os.environ.get("RANK", "0") == "0"
        if is_first:
            print(pipeline.plan, flush=True)
        optimizer = torch.optim.AdamW(pipeline.parameters(), lr=1e-3)
        for step in range(STEPS):
            rows = texts[step * BATCH : (step + 1) * BATCH]
            loss = pipeline.train_step({"input_ids": rows, "labels": rows})  # the model's own loss
            optimizer.step()
            optimizer.zero_grad()
            if is_first:
                print(f"step {step}  loss {loss.item():.4f}", flush=True)


if __name__ == "__main__":
    main()

"""Infer batch after batch without letting the pipeline run empty in between.

Definitions from a dictionary become vectors, by a BERT that is built from its config and untrained.

    python examples/streaming.py
"""

import csv
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import BertConfig, BertModel

import skyfx

DATA = Path(__file__).parent / "data" / "senses-dev.tsv"
LETTERS, BATCH, NUM_BATCHES = 64, 16, 12


def batches() -> Iterator[Tensor]:
    """Definitions as the codes of their letters, `(BATCH, LETTERS)`, read as they are needed."""
    with DATA.open(encoding="ascii", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        texts = [row["definition"][:LETTERS].ljust(LETTERS).encode() for row in rows]
    for i in range(NUM_BATCHES):
        some = [texts[(i * BATCH + j) % len(texts)] for j in range(BATCH)]
        yield torch.tensor([list(text) for text in some])


def main() -> None:
    """Infer one batch after another, then as a stream, and compare."""
    torch.manual_seed(0)
    config = BertConfig(vocab_size=128, hidden_size=128, num_hidden_layers=4, num_attention_heads=4)
    first = next(batches())
    with skyfx.partition(
        BertModel(config), ["cpu", "cpu"], example_inputs=first, mode="inference"
    ) as pipeline:
        print(pipeline.plan)
        pipeline(first)  # nobody is to pay for the first run alone
        began = time.perf_counter()
        one_by_one = [pipeline(batch).pooler_output for batch in batches()]
        alone_s = time.perf_counter() - began
        began = time.perf_counter()
        streamed = [outputs.pooler_output for outputs in pipeline.stream(batches())]
        stream_s = time.perf_counter() - began
    assert all(map(torch.equal, one_by_one, streamed))  # in order, and the same in every bit
    print(f"{NUM_BATCHES} batches: {alone_s:.2f} s one by one, {stream_s:.2f} s as a stream")


if __name__ == "__main__":
    main()

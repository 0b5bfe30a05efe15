"""Fine-tune a 12-layer BERT classifier over two unequal CPU devices, beside plain torch on one.

The task: from a dictionary's definition and an example sentence, tell the part of speech. The data
lies in `examples/data`; the model is built from its config and starts untrained.

    python examples/word_senses.py --steps 5
"""

import argparse
import copy
import csv
from pathlib import Path
from statistics import median

import torch
from tokenizers import BertWordPieceTokenizer
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput

import skyfx

DATA = Path(__file__).parent / "data"
LABELS = ("noun", "verb", "adjective", "adverb")
TOKENS, VOCABULARY = 48, 2000
BATCH, MICROBATCHES = 32, 8

Batch = dict[str, Tensor]


def read(split: str) -> list[dict[str, str]]:
    """The rows of `senses-{split}.tsv`."""
    with (DATA / f"senses-{split}.tsv").open(encoding="ascii", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def tokenizer_of(rows: list[dict[str, str]]) -> BertWordPieceTokenizer:
    """A WordPiece vocabulary learned from the texts themselves."""
    tokenizer = BertWordPieceTokenizer(lowercase=True)
    texts = (row[column] for row in rows for column in ("definition", "example"))
    tokenizer.train_from_iterator(texts, vocab_size=VOCABULARY, show_progress=False)
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)
    return tokenizer


def encode(rows: list[dict[str, str]], tokenizer: BertWordPieceTokenizer) -> tuple[Batch, Tensor]:
    """Pairs of texts as BERT reads them, and their labels."""
    pairs = tokenizer.encode_batch([(row["definition"], row["example"]) for row in rows])
    batch = {
        "input_ids": torch.tensor([pair.ids for pair in pairs]),
        "token_type_ids": torch.tensor([pair.type_ids for pair in pairs]),
        "attention_mask": torch.tensor([pair.attention_mask for pair in pairs]),
    }
    return batch, torch.tensor([LABELS.index(row["label"]) for row in rows])


def take(batch: Batch, rows: slice | Tensor) -> Batch:
    """Some rows of a batch."""
    return {name: tensor[rows] for name, tensor in batch.items()}


def bert(vocabulary: int, layers: int) -> nn.Module:
    """Without dropout, so that plain torch can be followed number by number."""
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=1024,
        max_position_embeddings=TOKENS,
        num_labels=len(LABELS),
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForSequenceClassification(config)


def loss_fn(outputs: SequenceClassifierOutput, labels: Tensor) -> Tensor:
    """Cross entropy, the mean over the samples."""
    return functional.cross_entropy(outputs.logits, labels)


def optimizer_of(
    parameters: list[nn.Parameter], steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW with a short warm-up and a linear decay."""
    optimizer = torch.optim.AdamW(parameters, lr=2e-4)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-4, total_steps=steps + 1)
    return optimizer, rate


def single_step(model: nn.Module, batch: Batch, labels: Tensor) -> Tensor:
    """The same step by plain torch: micro-batch after micro-batch, on one device."""
    total = torch.zeros(())
    for start in range(0, len(labels), BATCH // MICROBATCHES):
        part = slice(start, start + BATCH // MICROBATCHES)
        loss = loss_fn(model(**take(batch, part)), labels[part]) / MICROBATCHES
        loss.backward()
        total += loss.detach()
    return total


def train(
    pipeline: skyfx.Pipeline, single: nn.Module, data: tuple[Batch, Tensor], steps: int
) -> None:
    """Train both, and print their losses and the pipeline's time side by side."""
    batch, labels = data
    ours, our_rate = optimizer_of(list(pipeline.parameters()), steps)
    theirs, their_rate = optimizer_of(list(single.parameters()), steps)
    predicted, times, losses = pipeline.plan.step_s, [], []
    print(f"\n{'step':>4}  {'loss':>8}  {'one device':>10}  {'predicted':>10}  {'measured':>10}")
    order = torch.randperm(len(labels)).repeat(1 + steps * BATCH // len(labels))
    for step in range(steps):
        rows = order[step * BATCH : (step + 1) * BATCH]
        loss = pipeline.train_step(take(batch, rows), labels[rows], loss_fn).item()
        alone = single_step(single, take(batch, rows), labels[rows]).item()
        for optimizer, rate in ((ours, our_rate), (theirs, their_rate)):
            optimizer.step()
            rate.step()
            optimizer.zero_grad()
        measured = pipeline.measured.step_s
        times.append(measured)
        losses.append((loss, alone))
        print(
            f"{step:>4}  {loss:>8.5f}  {alone:>10.5f}  {predicted:>8.3f} s  {measured:>8.3f} s",
            flush=True,
        )
    middle = median(times)
    print(
        f"\nstep time: predicted {predicted:.3f} s, measured {middle:.3f} s (median), "
        f"{middle / predicted - 1:+.1%}"
    )
    tenth = max(1, steps // 10)
    first, last = (sum(x for x, _ in part) / tenth for part in (losses[:tenth], losses[-tenth:]))
    print(f"loss: {first:.4f} in the first {tenth} steps, {last:.4f} in the last {tenth}")
    difference = max(abs(loss - alone) for loss, alone in losses)
    print(f"largest difference to one device's loss: {difference:.1e}")


def accuracy(pipeline: skyfx.Pipeline, batch: Batch, labels: Tensor) -> float:
    """Share of right answers."""
    right = 0
    for start in range(0, len(labels), BATCH):
        part = slice(start, start + BATCH)
        right += int((pipeline(take(batch, part)).logits.argmax(-1) == labels[part]).sum())
    return right / len(labels)


def main() -> None:
    """Plan, train beside plain torch, and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--layers", type=int, default=12)
    options = parser.parse_args()
    torch.manual_seed(0)
    rows = read("train")
    tokenizer = tokenizer_of(rows)
    batch, labels = encode(rows, tokenizer)
    model = bert(tokenizer.get_vocab_size(), options.layers)
    single = copy.deepcopy(model).train()

    devices = ["cpu", skyfx.Device("cpu", slowdown=3)]
    print(f"measuring and planning {sum(p.numel() for p in model.parameters()):,} parameters ...")
    with skyfx.partition(
        model,
        devices,
        example_inputs=take(batch, slice(BATCH)),
        num_microbatches=MICROBATCHES,
    ) as pipeline:
        print(pipeline.plan)
        torch.set_num_threads(1)  # as many as a stage has: sums are then added in the same order
        train(pipeline, single, (batch, labels), options.steps)
        dev = encode(read("dev"), tokenizer)
        print(f"accuracy on unseen words: {accuracy(pipeline, *dev):.1%} (guessing: 25 %)")
        trained = pipeline.state_dict()
    single.load_state_dict(trained)  # the names are the model's own


if __name__ == "__main__":
    main()

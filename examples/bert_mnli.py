"""Fine-tune BERT on a GLUE task over unequal devices: the same losses as on one, step by step.

Two CPU devices, one of them three times slower, beside plain torch on one:

    pip install datasets
    python examples/bert_mnli.py --compare

Stopped in the middle of an epoch, and gone on with as if nothing had been:

    python examples/bert_mnli.py --run run/ --max-steps 3
    python examples/bert_mnli.py --run run/

Under torchrun it takes the devices of all processes instead. The rows are those of a small stand-in
for GLUE; `--data` takes a folder with the real one, `--hub` reads it from the Hugging Face Hub.
"""

import argparse
import copy
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import glue
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput

import skyfx

BATCH, MICROBATCHES, RATE, CLIP = 32, 8, 5e-4, 1.0

Loader = DataLoader[tuple[glue.Batch, Tensor]]


def bert(task: glue.Task, vocabulary: int, options: argparse.Namespace) -> nn.Module:
    """BERT of so many layers with a new head; its body from the Hub if it is given a name."""
    if options.model is not None:
        return BertForSequenceClassification.from_pretrained(
            options.model, num_labels=len(task.labels)
        ).train()
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=options.width,
        num_hidden_layers=options.layers,
        num_attention_heads=options.width // 32,
        intermediate_size=4 * options.width,
        max_position_embeddings=glue.TOKENS,
        num_labels=len(task.labels),
    )
    return BertForSequenceClassification(config)


def loss_fn(outputs: SequenceClassifierOutput, labels: Tensor) -> Tensor:
    """Cross entropy, the mean over the samples."""
    return functional.cross_entropy(outputs.logits, labels)


def accuracy(outputs: SequenceClassifierOutput, labels: Tensor) -> Tensor:
    """Share of right answers."""
    return (outputs.logits.argmax(-1) == labels).float().mean()


def optimizer_of(
    parameters: Iterator[nn.Parameter], num_steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW, its rate falling to nothing at the end."""
    optimizer = torch.optim.AdamW(parameters, lr=RATE)
    return optimizer, torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, num_steps)


def parts(batch: glue.Batch, labels: Tensor) -> Iterator[tuple[glue.Batch, Tensor]]:
    """The micro-batches of a batch."""
    size = BATCH // MICROBATCHES
    for start in range(0, len(labels), size):
        rows = slice(start, start + size)
        yield {name: tensor[rows] for name, tensor in batch.items()}, labels[rows]


def alone(
    model: nn.Module, train: Loader, dev: Loader, epochs: int
) -> tuple[list[float], dict[str, float]]:
    """Each step's loss, and what comes of the dev rows in the end, by plain torch on one device."""
    optimizer, scheduler = optimizer_of(model.parameters(), epochs * len(train))
    losses = []
    for _ in range(epochs):
        model.train()
        for batch, labels in train:
            loss = torch.zeros(())
            for part, goal in parts(batch, labels):
                share = loss_fn(model(**part), goal) * (len(goal) / len(labels))
                share.backward()
                loss += share.detach()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    sums = {"loss": 0.0, "accuracy": 0.0}
    with torch.no_grad(), torch.random.fork_rng():
        model.eval()
        for batch, labels in dev:
            pieces = [model(**part).logits for part, _ in parts(batch, labels)]
            outputs = SequenceClassifierOutput(logits=torch.cat(pieces))
            sums["loss"] += float(loss_fn(outputs, labels)) * len(labels)
            sums["accuracy"] += float(accuracy(outputs, labels)) * len(labels)
    return losses, {name: total / len(dev.dataset) for name, total in sums.items()}


class Prints(skyfx.Callback):
    """Says what came of each step, beside what plain torch had there."""

    def __init__(self, single: list[float]) -> None:
        self._single = single
        self.furthest = 0.0

    def after_iteration(self, trainer: skyfx.Trainer) -> None:
        """A line for each step, by the first process."""
        line = f"step {trainer.step}  loss {trainer.loss:.6f}"
        if self._single:
            expected = self._single[trainer.step - 1]
            self.furthest = max(self.furthest, abs(trainer.loss - expected))
            line += f"  one device {expected:.6f}"
        if is_first():
            print(line, flush=True)


def is_first() -> bool:
    """Whether this process is the one that prints."""
    return os.environ.get("RANK", "0") == "0"


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=sorted(glue.TASKS), default="MNLI")
    parser.add_argument("--data", type=Path, default=glue.DATA, help="a folder of GLUE's files")
    parser.add_argument("--hub", action="store_true", help="read from the Hugging Face Hub")
    parser.add_argument("--model", help="a BERT of the Hub, with its tokenizer; else a new one")
    parser.add_argument("--layers", type=int, default=4, help="of a new one")
    parser.add_argument("--width", type=int, default=128, help="of a new one")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--max-steps", type=int, help="stop after so many steps")
    parser.add_argument("--run", type=Path, help="folder to go on from, and to save to")
    parser.add_argument("--compare", action="store_true", help="train plain torch beside it")
    return parser.parse_args()


def main() -> None:
    """Read, plan, train, and say what came of it."""
    options = arguments()
    task = glue.TASKS[options.task]
    folder = None if options.hub else options.data
    rows = glue.read(task, "train", folder)
    tokenizer = glue.tokenizer_of(rows, options.model)
    train: Loader = DataLoader(glue.Rows(*glue.encode(rows, tokenizer)), BATCH, shuffle=True)
    coded = glue.encode(glue.read(task, "dev", folder), tokenizer)
    dev: Loader = DataLoader(glue.Rows(*coded), BATCH)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # as many as a stage has: sums are then added in the same order
    model = bert(task, len(tokenizer), options)
    single: list[float] = []
    if options.compare:
        torch.manual_seed(1)
        single, expected = alone(copy.deepcopy(model), train, dev, options.epochs)

    devices = ["cpu", skyfx.Device("cpu", slowdown=3)]
    if "RANK" in os.environ:
        devices = skyfx.Cluster.from_environment()
    example = {name: tensor[:BATCH] for name, tensor in coded[0].items()}
    with skyfx.partition(
        model, devices, example_inputs=example, num_microbatches=MICROBATCHES
    ) as pipeline:
        if is_first():
            print(pipeline.plan)
        optimizer, scheduler = optimizer_of(pipeline.parameters(), options.epochs * len(train))
        prints = Prints(single)
        saving = [] if options.run is None else [skyfx.Checkpointing(options.run, every_steps=1)]
        trainer = skyfx.Trainer(
            pipeline,
            optimizer,
            loss_fn,
            scheduler=scheduler,
            max_grad_norm=CLIP,
            callbacks=[*saving, prints, skyfx.StopFlag(signals=[signal.SIGTERM])],
        )
        torch.manual_seed(1)
        trainer.fit(train, epochs=options.epochs, max_steps=options.max_steps)
        found = trainer.evaluate(dev, {"accuracy": accuracy})
    if is_first():
        print(f"dev: loss {found['loss']:.6f}, accuracy {found['accuracy']:.4f}")
    if is_first() and single:
        print(f"one device: loss {expected['loss']:.6f}, accuracy {expected['accuracy']:.4f}")
        print(f"largest difference to one device's loss: {prints.furthest:.1e}")


if __name__ == "__main__":
    main()

"""Four tasks of GLUE as BERT reads them: MNLI, MRPC, CoLA and SST-2.

Other examples import this module. By itself it shows a row of each task as the model gets it:

    python examples/glue.py

The rows are read from `examples/data/glue`, a small stand-in in GLUE's own file format. `--data`
takes a folder with a real download of GLUE instead, and `--hub` reads it from the Hugging Face Hub.
"""

import argparse
import csv
import tempfile
from dataclasses import dataclass
from pathlib import Path

import datasets
import torch
from tokenizers import BertWordPieceTokenizer
from torch import Tensor
from transformers import AutoTokenizer, BertTokenizerFast, PreTrainedTokenizerBase

DATA = Path(__file__).parent / "data/glue"
TOKENS, VOCABULARY = 64, 2000

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Task:
    """A task, as GLUE's files have it and as the Hub does.

    Attributes:
        name: the folder of its files.
        texts: the sentences that a row has, by the Hub's names.
        columns: the files' columns of these, and then of the label.
        labels: the Hub's names of the labels, in the order of their numbers.
        dev: the file that answers are tried on.
        header: the columns of a file that does not name them itself.
    """

    name: str
    texts: tuple[str, ...]
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    train: str = "train.tsv"
    dev: str = "dev.tsv"
    header: tuple[str, ...] | None = None

    @property
    def hub(self) -> str:
        """Its name on the Hub."""
        return self.name.lower().replace("-", "")

    def number(self, answer: str) -> int:
        """The number of a label, which a file has by name or as the number itself."""
        known = {name: i for i, label in enumerate(self.labels) for name in (label, str(i))}
        if answer not in known:
            said = f"{self.name}: a row is labelled {answer!r}, none of {', '.join(known)}"
            raise ValueError(f"{said}; is this another task's file?")
        return known[answer]


PAIR = ("sentence1", "sentence2")
MNLI = Task(
    name="MNLI",
    texts=("premise", "hypothesis"),
    columns=(*PAIR, "gold_label"),
    labels=("entailment", "neutral", "contradiction"),
    dev="dev_matched.tsv",
)
MRPC = Task("MRPC", PAIR, ("#1 String", "#2 String", "Quality"), ("not_equivalent", "equivalent"))
COLA = Task(
    name="CoLA",
    texts=("sentence",),
    columns=("sentence", "label"),
    labels=("unacceptable", "acceptable"),
    header=("source", "label", "star", "sentence"),
)
SST2 = Task("SST-2", ("sentence",), ("sentence", "label"), ("negative", "positive"))
TASKS = {task.name: task for task in (MNLI, MRPC, COLA, SST2)}


def read(task: Task, split: str, folder: Path | None = DATA) -> datasets.Dataset:
    """The rows of a task: its texts by the Hub's names, and `label`, a number.

    Args:
        task: one of `TASKS`.
        split: `train` or `dev`.
        folder: a folder of folders as GLUE's download has them; None reads from the Hub, which
            keeps what it downloads in the Hub's own cache.
    """
    file = {"train": task.train, "dev": task.dev}[split]
    if folder is None:
        name = Path(file).stem.replace("dev", "validation")
        rows = datasets.load_dataset("nyu-mll/glue", task.hub, split=name)
        return rows.select_columns([*task.texts, "label"])
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as cache:  # the rows are in memory before it goes
        rows = datasets.load_dataset(
            "csv",
            data_files=str(folder / task.name / file),
            split="train",  # what the library calls the rows of a single file
            cache_dir=cache,
            keep_in_memory=True,
            features=datasets.Features({name: datasets.Value("string") for name in task.columns}),
            column_names=list(task.header) if task.header else None,
            delimiter="\t",
            quoting=csv.QUOTE_NONE,  # a quotation mark is one, also if it is never closed
            keep_default_na=False,  # "null" and "None" are words
            encoding="utf-8-sig",  # MRPC's files may begin with a byte order mark
        )
    agreed = [i for i, answer in enumerate(rows[task.columns[-1]]) if answer != "-"]
    rows = rows.select(agreed)  # for MNLI's "-" those who were asked found no common answer
    columns = dict(zip(task.texts, (rows[name][:] for name in task.columns[:-1]), strict=True))
    columns["label"] = [task.number(answer) for answer in rows[task.columns[-1]]]
    forms = dict.fromkeys(task.texts, datasets.Value("string"))
    forms["label"] = datasets.ClassLabel(names=list(task.labels))
    return datasets.Dataset.from_dict(columns, datasets.Features(forms))


def texts_of(rows: datasets.Dataset) -> list[list[str]]:
    """The one or two columns of sentences."""
    return [rows[name][:] for name in rows.column_names if name != "label"]


def tokenizer_of(rows: datasets.Dataset, name: str | None = None) -> PreTrainedTokenizerBase:
    """The named one, or a WordPiece vocabulary learned from the rows, the same each time."""
    if name is not None:
        return AutoTokenizer.from_pretrained(name)
    learner = BertWordPieceTokenizer(lowercase=True)
    texts = [text for column in texts_of(rows) for text in column]
    # The pieces of one character get their numbers in a random order, and equally frequent pairs
    # are then joined in another order, unless these pieces are there from the beginning.
    pieces = {f"##{c}" for text in texts for c in learner.normalize(text) if not c.isspace()}
    learner.train_from_iterator(
        texts,
        vocab_size=VOCABULARY,
        special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(pieces)],
        show_progress=False,
    )
    return BertTokenizerFast(vocab=learner.get_vocab())


def encode(
    rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, tokens: int = TOKENS
) -> tuple[Batch, Tensor]:
    """Sentences and pairs as BERT reads them, and their labels.

    Returns:
        The tensors, each `(rows, tokens)`, by the names and in the order of BERT's own arguments:
        `input_ids`; `attention_mask`, 0 on padding; `token_type_ids`, 1 on the second sentence and
        the separator behind it. And the labels, `(rows,)`.
    """
    coded = tokenizer(
        *texts_of(rows),
        padding="max_length",
        max_length=tokens,
        truncation=True,
        return_token_type_ids=True,
        return_attention_mask=True,
    )
    names = ("input_ids", "attention_mask", "token_type_ids")
    return {name: torch.tensor(coded[name]) for name in names}, torch.tensor(rows["label"][:])


@dataclass(frozen=True)
class Rows(torch.utils.data.Dataset[tuple[Batch, Tensor]]):
    """What `encode` returns, row by row; a plain `DataLoader` makes batches of the same form."""

    batch: Batch
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Batch, Tensor]:
        return {name: tensor[i] for name, tensor in self.batch.items()}, self.labels[i]


def main() -> None:
    """Show each task."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="a folder of GLUE's files")
    parser.add_argument("--hub", action="store_true", help="read from the Hugging Face Hub")
    parser.add_argument("--tokenizer", help="a name that AutoTokenizer finds; learned if left out")
    chosen = parser.parse_args()
    for task in TASKS.values():
        rows = read(task, "train", None if chosen.hub else chosen.data)
        tokenizer = tokenizer_of(rows, chosen.tokenizer)
        batch, label = Rows(*encode(rows, tokenizer))[0]
        print(f"\n{task.name}: {len(rows)} rows; the first is {task.labels[int(label)]!r}")
        ids = batch["input_ids"][batch["attention_mask"] == 1]  # without the padding
        for i, token in enumerate(tokenizer.convert_ids_to_tokens(ids.tolist())):
            print(f"  {token:<14} {'  '.join(f'{tensor[i]:>5}' for tensor in batch.values())}")


if __name__ == "__main__":
    main()

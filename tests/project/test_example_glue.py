"""GLUE's tasks, from the sample that is shipped and from files as the real download has them."""

import csv
import importlib.util
import inspect
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification

from tests.support import ROOT

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

EXAMPLES = ROOT / "examples"
WORDNET = Path("/usr/share/wordnet")


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("glue", EXAMPLES / "glue.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["glue"] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


glue = load()
MNLI, MRPC, COLA, SST2 = (glue.TASKS[name] for name in ("MNLI", "MRPC", "CoLA", "SST-2"))
tasks = pytest.mark.parametrize("name", ["MNLI", "MRPC", "CoLA", "SST-2"])

PARSES = ["sentence1_binary_parse", "sentence2_binary_parse", "sentence1_parse", "sentence2_parse"]
NLI = ["index", "promptID", "pairID", "genre", *PARSES, "sentence1", "sentence2"]
HEADERS = {
    "MNLI/train": [*NLI, "label1", "gold_label"],
    "MNLI/dev_matched": [*NLI, *(f"label{i}" for i in (1, 2, 3, 4, 5)), "gold_label"],
    "MRPC/train": ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"],
    "MRPC/dev": ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"],
    "SST-2/train": ["sentence", "label"],
    "SST-2/dev": ["sentence", "label"],
}


def lines(name: str) -> list[list[str]]:
    """A file of the sample, without the library."""
    with (EXAMPLES / f"data/glue/{name}.tsv").open(encoding="ascii", newline="") as file:
        return list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def texts(rows: object) -> list[tuple[str, ...]]:
    return list(zip(*glue.texts_of(rows), strict=True))


def written(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "train.tsv").write_text(text, encoding="utf-8")
    return folder.parent


@pytest.mark.parametrize("name", list(HEADERS))
def test_files_have_glues_own_columns(name: str) -> None:
    head, *rows = lines(name)
    assert head == HEADERS[name]
    assert {len(row) for row in rows} == {len(head)}


@pytest.mark.parametrize("name", ["CoLA/train", "CoLA/dev"])
def test_colas_files_have_four_columns_and_no_names(name: str) -> None:
    assert {tuple(row[:3]) for row in lines(name)} == {("wn30", "0", "*"), ("wn30", "1", "")}
    assert {len(row) for row in lines(name)} == {4}


@pytest.mark.parametrize(
    ("name", "columns", "train", "dev"),
    [
        ("MNLI", ["premise", "hypothesis", "label"], {0: 85, 1: 85, 2: 85}, {0: 21, 1: 21, 2: 21}),
        ("MRPC", ["sentence1", "sentence2", "label"], {0: 128, 1: 128}, {0: 32, 1: 32}),
        ("CoLA", ["sentence", "label"], {0: 128, 1: 128}, {0: 32, 1: 32}),
        ("SST-2", ["sentence", "label"], {0: 128, 1: 128}, {0: 32, 1: 32}),
    ],
)
def test_tasks_are_read_by_the_hubs_columns_and_balanced(
    name: str, columns: list[str], train: dict[int, int], dev: dict[int, int]
) -> None:
    for split, counts in (("train", train), ("dev", dev)):
        rows = glue.read(glue.TASKS[name], split)
        assert rows.column_names == columns
        assert Counter(rows["label"][:]) == counts


@tasks
def test_no_sentence_of_a_task_is_in_two_rows_and_all_are_short(name: str) -> None:
    both = [row for split in ("train", "dev") for row in texts(glue.read(glue.TASKS[name], split))]
    words = [" ".join(sorted(text.lower().split())) for row in both for text in set(row)]
    assert len(words) == len(set(words)) == sum(len(set(row)) for row in both)
    assert {len(text.split()) for row in both for text in row} <= set(range(4, 21))


def test_the_sample_is_small() -> None:
    assert sum(path.stat().st_size for path in EXAMPLES.glob("data/glue/*/*.tsv")) < 250_000


def test_labels_have_glues_own_numbers() -> None:
    names = {
        name: glue.read(task, "dev").features["label"].names for name, task in glue.TASKS.items()
    }
    assert names == {
        "MNLI": ["entailment", "neutral", "contradiction"],
        "MRPC": ["not_equivalent", "equivalent"],
        "CoLA": ["unacceptable", "acceptable"],
        "SST-2": ["negative", "positive"],
    }
    numbers = {"entailment": 0, "neutral": 1, "contradiction": 2}
    rows = glue.read(MNLI, "dev")
    assert rows["label"][:] == [numbers[row[-1]] for row in lines("MNLI/dev_matched")[1:]]
    assert texts(rows) == [(row[8], row[9]) for row in lines("MNLI/dev_matched")[1:]]
    assert glue.read(MRPC, "dev")["label"][:] == [int(row[0]) for row in lines("MRPC/dev")[1:]]
    assert glue.read(COLA, "dev")["label"][:] == [int(row[1]) for row in lines("CoLA/dev")]
    assert glue.read(SST2, "dev")["label"][:] == [int(row[1]) for row in lines("SST-2/dev")[1:]]


def test_real_mnli_rows_without_a_common_answer_are_left_out_and_quotes_stay(
    tmp_path: Path,
) -> None:
    said = [
        ('He said "no', "null", "neutral"),
        ("Nobody knows .", 'Somebody\'s ""known', "-"),
        ('"', "It is caf\u00e9 time", "contradiction"),
        ("None", "NA", "entailment"),
    ]
    rows = [
        [
            str(i),
            f"{i}",
            f"{i}n",
            "fiction",
            "( a",
            "b )",
            "(ROOT",
            "(ROOT",
            first,
            second,
            "neutral",
            gold,
        ]
        for i, (first, second, gold) in enumerate(said)
    ]
    text = "".join("\t".join(row) + "\n" for row in [HEADERS["MNLI/train"], *rows])
    read = glue.read(MNLI, "train", written(tmp_path / "MNLI", text))
    assert texts(read) == [row[:2] for row in said if row[2] != "-"]
    assert read["label"][:] == [1, 2, 0]


def test_real_mrpc_files_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    head = "\t".join(HEADERS["MRPC/train"])
    text = f'\ufeff{head}\n1\t702876\t702977\tAmrozi accused "the witness .\tHe accused " him .\n'
    read = glue.read(MRPC, "train", written(tmp_path / "MRPC", text))
    assert texts(read) == [('Amrozi accused "the witness .', 'He accused " him .')]
    assert read["label"][:] == [1]


def test_real_cola_rows_begin_at_the_first_line(tmp_path: Path) -> None:
    text = 'gj04\t1\t\tOur friends will read it.\nbc01\t0\t*\tThey "drank the pub.\n'
    read = glue.read(COLA, "train", written(tmp_path / "CoLA", text))
    assert texts(read) == [("Our friends will read it.",), ('They "drank the pub.',)]
    assert read["label"][:] == [1, 0]


def test_another_tasks_labels_are_refused(tmp_path: Path) -> None:
    folder = written(tmp_path / "SST-2", "sentence\tlabel\nsome words here\t2\n")
    with pytest.raises(ValueError, match="SST-2: a row is labelled '2', none of negative, 0, posi"):
        glue.read(SST2, "train", folder)


@tasks
def test_masks_and_segments_are_not_swapped_as_in_sky_computing(name: str) -> None:
    """Its dataset gives (ids, mask, segments) to a model that reads (ids, segments, mask)."""
    rows = glue.read(glue.TASKS[name], "dev")
    tokenizer = glue.tokenizer_of(rows)
    batch, _ = glue.encode(rows, tokenizer, tokens=96)
    arguments = list(inspect.signature(BertForSequenceClassification.forward).parameters)
    assert list(batch) == arguments[1:4]
    assert {(tensor.dtype, tuple(tensor.shape)) for tensor in batch.values()} == {
        (torch.int64, (len(rows), 96))
    }
    start, end = tokenizer.convert_tokens_to_ids(["[CLS]", "[SEP]"])
    for i, row in enumerate(texts(rows)):  # put together by hand, sentence by sentence
        ids, segments = [start], [0]
        for segment, text in enumerate(row):
            own = [*tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text)), end]
            ids, segments = ids + own, segments + [segment] * len(own)
        padding = [0] * (96 - len(ids))
        assert batch["input_ids"][i].tolist() == ids + padding
        assert batch["attention_mask"][i].tolist() == [1] * len(ids) + padding
        assert batch["token_type_ids"][i].tolist() == segments + padding


@tasks
def test_padding_changes_no_answer_and_swapping_masks_and_segments_does(name: str) -> None:
    rows = glue.read(glue.TASKS[name], "dev").select(range(8))
    tokenizer = glue.tokenizer_of(rows)
    batch, _ = glue.encode(rows, tokenizer)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        num_labels=3,
        initializer_range=0.5,
    )
    model = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        padded = model(*batch.values()).logits
        for i, length in enumerate(batch["attention_mask"].sum(1).tolist()):
            short = {key: tensor[i : i + 1, :length] for key, tensor in batch.items()}
            torch.testing.assert_close(model(**short).logits[0], padded[i])
        ids, mask, segments = batch.values()
        swapped = model(ids, attention_mask=segments, token_type_ids=mask).logits
    assert (swapped - padded).abs().amax(1).min() > 0.01


def test_a_plain_loader_shuffles_and_collates() -> None:
    rows = glue.read(MRPC, "train")
    batch, labels = glue.encode(rows, glue.tokenizer_of(rows))

    def drawn(seed: int) -> torch.Tensor:
        """An epoch: the rows' three tensors and the label side by side."""
        generator = torch.Generator().manual_seed(seed)
        loader = DataLoader(
            glue.Rows(batch, labels), batch_size=64, shuffle=True, generator=generator
        )
        parts = [torch.cat([*part.values(), answers[:, None]], 1) for part, answers in loader]
        assert [tuple(part.shape) for part in parts] == [(64, 3 * 64 + 1)] * 4
        return torch.cat(parts)

    whole = torch.cat([*batch.values(), labels[:, None]], 1)
    assert torch.equal(drawn(5), drawn(5))
    assert not torch.equal(drawn(5), drawn(6))
    assert not torch.equal(drawn(5), whole)
    assert sorted(drawn(5).tolist()) == sorted(whole.tolist())


def test_long_pairs_are_cut_to_the_tokens_that_there_are() -> None:
    rows = glue.read(MNLI, "train")
    tokenizer = glue.tokenizer_of(rows)
    batch, _ = glue.encode(rows, tokenizer, tokens=12)
    assert batch["input_ids"].shape == (255, 12)
    assert (batch["input_ids"] == tokenizer.sep_token_id).sum(1).tolist() == [2] * 255


def test_a_run_repeats_itself_and_leaves_nothing_in_the_users_folders(tmp_path: Path) -> None:
    """Also the vocabulary is the same in another process, whatever order its hashes are in."""
    kept = ("HF_HOME", "HF_DATASETS_CACHE", "XDG_CACHE_HOME")
    environment = {key: value for key, value in os.environ.items() if key not in kept}
    (tmp_path / "temporary").mkdir()
    environment |= {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "temporary")}
    said = set()
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / "glue.py")],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        said.add(done.stdout)
    assert len(said) == 1
    assert "SST-2: 256 rows; the first is 'positive'" in said.pop()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.skipif(not WORDNET.exists(), reason="Debian's wordnet-base is not installed")
def test_the_sample_is_what_its_script_writes(tmp_path: Path) -> None:
    for name in ("make_glue.py", "make_senses.py"):
        (tmp_path / name).write_text((EXAMPLES / "data" / name).read_text())
    command = [sys.executable, str(tmp_path / "make_glue.py"), str(WORDNET)]
    subprocess.run(command, check=True)
    made, shipped = tmp_path / "glue", EXAMPLES / "data/glue"
    names = {path.relative_to(shipped) for path in shipped.rglob("*.tsv")}
    assert {path.relative_to(made) for path in made.rglob("*.tsv")} == names
    for name in names:
        assert (made / name).read_bytes() == (shipped / name).read_bytes(), name

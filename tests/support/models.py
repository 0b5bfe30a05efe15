"""Small real models, each with a batch, targets and a loss, for the pipeline to run exactly."""

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ParamSpec

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional

P = ParamSpec("P")

BATCH = 8


def num_layers() -> int:
    """Of each model: one, which has all kinds of operators; two in the longest profile."""
    return int(os.environ.get("SKYFX_LAYERS", "1"))


@dataclass(frozen=True)
class Case:
    """A model to train: `loss_fn(outputs, targets)` is the mean over a micro-batch."""

    model: nn.Module
    batch: Any
    targets: Tensor
    loss_fn: Callable[[Any, Tensor], Tensor]
    name: str | None = None
    """Cases of one name are captured as one graph."""


def named(make: Callable[P, Case]) -> Callable[P, Case]:
    """The same, with the name of the function and its arguments."""

    @functools.wraps(make)
    def made(*args: P.args, **kwargs: P.kwargs) -> Case:
        return replace(make(*args, **kwargs), name=f"{make.__name__}{args}{kwargs}")

    return made


@named
def bert(dropout: float = 0.0, layers: int | None = None) -> Case:
    config = transformers.BertConfig(
        num_hidden_layers=layers or num_layers(),
        hidden_size=32,
        num_attention_heads=2,
        intermediate_size=64,
        vocab_size=100,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    batch = {"input_ids": torch.randint(0, 100, (BATCH, 12)), "attention_mask": padding(12)}
    model = transformers.BertForSequenceClassification(config)
    return Case(model, batch, torch.randint(0, 2, (BATCH,)), logits_loss)


def padding(length: int) -> Tensor:
    """An attention mask in which every other sample is two tokens shorter."""
    mask = torch.ones(BATCH, length, dtype=torch.long)
    mask[::2, -2:] = 0
    return mask


@named
def gpt2(tied: bool = True) -> Case:
    config = transformers.GPT2Config(
        n_layer=num_layers(),
        n_embd=32,
        n_head=2,
        vocab_size=100,
        n_positions=16,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=tied,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
    )
    ids = torch.randint(0, 100, (BATCH, 12))
    return Case(transformers.GPT2LMHeadModel(config), {"input_ids": ids}, ids, token_loss)


@named
def t5() -> Case:
    config = transformers.T5Config(
        num_layers=num_layers(),
        num_decoder_layers=2,  # the second has the position bias of the first
        d_model=32,
        d_kv=16,
        num_heads=2,
        d_ff=64,
        vocab_size=100,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        use_cache=False,  # a cache, which a pipeline has not, stores keys in another layout
    )
    # transformers leaves a mask of ones out when it runs eagerly, but not when it is captured: the
    # last bits then differ. Padding, as in any real batch, makes both the same.
    batch = {
        "input_ids": torch.randint(1, 100, (BATCH, 10)),
        "attention_mask": padding(10),
        "decoder_input_ids": torch.randint(1, 100, (BATCH, 6)),
        "decoder_attention_mask": padding(6),
    }
    targets = torch.randint(1, 100, (BATCH, 6))
    return Case(transformers.T5ForConditionalGeneration(config), batch, targets, token_loss)


class UNet(nn.Module):
    """Two levels down and up, each level joined to its counterpart by a long skip."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = self._block(3, width)
        self.down = self._block(width, 2 * width)
        self.bottom = self._block(2 * width, 4 * width)
        self.up = self._block(6 * width, 2 * width)
        self.last = self._block(3 * width, width)
        self.head = nn.Conv2d(width, 1, 1)

    @staticmethod
    def _block(channels: int, width: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x)
        b = self.down(functional.max_pool2d(a, 2))
        c = self.bottom(functional.max_pool2d(b, 2))
        b = self.up(torch.cat([b, functional.interpolate(c, scale_factor=2.0)], 1))
        a = self.last(torch.cat([a, functional.interpolate(b, scale_factor=2.0)], 1))
        return self.head(a)


class Residual(nn.Module):
    """A block as in ResNet: batch norms, writes in place, a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x
        return self.relu(y)


class ResNet(nn.Module):
    """A small ResNet classifier."""

    def __init__(self, width: int = 8, blocks: int = 3, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(*(Residual(width) for _ in range(blocks)))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


@named
def unet() -> Case:
    targets = torch.rand(BATCH, 1, 16, 16)
    return Case(UNet(), torch.randn(BATCH, 3, 16, 16), targets, functional.mse_loss)


@named
def resnet() -> Case:
    targets = torch.randint(0, 5, (BATCH,))
    return Case(ResNet(), torch.randn(BATCH, 3, 8, 8), targets, functional.cross_entropy)


def logits_loss(outputs: Any, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs.logits, targets)


def token_loss(outputs: Any, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs.logits.flatten(0, 1), targets.flatten())


CASES: dict[str, Callable[[], Case]] = {
    "bert": bert,
    "gpt2": gpt2,
    "gpt2-untied": lambda: gpt2(tied=False),
    "t5": t5,
    "unet": unet,
    "resnet": resnet,
}


class Failing(nn.Module):
    """Looks a word up that is not there if the batch says so."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(10, 8)
        self.layers = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
        self.late = nn.Embedding(10, 8)

    def forward(self, ids: Tensor) -> Tensor:
        return self.layers(self.words(ids)) + self.late(ids + 4)


def failing() -> Case:
    """Its tables have ten words: an id above ends a lookup."""
    ids = torch.zeros(BATCH, 3, dtype=torch.long)
    return Case(Failing(), ids, torch.zeros(BATCH, 3, 8), functional.mse_loss)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))


@named
def mixture() -> Case:
    """Four experts a layer, of which each token takes two."""
    config = transformers.MixtralConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=num_layers(),
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=100,
        num_local_experts=4,
        num_experts_per_tok=2,
        use_cache=False,
    )
    ids = torch.randint(0, 100, (BATCH, 12))
    batch = {"input_ids": ids, "attention_mask": padding(12)}
    return Case(transformers.MixtralForCausalLM(config), batch, ids, token_loss)

"""The models of the table: small enough for hosts with a tenth of a core, of four kinds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional

SAMPLES, LENGTH, WORDS = 96, 64, 2000


@dataclass(frozen=True, slots=True)
class Case:
    """A model, one batch, its targets and its loss."""

    model: nn.Module
    batch: Any
    targets: Tensor
    loss_fn: Callable[[Any, Tensor], Tensor]


def bert() -> Case:
    """An encoder with a classifier."""
    config = transformers.BertConfig(
        num_hidden_layers=6,
        hidden_size=256,
        num_attention_heads=4,
        intermediate_size=1024,
        vocab_size=WORDS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = transformers.BertForSequenceClassification(config)
    return Case(model, {"input_ids": _words()}, torch.randint(0, 2, (SAMPLES,)), _classes)


def gpt2() -> Case:
    """A decoder whose output weights are its embedding."""
    config = transformers.GPT2Config(
        n_layer=5,
        n_embd=256,
        n_head=4,
        vocab_size=WORDS,
        n_positions=LENGTH,
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
    )
    model = transformers.GPT2LMHeadModel(config)
    return Case(model, {"input_ids": _words()}, _words(), _next_words)


def unet() -> Case:
    """Convolutions with skips from end to end."""
    images = torch.randn(SAMPLES, 3, 64, 64)
    return Case(UNet(), images, torch.rand(SAMPLES, 1, 64, 64), functional.mse_loss)


def resnet() -> Case:
    """Convolutions, batch norm, writes in place."""
    config = transformers.ResNetConfig(
        embedding_size=32, hidden_sizes=[64, 128, 256, 256], depths=[2, 2, 2, 2], num_labels=10
    )
    model = transformers.ResNetForImageClassification(config)
    images = {"pixel_values": torch.randn(SAMPLES, 3, 160, 160)}
    return Case(model, images, torch.randint(0, 10, (SAMPLES,)), _classes)


class UNet(nn.Module):
    """Two levels down and up again."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.a, self.b, self.c = (
            _block(3, width),
            _block(width, width * 2),
            _block(width * 2, width * 4),
        )
        self.up, self.last = _block(width * 6, width * 2), _block(width * 3, width)
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Images in, one channel out."""
        a = self.a(x)
        b = self.b(functional.max_pool2d(a, 2))
        c = self.c(functional.max_pool2d(b, 2))
        b = self.up(torch.cat([b, functional.interpolate(c, scale_factor=2.0)], 1))
        return self.head(self.last(torch.cat([a, functional.interpolate(b, scale_factor=2.0)], 1)))


def _block(channels: int, width: int) -> nn.Module:
    layers = [nn.Conv2d(channels, width, 3, padding=1), nn.GroupNorm(4, width), nn.SiLU()]
    return nn.Sequential(*layers, nn.Conv2d(width, width, 3, padding=1), nn.SiLU())


def _words() -> Tensor:
    return torch.randint(0, WORDS, (SAMPLES, LENGTH))


def _classes(outputs: Any, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs.logits, targets)


def _next_words(outputs: Any, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs.logits.flatten(0, 1), targets.flatten())


CASES: dict[str, Callable[[], Case]] = {
    "bert": bert,
    "gpt2": gpt2,
    "unet": unet,
    "resnet": resnet,
}

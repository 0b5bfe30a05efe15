"""The models of the comparison, whole and as the sequence of blocks that one cuts by hand.

    skyfx          model
    by hand        block 0 -> block 1 -> ... -> block n - 1

A block takes and returns tensors, one or several; what a U-Net's skips need later is handed on from
block to block. The blocks hold the model's own parameters.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional

__all__: list[str] = ["SUBJECTS", "Chain", "Subject", "bert"]

SAMPLES, LENGTH, WORDS, LAYERS, WIDTH = 16, 64, 2000, 12, 192
CHANNELS, PIXELS = 48, 32


@dataclass(frozen=True, slots=True)
class Subject:
    """A model, one batch, its targets and its loss; `blocks_of` cuts it, or a copy of it."""

    name: str
    model: nn.Module
    batch: Tensor
    targets: Tensor
    loss_fn: Callable[[Any, Tensor], Tensor]
    blocks_of: Callable[[Any], list[nn.Module]]


class Chain(nn.Module):
    """Some blocks, one after another."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, *state: Tensor) -> Any:
        """What the last block returns."""
        for block in self.blocks:
            found = block(*state)
            state = found if isinstance(found, tuple) else (found,)
        return state if len(state) > 1 else state[0]


def bert(layers: int = LAYERS, width: int = WIDTH, classes: int = 2) -> Subject:
    """An encoder with a classifier."""
    config = transformers.BertConfig(
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=4,
        intermediate_size=4 * width,
        vocab_size=WORDS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=classes,
    )
    model = transformers.BertForSequenceClassification(config)
    targets = torch.randint(0, classes, (SAMPLES,))
    return Subject("bert", model, _words(), targets, _classes, _bert_blocks)


def gpt2() -> Subject:
    """A decoder; its output weights are its own, since a cut by hand does not keep ties."""
    config = transformers.GPT2Config(
        n_layer=LAYERS,
        n_embd=WIDTH,
        n_head=4,
        vocab_size=WORDS,
        n_positions=LENGTH,
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        tie_word_embeddings=False,
    )
    model = transformers.GPT2LMHeadModel(config)
    return Subject("gpt2", model, _words(), _words(), _next_words, _gpt2_blocks)


def unet() -> Subject:
    """Convolutions with skips from end to end."""
    images = torch.randn(SAMPLES, 3, PIXELS, PIXELS)
    targets = torch.rand(SAMPLES, 1, PIXELS, PIXELS)
    return Subject("unet", UNet(), images, targets, functional.mse_loss, lambda m: [*m.blocks])


class UNet(nn.Module):
    """Two levels down and up again, two blocks each."""

    def __init__(self, width: int = CHANNELS) -> None:
        super().__init__()
        a, b, c = width, 2 * width, 4 * width
        self.blocks = nn.ModuleList(
            [
                *(_Block(3, a), _Down(a), _Block(a, b), _Down(b)),
                *(_Block(b, c), _Block(c, c)),
                *(_Up(c + b, b), _Block(b, b), _Up(b + a, a), _Block(a, a)),
                _Block(a, a, last=nn.Conv2d(a, 1, 1)),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images in, one channel out."""
        state: tuple[Tensor, ...] = (x,)
        for block in self.blocks:
            state = block(*state)
        return state[0]


class _Block(nn.Module):
    """Two convolutions."""

    def __init__(self, channels: int, width: int, last: nn.Module | None = None) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.GroupNorm(4, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.SiLU(),
            last or nn.Identity(),
        )

    def forward(self, x: Tensor, *skips: Tensor) -> tuple[Tensor, ...]:
        """The skips are handed on."""
        return self.layers(x), *skips


class _Down(_Block):
    """A block after which there are half as many pixels; what it made is kept for the way up."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width)

    def forward(self, x: Tensor, *skips: Tensor) -> tuple[Tensor, ...]:
        """One skip more."""
        x = self.layers(x)
        return functional.max_pool2d(x, 2), *skips, x


class _Up(_Block):
    """A block before which there are twice as many pixels, and what was kept of them."""

    def forward(self, x: Tensor, *skips: Tensor) -> tuple[Tensor, ...]:
        """One skip less."""
        *others, kept = skips
        larger = functional.interpolate(x, scale_factor=2.0)
        return self.layers(torch.cat([kept, larger], 1)), *others


class _Of(nn.Module):
    """A part of a model that is no module of its own."""

    def __init__(self, call: Callable[..., Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.call, self.parts = call, nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        """Call it with its modules."""
        return self.call(x, *self.parts)


def _bert_blocks(model: Any) -> list[nn.Module]:
    return [
        _Of(lambda ids, embed: embed(input_ids=ids), model.bert.embeddings),
        *model.bert.encoder.layer,
        _Of(lambda x, pool, head: head(pool(x)), model.bert.pooler, model.classifier),
    ]


def _gpt2_blocks(model: Any) -> list[nn.Module]:
    inner = model.transformer
    return [
        _Of(lambda x, words, at: words(x) + at(torch.arange(x.shape[1])), inner.wte, inner.wpe),
        *inner.h,
        _Of(lambda x, norm, head: head(norm(x)), inner.ln_f, model.lm_head),
    ]


def _words() -> Tensor:
    return torch.randint(0, WORDS, (SAMPLES, LENGTH))


def _classes(outputs: Any, targets: Tensor) -> Tensor:
    return functional.cross_entropy(_logits(outputs), targets)


def _next_words(outputs: Any, targets: Tensor) -> Tensor:
    return functional.cross_entropy(_logits(outputs).flatten(0, 1), targets.flatten())


def _logits(outputs: Any) -> Tensor:
    found: Tensor = getattr(outputs, "logits", outputs)
    return found


SUBJECTS: dict[str, Callable[[], Subject]] = {"bert": bert, "gpt2": gpt2, "unet": unet}

"""Networks of sequences as people write them by hand: recurrent ones and transformers."""

import math
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from benchmarks.coverage.others.recipes import Models, floats, named, several, tokens

__all__: list[str] = ["MODELS"]

WIDTH = 16


class LSTMClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, WIDTH)
        self.lstm = nn.LSTM(WIDTH, WIDTH, 2, batch_first=True, bidirectional=True, dropout=0.1)
        self.head = nn.Linear(2 * WIDTH, 4)

    def forward(self, ids: Tensor) -> Tensor:
        out, (hidden, _) = self.lstm(self.embed(ids))
        return self.head(torch.cat([hidden[-2], hidden[-1]], 1) + out.mean(1))


class CellLoop(nn.Module):
    """A recurrent cell called in a loop, from zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.GRUCell(WIDTH, WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.zeros(x.size(0), WIDTH, device=x.device)
        outputs = []
        for t in range(x.size(1)):
            hidden = self.cell(x[:, t], hidden)
            outputs.append(self.out(hidden))
        return torch.stack(outputs, dim=1)


class PositionalEncoding(nn.Module):
    """As in torch's tutorial, with the batch first."""

    def __init__(self, length: int = 64) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.1)
        at = torch.arange(length).unsqueeze(1)
        rate = torch.exp(torch.arange(0, WIDTH, 2) * (-math.log(10000.0) / WIDTH))
        table = torch.zeros(1, length, WIDTH)
        table[0, :, 0::2], table[0, :, 1::2] = torch.sin(at * rate), torch.cos(at * rate)
        self.register_buffer("pe", table)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(x + self.pe[:, : x.size(1)])


class LanguageModel(nn.Module):
    """Torch's tutorial: an encoder with a causal mask, output tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.at = nn.Embedding(50, WIDTH), PositionalEncoding()
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, 0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.out = nn.Linear(WIDTH, 50, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(ids.size(1))
        return self.out(self.encoder(self.at(self.embed(ids) * math.sqrt(WIDTH)), mask))


class Translator(nn.Module):
    """`nn.Transformer` with a causal mask and masks of padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, WIDTH, padding_idx=0)
        self.body = nn.Transformer(WIDTH, 2, 1, 1, 32, batch_first=True)
        self.out = nn.Linear(WIDTH, 50)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        causal = nn.Transformer.generate_square_subsequent_mask(target.size(1))
        hidden = self.body(
            self.embed(source),
            self.embed(target),
            tgt_mask=causal,
            src_key_padding_mask=(source == 0).float() * -1e9,
        )
        return self.out(hidden)


class MiniGPT(nn.Module):
    """Attention by hand, with a mask in a buffer that is cut to the length."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.at = nn.Embedding(50, WIDTH), nn.Embedding(32, WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 50, bias=False)
        self.register_buffer("mask", torch.tril(torch.ones(32, 32)).view(1, 1, 32, 32))

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> Any:
        b, t = ids.shape
        x = self.embed(ids) + self.at(torch.arange(t, device=ids.device))
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        q, k, v = (y.view(b, t, 2, WIDTH // 2).transpose(1, 2) for y in (q, k, v))
        scores = (q @ k.transpose(-2, -1)) / math.sqrt(WIDTH // 2)
        scores = scores.masked_fill(self.mask[:, :, :t, :t] == 0, float("-inf"))
        x = x + self.proj((F.softmax(scores, -1) @ v).transpose(1, 2).reshape(b, t, WIDTH))
        logits = self.head(x)
        if targets is None:
            return logits
        return logits, F.cross_entropy(logits.view(-1, 50), targets.view(-1))


class FNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x + torch.fft.fft(torch.fft.fft(x, dim=-1), dim=-2).real)
        return x + F.gelu(self.mlp(x))


MODELS: Models = {
    "plain LSTMClassifier": (LSTMClassifier, tokens()),
    "plain CellLoop": (CellLoop, floats(5, WIDTH)),
    "plain LanguageModel": (LanguageModel, tokens()),
    "plain Translator": (Translator, several(tokens(12), tokens(9))),
    "plain MiniGPT": (MiniGPT, tokens()),
    "plain MiniGPT with loss": (MiniGPT, named(ids=tokens(), targets=tokens())),
    "plain FNet": (FNet, floats(10, WIDTH)),
}

"""Networks as people write them by hand: recurrent, convolutional, attentive, generative."""

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from benchmarks.coverage.others.recipes import Models, floats, image, named, several, tokens

__all__: list[str] = ["MODELS"]

WIDTH = 16


class VAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 32), nn.ReLU())
        self.mean, self.log_var = nn.Linear(32, 8), nn.Linear(32, 8)
        self.decoder = nn.Sequential(nn.Linear(8, 32), nn.ReLU(inplace=True), nn.Linear(32, 64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.encoder(x.flatten(1))
        mean, log_var = self.mean(hidden), self.log_var(hidden)
        noise = torch.randn_like(mean)
        return torch.sigmoid(self.decoder(mean + noise * (0.5 * log_var).exp())), mean, log_var


class Found(NamedTuple):
    boxes: Tensor
    scores: Tensor


class Detector(nn.Module):
    """Several scales, results in a named tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 3, 2, 1)
        self.down = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, 2, 1) for _ in range(2))
        self.lateral = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 1) for _ in range(3))
        self.head = nn.Conv2d(WIDTH, 5, 1)

    def forward(self, x: Tensor) -> Found:
        levels = [F.relu(self.stem(x))]
        for conv in self.down:
            levels.append(F.relu(conv(levels[-1])))
        top, found = None, []
        for level, conv in zip(reversed(levels), self.lateral, strict=True):
            side = conv(level)
            top = side if top is None else side + F.interpolate(top, scale_factor=2.0)
            found.append(self.head(top).flatten(2))
        found = torch.cat(found, 2).transpose(1, 2)
        return Found(found[..., :4].exp(), found[..., 4].sigmoid())


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()

        def block(i: int, o: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(True))

        self.a, self.b, self.c = block(3, 8), block(8, 16), block(24, 8)
        self.up, self.out = nn.ConvTranspose2d(16, 16, 2, 2), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        up = self.up(self.b(F.max_pool2d(a, 2)))
        high, wide = a.size(2) - up.size(2), a.size(3) - up.size(3)
        up = F.pad(up, [wide // 2, wide - wide // 2, high // 2, high - high // 2])
        return self.out(self.c(torch.cat([a, up], dim=1)))


class ConvLSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.Conv2d(3 + 8, 32, 3, padding=1)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        b, t, _, h, w = frames.shape
        hidden = cell = frames.new_zeros(b, 8, h, w)
        for k in range(t):
            i, f, o, g = self.gates(torch.cat([frames[:, k], hidden], 1)).chunk(4, 1)
            cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
            hidden = torch.sigmoid(o) * torch.tanh(cell)
        return hidden, cell


class WaveNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.weight_norm
        self.inp = nn.Conv1d(1, 8, 1)
        self.dilated = nn.ModuleList(norm(nn.Conv1d(8, 16, 2, dilation=2**i)) for i in range(4))
        self.skip = nn.ModuleList(nn.Conv1d(8, 8, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.inp(x), 0
        for i, (conv, skip) in enumerate(zip(self.dilated, self.skip, strict=True)):
            a, b = conv(F.pad(x, (2**i, 0))).chunk(2, 1)
            gated = torch.tanh(a) * torch.sigmoid(b)
            x, total = x + gated, total + skip(gated)
        return total


class DeepFM(nn.Module):
    """Categories, numbers and a bag of words by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(20, 8) for _ in range(3))
        self.linear, self.deep = (
            nn.Linear(4, 1),
            nn.Sequential(
                nn.Linear(3 * 8 + 4, 16),
                nn.BatchNorm1d(16),
                nn.ReLU(),
                nn.Dropout(0.2),
                nn.Linear(16, 1),
            ),
        )

    def forward(self, categories: Tensor, numbers: Tensor) -> Tensor:
        fields = torch.stack([e(categories[:, i]) for i, e in enumerate(self.tables)], 1)
        crossed = 0.5 * (fields.sum(1).pow(2) - fields.pow(2).sum(1)).sum(1, keepdim=True)
        deep = self.deep(torch.cat([fields.flatten(1), numbers], 1))
        return torch.sigmoid(self.linear(numbers) + crossed + deep).squeeze(1)


class RealNVP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.nets = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 8)) for _ in range(4)
        )
        self.base = torch.distributions.Normal(torch.zeros(8), torch.ones(8))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        log_det = torch.zeros(len(x))
        for net in self.nets:
            a, b = x.chunk(2, 1)
            scale, shift = net(a).chunk(2, 1)
            x = torch.cat([b * scale.tanh().exp() + shift, a], 1)
            log_det = log_det + scale.tanh().sum(1)
        return {"z": x, "log_prob": self.base.log_prob(x).sum(1) + log_det}


class Capsules(nn.Module):
    """Routing by agreement: three rounds, the last one with gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, 8, 4, 6, 6) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        votes = (self.weight @ x.view(len(x), 8, 1, 6, 1)).squeeze(-1)
        logits = torch.zeros(len(x), 8, 4, 1)
        for k in range(3):
            total = (logits.softmax(2) * votes).sum(1, keepdim=True)
            norm = total.norm(dim=-1, keepdim=True)
            out = norm / (1 + norm**2) * total
            if k < 2:
                logits = logits + (votes.detach() * out.detach()).sum(-1, keepdim=True)
        return out.squeeze(1).norm(dim=-1)


class DeepSets(nn.Module):
    """A mean over elements that are there."""

    def __init__(self) -> None:
        super().__init__()
        self.phi, self.rho = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        hidden = torch.relu(self.phi(x)) * mask.unsqueeze(-1)
        return self.rho(hidden.sum(1) / mask.sum(1, keepdim=True).clamp(min=1))


class Siren(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in ((2, 16), (16, 16), (16, 3)))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = torch.sin(30 * layer(x))
        return self.layers[-1](x)


class SelfConditioned(nn.Module):
    """Diffusion: time embeddings, sometimes conditioned on its own first guess."""

    def __init__(self) -> None:
        super().__init__()
        self.time, self.net = nn.Linear(8, WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        rates = torch.exp(torch.linspace(0, -4, 4))
        angles = t[:, None] * rates[None]
        hidden = self.time(torch.cat([angles.sin(), angles.cos()], -1))
        with torch.no_grad():
            guess = self.net(torch.cat([x + hidden, torch.zeros_like(x)], -1))
        return self.net(torch.cat([x + hidden, guess], -1))


mask = lambda: torch.rand(4, 6) > 0.3  # noqa: E731

MODELS: Models = {
    "plain VAE": (VAE, floats(8, 8)),
    "plain Detector": (Detector, image()),
    "plain UNet": (UNet, image(18)),
    "plain ConvLSTM": (ConvLSTM, floats(3, 3, 8, 8)),
    "plain WaveNet": (WaveNet, floats(1, 40)),
    "plain DeepFM": (DeepFM, named(categories=tokens(3, 20), numbers=floats(4))),
    "plain RealNVP": (RealNVP, floats(8)),
    "plain Capsules": (Capsules, floats(8, 6)),
    "plain DeepSets": (DeepSets, several(floats(6, 4), mask)),
    "plain Siren": (Siren, floats(2)),
    "plain SelfConditioned": (SelfConditioned, several(floats(WIDTH), lambda: torch.rand(4))),
}

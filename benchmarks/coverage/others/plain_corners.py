"""Idioms at which tools that capture models trip, as people write them."""

from typing import Any

import numpy
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from benchmarks.coverage.others.plain_gradients import WIDTH, Rounds, Sandwich, X, plain
from benchmarks.coverage.others.recipes import Models, floats, several, tokens

__all__: list[str] = ["MODELS"]


class Quantized(Sandwich):
    """A codebook, its nearest rows, and how often each is used."""

    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.Embedding(12, WIDTH)
        self.register_buffer("used", torch.zeros(12))

    def between(self, h: Tensor) -> Tensor:
        nearest = torch.cdist(h, self.codes.weight).argmin(1)
        if self.training:
            self.used.mul_(0.9).add_(F.one_hot(nearest, 12).float().mean(0), alpha=0.1)
        return h + (self.codes(nearest) - h).detach() + (self.codes(nearest) - h.detach()) * 0.1


class Experts(Sandwich):
    """A loop over experts, each with the rows that chose it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, 3)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def between(self, h: Tensor) -> Tensor:
        weights, chosen = self.gate(h).softmax(-1).topk(2)
        out = torch.zeros_like(h)
        for k, expert in enumerate(self.experts):
            row, slot = torch.where(chosen == k)
            out.index_add_(0, row, expert(h[row]) * weights[row, slot, None])
        return out


class BalancedExperts(Experts):
    """Keeps its balance loss, and returns it in forward."""

    def between(self, h: Tensor) -> Tensor:
        self.l_aux = self.gate(h).softmax(-1).pow(2).mean()
        return super().between(h)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x), self.l_aux


class Counts(Sandwich):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def between(self, h: Tensor) -> Tensor:
        if self.training:
            self.steps += 1
        return h * (1 + self.steps)


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(WIDTH, WIDTH, batch_first=True), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(
            x, lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        out, _ = self.lstm(packed)
        return self.out(nn.utils.rnn.pad_packed_sequence(out, True, total_length=x.size(1))[0])


class Bags(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag, self.out = nn.EmbeddingBag(50, WIDTH, mode="sum"), nn.Linear(WIDTH, 2)

    def forward(self, ids: Tensor, weights: Tensor) -> Tensor:
        return self.out(self.bag(ids, per_sample_weights=weights))


class Seeds(Sandwich):
    """Noise that is the same in each call."""

    def between(self, h: Tensor) -> Tensor:
        torch.manual_seed(7)
        return h + torch.randn(WIDTH)


class Draws(Sandwich):
    """Stochastic depth, by Python's choice of numpy."""

    def between(self, h: Tensor) -> Tensor:
        return h * 2 if self.training and numpy.random.rand() < 0.5 else h


class DropPath(Sandwich):
    def between(self, h: Tensor) -> Tensor:
        if not self.training:
            return h
        keep = torch.rand(len(h), 1) < 0.8
        return h + h.relu() * keep / 0.8


class Noisy(Sandwich):
    """A layer of a noisy network: fresh noise in each forward, kept in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.sigma = nn.Parameter(torch.full((WIDTH,), 0.1))
        self.register_buffer("noise", torch.zeros(WIDTH))

    def between(self, h: Tensor) -> Tensor:
        if self.training:
            self.noise.normal_()
        return h + self.sigma * self.noise


class Adaptive(Sandwich):
    """A Gumbel choice, hard in forward."""

    def between(self, h: Tensor) -> Tensor:
        return F.gumbel_softmax(h, tau=0.7, hard=True) if self.training else F.softmax(h, -1)


class TwoNames(Sandwich):
    def __init__(self) -> None:
        super().__init__()
        self.same = self.first

    def between(self, h: Tensor) -> Tensor:
        return Rounds.apply(self.same(h))


class InPlace(Sandwich):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.0)

    def between(self, h: Tensor) -> Tensor:
        return self.drop(h * 2).mul_(3).add_(1)


class Cached(Sandwich):
    """Makes a table at the first call and keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.table: Tensor | None = None

    def between(self, h: Tensor) -> Tensor:
        if self.table is None or self.table.size(0) != h.size(1):
            self.table = torch.linspace(0, 1, h.size(1))
        return h * self.table


class Hyper(Sandwich):
    """One network makes another one's weights."""

    def __init__(self) -> None:
        super().__init__()
        self.maker = nn.Linear(WIDTH, WIDTH * WIDTH)

    def between(self, h: Tensor) -> Tensor:
        weights = self.maker(h).view(-1, WIDTH, WIDTH)
        return torch.bmm(weights, h.unsqueeze(2)).squeeze(2)


class Ensemble(Sandwich):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(3, WIDTH, WIDTH) * 0.3)

    def between(self, h: Tensor) -> Tensor:
        return torch.vmap(lambda w: torch.tanh(h @ w))(self.weights).mean(0)


class Ponders(Sandwich):
    """Goes on until all are done: how often depends on values."""

    def between(self, h: Tensor) -> Tensor:
        for _ in range(4):
            if h.norm() < 1.0:
                break
            h = h * 0.5
        return h


class Clip(nn.Module):
    """Similarities of each sample with each other one."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        return self.scale.exp() * F.normalize(self.image(image)) @ F.normalize(self.text(text)).T


class TimeFirst(nn.Module):
    """Torch's default: dimension 0 is time, so that it cannot be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


class Spectral(Sandwich):
    def __init__(self) -> None:
        super().__init__()
        nn.utils.parametrizations.spectral_norm(self.first)
        self.last = nn.utils.spectral_norm(self.last)


class Lists(Sandwich):
    """Takes a list of tensors and a number."""

    def forward(self, parts: list[Tensor], scale: float = 1.0) -> dict[str, Any]:
        hidden = [super(Lists, self).forward(x) * scale for x in parts]
        return {"all": hidden, "sum": torch.stack(hidden).sum(0), "none": None}


def hooked() -> nn.Module:
    """A hook that changes what a layer returns, and one that only looks."""
    model = Sandwich()
    model.first.register_forward_hook(lambda _, __, out: out * 2)
    model.last.register_forward_hook(lambda _, __, out: None)
    return model


MODELS: Models = {
    **plain(
        Quantized,
        Experts,
        BalancedExperts,
        Counts,
        Seeds,
        Draws,
        DropPath,
        Noisy,
        Adaptive,
        TwoNames,
        InPlace,
        Cached,
        Hyper,
        Ensemble,
        Ponders,
        Spectral,
        hooked,
    ),
    "plain Packed": (Packed, several(floats(6, WIDTH), lambda: torch.randint(1, 7, (4,)))),
    "plain Bags": (Bags, several(tokens(5), floats(5))),
    "plain Clip": (Clip, several(X, X)),
    "plain TimeFirst": (TimeFirst, floats(3, WIDTH)),
    "plain Lists": (Lists, several(lambda: [X(), X()], lambda: 2.0)),
}

"""Models that draw random numbers, and what training one leaves behind, to be compared."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import skyfx
from tests.support import unsplit_reference
from tests.support.models import BATCH, Case, bert
from tests.support.plans import SIZE

SEED, WIDTH = 5, 8


def _without_gradients(x: Tensor) -> Tensor:
    with torch.no_grad():
        noise = torch.randn_like(x)
    return x + noise


def _attention(x: Tensor) -> Tensor:
    heads = x[:, None, :, None]
    return functional.scaled_dot_product_attention(heads, heads, heads, dropout_p=0.2)[:, 0, :, 0]


OPERATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda x: functional.dropout(x, 0.3),
    "dropout, wide": lambda x: functional.dropout(x.repeat(1, 5000), 0.3)[:, :WIDTH],
    "dropout of channels": lambda x: functional.dropout2d(x[..., None, None], 0.3)[..., 0, 0],
    "alpha dropout": lambda x: functional.alpha_dropout(x, 0.2, training=True),
    "attention": _attention,
    "gumbel": functional.gumbel_softmax,
    "without gradients": _without_gradients,
    "rand": lambda x: x + torch.rand(WIDTH),
    "rand_like": lambda x: x + torch.rand_like(x),
    "rand of doubles": lambda x: x + torch.rand(3, dtype=torch.float64).sum().float(),
    "rand of halves": lambda x: x + torch.rand(3, dtype=torch.bfloat16).sum().float(),
    "randn, few": lambda x: x + torch.randn(3).sum(),  # leaves a normal number in the generator
    "randn, one": lambda x: x * torch.randn(1),  # takes it, or leaves one
    "randn, an even few": lambda x: x + torch.randn(WIDTH),
    "randn, many": lambda x: x + torch.randn(2, 3 * WIDTH)[:, :WIDTH].sum(0),
    "randn, across": lambda x: x + torch.empty(WIDTH, 7).t().normal_().sum(0),
    "normal": lambda x: torch.normal(x.detach(), 1.0) + x,
    "randint": lambda x: x + torch.randint(0, 5, (WIDTH,)) / 5,
    "randint, large": lambda x: x + torch.randint(0, 2**40, (WIDTH,)) * 2.0**-40,
    "randperm": lambda x: x[:, torch.randperm(WIDTH)],
    "bernoulli": lambda x: x * torch.bernoulli(torch.sigmoid(x)),
    "multinomial": lambda x: x + torch.multinomial(x.softmax(-1), 3).sum(),
    "multinomial, again": lambda x: x + torch.multinomial(x.softmax(-1), 9, True).sum(),
    "exponential": lambda x: x + torch.empty(3).exponential_().sum(),
    "geometric": lambda x: x + torch.empty(3).geometric_(0.5).rsqrt().sum(),
    "cauchy": lambda x: x + torch.empty(3).cauchy_().atan().sum(),
    "log normal": lambda x: x + torch.empty(3).log_normal_().tanh().sum(),
}
"""By whose shapes one knows how far they take the generator."""

BY_VALUE: dict[str, Callable[[Tensor], Tensor]] = {
    "rrelu": lambda x: functional.rrelu(x, training=True),
    "poisson": lambda x: x + torch.poisson(x.detach().exp()),
    "binomial": lambda x: x + torch.binomial(torch.full_like(x, 9.0), torch.sigmoid(x.detach())),
    "gamma": lambda x: x + torch._standard_gamma(x.detach().exp()),
    "dirichlet": lambda x: x + torch._sample_dirichlet(x.detach().exp()),
}
"""The others."""


class Drawing(nn.Module):
    """A line of such operators, a linear layer before each."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.operators = [(OPERATORS | BY_VALUE)[name] for name in names]
        self.linears = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in names)
        self.head = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        for linear, operator in zip(self.linears, self.operators, strict=True):
            x = torch.tanh(operator(linear(x)))
        return self.head(functional.dropout(x, 0.1, self.training))


class Recurrent(nn.Module):
    """Dropout within one operator, between its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(WIDTH, WIDTH, 3, dropout=0.3, batch_first=True)
        self.gru = nn.GRU(WIDTH, WIDTH, 2, dropout=0.3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(self.lstm(x)[0])[0]


class Strided(nn.Module):
    """What crosses to the next stage lies in memory in another order, along which masks go."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(6, 6, 3, padding=1) for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = functional.dropout(conv(x).transpose(1, 2), 0.3, self.training)
            x = (x + 0.1 * torch.rand_like(x)).transpose(1, 2)
        return x


def drawing(names: Sequence[str], samples: int = BATCH) -> Case:
    return _case(Drawing(names), samples, WIDTH)


def _case(model: nn.Module, *shape: int) -> Case:
    return Case(model, torch.randn(shape), torch.randn(shape), functional.mse_loss)


CASES: dict[str, Callable[[], Case]] = {
    "bert": lambda: bert(dropout=0.1),
    "recurrent": lambda: _case(Recurrent(), BATCH, 4, WIDTH),
    "strided": lambda: _case(Strided(), BATCH, 6, 5),
}


def trained(of: skyfx.Pipeline | Case, case: Case, steps: int) -> dict[str, Any]:
    """Train a pipeline, or the unsplit model, and say what came of it."""
    model = of.model if isinstance(of, Case) else of
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.1), []
    for _ in range(steps):
        optimizer.zero_grad()
        if isinstance(of, Case):
            loss = unsplit_reference.train_step(of, SIZE)
        else:
            loss = of.train_step(case.batch, case.targets, case.loss_fn)
        losses.append(loss.item())
        optimizer.step()
    state = {name: digest(x) for name, x in model.state_dict().items()}
    return {"losses": losses, "state": state, "generator": digest(torch.get_rng_state())}


def digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:16]

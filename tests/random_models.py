"""Models that draw random numbers, and what training one leaves behind, to be compared."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import skyfx
from tests import reference
from tests.models import BATCH, Case, bert
from tests.plans import SIZE

SEED = 5


class Strided(nn.Module):
    """Every value that could cross to the next stage lies in memory in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(6, 6, 3, padding=1) for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = functional.dropout(conv(x).transpose(1, 2), 0.3, self.training)
            x = (x + 0.1 * torch.rand_like(x)).transpose(1, 2)
        return x


def strided() -> Case:
    targets = torch.randn(BATCH, 6, 5)
    return Case(Strided(), torch.randn(BATCH, 6, 5), targets, functional.mse_loss)


CASES: dict[str, Callable[[], Case]] = {"bert": lambda: bert(dropout=0.1), "strided": strided}


def trained(of: skyfx.Pipeline | Case, case: Case, steps: int) -> dict[str, Any]:
    """Train a pipeline, or the unsplit model, and say what came of it."""
    model = of.model if isinstance(of, Case) else of
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.1), []
    for _ in range(steps):
        if isinstance(of, Case):
            loss = reference.train_step(of, SIZE)
        else:
            loss = of.train_step(case.batch, case.targets, case.loss_fn)
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    state = {name: digest(x) for name, x in model.state_dict().items()}
    return {"losses": losses, "state": state, "generator": digest(torch.get_rng_state())}


def digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:16]

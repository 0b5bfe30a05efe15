"""A small classifier, its data, and a note of its losses."""

import torch
from torch import nn
from torch.utils.data import TensorDataset

import skyfx
from skyfx.training.trainer import Trainer
from tests.support.models import BATCH

__all__: list[str] = ["CLASSES", "FEATURES", "ROWS", "Losses", "model", "rows"]

FEATURES = 6


CLASSES = 3


ROWS = 4 * BATCH + BATCH // 2
"""An epoch has four whole batches and half a one."""


def model(dropout: float = 0.3) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(FEATURES, 16), nn.Dropout(dropout), nn.ReLU(), nn.Linear(16, CLASSES)
    )


def rows(num: int = ROWS) -> TensorDataset:
    drawn = torch.Generator().manual_seed(2)
    features = torch.randn(num, FEATURES, generator=drawn)
    return TensorDataset(features, torch.randint(0, CLASSES, (num,), generator=drawn))


class Losses(skyfx.Callback):
    """Notes the loss of each iteration, and where it was."""

    def __init__(self) -> None:
        self.found: list[tuple[int, int, float]] = []

    def after_iteration(self, trainer: Trainer) -> None:
        self.found.append((trainer.epoch, trainer.batch, trainer.loss))

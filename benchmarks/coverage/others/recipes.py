"""How tiny models of other packages, and batches for them, are written down."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__: list[str] = [
    "Inputs",
    "Models",
    "Recipe",
    "floats",
    "image",
    "made",
    "named",
    "of",
    "prefixed",
    "several",
    "steps",
    "tokens",
]

BATCH = 4
"""Samples."""

Inputs = Callable[[], Any]
"""Makes a batch, another one each time."""

Recipe = tuple[Callable[[], nn.Module], Inputs]
"""How a model is made, and its batches."""

Models = Mapping[str, Recipe]
"""By name."""


def made(path: str, *args: Any, **kwargs: Any) -> Any:
    """Call `module.name` with these arguments; the module is imported only then."""
    module, name = path.rsplit(".", 1)
    return getattr(importlib.import_module(module), name)(*args, **kwargs)


def of(path: str, inputs: "Inputs", *args: Any, **given: Any) -> "Recipe":
    """A model that is made by calling `path` with the rest."""
    return lambda: made(path, *args, **given), inputs


def prefixed(package: str, models: Models) -> Models:
    """The models by their package's name and their own."""
    return {f"{package} {name}": recipe for name, recipe in models.items()}


def steps() -> Tensor:
    """Times of diffusion, `(BATCH,)`."""
    return torch.randint(0, 1000, (BATCH,))


def floats(*shape: int) -> Inputs:
    """Numbers of any sign, `(BATCH, *shape)`."""
    return lambda: torch.randn(BATCH, *shape)


def image(side: int = 32, channels: int = 3) -> Inputs:
    """Images, `(BATCH, channels, side, side)`."""
    return floats(channels, side, side)


def tokens(length: int = 16, largest: int = 50) -> Inputs:
    """Numbers of words, `(BATCH, length)`."""
    return lambda: torch.randint(0, largest, (BATCH, length))


def several(*makers: Inputs) -> Inputs:
    """Positional arguments."""
    return lambda: tuple(make() for make in makers)


def named(**makers: Inputs | Any) -> Inputs:
    """Keyword arguments; what is no function is the same in each batch."""
    return lambda: {name: make() if callable(make) else make for name, make in makers.items()}

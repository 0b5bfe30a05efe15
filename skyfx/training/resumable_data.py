"""The batches of an epoch, in an order that a resumed training finds again.

    epoch begins        where the generators stand is noted        (a checkpoint keeps that)
    batch 0, 1, 2 ...   drawn, trained on
    saved after batch 2
    ------------------------------------------------------------- the program ends, and starts again
    generators          put to where they stood when the epoch began
    batch 0, 1, 2       drawn once more, and left out
    generators          put to where they stood when it was saved
    batch 3 ...         the same as without the interruption

So whatever draws the order, and whatever augments the data, draws what it would have drawn.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from skyfx.runtime.rng import generator_state as rng


def snapshot_order(loader: Iterable[Any]) -> dict[str, Any]:
    """Where an epoch's order begins: the global generators, and the loader's own."""
    return {"global": rng.generator_states(), "own": [each.get_state() for each in _own(loader)]}


def resume(loader: Iterable[Any], begins: Mapping[str, Any], num_done: int) -> Iterator[Any]:
    """The batches of an epoch that are left.

    Args:
        loader: gives one epoch each time it is iterated over.
        begins: what was noted when the epoch began.
        num_done: how many batches are done.

    Raises:
        ValueError: the epoch has not as many.
    """
    if num_done == 0:
        return iter(loader)
    with rng.preserve_generators():
        rng.set_generator_states(begins["global"])
        for generator, state in zip(_own(loader), begins["own"], strict=True):
            generator.set_state(state)
        batches = iter(loader)
        for i in range(num_done):
            if next(batches, None) is None:
                raise ValueError(
                    f"the checkpoint was saved after {num_done} batches of an epoch, which has {i} "
                    "now: give the loader that it was trained with"
                )
    return batches


def _own(loader: Any) -> list[torch.Generator]:
    """The generators that a DataLoader or its samplers were given, each once."""
    samplers = [getattr(loader, name, None) for name in ("sampler", "batch_sampler")]
    samplers.append(getattr(samplers[1], "sampler", None))
    found = [getattr(each, "generator", None) for each in (loader, *samplers)]
    return list({id(each): each for each in found if isinstance(each, torch.Generator)}.values())

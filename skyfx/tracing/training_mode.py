"""A model in training or in eval mode, while it is captured or runs in plain torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from skyfx.runtime.execution.split_cache import switches_itself
from skyfx.runtime.model_state import preserve_state
from skyfx.runtime.state.fixed_values import FixedValues
from skyfx.runtime.state.written_parameters import WrittenParameters
from skyfx.solver.errors import CaptureError


@contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """The model as it trains, or as it infers.

    To train, each module keeps its own mode, as in plain torch. To infer they do if the model
    itself is in eval mode (Monte Carlo dropout). Else all of it is switched, see `switched`.

    Raises:
        CaptureError: its `eval()` changes more than modes.
    """
    if training or not model.training:
        yield
        return
    with switched(model) as change:
        if change:
            raise CaptureError(change)
        yield


@contextmanager
def switched(model: nn.Module) -> Iterator[str]:
    """All modules in the modes that the model's own `eval()` gives them.

    What else `eval()` does is undone at once.

    Yields:
        Which values it changes that forward uses, and the cure; empty for most models.
    """
    before = {module: module.training for module in model.modules()}
    owners = [name for name, module in model.named_modules() if switches_itself(module)]
    try:
        if owners:
            yield _told(model, owners, _changes(model))
        else:
            model.eval()
            yield ""
    finally:
        for module, was_training in before.items():
            module.training = was_training


def _changes(model: nn.Module) -> list[str]:
    """Switch the modes, and undo what else `eval()` does: the names of what it was."""
    written = WrittenParameters(model)
    try:
        with preserve_state(model):
            fixed = FixedValues(model)
            tensors, values = _tensors(model), fixed.values()
            with written:
                model.eval()
            now, others = _tensors(model), fixed.values()
            changed = [x for x in {**tensors, **now} if not _is_same(tensors.get(x), now.get(x))]
            changed += [x for x in {**values, **others} if values.get(x) != others.get(x)]
            return written.changed_names() + changed
    finally:
        written.restore()


def _tensors(model: nn.Module) -> dict[str, tuple[Tensor, Tensor | None]]:
    """The parameters, and the buffers with their values: those are few."""
    found: dict[str, tuple[Tensor, Tensor | None]] = {}
    found |= {name: (x, None) for name, x in model.named_parameters()}
    found |= {name: (x, x.detach().clone()) for name, x in model.named_buffers()}
    return found


def _is_same(one: Any, two: Any) -> bool:
    if one is None or two is None or one[0] is not two[0]:
        return False
    return one[1] is None or one[0].is_meta or torch.equal(one[1], two[1])


def _told(model: nn.Module, owners: list[str], changed: list[str]) -> str:
    if not changed:
        return ""
    owner = next((x for x in reversed(owners) if changed[0].startswith(x)), owners[0])
    module = model.get_submodule(owner)
    what = f"{owner!r} ({type(module).__name__})" if owner else type(module).__name__
    return (
        f"train() and eval() of {what} change {changed[0]!r}, which a pipeline cannot do "
        "between two of its calls.\nCall model.eval() before inference and model.train() before "
        "training, as without skyfx: what they do holds for the next call"
    )

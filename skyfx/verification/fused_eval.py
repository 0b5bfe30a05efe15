"""Whether torch's fused eval path of a transformer gives what its operators give.

`nn.TransformerEncoder` in eval mode without gradients leaves its operators: it packs the samples
without their padding, and gives zeros at padded positions. Stages run the operators.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from skyfx.runtime.batches.microbatch import Batch
from skyfx.runtime.model_state import preserve_state
from skyfx.solver.errors import VerificationError
from skyfx.tracing.capture import on_one_device
from skyfx.tracing.training_mode import in_mode
from skyfx.verification.comparison import distance
from skyfx.verification.observation import plain_outputs

logger = logging.getLogger(__name__)


def check_fused_eval(model: nn.Module, microbatch: Batch, tolerance: float) -> None:
    """Run a model with such an encoder once by its fused path, and once by its operators.

    Args:
        model: as before afterwards.
        microbatch: what to run.
        tolerance: how far two outputs may differ, in parts of the largest number.

    Raises:
        VerificationError: they differ.
    """
    names = [name or "the model" for name, x in model.named_modules() if _packs(x)]
    if not names:
        return
    cure = "Make it with enable_nested_tensor=False"
    with in_mode(model, training=False), on_one_device(model), torch.no_grad():
        found = []
        for is_fused in (True, False):
            torch.manual_seed(0)
            # Not `preserve_run`: torch leaves its fused path where a mode sees its functions.
            with preserve_state(model), _fused(is_fused), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about nested tensors, which are not the user's
                found.append(plain_outputs(model, microbatch)[1])
    off = max((distance(*pair) for pair in zip(*found, strict=True)), default=0.0)
    if off > tolerance:
        raise VerificationError(
            f"in eval mode, torch's fused path of {names[0]!r} gives zeros at padded positions: "
            f"outputs differ by {off:.0e} of their largest number from those of its operators, "
            f"which stages run.\n{cure}"
        )
    logger.warning(
        "in eval mode, torch's fused path of %r gives zeros at padded positions, and stages do "
        "not; the example shows none. %s",
        names[0],
        cure,
    )


def _packs(module: nn.Module) -> bool:
    return isinstance(module, nn.TransformerEncoder) and bool(module.use_nested_tensor)


@contextmanager
def _fused(is_on: bool) -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(is_on and before)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)

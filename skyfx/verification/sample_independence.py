"""Whether a batch may be computed in micro-batches: each sample's outputs are its own."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from skyfx.runtime.execution.microbatch import Batch
from skyfx.runtime.model_state import ModelState, preserve_state
from skyfx.solver.errors import VerificationError
from skyfx.tracing.capture import in_mode, on_one_device
from skyfx.verification.comparison import distance
from skyfx.verification.observation import plain_outputs

logger = logging.getLogger(__name__)


def check_samples(
    model: nn.Module, batch: Batch, size: int, tolerance: float, written: Sequence[str] = ()
) -> None:
    """Hold two micro-batches together against each alone, in plain torch and eval mode.

    In training mode batch normalisation mixes samples, and micro-batches of plain torch do as well.
    Outputs without a dimension of samples, such as a loss, are not compared.

    Args:
        model: it is as before afterwards.
        batch: with at least one micro-batch.
        size: samples of a micro-batch.
        tolerance: in parts of an output's largest number.
        written: the names of the parameters that forward itself writes to.

    Raises:
        VerificationError: they differ.
    """
    both = batch.split(2 * size)[0]
    parts = both.split(size)
    if len(parts) < 2:
        return
    is_fixed: list[bool] = []

    def outputs(part: Batch) -> Sequence[Tensor]:
        with preserve_state(model, written):
            before = ModelState.of(model, written)
            found = plain_outputs(model, part)
            is_fixed.append(before.equals(ModelState.of(model, written)))
        return found

    with in_mode(model, training=False), on_one_device(model), torch.no_grad():
        try:
            together, alone = outputs(both), [outputs(part) for part in parts]
        except Exception as error:
            logger.info("whether samples are independent is not known, eval mode fails: %r", error)
            return
    if not all(is_fixed):
        logger.info("whether samples are independent is not known: forward has state in eval mode")
        return
    sizes = [part.batch_size for part in parts]
    for i, (whole, *pieces) in enumerate(zip(together, *alone, strict=True)):
        if not all(x.ndim and x.shape[0] == n for x, n in zip(pieces, sizes, strict=True)):
            continue
        found = _joined(pieces)
        if found is None or found.shape != whole.shape:
            shapes = " and ".join(str(tuple(x.shape)) for x in pieces)
            raise _refusal(i, sizes, f"has shape {tuple(whole.shape)}, and {shapes} apart")
        off = distance(whole, found)
        if off > tolerance:
            raise _refusal(i, sizes, f"differs from that apart by {off:.0e} of its largest number")


def _joined(pieces: Sequence[Tensor]) -> Tensor | None:
    same_rest = len({x.shape[1:] for x in pieces}) == 1
    return torch.cat(list(pieces)) if same_rest else None


def _refusal(i: int, sizes: Sequence[int], what: Any) -> VerificationError:
    together = " + ".join(map(str, sizes))
    return VerificationError(
        f"a batch cannot be computed in micro-batches: output {i} of {together} samples together "
        f"{what}.\nEither forward mixes samples (a mean over the batch, a softmax along dimension "
        "0), or dimension 0 of an input does not hold the samples.\nPut them there (batch_first "
        "for an LSTM), or use num_microbatches=1"
    )

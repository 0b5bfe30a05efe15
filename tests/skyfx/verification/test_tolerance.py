"""How far two runs may differ, and which models are run as a whole."""

from typing import Any

import pytest
import torch
from torch import nn

import skyfx
from skyfx.orchestration.environment import environment_of
from skyfx.tracing.capture import Capture, capture
from skyfx.verification.capacity import lacking
from skyfx.verification.observation import RunMode
from skyfx.verification.tolerance import tolerance
from tests.support.plans import even_plan

MIB = 2**20


def layers(kind: torch.dtype = torch.float32) -> tuple[nn.Module, Capture]:
    """Four layers of 1 MiB in float32."""
    model = nn.Sequential(*(nn.Linear(512, 512, bias=False) for _ in range(4))).to(kind)
    return model, capture(model, torch.ones(2, 512, dtype=kind))


def test_half_of_the_digits_of_the_least_precise_type_have_to_agree() -> None:
    for kind, bits in {torch.float64: 52, torch.float32: 23, torch.bfloat16: 7}.items():
        assert tolerance(layers(kind)[1]) == 2 ** (-bits / 2)


def test_on_a_gpu_torchs_settings_say_how_many_digits_products_have() -> None:
    _, captured = layers()
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    found: dict[tuple[str, str], float] = {}
    before: Any = matmul.fp32_precision, conv.fp32_precision
    try:
        for setting in (("ieee", "ieee"), ("ieee", "tf32"), ("tf32", "ieee")):
            matmul.fp32_precision, conv.fp32_precision = setting
            assert tolerance(captured, [True, True]) == 2**-11.5
            found[setting] = tolerance(captured, [True, False])
    finally:
        matmul.fp32_precision, conv.fp32_precision = before
    assert list(found.values()) == [2**-11.5, 2**-5, 2**-5]


@pytest.mark.parametrize(
    ("backward", "limit", "fits"),
    [(False, 5, True), (False, 3, False), (True, 9, True), (True, 7, False)],
)
def test_a_model_is_run_whole_where_it_fits_with_its_gradients(
    backward: bool, limit: int, fits: bool
) -> None:
    model, captured = layers()
    environment = environment_of([skyfx.Device("cpu", memory_bytes=limit * MIB)])
    how = RunMode(training=True, backward=backward)
    why = lacking(model, captured, even_plan(captured, 1), environment, how)
    assert (not why) == fits
    if why:
        assert f"plain torch would take {8 if backward else 4} MiB" in why
        assert f"this process has {limit} MiB" in why

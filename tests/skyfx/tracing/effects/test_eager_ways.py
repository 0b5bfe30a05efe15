"""A captured graph does what eager torch does, where torch.export notes something else."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.backends import mkldnn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import mse_loss, scaled_dot_product_attention

import skyfx
from skyfx.solver.errors import CaptureError
from tests.support import unsplit_reference
from tests.support.models import BATCH, Case
from tests.support.plans import SIZE, split_evenly

WIDTH = 4


class StopError(Exception):
    """Ends a forward."""


class Odd(nn.Module):
    """Tries operators that fail, ends a submodule by a hook, and draws whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.inner = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))
        self.inner[1].register_forward_hook(self.stop)

    def stop(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.seen = output
        raise StopError

    def stopped(self, h: Tensor) -> Tensor:
        try:
            return self.inner(h)
        except StopError:
            return self.seen

    def tried(self, h: Tensor) -> Tensor:
        try:
            h = h @ torch.ones(3, 3)
        except RuntimeError:
            h = h * 2
        try:
            return h.view(3, 5) + h.add_(torch.ones(7))
        except RuntimeError:
            return h + 1

    def forward(self, x: Tensor) -> Tensor:
        h = self.stopped(self.tried(self.first(x)))
        h = h + torch.randint_like(h, 0, 3) + torch.empty_like(h).random_(0, 4)
        return self.last(h)


def test_operators_that_fail_and_draws_of_whole_numbers_are_exact() -> None:
    made = Case(Odd(), torch.randn(BATCH, WIDTH), torch.randn(BATCH, WIDTH), mse_loss)
    alone = unsplit_reference.unsplit(made)
    with split_evenly(made, 2) as pipeline:
        torch.manual_seed(3)
        expected = unsplit_reference.train_step(alone, SIZE)
        torch.manual_seed(3)
        assert torch.equal(pipeline.train_step(made.batch, made.targets, mse_loss), expected)
        unsplit_reference.assert_equal_gradients(pipeline, alone.model)


class Attends(nn.Module):
    """Chooses a kernel for two of its three attentions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.heads = nn.Linear(WIDTH, 64), nn.MultiheadAttention(64, 2)
        self.last = nn.Linear(64, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).unflatten(-1, (2, 32)).transpose(1, 2)
        mask = h[..., :1] @ h[..., :1].mT
        with sdpa_kernel(SDPBackend.MATH):
            y = scaled_dot_product_attention(h, h, h, attn_mask=mask, scale=0.3)
            z = self.heads(*[y.transpose(1, 2).flatten(2)] * 3, need_weights=False)[0]
        w = scaled_dot_product_attention(h, h.tanh(), h).transpose(1, 2).flatten(2)
        return self.last(z + w)


def test_attention_has_the_kernel_that_forward_chooses() -> None:
    x = torch.randn(BATCH, 40, WIDTH)
    made = Case(Attends(), x, torch.randn(BATCH, 40, WIDTH), mse_loss)
    model = made.model
    with torch.no_grad():
        h = model.first(x).unflatten(-1, (2, 32)).transpose(1, 2)
        with sdpa_kernel(SDPBackend.MATH):
            mathematical = scaled_dot_product_attention(h, h, h)
        assert not torch.equal(mathematical, scaled_dot_product_attention(h, h, h))
    alone = unsplit_reference.unsplit(made)
    with split_evenly(made, 2) as pipeline:
        expected = unsplit_reference.train_step(alone, SIZE)
        assert torch.equal(pipeline.train_step(x, made.targets, mse_loss), expected)
        unsplit_reference.assert_equal_gradients(pipeline, alone.model)
        with torch.no_grad():
            outputs = torch.cat([alone.model(part) for part in x.split(SIZE)])
        assert torch.equal(pipeline(x), outputs)


class SwitchesOff(nn.Module):
    """Computes with other kernels than the process's, in a module's call or in its own lines."""

    def __init__(self, around: Callable[[], AbstractContextManager[Any]], inner: nn.Module) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(8, 8), inner, nn.Linear(8, WIDTH)
        self.around = around

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        with self.around():
            h = self.inner(h)
        return self.last(h)


class StaysWhole(nn.Module):
    """Attends to as many rows as are positive."""

    def forward(self, x: Tensor) -> Tensor:
        kept = x[x[:, 0] > 0][None, None]
        return x + nn.functional.scaled_dot_product_attention(kept, kept, kept).sum()


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # torch's own, where flags are put back
@pytest.mark.parametrize(
    ("around", "inner", "said"),
    [
        (partial(mkldnn.flags, enabled=False), nn.Linear(8, 8), "torch.backends.mkldnn.enabled"),
        (partial(mkldnn.flags, enabled=False), StaysWhole(), "torch.backends.mkldnn.enabled"),
        (
            partial(sdpa_kernel, SDPBackend.MATH),
            StaysWhole(),
            "the kernels of attention in code that",
        ),
    ],
)
def test_switches_of_the_whole_process_are_refused(
    around: Callable[[], AbstractContextManager[Any]], inner: nn.Module, said: str
) -> None:
    with pytest.raises(CaptureError) as raised:
        skyfx.partition(
            SwitchesOff(around, inner),
            ["cpu"] * 2,
            example_inputs=torch.randn(BATCH, 8),
            num_microbatches=1,
        )
    (first, cure) = str(raised.value).splitlines()
    assert f"forward switches {said}" in first
    assert "test_eager_ways.py" in first
    assert cure == "Switch it around the pipeline's calls"
    assert mkldnn.enabled


class Precise(nn.Module):
    """Makes tensors of numbers, some of them in double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        usual = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            steps = torch.linspace(0, 1 / 3, WIDTH) + torch.full((), 0.1)
        finally:
            torch.set_default_dtype(usual)
        return self.last((self.first(x) * steps * torch.arange(0.1, 1.2, 0.3)).to(x.dtype))


def test_tensors_of_numbers_have_the_default_type_of_their_line() -> None:
    made = Case(Precise(), torch.randn(BATCH, WIDTH), torch.randn(BATCH, WIDTH), mse_loss)
    model, x = made.model, made.batch
    with split_evenly(made, 2) as pipeline:
        for usual in (torch.float32, torch.float64, torch.float32):
            torch.set_default_dtype(usual)
            try:
                with torch.no_grad():
                    outputs = torch.cat([model(part) for part in x.split(SIZE)])
                assert torch.equal(pipeline(x), outputs)
            finally:
                torch.set_default_dtype(torch.float32)

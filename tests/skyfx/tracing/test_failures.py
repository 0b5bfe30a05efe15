"""What is said of a model that cannot be captured or run in parts: the line, and a cure."""

import copy
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import skyfx
from skyfx.solver.errors import CaptureError
from skyfx.tracing.capture import capture

WIDTH = 4
BATCH = torch.ones(2, WIDTH)


class InAThread(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        found: list[Tensor] = []
        thread = threading.Thread(target=lambda: found.append(x * 2))
        thread.start()
        thread.join()
        return found[0] + 1


class Registers(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        self.register_buffer("mean", x.detach().mean(0))
        return x - self.mean


class Swaps(nn.Module):
    """Puts another module in the place of one when it is first called."""

    def __init__(self) -> None:
        super().__init__()
        self.sparse = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "sparse"):
            self.full = copy.deepcopy(self.sparse)
            del self.sparse
        return self.full(x) * 2


class NeedsHistory(nn.Module):
    """Runs only as a part of a longer computation."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > -9 and x.is_leaf:
            raise ValueError("where does it come from?")
        return x * 2


def fails(x: Tensor) -> Tensor:
    raise ValueError("my own error\nwith a second line")


class Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return fails(x)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (InAThread, r"where the capture does not see it.*\nCompute it in the thread of forward$"),
        (Registers, r"forward keeps 'mean' of its first call at .*: call the model once on such"),
        (lambda: nn.LazyLinear(WIDTH), r"LazyLinear has lazy modules.*: call it once"),
        (Fails, r", at .*test_failures.py:\d+: ValueError: my own error$"),
        (
            lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), NeedsHistory()),
            r"'1.forward' does not run apart .*, at .*test_failures.py:\d+: ValueError: where .*\n"
            "Put it with what it needs",
        ),
    ],
)
def test_the_line_and_the_cure_are_told(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(CaptureError, match=message) as refused:
        skyfx.partition(build(), ["cpu"], example_inputs=BATCH, num_microbatches=1)
    assert len(str(refused.value).splitlines()) <= 3
    assert "While executing" not in str(refused.value)


def test_a_model_that_has_registered_its_buffer_is_captured() -> None:
    model, plain = Registers(), Registers()
    model(BATCH), plain(BATCH)
    other = torch.arange(2.0 * WIDTH).reshape(2, WIDTH)
    with skyfx.partition(
        model, ["cpu"], example_inputs=BATCH, num_microbatches=1, mode="inference"
    ) as pipeline:
        assert torch.equal(pipeline(other), plain(other))
        assert torch.equal(model.mean, plain.mean)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [lambda: nn.LazyLinear(WIDTH), Swaps])
def test_a_module_that_makes_its_parts_when_called_is_captured_then(
    kind: Callable[[], nn.Module],
) -> None:
    model = nn.Sequential(kind())
    with pytest.raises(CaptureError, match=r"[Cc]all .* once on .*batch before") as refused:
        capture(model, BATCH)
    assert len(str(refused.value).splitlines()) <= 3
    assert next(name for name, _ in model.named_parameters()) in ("0.weight", "0.sparse.weight")
    model(BATCH)
    assert torch.equal(capture(model, BATCH).module(BATCH)[0], model(BATCH))

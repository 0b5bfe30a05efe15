"""In inference, a model may keep what its first call makes of its parameters."""

import copy

import pytest
import torch
from torch import Tensor, nn

import skyfx
from skyfx.solver.errors import CaptureError
from skyfx.tracing.capture import capture

WIDTH = 4
BATCH = torch.linspace(-1, 1, 4 * WIDTH).reshape(4, WIDTH)


class Biased(nn.Module):
    """Keeps the rows of a table by device, until it trains again, as LeViT does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.table = nn.Parameter(torch.randn(2, WIDTH))
        self.rows = torch.tensor([1, 0, 1, 0])
        self.cache: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> "Biased":
        super().train(mode)
        if mode:
            self.cache = {}
        return self

    def bias(self, device: torch.device) -> Tensor:
        if self.training:
            return self.table[self.rows]
        if str(device) not in self.cache:
            self.cache[str(device)] = self.table[self.rows]
        return self.cache[str(device)]

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        return self.last(h + self.bias(x.device)[: len(x)])


@torch.no_grad()
def outputs(model: nn.Module) -> Tensor:
    found: Tensor = model(BATCH)
    return found


def other_values() -> dict[str, Tensor]:
    return {name: 2 * x for name, x in Biased().state_dict().items()}


@pytest.mark.parametrize("loaded", ["never", "before", "after"])
def test_it_is_of_the_parameters_that_the_first_call_has(loaded: str) -> None:
    model = Biased().eval()
    plain = copy.deepcopy(model)
    with skyfx.partition(
        model, ["cpu", "cpu"], example_inputs=BATCH, num_microbatches=1, mode="inference"
    ) as pipeline:
        assert "equal to the last bit" in str(pipeline.verified)
        if loaded == "before":
            model.load_state_dict(other_values())
            plain.load_state_dict(other_values())
        assert torch.equal(pipeline(BATCH), outputs(plain))
        if loaded == "after":  # plain torch goes on with what it has kept
            model.load_state_dict(other_values())
            plain.load_state_dict(other_values())
        assert torch.equal(pipeline(BATCH), outputs(plain))
        assert torch.equal(model.cache["cpu"], plain.cache["cpu"])
        for one in (model, plain):
            one.train().eval()
        assert torch.equal(pipeline(BATCH), outputs(plain))


def test_a_pipeline_that_trains_infers_with_it_too() -> None:
    model = Biased()
    plain = copy.deepcopy(model)
    with skyfx.partition(
        model, ["cpu", "cpu"], example_inputs=BATCH, num_microbatches=1
    ) as pipeline:
        for _ in range(2):
            pipeline.train_step(BATCH, BATCH, nn.functional.mse_loss)
            nn.functional.mse_loss(plain(BATCH), BATCH).backward()
            for one in (model, plain):
                torch.optim.SGD(one.parameters(), lr=0.1).step()
                one.eval()
            assert torch.equal(pipeline(BATCH), outputs(plain))
            for one in (model, plain):
                one.train()


def test_in_training_it_is_refused() -> None:
    class Keeps(Biased):
        def bias(self, device: torch.device) -> Tensor:
            return self.cache.setdefault("cpu", self.table[self.rows])

    model = Keeps()
    with pytest.raises(CaptureError, match=r"keeps 'cache' of its first call at .*call the model"):
        capture(model, BATCH)
    assert model.cache == {}

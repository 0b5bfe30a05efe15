"""Any key of `nn.ModuleDict` is a name: keywords, quotes and newlines among them."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import skyfx
from skyfx.tracing.capture import capture
from tests.support import unsplit_reference
from tests.support.models import BATCH, Case
from tests.support.plans import SIZE, split_evenly

WIDTH = 4
KEYS = [
    *("class", "in", "None", "True", "self", "torch", "getattr", "print", "__init__x", "weight"),
    *('a"b', "a'b", "'\"", "a\nb", "a\tb", "a\\nb", "a\0b", "a\u2028b", "{x}", "%s", "#", "[0]"),
    *("0", "12", " ", "_", "a b", "a-b", "a_b", "a__b", "a/b", "a,b", "é", "日本", "²"),
]
"""Names of attributes; those in a row that differ in no letter or digit are to stay apart."""


class Keyed(nn.Module):
    """A module, a parameter and a buffer under each key."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({key: nn.Linear(WIDTH, WIDTH) for key in KEYS})
        self.scales = nn.ParameterDict({key: nn.Parameter(torch.rand(WIDTH)) for key in KEYS})
        self.shifts = nn.Module()
        for key in KEYS:
            self.shifts.register_buffer(key, torch.randn(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        for key in KEYS:
            shift = getattr(self.shifts, key)
            x = torch.tanh(self.layers[key](x) * self.scales[key] + shift) + self.scales[key]
        return x


@pytest.fixture
def case() -> Case:
    x = torch.randn(BATCH, WIDTH)
    return Case(Keyed(), x, torch.randn(BATCH, WIDTH), nn.functional.mse_loss)


def test_nodes_have_the_names_of_the_model(case: Case) -> None:
    ids = set(capture(case.model, case.batch).ids.values())
    assert {f"layers.{key}.linear" for key in KEYS} < ids
    assert {f"scales.{key}" for key in KEYS} < ids


@pytest.mark.slow
def test_stages_compute_what_the_model_computes(case: Case, tmp_path: Path) -> None:
    names = list(case.model.state_dict())
    alone = unsplit_reference.unsplit(case)
    with split_evenly(case) as pipeline:
        outputs = pipeline(case.batch)
        assert torch.equal(outputs, unsplit_reference.infer(alone, SIZE)[0])
        pipeline.train_step(case.batch, case.targets, case.loss_fn)
        unsplit_reference.train_step(alone, SIZE)
        for name, parameter in alone.model.named_parameters():
            assert torch.equal(case.model.get_parameter(name).grad, parameter.grad)
        skyfx.Checkpoints(case.model, tmp_path).save(1)
    saved = {name: value.clone() for name, value in case.model.state_dict().items()}
    assert list(saved) == names
    other = Keyed()
    skyfx.Checkpoints(other, tmp_path).load()
    for name, value in other.state_dict().items():
        assert torch.equal(value, saved[name])


class Branch(nn.Module):
    """Stays whole: it goes another way for inputs of a positive sum."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor if x.sum() > 0 else x + self.factor


class Branches(nn.Module):
    """Submodules that stay whole, and whose keys differ in no letter or digit."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({"a-b": Branch(2.0), "a_b": Branch(3.0), "a/b": Branch(5.0)})

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers.values():
            x = layer(x)
        return x


def test_leaves_of_like_names_stay_apart() -> None:
    x = torch.ones(BATCH, WIDTH)
    captured = capture(Branches(), x)
    assert torch.equal(captured.module(x)[0], 30 * x)
    assert torch.equal(captured.module(-x)[0], (-x + 2) * 3 * 5)

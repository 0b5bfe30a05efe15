"""Parameters that code of a model writes to are as before afterwards, and only those are copied."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from skyfx.runtime.model_state import preserve_run
from skyfx.runtime.state.written_parameters import WrittenParameters


def write_data(model: nn.Linear) -> None:
    model.weight.data.clamp_(0, 0.1)


def set_data(model: nn.Linear) -> None:
    model.weight.data = model.weight.data * 2


def write_in_place(model: nn.Linear) -> None:
    with torch.no_grad():
        model.weight.t()[0].mul_(3)


def write_by_index(model: nn.Linear) -> None:
    with torch.no_grad():
        model.weight[0] = 1.0


def write_as_out(model: nn.Linear) -> None:
    with torch.no_grad():
        torch.add(model.weight, 1, out=model.weight)


def write_several(model: nn.Linear) -> None:
    with torch.no_grad():
        torch._foreach_add_([model.weight], 1.0)


def write_rows_of_a_norm(model: nn.Linear) -> None:
    functional.embedding(torch.tensor([0]), model.weight, max_norm=0.01)


def write_twice(model: nn.Linear) -> None:
    write_data(model)
    set_data(model)
    write_in_place(model)


@pytest.mark.parametrize(
    "write",
    [
        write_data,
        set_data,
        write_in_place,
        write_by_index,
        write_as_out,
        write_several,
        write_rows_of_a_norm,
        write_twice,
    ],
)
def test_what_is_written_is_as_before(write: Callable[[nn.Linear], None]) -> None:
    model = nn.Linear(3, 3)
    weight, before, address = model.weight, model.weight.clone(), model.weight.data_ptr()
    with preserve_run(model):
        write(model)
        assert not torch.equal(weight, before)
    assert model.weight is weight
    assert weight.data_ptr() == address
    assert torch.equal(weight, before)


def test_only_what_is_written_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(3, 3)
    kept: list[nn.Parameter] = []
    monkeypatch.setattr(
        "skyfx.runtime.state.written_parameters.parameter_restorer",
        lambda x: kept.append(x) or (lambda: None),
    )
    written = WrittenParameters(model)
    with written:
        model(torch.ones(2, 3)).relu_().sum().backward()
        model.weight.requires_grad_()
        model.bias.data.add_(1)
    assert [*map(id, kept)] == [id(model.bias)]

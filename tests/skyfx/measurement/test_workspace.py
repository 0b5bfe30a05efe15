"""What an operator takes for itself is found by running it."""

import pytest
import torch

from skyfx.measurement.call_cost import workspace_bytes

CPU = torch.device("cpu")
MEGABYTE = torch.ones(2**18)


def near(size: int) -> object:
    """Numbers are wrapped in tensors of a few bytes."""
    return pytest.approx(size, abs=100)


def test_what_is_given_back_counts_and_what_is_returned_does_not() -> None:
    assert workspace_bytes(lambda: MEGABYTE + 1, CPU) == near(0)
    assert workspace_bytes(lambda: (MEGABYTE + 1) * 2, CPU) == near(2**20)
    assert workspace_bytes(lambda: ((MEGABYTE + 1) * 2).sum(), CPU) == near(2 * 2**20)


def test_a_convolution_copies_what_its_backward_reads() -> None:
    images = torch.randn(4, 32, 32, 32, requires_grad=True)
    weight = torch.randn(32, 32, 3, 3, requires_grad=True)
    outputs = torch.nn.functional.conv2d(images, weight, padding=1)
    ones = torch.ones_like(outputs)

    def gradients() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(outputs, (images, weight), ones, retain_graph=True)

    assert workspace_bytes(gradients, CPU) >= images.nbytes


def test_nothing_is_left_behind_by_a_call_that_fails() -> None:
    def fails() -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        workspace_bytes(fails, CPU)
    assert workspace_bytes(lambda: (MEGABYTE + 1) * 2, CPU) == near(2**20)

"""Values that are made up for a model without any."""

import pytest
import torch
from torch import Tensor, nn

from skyfx.measurement.operator_costs import tensors_read
from skyfx.passes.synthetic_inputs import MOST_BYTES, arguments, parts, sample
from skyfx.tracing.capture import capture

CPU = torch.device("cpu")


META = torch.device("meta")


@pytest.mark.parametrize(
    "like",
    [
        torch.zeros(3, 4, device=META).t(),
        torch.zeros(1, 4, device=META).expand(3, 4),
        torch.zeros(2, 3, dtype=torch.bfloat16, device=META),
        torch.zeros(5, dtype=torch.long, device=META),
        torch.zeros((), dtype=torch.bool, device=META),
        torch.zeros(2, dtype=torch.complex64, device=META),
    ],
)
def test_a_sample_has_shape_strides_and_dtype(like: Tensor) -> None:
    made = sample(like, CPU)
    assert (made.shape, made.stride(), made.dtype) == (like.shape, like.stride(), like.dtype)
    assert made.device == CPU


def test_a_sample_of_a_parameter_is_one() -> None:
    made = sample(nn.Parameter(torch.zeros(2, device="meta"), requires_grad=False), CPU)
    assert isinstance(made, nn.Parameter)
    assert not made.requires_grad


class Head(nn.Module):
    """A vocabulary too large to be made up as a whole."""

    def __init__(self) -> None:
        super().__init__()
        rows = 3 * MOST_BYTES // (4 * 64)
        self.table, self.head = nn.Embedding(rows, 64), nn.Linear(64, rows)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.table(ids))


def test_of_tables_that_are_too_large_there_is_a_part() -> None:
    with torch.device("meta"):
        captured = capture(Head(), torch.zeros(2, 8, dtype=torch.long))
    read = dict(tensors_read(captured))
    found = {}
    for node in captured.ids:
        if node.op == "call_function":
            args, _ = arguments(node, read, CPU)
            found[captured.ids[node]] = parts(node, read)
            assert all(x.numel() * x.element_size() <= MOST_BYTES for x in args if x is not None)
            if "embedding" in captured.ids[node]:
                assert int(args[1].max()) < len(args[0])
    assert found == {"table.embedding": 3, "head.linear": 3}

"""Which nodes of a captured model may run again in backward."""

import torch
from torch import Tensor, nn

from skyfx.passes.repeatable import repeatable_nodes
from skyfx.tracing.capture import capture


class Writing(nn.Module):
    """A small buffer, a large one, and a parameter that forward writes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)
        self.register_buffer("large", torch.zeros(40000))
        self.words = nn.Embedding(10, 8, max_norm=1.0)
        self.latest = torch.zeros(8)

    def forward(self, x: Tensor) -> Tensor:
        self.large += 1
        y = self.norm(x).relu_() + self.words(torch.zeros(4, dtype=torch.long))
        self.latest = y.detach().mean(0)
        return torch.dropout(y.exp(), 0.1, True) + self.large[:8]


def test_small_buffers_and_values_are_written_again_and_nothing_else_is() -> None:
    captured = capture(Writing(), torch.randn(4, 8))
    again = {captured.ids[node] for node in repeatable_nodes(captured)}
    never = {name for name in captured.ids.values() if name not in again}
    assert {"norm.batch_norm", "relu_", "exp", "dropout"} <= again
    assert any(name.startswith("x") for name in never)  # the input
    assert any("renorm" in name or "embedding" in name for name in never)
    assert any("add_" in name or "large" in name for name in never)

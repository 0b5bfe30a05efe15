"""Padded positions of a transformer, which torch's fused eval path makes zero."""

import pytest
import torch
from torch import Tensor, nn

import skyfx
from skyfx.solver.errors import VerificationError


class Encoder(nn.Module):
    def __init__(self, *, nested: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        out: Tensor = self.layers(x, src_key_padding_mask=padding)
        return out.mean(1)


def batch(*, padded: bool) -> dict[str, Tensor]:
    lengths = torch.tensor([4, 2, 3, 4]) if padded else torch.full((4,), 4)
    x = torch.linspace(-1, 1, 4 * 4 * 8).cos().reshape(4, 4, 8)
    return {"x": x, "padding": torch.arange(4) >= lengths[:, None]}


def partitioned(*, nested: bool, padded: bool) -> skyfx.Pipeline:
    example = batch(padded=padded)
    model = Encoder(nested=nested)
    return skyfx.partition(model, ["cpu", "cpu"], example_inputs=example, num_microbatches=2)


@pytest.mark.slow
def test_zeros_at_padded_positions_are_refused_with_a_cure_that_is_right() -> None:
    with pytest.raises(VerificationError, match="enable_nested_tensor=False") as refused:
        partitioned(nested=True, padded=True)
    assert len(str(refused.value).splitlines()) <= 3
    with partitioned(nested=False, padded=True) as pipeline:
        found = pipeline(batch(padded=True))
    model = Encoder(nested=False).eval()
    with torch.no_grad():
        torch.testing.assert_close(found, model(**batch(padded=True)), rtol=0, atol=1e-6)


def test_it_is_told_where_the_example_has_no_padding(caplog: pytest.LogCaptureFixture) -> None:
    partitioned(nested=True, padded=False).close()
    assert "'layers' gives zeros at padded positions" in caplog.text

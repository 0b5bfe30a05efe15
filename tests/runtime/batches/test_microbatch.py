"""Batches are taken apart and outputs put together without losing anything."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BatchEncoding
from transformers.modeling_outputs import SequenceClassifierOutput

import skyfx
from skyfx.runtime.batches.microbatch import Batch, OutputSpec


def test_tensors_of_the_batch_size_are_split_and_everything_else_goes_whole() -> None:
    batch = Batch.of({"x": torch.arange(5), "table": torch.zeros(1, 3), "flag": True})
    parts = [part.restore()[1] for part in batch.split(2)]
    assert [part["x"].tolist() for part in parts] == [[0, 1], [2, 3], [4]]
    assert all(part["table"].shape == (1, 3) and part["flag"] is True for part in parts)


@pytest.mark.parametrize(
    ("inputs", "args", "kwargs"),
    [
        (torch.ones(2), 1, []),
        ((torch.ones(2), torch.ones(2)), 2, []),
        ({"x": torch.ones(2)}, 0, ["x"]),
        (BatchEncoding({"x": torch.ones(2)}), 0, ["x"]),
    ],
)
def test_a_batch_is_what_the_model_is_called_with(
    inputs: object, args: int, kwargs: list[str]
) -> None:
    found_args, found_kwargs = Batch.of(inputs).restore()
    assert len(found_args) == args
    assert list(found_kwargs) == kwargs


def test_microbatches_of_one_shape_have_one_signature() -> None:
    signatures = [part.signature for part in Batch.of(torch.zeros(5, 3)).split(2)]
    assert signatures[0] == signatures[1] != signatures[2]


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ("text", TypeError, "the batch is a str, expected a tensor, a tuple"),
        ({"n": 3}, TypeError, "holds no tensor with a batch dimension"),
        (torch.tensor(3.0), TypeError, "holds no tensor with a batch dimension"),
        ({"x": torch.ones(2), "cache": object()}, TypeError, "holds an object of object, expected"),
        (torch.zeros(0, 3), ValueError, "holds 0 samples, expected at least 1"),
    ],
)
def test_what_cannot_be_split_is_refused(
    inputs: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Batch.of(inputs)


def test_outputs_come_back_in_the_models_own_form() -> None:
    returned = SequenceClassifierOutput(logits=torch.ones(2, 3), hidden_states=(torch.ones(2),))
    form, tensors = OutputSpec.of({"a": returned, "n": 3, "cache": object()})
    gathered = form.gather([tensors, [2 * x for x in tensors]], [2, 2])
    assert isinstance(gathered["a"], SequenceClassifierOutput)
    assert gathered["a"].logits.tolist() == [[1] * 3] * 2 + [[2] * 3] * 2
    assert gathered["a"].hidden_states[0].tolist() == [1, 1, 2, 2]
    assert gathered["n"] == 3
    assert gathered["cache"] is None


def test_an_output_without_a_batch_dimension_is_kept_if_equal_and_refused_if_not() -> None:
    form, _ = OutputSpec.of(torch.zeros(()))
    same = [[torch.tensor(1.0)], [torch.tensor(1.0)]]
    assert form.gather(same, [2, 2]) == 1
    with pytest.raises(ValueError, match=r"output 0 of the model has shape .* no batch dimension"):
        form.gather([[torch.tensor(1.0)], [torch.tensor(2.0)]], [2, 2])


class Loses(nn.Module):
    """Returns its loss before the outputs: the mean, one for each sample, or none."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor, labels: Tensor | None = None, mean: bool = True) -> Any:
        outputs = self.layer(x)
        if labels is None:
            return {"loss": None, "logits": outputs}
        losses = (outputs - labels).pow(2).mean(1)
        return {"loss": losses.mean() if mean else losses, "logits": outputs}


def test_outputs_without_the_loss_of_the_example_are_joined_along_their_samples() -> None:
    model, x = Loses().eval(), torch.arange(24.0).reshape(8, 3)
    batch = {"x": x, "labels": x.flip(0)}
    with skyfx.partition(model, ["cpu"], example_inputs=batch, num_microbatches=4) as pipeline:
        whole, alone, each = pipeline(batch), pipeline({"x": x}), pipeline({**batch, "mean": False})
    with torch.no_grad():
        pairs = zip(x.split(2), x.flip(0).split(2), strict=True)
        losses = [model(*pair, mean=False)["loss"] for pair in pairs]
        logits = torch.cat([model(part)["logits"] for part in x.split(2)])
    assert torch.allclose(whole["loss"], torch.cat(losses).mean())
    assert alone["loss"] is None
    assert torch.equal(each["loss"], torch.cat(losses))
    for found in (whole, alone, each):
        assert torch.equal(found["logits"], logits)

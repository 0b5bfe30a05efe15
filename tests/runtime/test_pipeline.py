"""The pipeline computes what the unsplit model computes."""

import gc
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import skyfx
from skyfx.solver.errors import StageError
from tests.support import models, unsplit_reference
from tests.support.models import BATCH, CASES, Case, failing
from tests.support.plans import SIZE, split_evenly
from tests.support.unsplit_reference import CLOSE, assert_equal_gradients, relative


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]()


def test_outputs_equal_the_unsplit_model_bit_for_bit(case: Case) -> None:
    expected = unsplit_reference.infer(case, SIZE)
    with split_evenly(case, mode="inference") as pipeline:
        found = unsplit_reference.tensors(pipeline(case.batch))
    assert len(found) == len(expected)
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe"])
def test_a_training_step_equals_the_unsplit_model(case: Case, schedule: str) -> None:
    assert_training_equals_the_unsplit_model(case, schedule)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "t5", "unet"])
@pytest.mark.parametrize("schedule", ["generated", "interleaved"])
def test_so_it_does_with_schedules_made_for_a_plan(name: str, schedule: str) -> None:
    assert_training_equals_the_unsplit_model(CASES[name](), schedule)


def assert_training_equals_the_unsplit_model(case: Case, schedule: str) -> None:
    """The loss, gradients and buffers of two steps, and what the pipeline then infers."""
    alone = unsplit_reference.unsplit(case)
    own = list(case.model.parameters())
    with split_evenly(case, schedule=schedule) as pipeline:
        assert all(a is b for a, b in zip(own, pipeline.parameters(), strict=True))
        for _ in range(2):
            expected = unsplit_reference.train_step(alone, SIZE)
            found = pipeline.train_step(case.batch, case.targets, case.loss_fn)
            assert torch.equal(found, expected)
        assert_equal_gradients(pipeline, alone.model)
        inferred = unsplit_reference.tensors(pipeline(case.batch))
        state = pipeline.state_dict()
    for name, value in alone.model.state_dict().items():
        assert torch.equal(state[name], value), name  # batch norm's buffers among them
    alone_inferred = unsplit_reference.infer(alone, SIZE)
    assert all(torch.equal(f, e) for f, e in zip(inferred, alone_inferred, strict=True))


def test_training_follows_the_unsplit_model_over_many_steps() -> None:
    case = models.resnet()
    alone = unsplit_reference.unsplit(case)
    with split_evenly(case) as pipeline:
        ours = torch.optim.AdamW(pipeline.parameters(), lr=1e-2)
        theirs = torch.optim.AdamW(alone.model.parameters(), lr=1e-2)
        for _ in range(10):
            loss = pipeline.train_step(case.batch, case.targets, case.loss_fn)
            assert torch.equal(loss, unsplit_reference.train_step(alone, SIZE))
            for optimizer in (ours, theirs):
                optimizer.step()
                optimizer.zero_grad()
        alone.model.load_state_dict(pipeline.state_dict())


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved"])
def test_a_short_last_microbatch_counts_by_its_samples(schedule: str) -> None:
    case = models.bert()
    batch = {name: x[:7] for name, x in case.batch.items()}
    short = Case(case.model, batch, case.targets[:7], case.loss_fn)
    alone = unsplit_reference.unsplit(short)
    with split_evenly(case, schedule=schedule) as pipeline:
        found = pipeline.train_step(short.batch, short.targets, short.loss_fn)
        assert torch.equal(found, unsplit_reference.train_step(alone, SIZE))
        assert_equal_gradients(pipeline, alone.model)
        expected = unsplit_reference.infer(alone, SIZE)
        assert torch.equal(pipeline(**batch).logits, expected[0])


@pytest.mark.parametrize("samples", [3, 14])
@pytest.mark.parametrize("schedule", ["generated", "interleaved"])
def test_a_batch_may_make_fewer_or_more_microbatches_than_planned(
    schedule: str, samples: int
) -> None:
    case = models.resnet()
    rows = torch.arange(samples) % BATCH
    other = Case(case.model, case.batch[rows], case.targets[rows], case.loss_fn)
    alone = unsplit_reference.unsplit(other)
    with split_evenly(case, 2, schedule=schedule) as pipeline:
        found = pipeline.train_step(other.batch, other.targets, other.loss_fn)
        assert torch.equal(found, unsplit_reference.train_step(alone, SIZE))
        assert_equal_gradients(pipeline, alone.model)
        assert torch.equal(pipeline(other.batch), unsplit_reference.infer(alone, SIZE)[0])


def test_a_device_with_two_stages_has_one_worker() -> None:
    case = models.bert()
    with split_evenly(case, 2, schedule="interleaved") as pipeline:
        pipeline(case.batch)
        assert workers() == 2
        assert pipeline.measured is not None
        assert len(pipeline.measured.stage_s) == 4
        assert all(seconds > 0 for seconds in pipeline.measured.stage_s)


def test_dropout_does_not_depend_on_the_plan() -> None:
    losses, gradients = [], []
    plans = ((1, "1f1b"), (2, "1f1b"), (3, "gpipe"), (3, "generated"), (2, "interleaved"))
    for num_devices, schedule in plans:
        torch.manual_seed(1)
        case = models.bert(dropout=0.3)
        with split_evenly(case, num_devices, schedule=schedule) as pipeline:
            torch.manual_seed(2)
            steps = [pipeline.train_step(case.batch, case.targets, case.loss_fn) for _ in range(2)]
            losses.append(torch.stack(steps))
            gradients.append(torch.cat([p.grad.flatten() for p in pipeline.parameters()]))
    assert all(torch.equal(loss, losses[0]) for loss in losses[1:])
    assert all(relative(gradient, gradients[0]) <= CLOSE for gradient in gradients[1:])
    assert losses[0][0] != losses[0][1]  # each step draws anew


def test_dropout_drops_the_asked_for_share() -> None:
    model = nn.Sequential(nn.Linear(4, 1000), nn.Dropout(0.25))
    nn.init.zeros_(model[0].weight)
    nn.init.ones_(model[0].bias)
    seen = []

    def loss_fn(outputs: Tensor, _: None) -> Tensor:
        seen.append(outputs.detach().clone())
        return outputs.mean()

    case = Case(model, torch.randn(BATCH, 4), torch.zeros(BATCH), loss_fn)
    with split_evenly(case, 2) as pipeline:
        pipeline.train_step(case.batch, None, loss_fn)
    masks = torch.cat(seen) == 0
    assert abs(masks.float().mean() - 0.25) < 0.03
    assert len({tuple(mask.tolist()) for mask in masks}) == BATCH  # no sample shares a mask


def test_the_model_may_return_its_own_loss() -> None:
    case = models.bert()
    alone = unsplit_reference.unsplit(case)
    batch = case.batch | {"labels": case.targets}
    with_labels = Case(case.model, batch, case.targets, case.loss_fn)
    with split_evenly(with_labels) as pipeline:
        found = pipeline.train_step(batch)
        assert torch.equal(found, unsplit_reference.train_step(alone, SIZE))
        assert_equal_gradients(pipeline, alone.model)


def test_frozen_parameters_stay_as_they_are() -> None:
    case = models.bert()
    case.model.bert.embeddings.requires_grad_(False)
    alone = unsplit_reference.unsplit(case)
    with split_evenly(case) as pipeline:
        pipeline.train_step(case.batch, case.targets, case.loss_fn)
        unsplit_reference.train_step(alone, SIZE)
        assert_equal_gradients(pipeline, alone.model)
        assert next(pipeline.parameters()).grad is None


class WhileFrozen(nn.Linear):
    """Takes no gradients through itself while its weight needs none, as some libraries do."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.weight.requires_grad):
            return super().forward(x)


def test_parameters_may_be_frozen_and_unfrozen_between_steps(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), WhileFrozen(4, 4), nn.Linear(4, 1))
    model[:3].requires_grad_(False)
    case = Case(model, torch.randn(BATCH, 4), torch.randn(BATCH, 1), functional.mse_loss)
    alone, more = unsplit_reference.unsplit(case), list[bool]()
    with split_evenly(case, 2) as pipeline:
        for needed in (False, True, False, True):
            for each in (model, alone.model):
                each[:3].requires_grad_(needed)
                each.zero_grad()
            expected = unsplit_reference.train_step(alone, SIZE)
            found = pipeline.train_step(case.batch, case.targets, case.loss_fn)
            assert torch.equal(found, expected)
            assert_equal_gradients(pipeline, alone.model)
            more.append("160 B of parameters that were frozen train now" in caplog.text)
            caplog.clear()
    # Two layers of 4 x 4 weights and 4 biases, which the plan's memory took for frozen: said once.
    assert more == [False, True, False, False]


@pytest.mark.parametrize(("bad_id", "stage"), [(11, 0), (7, 2)])
@pytest.mark.parametrize("train", [True, False])
def test_a_failed_stage_ends_the_call_and_says_where(bad_id: int, stage: int, train: bool) -> None:
    case = failing()
    bad = case.batch.clone()
    bad[5] = bad_id
    with split_evenly(case) as pipeline:
        with pytest.raises(StageError, match=rf"stage {stage} on 'cpu:{stage}' failed") as caught:
            run(pipeline, case, bad, train)
        cause = caught.value.__cause__
        assert isinstance(cause, IndexError)
        assert cause.__traceback__ is not None
        run(pipeline, case, case.batch, train)  # the next call is a new start


def run(pipeline: skyfx.Pipeline, case: Case, batch: Tensor, train: bool) -> Tensor:
    if train:
        return pipeline.train_step(batch, case.targets, case.loss_fn)
    return pipeline(batch)


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (lambda outputs, _: outputs, "expected a tensor of one number"),
        (lambda outputs, _: outputs.detach().sum(), "depends on no output"),
        (None, "returns no loss"),
        (lambda x, _: x.mean() * torch.ones((), device="meta"), "keep it on an attribute"),
    ],
)
def test_a_loss_that_is_none_is_refused(loss_fn: Callable[..., Tensor], message: str) -> None:
    case = failing()
    with split_evenly(case) as pipeline, pytest.raises(StageError, match=message):
        pipeline.train_step(case.batch, case.targets, loss_fn)


def workers() -> int:
    return sum(thread.name.startswith("skyfx-stage") for thread in threading.enumerate())


def test_close_ends_the_workers_and_the_pipeline() -> None:
    case = failing()
    with split_evenly(case) as pipeline:
        pipeline(case.batch)
        assert workers() == 3
    assert workers() == 0
    with pytest.raises(RuntimeError, match="closed"):
        pipeline(case.batch)


def test_a_forgotten_pipeline_ends_its_workers() -> None:
    case = failing()
    pipeline = split_evenly(case)
    pipeline(case.batch)
    del pipeline
    gc.collect()
    for thread in threading.enumerate():
        if thread.name.startswith("skyfx-stage"):
            thread.join(timeout=10)
    assert workers() == 0


class ReturnsLoss(nn.Module):
    """As many models do where they are given labels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        y = self.last(torch.tanh(self.first(x)))
        return y if labels is None else (functional.mse_loss(y, labels), y)


def test_a_loss_that_is_returned_before_outputs_is_trained_and_evaluated() -> None:
    x, labels = torch.randn(BATCH, 4), torch.randn(BATCH, 4)
    batch = {"x": x, "labels": labels}
    case = Case(ReturnsLoss(), batch, labels, lambda outputs, _: outputs[0])
    alone = unsplit_reference.unsplit(case)
    expected = unsplit_reference.train_step(alone, SIZE)
    with split_evenly(case, 2, check="full") as pipeline:
        assert torch.equal(pipeline.train_step(batch), expected)
        assert_equal_gradients(pipeline, alone.model)
        loss, outputs = pipeline(**batch)
        assert torch.equal(loss, expected)
        assert torch.equal(pipeline(x), outputs)


def test_a_pipeline_for_inference_refuses_to_train() -> None:
    case = failing()
    with (
        split_evenly(case, mode="inference") as pipeline,
        pytest.raises(ValueError, match="planned for inference"),
    ):
        pipeline.train_step(case.batch, case.targets, case.loss_fn)

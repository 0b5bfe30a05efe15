"""Trainings by `skyfx.Trainer` equal plain torch's, stopped and gone on with or not."""

import copy
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

import skyfx
from skyfx.training.trainer import Trainer
from tests.support.models import BATCH, Case
from tests.support.plans import SIZE, split_evenly
from tests.support.training import FEATURES, Losses, model, rows


def plain(
    whole: nn.Module, loader: DataLoader[Any], epochs: int, accumulate: int, clip: float
) -> list[float]:
    """The same by plain torch, micro-batch after micro-batch."""
    optimizer = torch.optim.AdamW(whole.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    losses = []

    def update(count: int) -> None:
        for parameter in whole.parameters():
            assert parameter.grad is not None
            parameter.grad /= count
        torch.nn.utils.clip_grad_norm_(whole.parameters(), clip)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()

    for _ in range(epochs):
        pending = 0
        for features, targets in loader:
            total = torch.zeros(())
            for part, goal in zip(features.split(SIZE), targets.split(SIZE), strict=True):
                loss = functional.cross_entropy(whole(part), goal) * (len(part) / len(features))
                loss.backward()
                total += loss.detach()
            losses.append(total.item())
            pending += 1
            if pending == accumulate:
                update(pending)
                pending = 0
        if pending:
            update(pending)
    return losses


def trainer_of(whole: nn.Module, *callbacks: skyfx.Callback, **options: Any) -> Trainer:
    batch, targets = torch.zeros(BATCH, FEATURES), torch.zeros(BATCH, dtype=torch.long)
    pipeline = split_evenly(Case(whole, batch, targets, functional.cross_entropy), 2)
    optimizer = torch.optim.AdamW(pipeline.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    return Trainer(
        pipeline,
        optimizer,
        functional.cross_entropy,
        scheduler=scheduler,
        callbacks=callbacks,
        **options,
    )


def test_a_training_equals_plain_torch_bit_for_bit() -> None:
    alone, losses = model(), Losses()
    trainer = trainer_of(copy.deepcopy(alone), losses, accumulate=2, max_grad_norm=0.5)
    torch.manual_seed(3)
    expected = plain(alone, DataLoader(rows(), BATCH, shuffle=True), 2, 2, 0.5)
    torch.manual_seed(3)
    with trainer.pipeline:
        trainer.fit(DataLoader(rows(), BATCH, shuffle=True), epochs=2)
    assert [loss for _, _, loss in losses.found] == expected
    assert (trainer.epoch, trainer.batch, trainer.iteration, trainer.step) == (2, 0, 10, 6)
    for name, value in trainer.pipeline.state_dict().items():
        assert torch.equal(value, alone.state_dict()[name]), name


def test_callbacks_are_called_at_their_moments() -> None:
    said: list[str] = []

    class Says(skyfx.Callback):
        def __getattribute__(self, name: str) -> Callable[[Trainer], None]:
            return lambda trainer: said.append(f"{name} {trainer.epoch}.{trainer.batch}")

    trainer = trainer_of(model(), Says())
    with trainer.pipeline:
        trainer.fit(DataLoader(rows(2 * BATCH), BATCH), epochs=2, max_steps=3)
    assert said == [
        "before_run 0.0",
        "before_epoch 0.0",
        "before_iteration 0.0",
        "after_iteration 0.1",
        "before_iteration 0.1",
        "after_iteration 0.2",
        "after_epoch 1.0",
        "before_epoch 1.0",
        "before_iteration 1.0",
        "after_iteration 1.1",
        "after_run 1.1",
        "close 1.1",
    ]


def shuffled() -> DataLoader[Any]:
    return DataLoader(rows(), BATCH, shuffle=True)


def with_its_own_generator() -> DataLoader[Any]:
    return DataLoader(rows(), BATCH, shuffle=True, generator=torch.Generator().manual_seed(5))


def augmented() -> DataLoader[Any]:
    """Noise on the data, drawn by the generator that the model's dropout draws from."""

    def noisy(some: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        features = torch.stack([each for each, _ in some])
        return features + 0.1 * torch.randn(features.shape), torch.stack([y for _, y in some])

    return DataLoader(rows(), BATCH, shuffle=True, collate_fn=noisy)


@pytest.mark.parametrize("loader", [shuffled, with_its_own_generator, augmented])
def test_what_goes_on_in_mid_epoch_does_what_it_would_have_done(
    loader: Callable[[], DataLoader[Any]], tmp_path: Path
) -> None:
    """Model, optimizer, scheduler, dropout, order and noise; evaluating in between, or not."""

    def run(*folders: Path, max_steps: int) -> tuple[list[Any], dict[str, Tensor], dict[str, Any]]:
        torch.manual_seed(7)  # as a script does that is started again
        losses, evaluated = Losses(), skyfx.Evaluate(shuffled())
        saving = [skyfx.Checkpointing(folder, every_steps=1) for folder in folders]
        trainer = trainer_of(model(), *saving, losses, evaluated, accumulate=2)
        with trainer.pipeline:
            trainer.fit(loader(), epochs=3, max_steps=max_steps)
            state = trainer.pipeline.state_dict()
        return losses.found, {k: v.clone() for k, v in state.items()}, evaluated.results

    undisturbed, expected, evaluations = run(max_steps=9)
    assert len(undisturbed) == 15
    first, _, before = run(tmp_path, max_steps=4)  # in the middle of the second epoch
    second, found, after = run(tmp_path, max_steps=9)
    assert (first, second) == (undisturbed[:7], undisturbed[7:])
    assert before | after == evaluations
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_stop_flag_ends_the_run_with_the_next_step_and_loses_nothing(tmp_path: Path) -> None:
    flag, run = tmp_path / "stop", tmp_path / "run"

    class Puts(skyfx.Callback):
        def after_iteration(self, trainer: Trainer) -> None:
            if trainer.iteration == 3:
                flag.touch()

    def train(*more: skyfx.Callback) -> list[Any]:
        torch.manual_seed(7)
        losses = Losses()
        callbacks = [skyfx.Checkpointing(run), losses, *more, skyfx.StopFlag(flag)]
        trainer = trainer_of(model(), *callbacks, accumulate=2)
        with trainer.pipeline:
            trainer.fit(shuffled(), epochs=1)
        return losses.found

    assert len(train(Puts())) == 4  # the third batch's gradients wait for the fourth's
    flag.unlink()
    assert [(epoch, batch) for epoch, batch, _ in train()] == [(0, 5)]
    assert train() == []  # all is done


def test_a_signal_ends_the_run_and_is_handled_as_before_afterwards() -> None:
    class Sends(skyfx.Callback):
        def after_iteration(self, trainer: Trainer) -> None:
            os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.getsignal(signal.SIGUSR1)
    trainer = trainer_of(model(), Sends(), skyfx.StopFlag(signals=[signal.SIGUSR1]))
    with trainer.pipeline:
        trainer.fit(shuffled())
    assert trainer.step == 1
    assert signal.getsignal(signal.SIGUSR1) is before


def test_autocast_is_that_of_plain_torch() -> None:
    alone, losses = model(dropout=0.0), Losses()
    trainer = trainer_of(copy.deepcopy(alone), losses, autocast=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):  # weights change within
        expected = plain(alone, DataLoader(rows(), BATCH), 1, 1, 1e9)
    with trainer.pipeline:
        trainer.fit(DataLoader(rows(), BATCH))
    assert [loss for _, _, loss in losses.found] == expected
    assert [loss for _, _, loss in losses.found] != plain(
        model(dropout=0.0), DataLoader(rows(), BATCH), 1, 1, 1e9
    )  # as it would be in full precision


def test_evaluation_weighs_samples_and_leaves_the_generators_alone() -> None:
    whole, data = model(), rows(10)
    trainer = trainer_of(copy.deepcopy(whole))

    def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.argmax(-1) == targets).float().mean()

    before = torch.get_rng_state()
    with trainer.pipeline:
        found = trainer.evaluate(DataLoader(data, BATCH, shuffle=True), {"accuracy": accuracy})
    assert torch.equal(torch.get_rng_state(), before)
    outputs, targets = whole.eval()(data.tensors[0]), data.tensors[1]
    assert found["loss"] == pytest.approx(functional.cross_entropy(outputs, targets).item())
    assert found["accuracy"] == pytest.approx(accuracy(outputs, targets).item())


def test_times_say_where_an_iteration_went(caplog: pytest.LogCaptureFixture) -> None:
    timer = skyfx.Timer(every=2)
    trainer = trainer_of(model(), timer)
    with trainer.pipeline, caplog.at_level("INFO", logger="skyfx"):
        trainer.fit(shuffled())
    assert len(timer.times) == 5
    for took in timer.times:
        assert len(took.forward_s) == len(took.backward_s) == 2
        assert 0 < max(took.forward_s) + max(took.backward_s) < took.run_s
        assert min(took.batch_s, took.update_s) > 0
    said = [record.getMessage() for record in caplog.records if "update" in record.getMessage()]
    assert [one.split(":")[0] for one in said] == [
        "epoch 0, batch 2, step 2",
        "epoch 0, batch 4, step 4",
    ]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"accumulate": 0}, "accumulate: found 0, expected a whole number >= 1"),
        ({"max_grad_norm": 0.0}, "max_grad_norm: found 0.0, expected a finite number > 0"),
        ({"autocast": torch.float16}, "float16 needs scaled gradients"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        trainer_of(model(), **options)


def test_a_loader_that_is_used_up_is_refused_and_so_is_a_shorter_one(tmp_path: Path) -> None:
    def once() -> Iterator[Any]:
        yield from DataLoader(rows(), BATCH)

    trainer = trainer_of(model(), skyfx.Checkpointing(tmp_path, every_steps=1))
    with trainer.pipeline:
        trainer.fit(shuffled(), max_steps=3)
        with pytest.raises(ValueError, match="no batch to evaluate on"):
            trainer.evaluate([])
    other = trainer_of(model(), skyfx.Checkpointing(tmp_path))
    with (
        other.pipeline,
        pytest.raises(ValueError, match="3 batches of an epoch, which has 2"),
    ):
        other.fit(DataLoader(rows(2 * BATCH), BATCH))
    third = trainer_of(model())
    with third.pipeline, pytest.raises(ValueError, match="no batch in epoch 1"):
        third.fit(once(), epochs=2)

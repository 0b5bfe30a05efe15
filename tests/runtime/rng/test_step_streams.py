"""Whatever draws random numbers draws what plain torch would, on the same micro-batches."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import skyfx
from skyfx.runtime.rng.generator_state import comparable_states
from tests.support import models, unsplit_reference
from tests.support.launcher import launch
from tests.support.models import BATCH, Case
from tests.support.plans import SIZE, split_evenly
from tests.support.random_models import BY_VALUE, CASES, OPERATORS, SEED, drawing, trained
from tests.support.tiers import cases

STEPS = 50


def made(make: Callable[[], Case]) -> Case:
    torch.manual_seed(0)
    return make()


def alone(make: Callable[[], Case], steps: int) -> dict[str, Any]:
    """What plain torch gives, on one thread as each stage has."""
    case = made(make)
    torch.manual_seed(SEED)
    return trained(case, case, steps)


def split(
    make: Callable[[], Case], steps: int, num_stages: int, schedule: str = "1f1b"
) -> dict[str, Any]:
    """What a pipeline gives, which is made between the seed and the first step."""
    case = made(make)
    torch.manual_seed(SEED)
    with split_evenly(case, num_stages, schedule=schedule) as pipeline:
        return trained(pipeline, case, steps)


@cache
def fifty_steps() -> dict[str, Any]:
    return alone(CASES["bert"], STEPS)


@pytest.mark.slow
@pytest.mark.parametrize(("num_stages", "schedule"), [(2, "1f1b"), (3, "gpipe")])
def test_fifty_steps_of_bert_with_dropout_are_plain_torchs(num_stages: int, schedule: str) -> None:
    assert split(CASES["bert"], STEPS, num_stages, schedule) == fifty_steps()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What each of two processes has seen, by run."""
    folder, runs = tmp_path_factory.mktemp("ranks"), [f"bert-{STEPS}", "strided-3", "bert-3-again"]
    done = launch(2, "tests/jobs/rng_job.py", str(folder), *runs)
    assert done.returncode == 0, done.stderr[-3000:]
    return {
        run: [json.loads((folder / f"{run}.{rank}.json").read_text()) for rank in range(2)]
        for run in runs
    }


def test_fifty_steps_over_processes_are_those_of_the_first_ones_seed(
    reports: dict[str, list[dict[str, Any]]],
) -> None:
    assert reports[f"bert-{STEPS}"] == [fifty_steps()] * 2


def test_segments_that_are_recomputed_over_processes_draw_the_same_again(
    reports: dict[str, list[dict[str, Any]]],
) -> None:
    assert reports["bert-3-again"] == [alone(CASES["bert"], 3)] * 2


def test_masks_go_along_memory_as_it_was_in_the_process_before(
    reports: dict[str, list[dict[str, Any]]],
) -> None:
    assert reports["strided-3"] == [alone(CASES["strided"], 3)] * 2


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe"])
def test_every_operator_draws_what_it_draws_in_plain_torch(schedule: str) -> None:
    def all_of_them() -> Case:
        return drawing(list(OPERATORS))

    assert split(all_of_them, 3, 3, schedule) == alone(all_of_them, 3)


@cases(70)
@given(
    st.lists(st.sampled_from(list(OPERATORS)), min_size=1, max_size=6),
    st.integers(1, 3),
    st.integers(BATCH - SIZE, BATCH),
)
def test_any_sequence_of_operators_draws_what_it_draws_in_plain_torch(
    names: list[str], num_stages: int, samples: int
) -> None:
    """Of batches whose last micro-batch may be short."""

    def sequence() -> Case:
        return drawing(names, samples)

    assert split(sequence, 2, num_stages) == alone(sequence, 2)


@pytest.mark.filterwarnings("ignore:The tensor attributes self.model")  # torch's, of any LSTM
def test_dropout_within_an_operator_is_plain_torchs() -> None:
    assert split(CASES["recurrent"], 3, 2) == alone(CASES["recurrent"], 3)


def test_dropout_within_checkpoints_is_plain_torchs() -> None:
    def checkpointed() -> Case:
        case = CASES["bert"]()
        case.model.activation_checkpointing_enable()
        return case

    assert split(checkpointed, 3, 2) == alone(checkpointed, 3)


def test_dropout_in_half_precision_is_plain_torchs() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = split(CASES["bert"], 1, 2), alone(CASES["bert"], 1)
    assert found["losses"] == expected["losses"]
    assert found["generator"] == expected["generator"]


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_a_model_that_draws_in_eval_mode_infers_like_plain_torch(around: Callable[[], Any]) -> None:
    case = drawing(["dropout", "randn, few", "rand"])
    with split_evenly(case, 2) as pipeline, around():
        torch.manual_seed(SEED)
        found, after = pipeline(case.batch), torch.get_rng_state()
    torch.manual_seed(SEED)
    assert torch.equal(found, unsplit_reference.infer(case, SIZE)[0])
    assert torch.equal(after, torch.get_rng_state())


@pytest.mark.parametrize("name", BY_VALUE)
def test_where_only_values_tell_how_much_is_drawn_the_plan_still_does_not_matter(name: str) -> None:
    def made_of_it() -> Case:
        return drawing([name, "dropout"])

    assert split(made_of_it, 2, 3) == split(made_of_it, 2, 1)


def test_a_loss_may_draw_beside_the_stages() -> None:
    def noisy() -> Case:
        def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
            return functional.mse_loss(outputs, targets + torch.rand(10**6)[-1])

        return replace(drawing(["dropout, wide"] * 9), loss_fn=loss_fn)

    assert split(noisy, 5, 3, "gpipe") == split(noisy, 5, 1, "gpipe")


class LeafSelection(nn.Module):
    """Its middle stays whole: a branch on a value, and dropout beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(8, 8), Branching(), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(functional.dropout(self.first(x), 0.2, self.training)))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("doubles", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        y = functional.dropout(x, 0.2, self.training)
        return y * 2 if self.doubles > 0 else y


def test_with_the_models_own_python_in_it_the_plan_still_does_not_matter() -> None:
    def whole() -> Case:
        return Case(
            LeafSelection(), torch.randn(BATCH, 8), torch.randn(BATCH, 8), functional.mse_loss
        )

    assert split(whole, 2, 3) == split(whole, 2, 1)


def test_neither_measuring_nor_capturing_again_takes_the_users_generators_on() -> None:
    case = made(lambda: models.bert(dropout=0.1, layers=1))
    before = comparable_states()
    with skyfx.partition(
        case.model, ["cpu", "cpu"], example_inputs=case.batch, strategy="even"
    ) as pipeline:
        assert comparable_states() == before
        pipeline({name: x[:3] for name, x in case.batch.items()})  # another shape, and mode
        assert comparable_states() == before

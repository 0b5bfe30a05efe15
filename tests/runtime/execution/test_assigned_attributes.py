"""What forward leaves on modules is there for the loss, as in plain torch, gradient included."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import skyfx
from skyfx.solver.errors import CaptureError
from skyfx.tracing.capture import capture
from tests.support import attribute_models
from tests.support.attribute_models import BATCH, KINDS, NUM_MICROBATCHES, SIZE, Layers
from tests.support.plans import even_plan


def partitioned(model: nn.Module, **options: Any) -> skyfx.Pipeline:
    plan = even_plan(capture(model, BATCH[:SIZE], training=True), 2)
    plan = replace(plan, assumptions=replace(plan.assumptions, microbatches=NUM_MICROBATCHES))
    return skyfx.partition(model, ["cpu", "cpu"], example_inputs=BATCH, plan=plan, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_training_reads_what_forward_leaves(kind: type[Layers]) -> None:
    model = kind()
    plain = attribute_models.unsplit(model)
    with partitioned(model) as pipeline:
        found = attribute_models.pipeline_steps(pipeline, model, 3)
        assert found == attribute_models.plain_steps(plain, 3)
        assert attribute_models.attributes(model) == attribute_models.attributes(plain)
        outputs = pipeline(BATCH)
        plain.eval()
        with torch.no_grad():
            expected = torch.cat([plain(x) for x in BATCH.split(SIZE)])
        assert torch.equal(outputs, expected)
        assert attribute_models.attributes(model) == attribute_models.attributes(plain)
    copy.deepcopy(model)

"""What forward leaves and returns, where the last stage has a process of its own."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import attribute_models
from tests.support.attribute_models import (
    BATCH,
    SIZE,
    Hooked,
    Layers,
)
from tests.support.launcher import launch

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes has seen."""
    folder = tmp_path_factory.mktemp("attributes")
    done = launch(2, "tests/jobs/attributes_job.py", str(folder), timeout_s=540)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("kind", attribute_models.kinds_over_processes())
def test_the_loss_reads_what_forward_leaves(
    kind: type[Layers], reports: list[dict[str, Any]]
) -> None:
    first, last = (said[kind.__name__] for said in reports)
    plain = kind()
    expected = attribute_models.plain_steps(plain, 2)
    for (loss, wanted), (loss_0, ours), (loss_1, theirs) in zip(
        expected, first["steps"], last["steps"], strict=True
    ):
        assert loss == loss_0 == loss_1
        assert wanted == {**ours, **theirs}
    trained = attribute_models.attributes(plain)
    assert of_values(last["trained"]) == of_values(trained, like=last["trained"])
    plain.eval()
    with torch.no_grad():
        for x in BATCH.split(SIZE):
            plain(x)
    inferred = attribute_models.attributes(plain)
    # In training hooks are called where the last stage is, in inference everywhere.
    for said in (last,) if kind is Hooked else (first, last):
        assert of_values(said["inferred"]) == of_values(inferred, like=said["inferred"])


def test_all_get_outputs_that_are_longer_than_the_example_s(reports: list[dict[str, Any]]) -> None:
    model = attribute_models.Stretching().eval()
    expected = [model(batch).tolist() for batch in (BATCH, BATCH - 0.5)]
    assert len(expected[0]) != len(expected[1])
    assert [said["lengths"] for said in reports] == [expected, expected]


def of_values(attributes: dict[str, Any], like: dict[str, Any] | None = None) -> dict[str, Any]:
    """Those that have values in the process that told `like`: other buffers are elsewhere."""
    told = attributes if like is None else like
    # The generator of `Drawing` moves on in the process whose stage draws from it.
    here = {name for name, x in told.items() if "elsewhere" not in str(x)} - {".held"}
    return {name: x for name, x in attributes.items() if name in here}

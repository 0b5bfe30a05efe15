"""The files of a checkpoint: whoever damages them is found out before anything is loaded."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import skyfx
from skyfx.solver.errors import CheckpointError
from tests.support.models import small

MODEL = "model-00000.safetensors"


def flip(path: Path) -> None:
    """Another last byte."""
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def without_checksums(path: Path) -> None:
    save_file(load_file(path), path)


def newer(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": "skyfx.checkpoint/2"}))


DAMAGE: list[tuple[str, Callable[[Path], object], str]] = [
    (
        MODEL,
        flip,
        f"{MODEL} is damaged: '.*' has another checksum than when it was written. Load",
    ),
    (MODEL, truncate, f"{MODEL} is damaged: .* Load an earlier step"),
    (MODEL, Path.unlink, f"{MODEL} is damaged: No such file"),
    (MODEL, lambda path: path.write_bytes(b""), f"{MODEL} is damaged"),
    (MODEL, without_checksums, f"{MODEL} has no checksums"),
    ("checkpoint.json", truncate, "checkpoint.json: the record is damaged: Expecting"),
    ("checkpoint.json", lambda path: path.write_bytes(b"\xff"), "checkpoint.json: 'utf-8' codec"),
    ("checkpoint.json", lambda path: path.write_text("[]"), "has format None, expected 'skyfx"),
    ("checkpoint.json", newer, "has format 'skyfx.checkpoint/2', expected 'skyfx.checkpoint/1'"),
    ("checkpoint.json", Path.unlink, "checkpoint.json: .*No such file"),
]


@pytest.mark.parametrize(("file", "damage", "message"), DAMAGE)
def test_damaged_files_are_named(
    file: str, damage: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    model = small()
    checkpoints = skyfx.Checkpoints(model, tmp_path)
    for step in (1, 2):
        checkpoints.save(step)
    damage(tmp_path / "step-00000002" / file)
    with torch.no_grad():
        model[0].weight.zero_()
    for load in (checkpoints.load, lambda: skyfx.saved_state(tmp_path)):
        with pytest.raises(CheckpointError, match=message) as caught:
            load()
        assert "\n" not in str(caught.value)
        assert not model[0].weight.any()
    assert checkpoints.load(1) is not None
    assert model[0].weight.any()


def test_a_checkpoint_that_is_not_there_is_refused(tmp_path: Path) -> None:
    checkpoints = skyfx.Checkpoints(small(), tmp_path)
    with pytest.raises(CheckpointError, match=r"has no checkpoint of step 3$"):
        checkpoints.load(3)
    with pytest.raises(CheckpointError, match=r"nowhere has no checkpoint$"):
        skyfx.saved_state(tmp_path / "nowhere")
    checkpoints.save(1)
    checkpoints.save(2)
    with pytest.raises(CheckpointError, match=r"has no checkpoint of step 3; it has 1, 2$"):
        checkpoints.load(3)
    with pytest.raises(ValueError, match="keep is 0"):
        skyfx.Checkpoints(small(), tmp_path, keep=0)


def test_files_are_readable_as_the_users_others_are(tmp_path: Path) -> None:
    skyfx.Checkpoints(small(), tmp_path).save(1)
    modes = {path.stat().st_mode for path in (tmp_path / "step-00000001").iterdir()}
    (tmp_path / "other").touch()
    assert modes == {(tmp_path / "other").stat().st_mode}


def test_state_stays_readable_when_its_files_have_gone(tmp_path: Path) -> None:
    model = small()
    checkpoints = skyfx.Checkpoints(model, tmp_path, keep=1)
    checkpoints.save(1)
    state: dict[str, Tensor] = skyfx.saved_state(tmp_path)
    checkpoints.save(2)
    assert torch.equal(state["0.weight"], model[0].weight)

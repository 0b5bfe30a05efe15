"""CIFAR-10 in its own format: what a row's bytes mean, and what is no such file."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from tests.support import ROOT

EXAMPLE = ROOT / "examples" / "cifar.py"
RECORD = 3073


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cifar", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


cifar = load()


def test_a_row_is_a_class_then_red_green_and_blue(tmp_path: Path) -> None:
    """The second picture: red grows by a row, green by a column, blue is 7 but for one corner."""
    row = [3, *(y for y in range(32) for _ in range(32))]
    row += [x for _ in range(32) for x in range(32)]
    row += [7] * 1023 + [255]
    (tmp_path / "some.bin").write_bytes(bytes([9] + [0] * 3072) + bytes(row))
    pictures, classes = cifar.read(tmp_path, ["some.bin"])
    assert classes.tolist() == [9, 3]
    assert pictures.shape == (2, 3, 32, 32)
    assert int(pictures[0].sum()) == 0
    assert pictures[1, 0, :, 5].tolist() == list(range(32))
    assert pictures[1, 1, 5, :].tolist() == list(range(32))
    assert pictures[1, 2, 31, 30:].tolist() == [7, 255]


def test_files_follow_one_another(tmp_path: Path) -> None:
    for label in (4, 2):
        (tmp_path / f"{label}.bin").write_bytes(bytes([label] + [0] * 3072))
    assert cifar.read(tmp_path, ["4.bin", "2.bin"])[1].tolist() == [4, 2]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "data.bin is missing; unpack CIFAR-10's binary version there"),
        (b"", "data.bin has 0 bytes, which is no multiple of 3073, those of a picture"),
        (b"\0" * 4000, "data.bin has 4000 bytes, which is no multiple of 3073"),
        (
            b"\0" * RECORD + b"\x0a" * RECORD,
            "data.bin: picture 1 is of class 10, the last is 9",
        ),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / "data.bin").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(said)) as raised:
        cifar.read(tmp_path, ["data.bin"])
    assert "\n" not in str(raised.value)


def test_a_wrong_folder_is_told_in_a_line(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLE), "--data", str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "data_batch_1.bin is missing; unpack CIFAR-10's binary version there" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_the_stand_in_is_the_same_for_a_seed_and_has_all_classes(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "same", "other")]
    for folder, seed in zip(folders, (0, 0, 1), strict=True):
        folder.mkdir()
        cifar.stand_in(folder, rows=50, seed=seed)
    one, same, other = (cifar.read(folder, cifar.TRAIN) for folder in folders)
    assert torch.equal(one[0], same[0])
    assert not torch.equal(one[0], other[0])
    assert len(one[1]) == 250
    assert sorted(set(one[1].tolist())) == list(range(10))


def test_colours_have_mean_0_and_deviation_1(tmp_path: Path) -> None:
    cifar.stand_in(tmp_path, rows=20)
    pixels, classes = cifar.read(tmp_path, cifar.TRAIN)
    pictures = cifar.Pictures(pixels, classes, cifar.colours(pixels), moved=False)
    rows = torch.stack([pictures[i][0] for i in range(len(pictures))])
    assert rows.mean((0, 2, 3)).tolist() == pytest.approx([0, 0, 0], abs=1e-5)
    assert rows.std((0, 2, 3)).tolist() == pytest.approx([1, 1, 1], abs=1e-5)


def test_a_picture_moves_by_four_pixels_at_the_most_and_may_be_mirrored() -> None:
    """Each pixel is a number of its own, so where the first row went can be read."""
    picture = torch.arange(3 * 32 * 32, dtype=torch.float32).reshape(3, 32, 32) + 1
    torch.manual_seed(0)
    found = [cifar.moved(picture) for _ in range(200)]
    places = set()
    for one in found:
        assert one.shape == (3, 32, 32)
        y, x = (int(i) for i in (one[0] == picture[0, 16, 16]).nonzero()[0])
        mirrored = bool(one[0, y, x - 1] > one[0, y, x])
        places.add((y - 16, (31 - x if mirrored else x) - 16, mirrored))
    assert {dy for dy, _, _ in places} == set(range(-4, 5))
    assert {dx for _, dx, _ in places} == set(range(-4, 5))
    assert {mirrored for _, _, mirrored in places} == {False, True}
    torch.manual_seed(0)
    assert torch.equal(cifar.moved(picture), found[0])


def test_the_network_halves_its_sides_twice() -> None:
    network = cifar.resnet(depth=3, width=16)
    inside = network[:-3](torch.zeros(2, 3, 32, 32))
    assert inside.shape == (2, 64, 8, 8)
    assert sum(p.numel() for p in network.parameters()) == 272_282  # He et al. have 0.27 million
    assert np.isfinite(network(torch.ones(2, 3, 32, 32)).detach().numpy()).all()

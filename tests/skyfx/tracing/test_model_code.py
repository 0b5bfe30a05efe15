"""A model's own code is told from that of torch and skyfx by folders, not by prefixes of paths."""

from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import skyfx
from skyfx.solver.errors import CaptureError
from skyfx.tracing.capture import capture
from skyfx.tracing.data_dependence import is_library_file

TORCH, SKYFX = Path(torch.__file__).parent, Path(skyfx.__file__).parent

CODE = """
import torch

def forward(self, x):
    return torch.from_numpy(x.detach().numpy() * 2)
"""


@pytest.mark.parametrize(
    ("file", "is_library"),
    [
        (TORCH / "nn" / "functional.py", True),
        (TORCH / "__init__.py", True),
        (SKYFX / "tracing" / "capture.py", True),
        (SKYFX / "runtime" / "pipeline.py", True),
        (TORCH.with_name("torchvision") / "models" / "resnet.py", False),
        (TORCH.with_name("torch_geometric") / "nn.py", False),
        (SKYFX.with_name("skyfx_train.py"), False),
        (SKYFX.with_name("train.py"), False),
    ],
)
def test_only_files_in_the_folders_of_torch_and_skyfx_are_theirs(
    file: Path, is_library: bool
) -> None:
    assert is_library_file(str(file)) is is_library


@pytest.mark.parametrize(
    "file", [TORCH.with_name("torchvision") / "model.py", SKYFX.with_name("skyfx_train.py")]
)
def test_the_error_names_the_line_in_a_file_beside_the_packages(file: Path) -> None:
    module = ModuleType("user")
    exec(compile(CODE, str(file), "exec"), vars(module))

    class Model(nn.Module):
        forward = module.forward

    with pytest.raises(CaptureError, match=rf"at {file}:5: "):
        capture(Model(), torch.ones(2))

"""The folder of a run with its checkpoints, and their files.

    run/step-00000010/                          a checkpoint with this name is complete
        checkpoint.json                         all values but tensors; the names of tied tensors
        model-00000.safetensors                 the tensors of rank 0, by the model's own names
        model-00001.safetensors                 the tensors of rank 1
        state-00000.safetensors ...             state of optimizer and generators, by path
    run/step-00000011.5f0c8e1b.partial/         being written, or left by a process that was killed

Every tensor has a checksum in its file's header. Nothing is pickled.
"""

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from skyfx.runtime.distributed.checksum import checksum
from skyfx.solver.errors import CheckpointError

FORMAT = "skyfx.checkpoint/1"
RECORD = "checkpoint.json"
PARTIAL = ".partial"


class TensorEntry(NamedTuple):
    """A tensor in a checkpoint: its file, dtype, shape and checksum."""

    file: str
    dtype: str
    shape: list[int]
    checksum: int


def form_of(tensor: Tensor) -> tuple[str, list[int]]:
    """Its dtype's name and its shape, for JSON."""
    return str(tensor.dtype).removeprefix("torch."), list(tensor.shape)


class Folder:
    """The folder of a run."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """The folder need not exist yet."""
        self.path = Path(path)

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, in increasing order."""
        names = os.listdir(self.path) if self.path.is_dir() else []
        found = [re.fullmatch(r"step-(\d+)", name) for name in names]
        return sorted(int(match[1]) for match in found if match)

    def latest(self) -> int | None:
        """The last of these steps, None if there is none."""
        return max(self.steps(), default=None)

    def of(self, step: int) -> Path:
        """The path of the checkpoint of a step."""
        return self.path / f"step-{step:08d}"

    def begin(self, step: int) -> str:
        """Make a partial folder for a checkpoint, and remove those that were never finished.

        Returns:
            The name of the partial folder, which is unique.

        Raises:
            CheckpointError: there is a checkpoint of this step, or of a later one.
        """
        latest = self.latest()
        if latest is not None and latest >= step:
            raise CheckpointError(
                f"{self.path} has a checkpoint of step {latest}, step {step} cannot follow it: "
                f"save a step after {latest}, remove the later checkpoints, or take another folder"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        self.clean()
        name = f"{self.of(step).name}.{secrets.token_hex(8)}{PARTIAL}"
        (self.path / name).mkdir()
        return name

    def sees(self, name: str) -> bool:
        """Whether the first process's partial folder is visible here; if not, make one here."""
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            (self.path / name).mkdir()
        except FileExistsError:
            return True
        self.clean(but=name)
        return False

    def clean(self, but: str | None = None) -> None:
        """Remove partial folders that were never finished."""
        for left in self.path.glob(f"step-*{PARTIAL}"):
            if left.name != but:
                shutil.rmtree(left)

    def commit(self, name: str, step: int, record: Mapping[str, Any], keep: int) -> None:
        """Complete a checkpoint; of all checkpoints, the last `keep` stay."""
        partial = self.path / name
        with (partial / RECORD).open("w") as file:
            json.dump({"format": FORMAT, "step": step, "id": name, **record}, file)
            file.flush()
            os.fsync(file.fileno())
        _sync(partial)
        partial.rename(self.of(step))
        _sync(self.path)
        for old in self.steps()[:-keep]:  # renamed first, so that no reader finds it incomplete
            gone = self.path / f"{self.of(old).name}{PARTIAL}"
            self.of(old).rename(gone)
            shutil.rmtree(gone)

    def record(self, step: int | None) -> str:
        """The text of a checkpoint's record, the latest one's if `step` is None.

        Raises:
            CheckpointError: there is no such checkpoint.
        """
        steps = self.steps()
        if not steps or (step is not None and step not in steps):
            wanted = "" if step is None else f" of step {step}"
            listed = f"; it has {', '.join(map(str, steps))}" if steps else ""
            raise CheckpointError(f"{self.path} has no checkpoint{wanted}{listed}")
        path = self.of(steps[-1] if step is None else step) / RECORD
        try:
            text = path.read_text()
            parse(text)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: {error}") from None
        return text


def parse(text: str) -> dict[str, Any]:
    """A checkpoint's record.

    Raises:
        CheckpointError: it is damaged, or of another version.
    """
    try:
        record = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"the record is damaged: {error}. Load an earlier step") from None
    found = record.get("format") if isinstance(record, dict) else None
    if found != FORMAT:
        raise CheckpointError(
            f"the record has format {found!r}, expected {FORMAT!r}: a newer skyfx may read it"
        )
    return dict(record)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write contiguous tensors of the CPU to a safetensors file, and flush it to the disk."""
    checksums = {name: checksum(tensor) for name, tensor in tensors.items()}
    path.touch()
    mode = path.stat().st_mode  # follows the user's umask, which safetensors ignores
    save_file(dict(tensors), path, metadata={"crc32": json.dumps(checksums)})
    path.chmod(mode)
    _sync(path)


class Reader(ExitStack):
    """The tensors of a checkpoint, read on demand; at its end it closes the files."""

    def __init__(self, folder: Path, index: Mapping[str, TensorEntry]) -> None:
        """Read those that `indexed` has found."""
        super().__init__()
        self._folder, self._index, self._files = folder, index, dict[str, Any]()

    def get(self, name: str) -> Tensor:
        """A tensor, mapped from its file."""
        file = self._index[name].file
        if file not in self._files:
            self._files[file] = self.enter_context(_opened(self._folder / file))
        found: Tensor = self._files[file].get_tensor(name)
        return found

    def check(self, names: Iterable[str]) -> None:
        """Verify the checksums of these tensors.

        Raises:
            CheckpointError: a checksum differs.
        """
        for name in names:
            if checksum(self.get(name)) != self._index[name].checksum:
                raise CheckpointError(
                    f"{self._folder / self._index[name].file} is damaged: {name!r} has another "
                    "checksum than when it was written. Load an earlier step"
                )


def indexed(folder: Path, files: Iterable[str]) -> dict[str, TensorEntry]:
    """The tensors in these files, by name.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    found = {}
    for file in files:
        with _opened(folder / file) as opened:
            try:
                checksums = json.loads(opened.metadata()["crc32"])
                for name in opened.keys():  # noqa: SIM118 (no dict)
                    tensor = opened.get_tensor(name)
                    found[name] = TensorEntry(file, *form_of(tensor), checksums[name])
            except (TypeError, KeyError, ValueError):
                raise CheckpointError(f"{folder / file} has no checksums") from None
    return found


def saved_state(folder: str | os.PathLike[str], step: int | None = None) -> dict[str, Tensor]:
    """The model's state in a run's latest checkpoint, or that of a step, by the model's own names.

    The unsplit model takes it in `model.load_state_dict`; the values stay in the files until then.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
    """
    run = Folder(folder)
    record = parse(run.record(step))
    path = run.of(record["step"])
    with Reader(path, indexed(path, record["files"])) as reader:
        reader.check(record["model"])
        state = {name: reader.get(name) for name in record["model"]}
    return state | {name: state[first] for name, first in record["tied"].items()}


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged: {error}. Load an earlier step") from None


def _sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)

"""The folder in which checkpoints lie, and their tensors.

    run/step-00000010/                          a checkpoint is whole if it has this name
        checkpoint.json                         what is no tensor; the names of those that are tied
        model-00000.safetensors                 what rank 0 held, by the model's own names
        model-00001.safetensors                 what rank 1 held
        state-00000.safetensors ...             what optimizer and generators keep, by path
    run/step-00000011.5f0c8e1b.partial/         being written, or left by a process that was killed

Every tensor has a checksum in its file's header. Nothing is pickled.
"""

import json
import os
import re
import secrets
import shutil
import zlib
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from skyfx.solver.errors import CheckpointError

__all__: list[str] = [
    "RECORD",
    "Entry",
    "Folder",
    "Reader",
    "form_of",
    "indexed",
    "parse",
    "saved_state",
    "write_tensors",
]

FORMAT = "skyfx.checkpoint/1"
RECORD = "checkpoint.json"
PARTIAL = ".partial"


class Entry(NamedTuple):
    """A tensor in a checkpoint: its file, what it looks like, its checksum."""

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
        """There need not be one yet."""
        self.path = Path(path)

    def steps(self) -> list[int]:
        """The steps of which there is a checkpoint, rising."""
        names = os.listdir(self.path) if self.path.is_dir() else []
        found = [re.fullmatch(r"step-(\d+)", name) for name in names]
        return sorted(int(match[1]) for match in found if match)

    def latest(self) -> int | None:
        """The last of these steps, None if there is none."""
        return max(self.steps(), default=None)

    def of(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self.path / f"step-{step:08d}"

    def begin(self, step: int) -> str:
        """Make room for a checkpoint, and remove what others have not finished.

        Returns:
            The name of the room, which no other has ever had.

        Raises:
            CheckpointError: there is one of this step, or a later one.
        """
        latest = self.latest()
        if latest is not None and latest >= step:
            raise CheckpointError(
                f"{self.path} has a checkpoint of step {latest}, step {step} cannot follow it: "
                f"save after step {latest}, or remove the later ones, or take another folder"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        self.clean()
        name = f"{self.of(step).name}.{secrets.token_hex(8)}{PARTIAL}"
        (self.path / name).mkdir()
        return name

    def sees(self, name: str) -> bool:
        """Whether another process's room is here; if not, there is one of our own now."""
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            (self.path / name).mkdir()
        except FileExistsError:
            return True
        self.clean(but=name)
        return False

    def clean(self, but: str | None = None) -> None:
        """Remove what others have not finished."""
        for left in self.path.glob(f"step-*{PARTIAL}"):
            if left.name != but:
                shutil.rmtree(left)

    def commit(self, name: str, step: int, record: Mapping[str, Any], keep: int) -> None:
        """Make a checkpoint of what has been written; of the older ones, the last few are kept."""
        partial = self.path / name
        with (partial / RECORD).open("w") as file:
            json.dump({"format": FORMAT, "step": step, "id": name, **record}, file)
            file.flush()
            os.fsync(file.fileno())
        _sync(partial)
        partial.rename(self.of(step))
        _sync(self.path)
        for old in self.steps()[:-keep]:  # not seen any more, before it is in pieces
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
        CheckpointError: it is none, or one of another version.
    """
    try:
        record = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"it is damaged: {error}. Load an earlier step") from None
    found = record.get("format") if isinstance(record, dict) else None
    if found != FORMAT:
        raise CheckpointError(
            f"found format {found!r}, expected {FORMAT!r}: a newer skyfx may read it"
        )
    return dict(record)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write contiguous tensors of the CPU to a safetensors file, to last."""
    checksums = {name: _checksum(tensor) for name, tensor in tensors.items()}
    path.touch()
    mode = path.stat().st_mode  # as the user's umask has it, which safetensors does not heed
    save_file(dict(tensors), path, metadata={"crc32": json.dumps(checksums)})
    path.chmod(mode)
    _sync(path)


class Reader:
    """The tensors of a checkpoint, read when they are asked for."""

    def __init__(self, folder: Path, index: Mapping[str, Entry]) -> None:
        """Those that `indexed` has found."""
        self._folder, self._index = folder, index
        self._open, self._files = ExitStack(), dict[str, Any]()

    def get(self, name: str) -> Tensor:
        """A tensor, which stays in the file until it is used."""
        file = self._index[name].file
        if file not in self._files:
            self._files[file] = self._open.enter_context(_opened(self._folder / file))
        found: Tensor = self._files[file].get_tensor(name)
        return found

    def check(self, names: Iterable[str]) -> None:
        """Read these tensors through.

        Raises:
            CheckpointError: one is not what was written.
        """
        for name in names:
            if _checksum(self.get(name)) != self._index[name].checksum:
                raise CheckpointError(
                    f"{self._folder / self._index[name].file} is damaged: {name!r} is not what was "
                    "written. Load an earlier step"
                )

    def close(self) -> None:
        """Close the files."""
        self._open.close()


def indexed(folder: Path, files: Iterable[str]) -> dict[str, Entry]:
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
                    found[name] = Entry(file, *form_of(tensor), checksums[name])
            except (TypeError, KeyError, ValueError):
                raise CheckpointError(f"{folder / file} has no checksums") from None
    return found


def saved_state(folder: str | os.PathLike[str], step: int | None = None) -> dict[str, Tensor]:
    """The model's state in a run's latest checkpoint, or that of a step, by the model's own names.

    The unsplit model takes it by `model.load_state_dict`; values stay in the files until then.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
    """
    run = Folder(folder)
    record = parse(run.record(step))
    path = run.of(record["step"])
    reader = Reader(path, indexed(path, record["files"]))
    try:
        reader.check(record["model"])
        state = {name: reader.get(name) for name in record["model"]}
    finally:
        reader.close()
    return state | {name: state[first] for name, first in record["tied"].items()}


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged: {error}. Load an earlier step") from None


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data)


def _sync(path: Path) -> None:
    """Have the disk keep a file or a folder."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)

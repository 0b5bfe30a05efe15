"""Reading and writing graph, cluster and plan files. Only this module handles JSON and TOML."""

import codecs
import dataclasses
import hashlib
import logging
import os
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from skyfx.solver.core.decode_errors import locate_error, unknown_fields
from skyfx.solver.errors import FormatError


class Document(Protocol):
    """A Graph, a Cluster or a Plan."""

    def check(self) -> None:
        """Refuse what the format refuses, with a `ValueError`."""


T = TypeVar("T", bound=Document)

logger = logging.getLogger(__name__)


def read(path: str | os.PathLike[str], kind: type[T]) -> T:
    """Read a graph, cluster or plan file.

    Args:
        path: a JSON file, or TOML where its name ends in `.toml`.
        kind: `Graph`, `Cluster` or `Plan`.

    Raises:
        FormatError: the file cannot be read, or is not such a file: one line with the file, the
            field's path, what stood there and what was expected.
    """
    return load(path, kind)[0]


def load(path: str | os.PathLike[str], kind: type[T]) -> tuple[T, str]:
    """Read a file as `read` does; returns the document and the digest of the file's bytes."""
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise FormatError(f"{path}: {error.strerror or error}") from None
    return decode(raw, kind, str(path)), digest(raw)


def decode(raw: bytes, kind: type[T], name: str) -> T:
    """Decode the bytes of the file `name`; raises as `read` does.

    A field that the format does not have is ignored, with a warning to the log.
    """
    raw = raw.removeprefix(codecs.BOM_UTF8)
    try:
        value = tomllib.loads(raw.decode()) if name.endswith(".toml") else msgspec.json.decode(raw)
        _check_format(value, kind)
        try:
            document = msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            raise ValueError(locate_error(error, value, kind)) from None
        document.check()
    except (ValueError, OverflowError, RecursionError) as error:
        # msgspec, tomllib and the decoding of unicode raise ValueErrors, too.
        raise FormatError(f"{name}: {' '.join(str(error).split())}") from None
    for line in unknown_fields(value, kind):
        logger.warning("%s: %s", name, line)
    return document


def _check_format(value: object, kind: type[T]) -> None:
    expected = kind.FORMAT  # type: ignore[attr-defined]
    if not isinstance(value, dict):
        raise ValueError(
            f"found {type(value).__name__}, expected an object with format {expected!r}"
        )
    if value.get("format") != expected:
        found = repr(value["format"])[:60] if "format" in value else "nothing"
        raise ValueError(f"format: found {found}, expected {expected!r}")


def encode(document: Document) -> bytes:
    """The bytes of the document's JSON file; equal documents have equal bytes."""
    return msgspec.json.format(msgspec.json.encode(_plain(document)), indent=1) + b"\n"


def _plain(value: Any) -> Any:
    """Dataclasses as dicts, without the optional fields that are None."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if not dataclasses.is_dataclass(value):
        return value
    fields = [(field, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return {
        field.name: _plain(found)
        for field, found in fields
        if found is not None or field.default is not None
    }


def digest(raw: bytes) -> str:
    """The sha256 by which a plan names its graph and cluster files."""
    return hashlib.sha256(raw).hexdigest()


def write(document: Document, path: str | os.PathLike[str], *, force: bool = False) -> None:
    """Write a document as JSON, completely or not at all.

    Raises:
        FileExistsError: the file exists and `force` is false.
        OSError: it cannot be written.
        ValueError: `read` would refuse it.
    """
    document.check()
    with replacing(path, force=force) as temporary:
        temporary.write_bytes(encode(document))


@contextmanager
def replacing(path: str | os.PathLike[str], *, force: bool = False) -> Iterator[Path]:
    """A temporary file beside `path`; it becomes `path` if the block succeeds, else it is deleted.

    Raises:
        FileExistsError: the file exists and `force` is false.
        OSError: it cannot be written.
    """
    target = Path(path)
    refuse_overwrite(target, force=force)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        mask = os.umask(0)  # it can only be read by setting it
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def refuse_overwrite(path: str | os.PathLike[str], *, force: bool = False) -> None:
    """Refuse a path that `write` would refuse, before the work that makes the contents.

    Raises:
        FileExistsError: the file exists and `force` is false.
        OSError: its folder does not exist.
        ValueError: its name ends in `.toml`, so `read` would expect TOML.
    """
    if str(path).endswith(".toml"):
        raise ValueError(f"{path}: TOML is read but not written, expected a name such as x.json")
    if Path(path).exists() and not force:
        raise FileExistsError(f"{path} exists; use --force (in Python: force=True) to replace it")
    if not Path(path).parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {Path(path).parent} does not exist")


def require_folder(what: str, path: str | os.PathLike[str]) -> Path:
    """Make a folder if need be, and refuse one that nothing can be written to.

    Args:
        what: the argument or variable that names it.
        path: the folder.

    Raises:
        ValueError: no file can be written to it.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise ValueError(
            f"{what}: found {str(folder)!r}, expected a folder to write to ({error.strerror})"
        ) from None

"""What has been measured: in this process, and in the folder that `SKYFX_CACHE` names, if any.

A file there holds the costs of calls on one kind of device, with one number of threads and one
version of torch: what else they depend on is their signature.
"""

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import torch

from skyfx.devices.host_resources import hardware_model
from skyfx.measurement.call_cost import CallCost
from skyfx.runtime.device import LocalDevice
from skyfx.solver.core.files import replacing, require_folder

Key = tuple[str, ...]

MEASURED = 3
"""How operators are measured. Where that changes so does this, and what was kept is not read."""

logger = logging.getLogger(__name__)


class CostCache:
    """Costs by the signature of a call, for one place and mode."""

    def __init__(self, place: LocalDevice, *, training: bool) -> None:
        self._costs: dict[str, CallCost] = {}
        self._lasting: dict[str, CallCost] = {}
        on = hardware_model(place.device), str(place.num_threads), torch.__version__
        self._what = (*on, "training" if training else "inference", f"measured {MEASURED}")

    @classmethod
    @contextmanager
    def opened(cls, place: LocalDevice, *, training: bool) -> Iterator["CostCache"]:
        """With what earlier runs have measured; what this one adds is kept, whatever ends it."""
        store = cls(place, training=training)
        folder = check_cache_folder()
        if folder is None:
            yield store
            return
        path = folder / f"costs-{_digest(store._what)[:16]}.json"
        store._read(path)
        try:
            yield store
        finally:
            with replacing(path, force=True) as temporary:
                temporary.write_bytes(msgspec.json.encode(store._lasting))

    def get(self, key: Key) -> CallCost | None:
        """The cost of a call, if it is known."""
        return self._costs.get(_digest(key))

    def put(self, key: Key, cost: CallCost) -> None:
        """Note the cost of a call."""
        digest = _digest(key)
        self._costs[digest] = cost
        if not any(part.startswith("module ") for part in key):  # which is of this process alone
            self._lasting[digest] = cost

    def _read(self, path: Path) -> None:
        try:
            found = msgspec.json.decode(path.read_bytes(), type=dict[str, CallCost])
        except FileNotFoundError:
            return
        except (OSError, msgspec.MsgspecError) as error:
            logger.warning("%s is not read, and made anew: %s", path, error)
            return
        self._costs |= found
        self._lasting |= found


def check_cache_folder() -> Path | None:
    """The folder that `SKYFX_CACHE` names, if any; it is there then.

    Raises:
        ValueError: no file can be written to it.
    """
    folder = os.environ.get("SKYFX_CACHE")
    return require_folder("SKYFX_CACHE", folder) if folder else None


def _digest(parts: tuple[str, ...]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()

"""What a process prints, by Python or not."""

import os
import re
import sys
import tempfile
from types import TracebackType

__all__: list[str] = ["Printed"]


class Printed:
    """Within it, standard output and errors go into a file."""

    def __init__(self) -> None:
        self._file = tempfile.NamedTemporaryFile()  # noqa: SIM115 (closed by __exit__)
        self._known: set[str] = set()

    def __enter__(self) -> "Printed":
        sys.stdout.flush()
        sys.stderr.flush()
        self._kept = [os.dup(1), os.dup(2)]
        for number in (1, 2):
            os.dup2(self._file.fileno(), number)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, kept in zip((1, 2), self._kept, strict=True):
            os.dup2(kept, number)
            os.close(kept)
        self._file.close()

    def forget(self) -> None:
        """What has been printed until now is the model's own."""
        self._known = set(self._lines())

    def new(self) -> str:
        """The first line that the model did not print by itself; empty if there is none."""
        return next((x for x in self._lines() if x not in self._known), "")

    def _lines(self) -> list[str]:
        sys.stdout.flush()
        sys.stderr.flush()
        with open(self._file.name, errors="replace") as written:
            lines = [re.sub(r"/\S*/(site-packages|site)/", "", x.strip()) for x in written]
        return [x[:200] for x in lines if x]

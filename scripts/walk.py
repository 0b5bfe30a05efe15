"""A newcomer's walk: a clean clone, and every command of the documents as a reader would copy it.

    python3 scripts/walk.py [--here] [README.md examples/quickstart.py ...]

Clones what is committed into a temporary folder, installs it there as the README says, and goes
through the documents and the first lines of the examples from top to bottom, each in a folder of
its own, two at once. With `--here` nothing is installed: the checkout's `.venv` is the environment.
Of a Markdown file's blocks are run:

    ```console            by bash, with the environment that was installed
    ```console two-hosts  by two of them at once, as by two hosts that meet at `node1`, if the
                          kernel lets this user give names to them
    ```python             with those that follow it, up to the next command, as one program
    ```python train.py    not yet: it is written to the file that it names (of any kind)

A block that says `no-run` is not run, nor one that says `gpu` where there is none.
"""

import ast
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ["README.md", "docs/tutorial.md", "docs/how-to.md"]
ELSEWHERE = {
    "python3 scripts/demo.py\npython3 scripts/test.py\n": "a test runs the script of the demo"
}
"""Blocks that something else runs."""

TIMEOUT_S = 600

FIRST = "README"
"""The clone with the environment."""


@dataclass(frozen=True)
class Block:
    """A piece of a document: `kind` is `console` or `python`, `flags` are the words behind it."""

    kind: str
    flags: tuple[str, ...]
    text: str

    @property
    def file(self) -> str | None:
        """The file that it is to be written to, if it is one."""
        return next((flag for flag in self.flags if "." in flag), None)


def blocks(document: Path) -> Iterator[Block]:
    """The blocks of a Markdown file, or the indented ones of an example's docstring."""
    text = document.read_text(encoding="utf-8")
    if document.suffix == ".py":
        said = ast.get_docstring(ast.parse(text), clean=False) or ""
        for indented in re.findall(r"^(?:    .*\n?)+", said, re.M):
            lines = "".join(line[4:] for line in indented.splitlines(keepends=True))
            yield Block("console", ("two-hosts",) if "--nnodes=2" in lines else (), lines)
        return
    for head, body in re.findall(r"^```(\w[^\n]*)\n(.*?)^```$", text, re.M | re.S):
        kind, *flags = head.split()
        yield Block(kind, tuple(flags), body)


def programs(document: Path) -> Iterator[Block]:
    """What is to be run, in order: Python blocks that follow each other are one program."""
    python: list[str] = []
    for block in blocks(document):
        missing = "gpu" in block.flags and not shutil.which("nvidia-smi")
        if missing or "no-run" in block.flags:
            continue
        if block.file is None and block.kind not in ("console", "python"):
            continue
        if block.kind == "python" and block.file is None:
            python.append(block.text)
            continue
        if python:
            yield Block("python", (), "".join(python))
            python = []
        yield block
    if python:
        yield Block("python", (), "".join(python))


def walked(document: Path) -> Iterator[Block]:
    """The programs but for those that something else runs."""
    return (block for block in programs(document) if block.text not in ELSEWHERE)


def named(host: str) -> list[str]:
    """What runs a command on a host of this name: of this machine, in a namespace of its own."""
    own_user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", *own_user, "--uts", "sh", "-c", 'hostname "$0"; exec "$@"', host]


def may_name_hosts() -> bool:
    """Whether the kernel lets this user do so."""
    tried = [*named("node1"), "true"]
    return bool(shutil.which("unshare")) and not subprocess.run(tried, check=False).returncode


class Walk:
    """A newcomer with clones and, in the first one, an environment of their own.

    Where `here` is true, the environment is the one of the checkout.
    """

    def __init__(self, home: Path, *, here: bool) -> None:
        self.home, self.here = home, here
        pins = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]["dev"]
        (home / "pins.txt").write_text("\n".join(pins))  # the versions that the tests ran with
        python3 = Path(sys.executable).resolve().parent
        own = ROOT / ".venv/bin" if here else home / FIRST / "env/bin"
        path = os.pathsep.join([str(own), str(python3), os.environ["PATH"]])
        taken = ("VIRTUAL_ENV", "PYTHONPATH", "SKYFX_CACHE", "PYTHONDONTWRITEBYTECODE")
        self.environment = {k: v for k, v in os.environ.items() if k not in taken} | {
            "PATH": path,
            "PIP_CONSTRAINT": str(home / "pins.txt"),
            "PIP_NO_COMPILE": "1",  # of torch and transformers, of which a walk imports a part
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",  # two documents at once, on devices of several threads
        }

    def install(self) -> str:
        """Clone, and run the first block of the README's walk, which makes the environment."""
        if self.here:
            return f"The environment is {ROOT / '.venv'}."
        folder = self.home / FIRST
        self._call(["git", "clone", "--quiet", str(ROOT), str(folder)], self.home)
        first = next(walked(folder / "README.md"))
        return self._run(first, "README.md", folder)

    def through(self, document: str) -> tuple[int, str]:
        """Run all blocks of a document; of the README, those after the first.

        The README and the examples run in a clone, the other documents in an empty folder; without
        an environment of its own so does the README, which would import the clone's package.

        Returns:
            How many blocks ran, and what they printed.
        """
        folder = self.home / Path(document).stem
        source = folder / document
        if document.startswith("docs/") or (self.here and document == "README.md"):
            folder.mkdir()
            source = ROOT / document
        elif document != "README.md":
            self._call(["git", "clone", "--quiet", str(ROOT), str(folder)], self.home)
        num_run, printed = 0, ""
        for i, block in enumerate(walked(source)):
            if document == "README.md" and i == 0:
                continue
            if block.file is not None:
                (folder / block.file).write_text(block.text)
                continue
            printed += self._run(block, document, folder)
            num_run += 1
        return num_run, printed

    def _run(self, block: Block, document: str, folder: Path) -> str:
        """Run one block; returns it with what it printed and the seconds that it took."""
        head = f"\n{document}:\n{block.text.rstrip()}\n"
        if "two-hosts" in block.flags and not may_name_hosts():
            return head + "[left out: hosts of this machine cannot be named (unshare --uts)]\n"
        began = time.perf_counter()
        if block.kind == "python":
            printed = self._call(["python", "-c", block.text], folder)
        elif "two-hosts" in block.flags:
            printed = self._as_two(block.text, folder)
        else:
            printed = self._call(["bash", "-euo", "pipefail", "-c", block.text], folder)
        return f"{head}{printed}[{time.perf_counter() - began:.0f} s]\n"

    def _as_two(self, text: str, folder: Path) -> str:
        """Two shells that run the same at once, each on a core, and meet on this machine.

        Nobody knows the addresses that go with their names, so torchrun is told.
        """
        cores = sorted(os.sched_getaffinity(0))
        with socket.create_server(("localhost", 0)) as free:
            told = text.replace("node1:29500", f"localhost:{free.getsockname()[1]}")
        both = [
            subprocess.Popen(
                [
                    *("taskset", "--cpu-list", str(cores[i % len(cores)]), *named(host)),
                    *(
                        "bash",
                        "-euo",
                        "pipefail",
                        "-c",
                        told.replace("torchrun ", f"torchrun --local-addr=127.0.0.{i + 1} "),
                    ),
                ],
                cwd=folder,
                env=self.environment | {"GLOO_SOCKET_IFNAME": "lo"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for i, host in enumerate(("node1", "node2"))
        ]
        try:
            printed = "".join(one.communicate(timeout=TIMEOUT_S)[0] for one in both)
        finally:
            for one in both:
                one.kill()
        if any(one.returncode for one in both):
            print(printed, flush=True)
            sys.exit(f"walk: ended with {[one.returncode for one in both]}: {text}")
        return printed

    def _call(self, command: list[str], folder: Path) -> str:
        ended = subprocess.run(
            command,
            cwd=folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        if ended.returncode:
            print(ended.stdout, flush=True)
            sys.exit(f"walk: ended with {ended.returncode}: {command[-1]}")
        return ended.stdout


def main() -> None:
    """Walk through the documents that are named, or through all of them."""
    examples = sorted(f"examples/{path.name}" for path in (ROOT / "examples").glob("*.py"))
    here = "--here" in sys.argv
    asked = [word for word in sys.argv[1:] if word != "--here"] or [*DOCUMENTS, *examples]
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="skyfx-walk-") as home:
        walk = Walk(Path(home), here=here)
        print(walk.install(), flush=True)
        num_run = 0 if here else 1
        with ThreadPoolExecutor(2) as walkers:
            for num, printed in walkers.map(walk.through, asked):
                print(printed, flush=True)
                num_run += num
    print(
        f"\nwalk: {num_run} blocks of {len(asked)} documents, all of which ran, in "
        f"{time.perf_counter() - began:.0f} s"
    )


if __name__ == "__main__":
    main()

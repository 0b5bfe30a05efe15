"""The development environment: `.venv` in the checkout, made when it is missing or out of date.

Needs nothing but Python 3.11 or newer with pip.
"""

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".venv"
PYTHON = FOLDER / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
MARK = FOLDER / "skyfx-installed"

ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
"""In it Python keeps what it compiles: else each process compiles torch, for ten seconds."""


def run(*command: str) -> None:
    """Run the environment's Python from the checkout; end with its exit code if it fails."""
    code = subprocess.run([PYTHON, *command], cwd=ROOT, env=ENVIRONMENT, check=False).returncode
    if code != 0:
        sys.exit(code)


def ready() -> None:
    """Make the environment, unless it is what `pyproject.toml` asks for."""
    if sys.version_info < (3, 11):  # noqa: UP036 (this is what an older Python is to be told)
        sys.exit(f"skyfx needs Python 3.11 or newer, this is {sys.version.split()[0]}")
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    if MARK.exists() and MARK.read_text() == wanted:
        return
    print(f"[1/3] {FOLDER.name}: a virtual environment of its own", flush=True)
    venv.create(FOLDER, with_pip=True, symlinks=os.name != "nt")
    print("[2/3] pip, new enough for dependency groups", flush=True)
    run("-m", "pip", "install", "--quiet", "pip>=25.1")
    print("[3/3] torch, transformers, the solver and the tools: some minutes", flush=True)
    # Not compiled: of torch and transformers only a part is ever imported.
    run("-m", "pip", "install", "--no-compile", "--group", "dev", "--editable", ".")
    MARK.write_text(wanted)

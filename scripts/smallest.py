"""The smallest case of each benchmark: does it still run?

    python3 scripts/smallest.py [TEXT]

They stand in docs/benchmarks.md; with TEXT only those that hold it are run. Each runs in a folder
of its own, and the output of one that fails is shown. Exit code 1 if any does.
"""

import re
import shlex
import subprocess
import sys
import tempfile
import time

import environment

DOCUMENT = environment.ROOT / "docs" / "benchmarks.md"
CASE = re.compile(r"^\|.*\| `python (-m benchmarks[^`]*)` \|[^|]*\|$", re.M)
TIMEOUT_S = 300


def run(case: str) -> bool:
    """Run a case, and say how long it took; what it prints is shown where it fails."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as said:
        try:
            code: object = subprocess.run(
                [environment.PYTHON, *shlex.split(case)],
                cwd=folder,
                env=environment.ENVIRONMENT | {"PYTHONPATH": str(environment.ROOT)},
                stdout=said,
                stderr=subprocess.STDOUT,
                timeout=TIMEOUT_S,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            code = f"not done after {TIMEOUT_S} s"
        said.seek(0)
        if code != 0:
            print(said.read()[-4000:])
    took = f"{time.monotonic() - began:4.0f} s"
    print(f"{took}  {'ok' if code == 0 else f'FAILED ({code})'}  {case}", flush=True)
    return code == 0


def main() -> None:
    """Run the cases of the document."""
    environment.ready()
    chosen = [case for case in CASE.findall(DOCUMENT.read_text()) if " ".join(sys.argv[1:]) in case]
    began = time.monotonic()
    failed = [case for case in chosen if not run(case)]
    print(f"{len(chosen)} cases in {time.monotonic() - began:.0f} s, {len(failed)} failed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()

"""The tests.

    python3 scripts/test.py [--fast | --long] [options of pytest]

By default all tests run, and each property is tried on the same cases in each run. Three run at a
time: on two cores one of them often waits for other processes. `--fast` is the inner loop: no test
that starts a process, no benchmark, no slow test, fewer cases. `--long` tries many more cases,
others in each run.
"""

import sys

import environment

FAST = "not (process or multiprocess or benchmark or slow)"
OPTIONS = {
    "--fast": ["--hypothesis-profile=dev", "-m", FAST],
    "--long": ["--hypothesis-profile=long", "--timeout=3000"],
}

environment.ready()
chosen = [option for word in sys.argv[1:] for option in OPTIONS.get(word, [word])]
environment.run("-m", "pytest", "--numprocesses=3", *chosen)

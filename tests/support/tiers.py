"""Which tests are expensive, and how many cases a property is tried on."""

import os
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest
from hypothesis import is_hypothesis_test, settings

from skyfx.measurement import calibration, timing

TIMES = {"dev": 0.1, "ci": 0.15, "long": 10}
"""By profile of hypothesis: on how many of its usual cases a property is tried."""


def register_profiles() -> None:
    """Register `dev`, `ci` and `long`, and load `ci`; `--hypothesis-profile` loads another.

    There are no deadlines, as the machine may be busy. The profile `ci` tries the same cases in
    each run, the others draw new ones.
    """
    for name, times in TIMES.items():
        examples = int(100 * times)
        settings.register_profile(
            name, deadline=None, max_examples=examples, derandomize=name == "ci"
        )
    settings.load_profile("ci")


def measure_briefly() -> None:
    """Have this process repeat measurements less often, but not with `--long`.

    A plan is then for rougher times, and no test may depend on these.
    """
    if not is_long():
        timing.MOST_S, timing.BLOCK_S, timing.MIN_RUNS, timing.LONG_RUNS = 1e-3, 1e-4, 2, 2
        calibration.MOST_S, calibration.BLOCK_S = 5e-3, 1e-3
        calibration.MIN_RUNS, calibration.LONG_RUNS = 2, 2


def is_long() -> bool:
    """Whether the profile is `long`, also in processes that tests start: see `set_layers`."""
    return os.environ.get("SKYFX_LAYERS") == "2"


def set_layers() -> None:
    """Say to models, also of processes that tests start, how many layers the profile wants."""
    is_long = settings.get_current_profile_name() == "long"
    os.environ.setdefault("SKYFX_LAYERS", "2" if is_long else "1")


def num_cases(usual: int) -> int:
    """The number of cases in this profile; the variable `SKYFX_CASES` sets another for all."""
    if "SKYFX_CASES" in os.environ:
        return int(os.environ["SKYFX_CASES"])
    return max(1, int(usual * TIMES.get(settings.get_current_profile_name(), 1)))


def cases(usual: int) -> settings:
    """The settings of a property: see `num_cases`."""
    return settings(max_examples=num_cases(usual))


def mark(test: pytest.Function) -> None:
    """Add the marks that `pyproject.toml` registers, but for `slow`, which a test says itself."""
    room = test.path.parent.name
    used = set(_used(_functions(test)))
    if is_hypothesis_test(test.obj):
        test.add_marker("property")
    if room == "multiprocess" or "tests.support.launcher" in used:
        test.add_marker("multiprocess")
    elif "subprocess" in used:
        test.add_marker("process")
    if room == "gpu":
        test.add_marker("gpu")
    if test.path.name.startswith("test_benchmark"):
        test.add_marker("benchmark")


def _fixtures(test: pytest.Function) -> list[Any]:
    """The definitions of the fixtures that a test uses, itself or by others."""
    found = test._fixtureinfo.name2fixturedefs.values()
    return [definition for definitions in found for definition in definitions]


def _functions(test: pytest.Function) -> Iterator[Callable[..., Any]]:
    inner = getattr(test.obj, "hypothesis", None)  # what hypothesis has wrapped
    yield inner.inner_test if inner else test.obj
    for fixture in _fixtures(test):
        yield fixture.func


def _used(functions: Iterator[Callable[..., Any]]) -> Iterator[str]:
    """The modules that functions name, and those of the functions of the tests that they name."""
    pending, seen = list[Any](functions), set[int]()
    while pending:
        function = pending.pop()
        if id(function) in seen:
            continue
        seen.add(id(function))
        if isinstance(function, type):
            pending += vars(function).values()
        if not isinstance(function, FunctionType):
            continue
        yield function.__module__
        for name in _names(function.__code__):
            value = function.__globals__.get(name)
            if isinstance(value, ModuleType):
                yield value.__name__
            elif str(getattr(value, "__module__", "")).startswith("tests."):
                pending.append(getattr(value, "__wrapped__", value))  # of a context manager


def _names(code: CodeType) -> Iterator[str]:
    """The names that code uses, with those of the functions within it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)

"""How the tests are arranged: who imports whom, where a file is, and which marks it gets."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support import ROOT, tiers

TESTS = ROOT / "tests"


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_no_file_imports_a_test_module() -> None:
    """What several need is in `tests/support`, so that a test module can be moved or renamed."""
    found = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in TESTS.rglob("*.py")
        for name in imported(path)
        if name.startswith("tests.") and any(part.startswith("test_") for part in name.split("."))
    }
    assert found == set()


@pytest.mark.parametrize("top", ["skyfx", "solver", "runtime"])
def test_each_folder_of_tests_is_that_of_a_package(top: str) -> None:
    for path in (TESTS / top).rglob("test_*.py"):
        assert (ROOT / path.parent.relative_to(TESTS) / "__init__.py").exists(), path


def test_programs_that_tests_launch_stand_apart() -> None:
    jobs = {path.name for path in (TESTS / "jobs").glob("*.py")} - {"__init__.py"}
    assert all(name.endswith("_job.py") for name in jobs)
    assert jobs == {path.name for path in TESTS.rglob("*_job.py")}


def start() -> None:
    subprocess.run([sys.executable, "-c", ""], check=True)


def test_a_test_that_starts_a_process_is_marked(request: pytest.FixtureRequest) -> None:
    start()
    assert request.node.get_closest_marker("process")


def test_a_test_that_starts_none_is_not(request: pytest.FixtureRequest) -> None:
    assert not request.node.get_closest_marker("process")


def test_properties_are_tried_on_more_cases_where_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SKYFX_CASES", raising=False)
    before = settings.get_current_profile_name()
    try:
        for profile, expected in (("dev", 30), ("ci", 45), ("long", 3000)):
            settings.load_profile(profile)
            assert tiers.num_cases(300) == expected
    finally:
        settings.load_profile(before)
    monkeypatch.setenv("SKYFX_CASES", "2600")
    assert tiers.num_cases(300) == 2600

"""Profiles of hypothesis, and the marks that a test gets by what it uses.

Nobody has to remember a mark: `tests.support.tiers` reads it off the test.
"""

from importlib import metadata

import pytest

from tests.support import tiers
from tests.support.cli_runner import folder, skyfx, skyfx_process

__all__ = ["folder", "skyfx", "skyfx_process"]

tiers.register_profiles()


@pytest.hookimpl(trylast=True)
def pytest_configure() -> None:
    """Once the profile is loaded."""
    tiers.set_layers()
    tiers.measure_briefly()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function):
            tiers.mark(item)


def pytest_report_header() -> str:
    packages = ("torch", "transformers", "pulp", "highspy", "numpy")
    return ", ".join(f"{name} {metadata.version(name)}" for name in packages)

"""hypothesis without deadlines, as the machine may be busy; with CI it keeps its own profile."""

import os
from importlib import metadata

from hypothesis import settings

from tests.support.cli_runner import folder, skyfx

__all__ = ["folder", "skyfx"]

if "CI" not in os.environ:
    settings.register_profile("default", deadline=None)
    settings.load_profile("default")


def pytest_report_header() -> str:
    packages = ("torch", "transformers", "pulp", "highspy", "numpy")
    return ", ".join(f"{name} {metadata.version(name)}" for name in packages)

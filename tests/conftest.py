"""hypothesis without deadlines, as the machine may be busy; with CI it keeps its own profile."""

import os

from hypothesis import settings

if "CI" not in os.environ:
    settings.register_profile("default", deadline=None)
    settings.load_profile("default")

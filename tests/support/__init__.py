"""What tests share: the checkout, commands, models, instances, references."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Threads of torch that wait for others sleep. By default they spin, and where more processes than
# cores do so, most of the time is lost by it. It has to be said before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

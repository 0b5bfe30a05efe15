"""What tests share: the checkout, commands, models, instances, references."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

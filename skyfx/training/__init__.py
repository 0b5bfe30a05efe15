"""A training loop around a pipeline."""

"""Calls and lines of a model that stay whole: nodes that run the model's own Python."""

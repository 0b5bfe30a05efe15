"""Analyses and transformations of a captured graph that need no timing."""

"""Tolerances of the search."""

BOUND_SAFETY = 1 - 1e-9
"""Sums of many floats differ in their last digits: a bound stays this far below."""


OPTIMALITY_TOLERANCE = 1e-6
"""A bound this close to the objective, relatively, is the solver's tolerance: it is optimal."""

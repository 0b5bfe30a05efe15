"""Tolerances of the search."""

BOUND_SAFETY = 1 - 1e-9
"""Sums of many floats differ in their last digits: a bound stays this far below."""

CLEARLY = 1 + 1e-9
"""By how much a figure has to differ from one that is added up in another order."""

OPTIMALITY_TOLERANCE = 1e-6
"""A bound this close to the objective, relatively, is the solver's tolerance: it is optimal."""

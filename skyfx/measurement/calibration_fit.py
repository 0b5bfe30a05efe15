"""The regression from calibration segments: from time alone to time among neighbours.

    factor * (seconds of the operators alone) + overhead * (number of operators) + (cost of a call)

The fit has the least sum of absolute relative errors: a segment that was timed while the machine
was busy does not draw it away, as it would by least squares. That is a linear program, solved by
HiGHS. The planner knows no cost of a call: operators bear it in proportion to their time, as in the
longest segment, which is most like a stage.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import highspy
import numpy as np
from numpy.typing import NDArray

from skyfx.solver.core.graph import LinearFit

DISPATCH_S = 5e-5
"""The most that dispatch and cold caches can add to an operator, where the factor is 1. Without
this limit, segments of few and large operators that are slower for another reason would raise it.
"""

FEWEST = 4
"""Segments that a fit needs: one more than it has numbers."""

TIE_WEIGHTS = (1e-7, 2e-7, 4e-7)
"""Of equally good fits the one that predicts the least; of those with equal predictions the one
with the least cost of a call, then with the least overhead."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A calibration segment in one direction: seconds, those of its operators alone, and number."""

    seconds: float
    alone_s: float
    nodes: int


def fit(segments: Sequence[Segment]) -> LinearFit | None:
    """Fit the three numbers; None if there are too few segments, or operators that take no time."""
    segments = [segment for segment in segments if segment.seconds > 0]
    if len(segments) < FEWEST or not any(segment.alone_s > 0 for segment in segments):
        return None
    # With these columns, "not below zero" also limits the overhead to DISPATCH_S times the factor.
    rows = np.array([[s.alone_s, s.alone_s + DISPATCH_S * s.nodes, 1.0] for s in segments])
    rows /= np.array([[s.seconds] for s in segments])
    errors = [
        abs(row @ least_absolute(np.delete(rows, k, axis=0), TIE_WEIGHTS) - 1)
        for k, row in enumerate(rows)
    ]
    bare, with_dispatch, call_s = least_absolute(rows, TIE_WEIGHTS)
    borne = call_s / max(segment.alone_s for segment in segments)
    return LinearFit(
        factor=float(bare + with_dispatch + borne),
        overhead_s=float(DISPATCH_S * with_dispatch),
        regions=len(segments),
        error=float(np.median(errors)),
        error_p90=float(np.percentile(errors, 90)),
    )


def least_absolute(rows: NDArray[Any], tie_weights: Sequence[float]) -> NDArray[Any]:
    """Solve `min sum |rows @ x - 1|` over `x >= 0`.

    Args:
        rows: `(num_rows, num_columns)`, not below zero.
        tie_weights: of each column, what its part of the sum of all rows adds to the error: small
            weights choose between equally good solutions, so that the result depends on the numbers
            alone and not on the processor.

    Returns:
        The solution, `(num_columns,)`.
    """
    num_rows, num_columns = rows.shape
    scale = rows.max(axis=0)
    scale[scale == 0] = 1.0
    scaled = rows / scale
    identity = np.eye(num_rows)
    program = highspy.HighsLp()
    program.num_row_, program.num_col_ = num_rows, num_columns + 2 * num_rows
    # The variables: x, then by how much each row is too small, and too large.
    ties = scaled.sum(axis=0) * np.asarray(tie_weights)
    program.col_cost_ = np.concatenate([ties, np.ones(2 * num_rows)])
    program.col_lower_ = np.zeros(program.num_col_)
    program.col_upper_ = np.full(program.num_col_, highspy.kHighsInf)
    # [Constraint] The row, what it lacks and what it has too much make 1.
    program.row_lower_ = program.row_upper_ = np.ones(num_rows)
    matrix = np.hstack([scaled, identity, -identity])
    program.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    program.a_matrix_.start_ = np.arange(num_rows + 1) * program.num_col_
    program.a_matrix_.index_ = np.tile(np.arange(program.num_col_), num_rows)
    program.a_matrix_.value_ = matrix.ravel()
    highs = highspy.Highs()  # type: ignore[no-untyped-call]
    highs.setOptionValue("output_flag", False)
    highs.setOptionValue("dual_feasibility_tolerance", 1e-10)
    highs.setOptionValue("primal_feasibility_tolerance", 1e-10)
    highs.passModel(program)
    highs.run()
    found: NDArray[Any] = np.array(highs.getSolution().col_value[:num_columns])
    found /= scale
    return found

"""Robust nonlinear least squares of relative errors: Levenberg-Marquardt on the logarithms of positive constants.

Small problems only (a dozen constants); deterministic, and NumPy is all it needs. Each residual is the logarithm of
predicted over measured, weighted down when it is large (soft L1).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SCALE = 0.1
"""Residuals much above this count by their size rather than its square."""
STEP = 1e-6
ROUNDS = 200
TOLERANCE = 1e-10


def fit(predict: Callable[[Floats], Floats], measured: Floats, start: Floats) -> Floats:
    """Constants (all above 0) with which ``predict`` comes nearest to ``measured`` (above 0)."""
    target = np.log(measured)

    def residuals(logs: Floats) -> Floats:
        return np.asarray(np.log(predict(np.exp(logs))) - target)

    def loss(r: Floats) -> float:
        return float(np.sum(2 * SCALE**2 * (np.sqrt(1 + (r / SCALE) ** 2) - 1)))

    at = np.log(start)
    here = residuals(at)
    damping = 1e-3
    for _ in range(ROUNDS):
        columns = [(residuals(at + STEP * e) - here) / STEP for e in np.eye(len(at))]
        jacobian = np.stack(columns, axis=1)
        weight = 1 / np.sqrt(1 + (here / SCALE) ** 2)
        normal = jacobian.T @ (weight[:, None] * jacobian)
        gradient = jacobian.T @ (weight * here)
        before = loss(here)
        while damping < 1e12:
            move = np.linalg.solve(normal + damping * (np.diag(np.diag(normal)) + 1e-12 * np.eye(len(at))), -gradient)
            there = residuals(at + move)
            if loss(there) < before:
                break
            damping *= 4
        else:
            break
        at, here, damping = at + move, there, max(damping / 8, 1e-12)
        if before - loss(here) < TOLERANCE * (before + TOLERANCE):
            break
    return np.asarray(np.exp(at))

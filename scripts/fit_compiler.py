"""Fits the constants of compiled operators (``operators/compiled.toml``) and their cross-validated error.

    python scripts/fit_compiler.py kernel_latency.csv

``kernel_latency.csv`` has the published rows. The only compiled operators among them are matrix products: 162 on trn3,
which the constants are fitted on, and a few on trn2, which tell how far the constants carry. Needs SciPy.
"""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

from trnsim.operators.compiled import Fit, Rates, predict

FOLDS, SEED = 5, 0


def matmuls(path: Path) -> tuple[list[dict[str, int]], np.ndarray]:
    """Sizes and microseconds (total time) of the 162 compiled matmuls on trn3."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file) if r["id"].startswith("TRN3BF16")]
    sizes = [dict(zip("mkn", map(int, re.findall(r"\d+", r["shapes"])[:3]), strict=True)) for r in rows]
    return sizes, np.array([float(r["value"]) for r in rows])


def carried(path: Path) -> tuple[list[dict[str, int]], np.ndarray]:
    """Sizes and microseconds of the matmuls that were compiled for trn2: float32, one core."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file) if r["kernel"] == "neuronx-cc torch matmul" and r["chip"] == "trn2"]
    sizes = [{part[0].lower(): int(part[1:]) for part in r["shapes"].split()} for r in rows]
    return [{name: s[name] for name in "mkn"} for s in sizes], np.array([float(r["value"]) for r in rows])


def fit(sizes: list[dict[str, int]], measured: np.ndarray, rates: Rates) -> Fit:
    """Constants that make relative errors small; large ones count less."""

    def errors(values: np.ndarray) -> np.ndarray:
        made = Fit(*values)
        return np.log([predict(made, rates, _flops(s), _bytes(s)) / m for s, m in zip(sizes, measured, strict=True)])

    found = least_squares(errors, [10, 0.8, 0.5], loss="soft_l1", f_scale=0.05, bounds=([0, 0.05, 0.02], [100, 1.5, 5]))
    return Fit(*found.x.tolist())


def _flops(sizes: dict[str, int]) -> int:
    return 2 * sizes["m"] * sizes["k"] * sizes["n"]


def _bytes(sizes: dict[str, int], itemsize: int = 2) -> int:
    m, k, n = sizes.values()
    return itemsize * (m * k + k * n + m * n)


def main() -> int:
    sizes, measured = matmuls(Path(sys.argv[1]))
    rates = Rates.of("trn3", 2, "bfloat16")
    held_out = np.zeros(len(measured))
    parts = np.array_split(np.random.default_rng(SEED).permutation(len(measured)), FOLDS)
    for part in parts:
        kept = np.setdiff1d(np.arange(len(measured)), part)
        made = fit([sizes[i] for i in kept], measured[kept], rates)
        for i in part:
            held_out[i] = predict(made, rates, _flops(sizes[i]), _bytes(sizes[i])) / measured[i] - 1
    made = fit(sizes, measured, rates)
    roofline = [max(_flops(s) / rates.flops, _bytes(s) / rates.bytes_per_second) * 1e6 for s in sizes]
    print(f"fixed {made.fixed_us:.2f} us, compute {made.compute:.4f}, memory {made.memory:.4f}")
    errors = 100 * np.abs(held_out)
    print(f"five-fold mean absolute error {errors.mean():.2f} %, largest {errors.max():.1f} %")
    print(f"roofline {100 * np.abs(np.array(roofline) / measured - 1).mean():.1f} %")
    sizes, measured = carried(Path(sys.argv[1]))
    rates = Rates.of("trn2", 1, "float32")
    errors = np.array([predict(made, rates, _flops(s), _bytes(s, 4)) for s in sizes]) / measured - 1
    print(f"carried to trn2, float32, one core: {', '.join(f'{e:+.1%}' for e in errors)}")
    print(f"mean absolute error {100 * np.abs(errors).mean():.1f} %")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

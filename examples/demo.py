"""Three kernels on real input, each checked against NumPy: ``trnsim run --chip trn2 examples/demo.py``."""

import ml_dtypes
import numpy as np
from attention import attention
from matmul import tiled_matmul
from rmsnorm import rmsnorm


def check(name, result, expected, tolerance):
    """Compare with NumPy's result in float32, relative to its largest value."""
    error = np.abs(np.asarray(result, np.float32) - expected).max() / np.abs(expected).max()
    print(f"{name}: largest error against NumPy {error:.2e} of the largest value (allowed {tolerance:.0e})")
    assert error <= tolerance, f"{name} is wrong"


rng = np.random.default_rng(0)

lhs_t = rng.standard_normal((1024, 1024), np.float32)
rhs = rng.standard_normal((1024, 1024), np.float32)
check("matmul", tiled_matmul(lhs_t, rhs), lhs_t.T @ rhs, 1e-5)

d, seq = 128, 1024
q, k, v = (rng.standard_normal((seq, d), np.float32).astype(ml_dtypes.bfloat16) for _ in range(3))
scores = q.astype(np.float32) @ k.astype(np.float32).T / np.sqrt(np.float32(d))
weights = np.exp(scores - scores.max(axis=1, keepdims=True))
expected = (weights / weights.sum(axis=1, keepdims=True)) @ v.astype(np.float32)
check("attention", attention(np.ascontiguousarray(q.T), np.ascontiguousarray(k.T), v), expected, 2e-2)

x = rng.standard_normal((512, 2048), np.float32)
weight = rng.standard_normal((1, 2048), np.float32)
expected = x / np.sqrt((x * x).mean(axis=1, keepdims=True) + 1e-6) * weight
check("rmsnorm", rmsnorm(x, weight), expected, 1e-5)

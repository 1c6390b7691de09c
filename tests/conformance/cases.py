"""Public tutorial kernels: where each is, how it is called, and a reference written here.

``SDK`` is a checkout of aws-neuron-sdk, ``SAMPLES`` one of nki-samples; their paths come from ``TRNSIM_SDK`` and
``TRNSIM_SAMPLES``. Nothing of them is in this repository.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

ROOTS = {"sdk": os.environ.get("TRNSIM_SDK"), "samples": os.environ.get("TRNSIM_SAMPLES")}
VARIABLES = {"sdk": "TRNSIM_SDK", "samples": "TRNSIM_SAMPLES"}
EXAMPLES = "nki/examples"
TUTORIALS = "src/nki_samples/tutorials"


@dataclass(frozen=True)
class Case:
    """One public kernel. ``reference`` gives the expected result(s) from the arguments, in float32 or float64."""

    source: str
    file: str
    kernel: str
    arguments: Callable[[np.random.Generator], tuple[Any, ...]]
    reference: Callable[..., Any]
    chip: str = "trn2"
    tolerance: float = 1e-5
    note: str = ""

    @property
    def name(self) -> str:
        return f"{self.source}:{self.file}:{self.kernel}{'-' + self.note if self.note else ''}"


def _normal(*shape: int, dtype: Any = np.float32) -> Callable[[np.random.Generator], Any]:
    return lambda rng: rng.standard_normal(shape, np.float32).astype(dtype)


def _both(*makers: Any) -> Callable[[np.random.Generator], tuple[Any, ...]]:
    return lambda rng: tuple(m(rng) if callable(m) else m for m in makers)


def _product(a: Any, b: Any, *_: Any) -> Any:
    return a.astype(np.float32).T @ b.astype(np.float32)


def _pool(reduce: Any) -> Callable[..., Any]:
    def pool(x: Any, size: int) -> Any:
        c, h, w = x.shape
        return reduce(x.astype(np.float32).reshape(c, h // size, size, w // size, size), axis=(2, 4))

    return pool


def _transposed(x: Any, shape: tuple[int, int]) -> Any:
    return x.reshape(len(x), *shape).transpose(0, 2, 1).reshape(len(x), -1)


def _mamba(delta: Any, u: Any, a: Any, b: Any, c: Any) -> Any:
    """The selective scan, step by step in float64."""
    delta, u, a, b, c = (x.astype(np.float64) for x in (delta, u, a, b, c))
    batch, channels, length = delta.shape
    state = np.zeros((batch, channels, a.shape[1]))
    out = np.zeros((batch, channels, length))
    for t in range(length):
        step = np.exp(delta[:, :, t, None] * a[None])
        state = step * state + (delta[:, :, t] * u[:, :, t])[:, :, None] * b[:, None, :, t]
        out[:, :, t] = (state * c[:, None, :, t]).sum(axis=2)
    return out


def _mamba_arguments(rng: np.random.Generator) -> tuple[Any, ...]:
    batch, channels, states, length = 1, 256, 16, 512
    return (
        rng.random((batch, channels, length), np.float32),
        rng.standard_normal((batch, channels, length), np.float32),
        -rng.random((channels, states), np.float32),
        rng.standard_normal((batch, states, length), np.float32),
        rng.standard_normal((batch, states, length), np.float32),
    )


def _square(n: int, dtype: Any = np.float32) -> Callable[[np.random.Generator], tuple[Any, ...]]:
    return _both(_normal(n, n, dtype=dtype), _normal(n, n, dtype=dtype))


def _matmul_cases(source: str, folder: str) -> list[Case]:
    file = f"{folder}/matrix_multiplication/matrix_multiplication_nki_kernels.py"
    basic = _both(_normal(128, 64), _normal(128, 512))
    cases = [Case(source, file, "nki_matmul_basic_", basic, _product)]
    for kernel in ("tiled_", "hoist_load_", "block_free_dimension_", "fully_optimized_"):
        cases.append(Case(source, file, f"nki_matmul_{kernel}", _square(2048), _product))
        half = _square(2048, ml_dtypes.bfloat16)
        cases.append(Case(source, file, f"nki_matmul_{kernel}", half, _product, tolerance=2e-2, note="bf16"))
    return cases


# -- MX: data are made as packed elements and scales, so that the reference is exact ---------------------------------

_ELEMENTS = {"float8_e5m2_x4": ml_dtypes.float8_e5m2, "float4_e2m1fn_x4": ml_dtypes.float4_e2m1fn}
_LARGEST = {"float8_e5m2_x4": 16.0, "float4_e2m1fn_x4": 6.0}


def _mx_operand(rng: np.random.Generator, k: int, n: int, dtype: str) -> tuple[Any, Any]:
    """Random elements ``(k, 4 n)`` as packed bytes ``(k, n)``, and scales ``(k / 8, n)``."""
    values = (rng.uniform(-1, 1, (k, 4 * n)) * _LARGEST[dtype]).astype(_ELEMENTS[dtype])
    codes = values.view(np.uint8)
    packed = (codes[:, 0::2] & 15) | (codes[:, 1::2] << 4) if dtype.startswith("float4") else codes.view(np.uint32)
    scales = rng.integers(120, 128, (k // 8, n)).astype(np.uint8)
    return np.ascontiguousarray(packed), scales


def _mx_values(packed: Any, scales: Any, dtype: str) -> Any:
    """float64 ``(4 k, n)``: contraction over packed elements and partitions."""
    raw = np.ascontiguousarray(packed).view(np.uint8)
    if dtype.startswith("float4"):
        codes = np.stack((raw & 15, raw >> 4), axis=-1).reshape(len(raw), -1)
        values = codes.view(ml_dtypes.float4_e2m1fn).astype(np.float64)
    else:
        values = raw.view(ml_dtypes.float8_e5m2).astype(np.float64)
    factor = np.exp2(scales.astype(np.float64) - 127).repeat(8, axis=0).repeat(4, axis=1)
    k = len(raw)
    return (values * factor).reshape(k, -1, 4).transpose(0, 2, 1).reshape(4 * k, -1)


def _mx_offline(dtype: str) -> Callable[[np.random.Generator], tuple[Any, ...]]:
    return lambda rng: (*_mx_operand(rng, 128, 128, dtype), *_mx_operand(rng, 128, 512, dtype), dtype)


def _mx_offline_reference(s: Any, s_scale: Any, m: Any, m_scale: Any, dtype: str) -> Any:
    return _mx_values(s, s_scale, dtype).T @ _mx_values(m, m_scale, dtype)


def _coarse(*shape: int) -> Callable[[np.random.Generator], Any]:
    """Values of two mantissa bits and few exponents: float8_e5m2 holds them exactly, whatever the block scale."""

    def make(rng: np.random.Generator) -> Any:
        values = (4 + rng.integers(0, 4, shape)) / 4.0 * np.exp2(-rng.integers(0, 4, shape))
        return (values * rng.choice([-1.0, 1.0], shape)).astype(ml_dtypes.bfloat16)

    return make


def _mx_mixed(dtype: str) -> Callable[[np.random.Generator], tuple[Any, ...]]:
    def make(rng: np.random.Generator) -> tuple[Any, ...]:
        return (*_mx_operand(rng, 128, 128, dtype), _coarse(128, 2048)(rng), dtype, "float8_e5m2_x4")

    return make


def _mx_mixed_reference(s: Any, s_scale: Any, moving: Any, dtype: str, _: str) -> Any:
    values = moving.astype(np.float64).reshape(128, -1, 4).transpose(0, 2, 1).reshape(512, -1)
    return _mx_values(s, s_scale, dtype).T @ values


def _mx_strided(use_tensor_copy: bool) -> Callable[[np.random.Generator], tuple[Any, ...]]:
    return _both(_coarse(512, 128), _coarse(512, 512), "float8_e5m2_x4", use_tensor_copy)


_MX = f"{TUTORIALS}/mxfp-matmul/mx_kernels.py"

CASES: list[Case] = [
    *_matmul_cases("sdk", EXAMPLES),
    Case("sdk", f"{EXAMPLES}/average_pool2d/average_pool2d_nki_kernels.py", "tensor_avgpool_kernel",
         _both(_normal(64, 24, 32), 4), _pool(np.mean)),
    Case("sdk", f"{EXAMPLES}/transpose2d/transpose2d_nki_kernels.py", "tensor_transpose2D_kernel_",
         _both(lambda rng: rng.integers(-128, 128, (5, 12)).astype(np.int8), (3, 4)), _transposed, tolerance=0.0),
    Case("sdk", f"{EXAMPLES}/tensor_addition/tensor_addition_nki_kernels.py", "nki_tensor_add",
         _both(_normal(256, 1024), _normal(256, 1024)), lambda a, b: a + b),
    *[Case("sdk", f"{EXAMPLES}/fused_mamba/mamba_nki_kernels.py", k, _mamba_arguments, _mamba, tolerance=1e-4)
      for k in ("mamba_v1", "mamba_v2", "mamba_v3")],
    Case("sdk", f"{EXAMPLES}/simulate/nki_simulate_example.py", "add_kernel",
         _both(_normal(128, 512), _normal(128, 512)), lambda a, b: a + b),
    Case("sdk", f"{EXAMPLES}/getting_started_baremetal.py", "nki_tensor_add_kernel",
         _both(_normal(4, 3, dtype=np.float16), _normal(4, 3, dtype=np.float16)),
         lambda a, b: a.astype(np.float32) + b.astype(np.float32), tolerance=1e-3),
    Case("sdk", f"{EXAMPLES}/layout-pass.py", "tensor_exp_kernel_",
         _both(_normal(128, 512, dtype=ml_dtypes.bfloat16)), lambda x: np.exp(x.astype(np.float32)), tolerance=1e-2),
    Case("sdk", f"{EXAMPLES}/index-case-1.py", "tensor_split_kernel_", _both(_normal(4, 5)),
         lambda x: (x[:, 0::2], x[:, 1::2]), tolerance=0.0),
    Case("sdk", f"{EXAMPLES}/index-case-3.py", "tensor_maxpool_kernel_", _both(_normal(2, 6, 6), 2),
         _pool(np.max), tolerance=0.0),
    *_matmul_cases("samples", TUTORIALS),
    Case("samples", _MX, "kernel_offline_quantized_mx_matmul", _mx_offline("float8_e5m2_x4"),
         _mx_offline_reference, "trn3", 1e-2, "fp8"),
    Case("samples", _MX, "kernel_offline_quantized_mx_matmul", _mx_offline("float4_e2m1fn_x4"),
         _mx_offline_reference, "trn3", 1e-2, "fp4"),
    # Results are bfloat16; what is quantised on the device is exact in float8_e5m2.
    Case("samples", _MX, "kernel_on_device_quantize_matmul_mx", _mx_mixed("float8_e5m2_x4"),
         _mx_mixed_reference, "trn3", 1e-2, "fp8"),
    Case("samples", _MX, "kernel_on_device_quantize_matmul_mx", _mx_mixed("float4_e2m1fn_x4"),
         _mx_mixed_reference, "trn3", 1e-2, "fp4-fp8"),
    Case("samples", _MX, "kernel_copy_strided_quantize_matmul_mx", _mx_strided(True), _product, "trn3", 1e-2,
         "tensor-copy"),
    Case("samples", _MX, "kernel_copy_strided_quantize_matmul_mx", _mx_strided(False), _product, "trn3", 1e-2, "dma"),
]  # fmt: skip


@contextmanager
def public_module(source: str, file: str) -> Any:
    """Import a file of a local checkout with ``import nki`` meaning trnsim; the environment is put back afterwards."""
    import trnsim

    trnsim.install()
    root = ROOTS[source]
    assert root is not None
    path = Path(root) / file
    environment = dict(os.environ)
    modules = set(sys.modules)
    sys.path.insert(0, str(path.parent))
    try:
        spec = importlib.util.spec_from_file_location("public_kernel", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.pop(0)
        os.environ.clear()
        os.environ.update(environment)
        for name in set(sys.modules) - modules:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(root)):
                del sys.modules[name]


def largest_error(results: Any, expected: Any) -> float:
    """Largest difference over the largest expected value."""
    if isinstance(expected, tuple):
        return max(largest_error(r, e) for r, e in zip(results, expected, strict=True))
    result, want = np.asarray(results).astype(np.float64), np.asarray(expected).astype(np.float64)
    assert result.shape == want.shape, (result.shape, want.shape)
    if not np.isfinite(result).all():
        return float("inf")
    return float(np.abs(result - want).max() / max(np.abs(want).max(), 1e-30))

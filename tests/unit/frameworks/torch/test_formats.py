"""Roundings of products: PyTorch's casts are those of ``trnsim.numerics``, scales, blocks, policies by generation."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from trnsim.errors import HardwareError, InputError  # noqa: E402
from trnsim.frameworks.torch import formats  # noqa: E402
from trnsim.frameworks.torch.formats import Policy  # noqa: E402
from trnsim.numerics import as_dtype, from_float32, to_float32  # noqa: E402

E4M3, E5M2 = as_dtype("float8_e4m3"), as_dtype("float8_e5m2")


def drawn(*shape, seed=0, spread=8.0):
    """Normal values of many magnitudes."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy((rng.normal(size=shape) * 2.0 ** rng.uniform(-spread, spread, shape)).astype(np.float32))


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_torch_rounds_as_numerics_does(name):
    # every upper half of a float32, with lower halves on both sides of ties
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    lower = np.array([0, 1, 0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    values = (upper[:, None] | lower).reshape(-1).view(np.float32)
    dtype = as_dtype(name)
    expected = to_float32(from_float32(values, dtype), dtype)
    got = formats.rounded(torch.from_numpy(values), dtype).numpy()
    same = (got.view(np.uint32) == expected.view(np.uint32)) | (np.isnan(got) & np.isnan(expected))
    assert same.all()


@pytest.mark.parametrize(("dtype", "other"), [(E4M3, ml_dtypes.float8_e4m3), (E5M2, ml_dtypes.float8_e5m2)])
def test_scaled_operand(dtype, other):
    values = drawn(64, 96)
    codes, scale = formats.scaled(values, dtype)
    largest = float(ml_dtypes.finfo(other).max)
    assert float(codes.abs().max()) == largest
    assert float(scale) == pytest.approx(float(values.abs().max()) / largest, rel=1e-6)
    assert np.array_equal(codes.numpy(), codes.numpy().astype(other).astype(np.float32)), "no number of the format"
    # half a step of the format relative to a value, or of its smallest number relative to the largest value
    error = (codes * scale - values).abs()
    finfo = ml_dtypes.finfo(other)
    assert bool(
        (error <= values.abs() * 2.0 ** -(finfo.nmant + 1) * 1.001 + float(finfo.smallest_subnormal) * scale).all()
    )


@pytest.mark.parametrize("values", [[0.0, 0.0], [1.0, float("inf")], [float("nan"), 1.0], []])
def test_scaled_operand_without_a_scale(values):
    codes, scale = formats.scaled(torch.tensor(values), E4M3)
    assert scale is None
    expected = np.array(values, np.float32).astype(ml_dtypes.float8_e4m3).astype(np.float32)
    np.testing.assert_array_equal(codes.numpy(), expected)


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("size", [32, 64, 70, 5])
def test_blocks(size, dim):
    shape = (size, 12) if dim == 0 else (12, size)
    values = drawn(*shape, seed=size)
    got = formats.in_blocks(values, as_dtype("float8_e4m3fn"), dim).movedim(dim, -1).numpy()
    rows = values.movedim(dim, -1).numpy()
    for first in range(0, size, 32):
        block = rows[:, first : first + 32]
        # the scale leaves room above the largest value: its exponent less 7 (trnsim.numerics.mx)
        scale = 2.0 ** (np.floor(np.log2(np.abs(block).max(axis=1, keepdims=True))) - 7)
        expected = (block / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale
        np.testing.assert_array_equal(got[:, first : first + 32], expected)


def test_stochastic_rounding_is_right_in_the_mean():
    value = 1.0 + 0.3 * 2.0**-7  # 0.3 of the way to the next bfloat16
    rng = np.random.default_rng(0)
    got = formats.stochastic(torch.full((40_000,), value), torch.bfloat16, rng).float()
    assert set(got.tolist()) == {1.0, 1.0 + 2.0**-7}
    assert float(got.mean()) == pytest.approx(value, abs=4 * 2.0**-7 * (0.21 / 40_000) ** 0.5)


@pytest.mark.parametrize("generation", ["v2", "v3", "v4"])
@pytest.mark.parametrize("name", list(formats.POLICIES))
def test_generations(name, generation):
    if name == "mxfp8" and generation != "v4":
        with pytest.raises(HardwareError, match="mxfp8 products need NeuronCore-v4"):
            Policy.of(name).check(generation)
    else:
        Policy.of(name).check(generation)


def test_no_such_policy():
    with pytest.raises(InputError, match="no such format"):
        Policy.of("int4")


@pytest.mark.parametrize(
    ("policy", "tensor", "layer", "gradient", "expected"),
    [
        ("bf16", "float32", True, False, "bfloat16"),
        ("bf16", "float16", True, False, "float16"),
        ("float32", "bfloat16", True, False, "bfloat16"),
        ("float32", "float32", True, True, "float32"),
        ("fp8", "bfloat16", True, False, "float8_e4m3"),
        ("fp8", "float32", True, True, "float8_e5m2"),
        ("fp8", "float32", False, False, "bfloat16"),
        ("mxfp8", "float32", True, False, "float8_e4m3fn"),
    ],
)
def test_format_of_operands(policy, tensor, layer, gradient, expected):
    assert Policy.of(policy).product(getattr(torch, tensor), layer=layer, gradient=gradient) == expected


def test_autocast_nests():
    default = Policy.of("bf16")
    with formats.autocast("fp8"):
        with formats.autocast("float32"):
            assert formats.active(default).name == "float32"
        assert formats.active(default).name == "fp8"
    assert formats.active(default) is default

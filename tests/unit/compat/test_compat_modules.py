"""The names that public suites import, and what they do."""

from __future__ import annotations

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from trnsim.compat import modules, neuron_dtypes, simulator
from trnsim.compat.compiler import CompileOptions, ParserFrontend
from trnsim.errors import InputError, UnsupportedError
from trnsim.machine import core as machine
from trnsim.nki import isa, jit
from trnsim.nki import language as nl

NAMES = [
    "nki_cpu_simulator", "nki_cpu_simulator.nki", "nki_cpu_simulator.nki.builtin", "nki_cpu_simulator.nki.compiler",
    "nki_cpu_simulator.nki.isa", "nki_cpu_simulator.nki.isa.constants", "nki_cpu_simulator.nki.language",
    "nki_cpu_simulator.nki.language.dtypes", "nki_cpu_simulator.nki.tensor", "nki_cpu_simulator.nki.typing",
    "neuron_dtypes", "neuronxcc.starfish.support.dtype", "neuronxcc.starfish.support.util", "nki.compiler.frontend",
    "nki.compiler.ncc_driver", "nki.dtype", "nki.tensor",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_modules_are_importable_after_the_plugin_installs_them(name):
    code = f"from trnsim.pytest_plugin import install_modules\ninstall_modules()\nimport {name}\n"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_facade_shares_trnsims_own_functions():
    nki = modules("0.6")["nki_cpu_simulator.nki"]
    assert nki.isa.nc_matmul is isa.nc_matmul
    assert nki.language.add is nl.add
    assert nki.dtype.float8_e4m3 is nl.float8_e4m3


@pytest.mark.parametrize(
    ("given", "variable", "version"),
    [(None, "", "0.3"), (None, "0.2", "0.2"), ("0.4", "0.2", "0.4"), ("0.6", "", "0.6")],
)
def test_the_facade_is_the_view_of_a_release(monkeypatch, given, variable, version):
    monkeypatch.setenv("TRNSIM_NKI_VERSION", variable)
    found = modules(given)
    nki = found["nki_cpu_simulator.nki"]
    assert found["nki_cpu_simulator"].nki is nki
    assert nki.__version__ == f"{version}.0"
    assert hasattr(nki.language, "abs_max") == (version in ("0.4", "0.6"))
    assert hasattr(found["nki.tensor"], "identity") == (version == "0.2")

    def release():
        return machine.current().launch.release.version

    assert nki.jit(release).launch((), {}) == nki.cpu_simulate(release)() == version


def test_releases_that_are_not_known():
    with pytest.raises(InputError, match=r"no release '0\.9'"):
        modules("0.9")


def test_compiler_names_can_be_named_but_not_used():
    assert isinstance(ParserFrontend(), ParserFrontend)
    with pytest.raises(UnsupportedError, match="only simulates"):
        CompileOptions(target="trn2")


@jit
def twice(x):
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    tile = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.sbuf)
    isa.dma_copy(dst=tile, src=x)
    isa.tensor_scalar(dst=tile, data=tile, op0=nl.multiply, operand0=float(isa.get_nc_version().value))
    if nl.program_id(0) == 0:
        isa.dma_copy(dst=out, src=tile)
    return out


@pytest.mark.parametrize(("version", "factor"), [("gen2", 2), ("gen3", 3), ("gen4", 4), (None, 3)])
def test_cpu_simulate_runs_on_the_generation_of_the_environment(monkeypatch, version, factor):
    monkeypatch.delenv("NEURON_PLATFORM_TARGET_OVERRIDE", raising=False)
    if version is None:
        monkeypatch.delenv("NKI_NC_VERSION", raising=False)
    else:
        monkeypatch.setenv("NKI_NC_VERSION", version)
    x = np.ones((4, 8), np.float32)
    np.testing.assert_array_equal(simulator.cpu_simulate(twice)[1](x=x), factor * x)


def test_cpu_simulate_takes_two_cores(monkeypatch):
    monkeypatch.setenv("NKI_NC_VERSION", "gen3")
    x = np.ones((4, 8), np.float32)
    np.testing.assert_array_equal(simulator.cpu_simulate(twice.func)[2](x=x), 3 * x)


def test_an_unknown_generation_is_an_error(monkeypatch):
    monkeypatch.setenv("NKI_NC_VERSION", "gen9")
    with pytest.raises(InputError, match="gen9"):
        simulator.chosen_chip()


@pytest.mark.parametrize(
    ("dtype", "numpy"),
    [
        ("bfloat16", ml_dtypes.bfloat16),
        (nl.float8_e4m3, ml_dtypes.float8_e4m3),
        (np.float16, np.float16),
        (np.float64, np.float64),
        (np.int32, np.int32),
    ],
)
def test_static_cast_rounds_like_numpy(dtype, numpy):
    values = np.linspace(-3, 3, 41, dtype=np.float32)
    cast = neuron_dtypes.static_cast(values, dtype)
    assert cast.dtype == np.dtype(numpy)
    np.testing.assert_array_equal(cast, values.astype(numpy))


@pytest.mark.parametrize("source", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["float8_e3m4", "float8_e4m3", "float8_e4m3fn", "float8_e5m2"])
def test_static_cast_to_eight_bits_is_that_of_ml_dtypes(name, source):
    numpy = getattr(ml_dtypes, name)
    codes = np.arange(256, dtype=np.uint8).view(numpy).astype(source)
    exact = np.unique(codes[np.isfinite(codes)])
    ties = (exact[1:] + exact[:-1]) / 2
    values = np.concatenate(
        [codes, ties, np.nextafter(ties, 0), np.nextafter(ties, np.inf), exact * 1.01, -1e30 * exact]
    )
    with np.errstate(all="ignore"):
        expected = values.astype(source).astype(numpy)
        cast = neuron_dtypes.static_cast(values.astype(source), name)
    assert cast.dtype == expected.dtype
    np.testing.assert_array_equal(cast.view(np.uint8), expected.view(np.uint8))
    np.testing.assert_array_equal(neuron_dtypes.static_cast(cast, np.float32), expected.astype(np.float32))


@pytest.mark.parametrize("shape", [(), (0, 3), (3, 7), (2, 40000)])
def test_static_cast_to_eight_bits_keeps_shapes(shape):
    values = np.random.default_rng(0).normal(size=shape)
    for given in (values, values.T):
        cast = neuron_dtypes.static_cast(given, "float8_e4m3")
        np.testing.assert_array_equal(cast, given.astype(ml_dtypes.float8_e4m3), strict=True)
        np.testing.assert_array_equal(neuron_dtypes.static_cast(cast, "float32"), cast.astype(np.float32), strict=True)


@pytest.mark.parametrize(("name", "size"), [("float8_e4m3fn_x4", 4), ("float8_e5m2_x4", 4), ("float4_e2m1fn_x4", 2)])
def test_static_cast_packs_and_unpacks_in_fours(name, size):
    values = np.array([[0.5, -1, 1.5, 2, 3, -4, 6, 0]], np.float32)
    packed = neuron_dtypes.static_cast(values, getattr(neuron_dtypes, name))
    assert packed.shape == (1, 2)
    assert packed.dtype.itemsize == size == neuron_dtypes.sizeinbytes(name)
    modules()
    assert str(packed.dtype) == name
    assert str(np.dtype([("x", "u1")])) == "[('x', 'u1')]"
    np.testing.assert_array_equal(neuron_dtypes.static_cast(packed, np.float32), values)


def test_packed_outputs_are_read_as_the_type_expected():
    output = simulator.PackedOutput(neuron_dtypes.static_cast(np.ones((2, 8), np.float32), "float8_e5m2_x4"))
    assert output.shape == (2, 2)
    np.testing.assert_array_equal(np.asarray(output, dtype=np.uint32), np.full((2, 2), 0x3C3C3C3C, np.uint32))
    assert np.asarray(output).dtype == np.dtype("float8_e5m2_x4")


def test_kinds_and_limits():
    assert neuron_dtypes.is_float_type("bfloat16")
    assert neuron_dtypes.is_float_type(np.float64)
    assert not neuron_dtypes.is_float_type(np.int32)
    assert float(neuron_dtypes.finfo("float8_e5m2").max) == 57344
    assert neuron_dtypes.sizeinbytes(np.float64) == 8


def test_what_a_kernel_leaves_unwritten_is_zero_for_suites_and_a_sentinel_otherwise():
    from trnsim import simulate

    def kernel(x):
        out = nl.ndarray((4, 4), dtype=nl.uint8, buffer=nl.shared_hbm)
        isa.dma_copy(dst=out[0:2], src=x)
        return out

    def reads(x):
        out = nl.ndarray(x.shape, dtype=nl.float32, buffer=nl.shared_hbm)
        isa.dma_copy(dst=out, src=nl.ndarray(x.shape, dtype=nl.float32, buffer=nl.sbuf))
        return out

    f = np.ones((2, 4), np.float32)
    assert np.array_equal(simulator.cpu_simulate(reads)(f), np.zeros_like(f))
    assert np.isnan(simulate(reads, f)).all()
    x = np.ones((2, 4), np.uint8)
    assert np.array_equal(simulator.cpu_simulate(kernel)(x), np.repeat([[1], [1], [0], [0]], 4, axis=1))
    assert np.array_equal(simulate(kernel, x), np.repeat([[1], [1], [4], [4]], 4, axis=1))

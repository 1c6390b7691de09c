"""What NKI 0.2 had of its own beside signatures: constants of the trace, names, memories, functions on the host."""

from __future__ import annotations

import builtins
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

import trnsim
from trnsim.errors import CompilerError, HardwareError, TrnsimError
from trnsim.nki.versions.views import modules
from trnsim.releases import MissingNameError, Release

X = (np.arange(4 * 3 * 5 * 2) % 7 - 3).astype(np.float32).reshape(4, 3, 5, 2)


def run(body, *arrays, version="0.2", lnc=1, shape=None):
    """The ``out`` that ``body(nki, out, *tensors)`` fills; it has the shape of the first array unless one is given."""
    nki = modules(Release(version, "given"))["nki"]
    nl = nki.language

    def kernel(*tensors):
        out = nl.ndarray(shape or tensors[0].shape, dtype=tensors[0].dtype, buffer=nl.shared_hbm)
        body(nki, out, *tensors)
        return out

    return nki.jit(kernel)[lnc](*arrays)


def loaded(nki, x):
    tile = nki.language.ndarray(x.shape, dtype=x.dtype, buffer=nki.language.sbuf)
    nki.isa.dma_copy(dst=tile, src=x)
    return tile


# -- reductions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "axis", "reduced"),
    [
        ((4, 30), [4], (1,)),
        ((4, 6, 5), [4], (2,)),
        ((4, 6, 5), [3, 4], (1, 2)),
        ((4, 6, 5), (1,), (2,)),
        ((4, 3, 5, 2), 1, (3,)),
        ((4, 3, 5, 2), [3, 4], (2, 3)),
        ((4, 3, 5, 2), [2, 3, 4], (1, 2, 3)),
        ((4, 3, 5, 2), [1, 2, 3, 4], (1, 2, 3)),
        ((4, 3, 5, 2), [2, 3], (2, 3)),
    ],
)
def test_axes_of_tensor_reduce_count_four_free_dimensions(shape, axis, reduced):
    x = X.reshape(shape)
    expected = x.sum(reduced)

    def body(nki, out, x):
        total = nki.language.ndarray(expected.shape, dtype=x.dtype, buffer=nki.language.sbuf)
        nki.isa.tensor_reduce(total, nki.language.add, loaded(nki, x), axis)
        nki.isa.dma_copy(dst=out, src=total)

    np.testing.assert_array_equal(run(body, x, shape=expected.shape).reshape(expected.shape), expected)
    if axis[-1:] == [4] if isinstance(axis, list) else False:
        with pytest.raises(HardwareError, match="axis must be the last free dimensions"):
            run(body, x, shape=expected.shape, version="0.3")


# -- constants of the trace --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda nki, t: t.identity(3, nki.language.int8), np.eye(3, dtype=np.int8)),
        (lambda nki, t: t.identity(2), np.eye(2, dtype=np.float32)),
        (lambda nki, t: t.zeros((2, 3), dtype=nki.language.int8) + 1, np.ones((2, 3), np.int8)),
        (lambda nki, t: t.zeros((2, 2), nki.language.bfloat16), np.zeros((2, 2), ml_dtypes.bfloat16)),
        (lambda nki, t: t.arange(2, 9, 3, dtype=nki.language.int32), np.array([[2, 5, 8]], np.int32)),
        (lambda nki, t: t.arange(0, 3), np.array([[0, 1, 2]], np.float32)),
    ],
)
def test_constants_made_while_a_kernel_is_traced(make, expected):
    found = modules(Release("0.2", "given"))
    assert found["nki"].meta.tensor is found["nki.meta.tensor"] is found["nki.tensor"]

    def kernel(like):
        nki = found["nki"]
        constant = nki.language.shared_constant(make(nki, found["nki.tensor"]))
        assert constant.dtype == like.dtype
        out = nki.language.ndarray(constant.shape, dtype=constant.dtype, buffer=nki.language.shared_hbm)
        nki.isa.dma_copy(dst=out, src=loaded(nki, constant))
        return out

    np.testing.assert_array_equal(found["nki"].jit(kernel)(expected), expected)


def test_they_have_gone_since():
    code = (
        "import trnsim\ntrnsim.install(nki_version='0.2')\n"
        "import nki.tensor as ntensor, nki.meta.tensor as moved\nassert moved is ntensor\n"
        "trnsim.install(nki_version='0.3')\n"
        "try:\n    import nki.tensor\nexcept ModuleNotFoundError as error:\n"
        "    from trnsim.installation import missing_import\n    print(missing_import(error))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "nki.tensor is not in NKI 0.3: it belongs to NKI 0.1 to 0.2" in done.stdout


# -- names -------------------------------------------------------------------------------------------------------------


def names_math(nki, out, x):
    tile = loaded(nki, x)
    factor = float(math.ceil(1.5) + math.gcd(12, 18))  # noqa: F821 - NKI 0.2 knows it
    nki.isa.tensor_scalar(tile, tile, nki.language.multiply, factor)
    nki.isa.dma_copy(dst=out, src=tile)


def test_kernels_may_name_math_without_an_import():
    np.testing.assert_array_equal(run(names_math, X), 8 * X)
    assert not hasattr(builtins, "math")
    with pytest.raises(NameError, match="math"):
        run(names_math, X, version="0.3")


def names_memories(nki, out, x):
    tile = sbuf.view(dtype=x.dtype, shape=x.shape)  # noqa: F821 - NKI 0.2 knows it
    there = hbm.view(x.dtype, x.shape)  # noqa: F821
    nki.isa.dma_copy(dst=tile, src=x)
    nki.isa.dma_copy(dst=there, src=tile)
    nki.isa.dma_copy(dst=out, src=there)


def test_kernels_may_name_memories_without_an_import():
    np.testing.assert_array_equal(run(names_memories, X), X)
    assert not hasattr(builtins, "sbuf")
    assert not hasattr(builtins, "hbm")
    with pytest.raises(CompilerError, match=r"sbuf without import is a keyword of NKI 0\.2.*buffer=nl\.sbuf"):
        run(names_memories, X, version="0.6")


def test_math_is_there_for_all_ranks_and_goes_with_the_last():
    nki = modules(Release("0.2", "given"))["nki"]

    def kernel(x):
        nl, nisa = nki.language, nki.isa
        total, out = (nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm) for _ in range(2))
        nki.collectives.all_reduce([x], [total], nki.collectives.ReplicaGroup([[0, 1]]), nl.add)
        names_math(nki, out, total)
        assert nisa
        return out

    results = trnsim.simulate_ranks(nki.jit(kernel), [{"x": X}, {"x": 2 * X}])
    for result in results:
        np.testing.assert_array_equal(result, 24 * X)
    assert not hasattr(builtins, "math")


def test_a_math_of_somebody_else_stays(monkeypatch):
    monkeypatch.setattr(builtins, "math", "mine", raising=False)
    with pytest.raises(AttributeError):
        run(names_math, X)
    assert builtins.math == "mine"


def test_par_dim_marks_the_first_dimension():
    def body(nki, out, x):
        nl = nki.language
        tile = nl.ndarray((nl.par_dim(4), 30), dtype=x.dtype, buffer=nl.sbuf)
        nki.isa.dma_copy(dst=tile, src=x)
        nki.isa.dma_copy(dst=out, src=tile)

    x = X.reshape(4, 30)
    np.testing.assert_array_equal(run(body, x), x)
    with pytest.raises(MissingNameError, match=r"belongs to NKI 0.1 to 0.2"):
        run(body, x, version="0.3")


@pytest.mark.parametrize("version", ["0.2", "0.3"])
def test_offsets_of_patterns_are_0_unless_given(version):
    def body(nki, out, x):
        tile = loaded(nki, x)
        nki.isa.iota(tile, pattern=[[1, 30]], channel_multiplier=2)
        nki.isa.affine_select(
            dst=tile, pattern=[[1, 30]], channel_multiplier=-1, on_true_tile=tile, on_false_value=-1.0,
            cmp_op=nki.language.equal,
        )  # fmt: skip
        nki.isa.dma_copy(dst=out, src=tile)

    rows, columns = np.indices((4, 30))
    expected = np.where(rows == columns, columns + 2 * rows, -1)
    np.testing.assert_array_equal(run(body, X.reshape(4, 30), version=version), expected)


def test_what_affine_select_needs_is_still_needed():
    with pytest.raises(TrnsimError, match="needs on_true_tile, on_false_value"):
        run(lambda nki, out, x: nki.isa.affine_select(loaded(nki, x), [[1, 30]]), X.reshape(4, 30))


# -- kernels, cores and the host ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("buffer", ["attribute", "string"])
def test_hbm_is_shared_by_two_cores(buffer):
    nki = modules(Release("0.2", "given"))["nki"]
    nl, nisa = nki.language, nki.isa

    def kernel(x):
        assert x.buffer == nl.hbm
        out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.hbm if buffer == "attribute" else "hbm")
        half = nl.ds(2 * nl.program_id(0), 2)
        nisa.dma_copy(dst=out[half], src=x[half])
        return out

    np.testing.assert_array_equal(nki.jit(kernel)[2](X), X)


@pytest.mark.parametrize(("version", "expected"), [("0.2", None), ("0.3", "work only inside a kernel")])
def test_the_grid_outside_of_a_kernel(version, expected):
    nl = modules(Release(version, "given"))["nki"].language
    for ask in (nl.program_ndim, lambda: nl.num_programs(0), lambda: nl.program_id(0)):
        if expected is None:
            assert ask() is None
        else:
            with pytest.raises(TrnsimError, match=expected):
                ask()


@pytest.mark.parametrize("version", ["0.2", "0.3"])
def test_a_kernel_inside_another(version):
    def body(nki, out, x):
        inner = nki.jit(lambda source, target: nki.isa.dma_copy(dst=target, src=loaded(nki, source)))
        inner(x, out)

    np.testing.assert_array_equal(run(body, X, version=version), X)


@pytest.mark.parametrize("lnc", [1, 2])
def test_an_empty_argument_may_be_passed_and_not_read(lnc):
    empty = np.ones((0, 3), np.float32)
    np.testing.assert_array_equal(run(lambda nki, out, x, e: nki.isa.dma_copy(dst=out, src=x), X, empty, lnc=lnc), X)
    with pytest.raises(TrnsimError, match="same number of elements"):
        run(lambda nki, out, x, e: nki.isa.dma_copy(dst=out, src=e), X, empty, lnc=lnc)


@pytest.mark.parametrize("buffer", ["sbuf", "psum", "shared_hbm"])
@pytest.mark.parametrize("shape", [(4, 0), (0, 4)])
def test_tensors_without_elements(shape, buffer):
    def body(nki, out, x):
        nl, nisa = nki.language, nki.isa
        none = nl.ndarray(shape, dtype=x.dtype, buffer=getattr(nl, buffer))
        assert none.shape == shape
        if none.buffer != nl.shared_hbm:
            nisa.memset(none.reshape(shape), value=1.0)
            nisa.tensor_copy(none, none)
        nisa.dma_copy(dst=none, src=none.reshape(shape))
        nisa.dma_copy(dst=out, src=loaded(nki, x))

    x = X.reshape(30, 4)
    np.testing.assert_array_equal(run(body, x), x)
    with pytest.raises(TrnsimError, match="every dimension of a tensor must be at least 1"):
        run(body, x, version="0.3")

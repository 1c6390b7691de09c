"""NKI 0.2 to 0.5: each documented difference in the release that has it and in one that has not."""

from __future__ import annotations

import ast
import inspect
import re

import ml_dtypes
import numpy as np
import pytest

import trnsim
from trnsim import releases
from trnsim.errors import CompilerError, HardwareError, TrnsimError
from trnsim.isa.constants import dma_engine
from trnsim.nki.versions.views import modules
from trnsim.releases import LATEST, NAMES, SIGNATURES, VERSIONS, Release, versions

LATER = VERSIONS[1:]  # the releases that a view has


def view(version):
    return modules(Release(version, "given"))["nki"]


def run(version, body, *arrays, chip="trn2", lnc=None):
    """Run ``body(nki, *tensors)`` as a kernel of ``version``; returns its result and the call's record."""
    nki = view(version)
    kernel = nki.jit(lambda *tensors: body(nki, *tensors))
    session = trnsim.Session(trnsim.SimulationOptions(chip=chip))
    with session.active():
        result = (kernel if lnc is None else kernel[lnc])(*arrays)
    return result, session.calls[-1]


def tile(nki, like, memory="sbuf", dtype=None, shape=None):
    nl = nki.language
    return nl.ndarray(shape or like.shape, dtype=dtype or like.dtype, buffer=getattr(nl, memory))


def load(nki, x):
    t = tile(nki, x)
    nki.isa.dma_copy(dst=t, src=x)
    return t


def save(nki, t, dtype=None, shape=None):
    out = tile(nki, t, "shared_hbm", dtype, shape)
    nki.isa.dma_copy(dst=out, src=t)
    return out


def ramp(*shape, dtype=np.float32):
    return (np.arange(np.prod(shape)) % 251).reshape(shape).astype(dtype)


# -- what calls do -----------------------------------------------------------------------------------------------------


def iota(nki, x):
    t = tile(nki, x, dtype="int32")
    nki.isa.iota(t, [[2, x.shape[1]]], 5, 10)
    return save(nki, t)


def iota_reference(x):
    rows, columns = np.indices(x.shape)
    return 5 + 10 * rows + 2 * columns


def select(order):
    def body(nki, x):
        t, nl = load(nki, x), nki.language
        arguments = {"old": ([[1, x.shape[1]]], -3, 1), "new": ([[1, x.shape[1]]], 1)}[order]
        named = {} if order == "old" else {"offset": -3}
        nki.isa.affine_select(t, *arguments, t, -1.0, nl.greater, **named)
        return save(nki, t)

    return body


def select_reference(x):
    rows, columns = np.indices(x.shape)
    return np.where(columns + rows - 3 > 0, x, -1)


def accumulate(style):
    def body(nki, x):
        t, total, nl, nisa = load(nki, x), tile(nki, x), nki.language, nki.isa
        nisa.memset(total, 2.0)
        if style == "dma_copy":
            nisa.dma_copy(dst=total, src=t, dst_rmw_op=nl.add, unique_indices=True)
        elif style == "scales third":
            nisa.dma_compute(total, [t, total], [1.0, 1.0], nl.add)
        else:
            nisa.dma_compute(total, [t, total], nl.add)
        return save(nki, total)

    return body


def plus_two(x):
    return x + 2


def move(**given):
    def body(nki, x):
        register = nki.isa.register_alloc()
        nki.isa.register_move(register, **given)
        t = tile(nki, x, dtype="int32", shape=(1, 1))
        nki.isa.register_store(t, register)
        return save(nki, t)

    return body


def memset_half(nki, x):
    t = tile(nki, x, dtype="int32")
    nki.isa.memset(t, 2.5)
    return save(nki, t)


def from_psum(nki, x):
    t, p = load(nki, x), tile(nki, x, "psum")
    nki.isa.tensor_copy(p, t)
    return save(nki, p)


def raw_bytes(nki, x):
    t = load(nki, x)
    other = tile(nki, t, dtype="float16")
    nki.isa.dma_copy(other, t, dge_mode=nki.isa.dge_mode.hwdge)
    return save(nki, other)


def reduce_axis_1(nki, x):
    t = load(nki, x)
    total = tile(nki, x, shape=x.shape[:-1])
    nki.isa.tensor_reduce(total, nki.language.add, t, 1)
    return save(nki, total)


def with_dtype(function):
    def body(nki, x):
        t, nl, nisa = load(nki, x), nki.language, nki.isa
        dtype = nl.bfloat16
        if function == "tensor_copy":
            out = tile(nki, x)
            nisa.tensor_copy(out, t, dtype=dtype)
        elif function == "tensor_reduce":
            out = tile(nki, x, shape=(x.shape[0], 1))
            nisa.tensor_reduce(out, nl.add, t, 1, dtype=dtype)
        elif function == "nc_transpose":
            out = tile(nki, x, "sbuf", shape=x.shape[::-1])
            nisa.nc_transpose(out, t, dtype=dtype)
        else:
            out = tile(nki, x)
            nisa.scalar_tensor_tensor(out, t, nl.multiply, 2.0, nl.add, t, dtype=dtype)
        return save(nki, out)

    return body


def forced_range(nki, x):
    t, nl = load(nki, x), nki.language
    low, high = tile(nki, x, shape=(x.shape[0], 1)), tile(nki, x, shape=(x.shape[0], 1))
    nki.isa.memset(low, 1.0)
    nki.isa.memset(high, 3.0)
    nki.isa.range_select(t, t, nl.greater_equal, nl.less, low, high, on_false_value=0.0, range_start=0.0)
    return save(nki, t)


def forced_range_reference(x):
    columns = np.indices(x.shape)[1]
    return np.where((columns >= 1) & (columns < 3), x, np.finfo(np.float32).min)


def transpose_to(rank):
    def body(nki, x):
        shape = (x.shape[3], x.shape[1], x.shape[2], x.shape[0])
        t = tile(nki, x, shape=shape if rank == 4 else (shape[0], shape[1], shape[2] * shape[3]))
        nki.isa.dma_transpose(dst=t, src=x, axes=(3, 1, 2, 0))
        return save(nki, t, shape=shape)

    return body


def hwdge_transpose(nki, x):
    t = tile(nki, x, shape=x.shape[::-1])
    nki.isa.dma_transpose(dst=t, src=x, axes=(2, 1, 0), dge_mode=nki.isa.dge_mode.hwdge)
    return save(nki, t)


def dynamic(name):
    def body(nki, x):
        t, out = load(nki, x), tile(nki, x)
        getattr(nki.isa, name)(out, t)
        return save(nki, out)

    return body


def string_buffer(nki, x):
    t = nki.language.zeros(x.shape, x.dtype, buffer="sbuf")
    return save(nki, t)


def zeros_without_buffer(nki, x):
    return save(nki, nki.language.zeros(x.shape, x.dtype))


def zeros_like_reference(x):
    return np.zeros_like(x)


def numbers_for_enums(nki, x):
    t = load(nki, x)
    nki.isa.tensor_copy(t, t, engine=5)
    return save(nki, t)


def square_of_scalar_unit(nki, x):
    t = load(nki, x)
    nki.isa.tensor_scalar(t, t, nki.language.square, None)
    return save(nki, t)


def rsqrt_in_psum(nki, x):
    t, p = load(nki, x), tile(nki, x, "psum")
    nki.isa.tensor_copy(p, t)
    result = nki.language.rsqrt(p)
    out = tile(nki, x)
    nki.isa.tensor_copy(out, result)
    return save(nki, out)


def copied(nki, x):
    return save(nki, nki.language.copy(load(nki, x)))


def through_float32(x):
    return x.astype(np.float32).astype(np.int64).clip(-(2**31), 2**31 - 1).astype(np.int32)


def old_matmul_keywords(nki, x):
    t, p = load(nki, x), tile(nki, x, "psum", dtype="float32", shape=(x.shape[1], x.shape[1]))
    nki.isa.nc_matmul(p, t, t, is_moving_zero=False, psumAccumulateFlag=1)
    out = tile(nki, p)
    nki.isa.tensor_copy(out, p)
    return save(nki, out)


def partial_reduction(nki, x):
    t, nl = load(nki, x), nki.language
    total = tile(nki, x, shape=(x.shape[0], 1))
    half = x.shape[1] // 2
    nki.isa.tensor_scalar_reduce(t[:, :half], t[:, :half], nl.multiply, 1.0, nl.add)
    nki.isa.tensor_scalar_reduce(
        t[:, half:], t[:, half:], nl.multiply, 1.0, nl.add, total, reduce_cmd=nki.isa.reduce_cmd.reduce
    )
    return save(nki, total)


def view_method(nki, x):
    t = load(nki, x)
    return save(nki, t.slice(1, 0, 2))


def constant(**given):
    def body(nki, x):
        return save(nki, load(nki, nki.language.shared_constant(np.arange(6.0).reshape(2, 3), **given)))

    return body


def new_shape(nki, x):
    t = load(nki, x)
    return save(nki, t.reshape(new_shape=(x.shape[0], 2, x.shape[1] // 2)), shape=x.shape)


def private_output(nki, x):
    t = load(nki, x)
    out = tile(nki, t, "hbm")
    nki.isa.dma_copy(out, t)
    return out


def same(x):
    return x


X = ramp(8, 16)
BIG = np.array([[2**24 + 1, -(2**30) - 1], [3, 2**31 - 1]], np.int32)

# body, input, releases in which it gives the reference's result, reference, what the others say
CASES = {
    "iota with offset third": (iota, X, "0.2-", iota_reference, ""),
    "affine_select with offset third": (select("old"), X, "0.2", select_reference, "in NKI 0.2 it is affine_select"),
    "affine_select with offset by name": (select("new"), X, "0.3-", select_reference, "affine_select"),
    "dma_copy that adds": (accumulate("dma_copy"), X, "0.2", plus_two, "no keyword 'dst_rmw_op'.*use nisa.dma_compute"),
    "dma_compute with scales third": (accumulate("scales third"), X, "0.2", plus_two, "in NKI 0.2 it is dma_compute"),
    "dma_compute with operator third": (accumulate(""), X, "0.3-", plus_two, "needs reduce_op"),
    "register_move(imm)": (move(imm=7), X, "0.2", lambda x: [[7]], "no keyword 'imm'.*use src="),
    "register_move(src)": (move(src=7), X, "0.3-", lambda x: [[7]], "no keyword 'src'.*use imm="),
    "memset of a float": (memset_half, X, "0.2", lambda x: np.full(x.shape, 2), "an integer tile takes an integer"),
    "DMA from PSUM": (from_psum, X, "0.2", same, "DMA reaches HBM and SBUF, not PSUM"),
    "hwdge between dtypes": (raw_bytes, ramp(8, 16, dtype=ml_dtypes.bfloat16), "0.2", lambda x: x.view(np.float16),
                             "dtypes must match"),
    "axis 1 of three": (reduce_axis_1, ramp(4, 3, 5), "0.2", lambda x: x.sum(2), "axis must be the last"),
    "tensor_copy(dtype)": (with_dtype("tensor_copy"), X, "0.2-", same, ""),
    "tensor_reduce(dtype)": (with_dtype("tensor_reduce"), X, "0.2", lambda x: x.sum(1, keepdims=True),
                             "no keyword 'dtype'; NKI 0.1 to 0.2 have it"),
    "nc_transpose(dtype)": (with_dtype("nc_transpose"), X, "0.2", np.transpose, "no keyword 'dtype'"),
    "scalar_tensor_tensor(dtype)": (with_dtype("scalar_tensor_tensor"), X, "0.2", lambda x: 3 * x,
                                    "no keyword 'dtype'"),
    "range_select ignores": (forced_range, X, "0.2", forced_range_reference, "on_false_value must be|range_start"),
    "dma_transpose of lower rank": (transpose_to(3), ramp(6, 1, 4, 8, dtype=ml_dtypes.bfloat16), "0.2-0.3",
                                    lambda x: x.transpose(3, 1, 2, 0), "permuted shape"),
    "dma_transpose exact": (transpose_to(4), ramp(6, 1, 4, 8, dtype=ml_dtypes.bfloat16), "0.2-",
                            lambda x: x.transpose(3, 1, 2, 0), ""),
    "hwdge transpose of few rows": (hwdge_transpose, ramp(4, 8, 64, dtype=ml_dtypes.bfloat16), "0.6",
                                    lambda x: x.transpose(2, 1, 0), "before NKI 0.6 a hwdge transpose"),
    "tensor_copy_dynamic_src": (dynamic("tensor_copy_dynamic_src"), X, "0.2-0.3", same, "belongs to NKI 0.1 to 0.3"),
    "tensor_copy_dynamic_dst": (dynamic("tensor_copy_dynamic_dst"), X, "0.2-0.3", same, "use nisa.tensor_copy on"),
    "string as buffer": (string_buffer, X, "0.2", zeros_like_reference, "strings are NKI 0.2's; use nl.sbuf"),
    "zeros without buffer": (zeros_without_buffer, X, "0.2-", zeros_like_reference, ""),
    "number as engine": (numbers_for_enums, X, "0.2", same, "numbers are NKI 0.2's"),
    "nl.rsqrt of PSUM": (rsqrt_in_psum, X + 1, "0.3-0.4", lambda x: 1 / np.sqrt(x.astype(np.float64)), "rsqrt|PSUM"),
    "nl.copy through float32": (copied, BIG, "0.3-0.5", through_float32, None),
    "nl.copy bit for bit": (copied, BIG, "0.6", same, None),
    "keywords of SDK 2.27": (old_matmul_keywords, X, "0.2", lambda x: x.T.astype(np.float64) @ x,
                             "no keyword '(is_moving_zero|psumAccumulateFlag)'"),
    "reduction in two calls": (partial_reduction, X, "0.6", lambda x: x.sum(1, keepdims=True),
                               "reduce_cmd|needs reduce_res"),
    "method slice": (view_method, X, "0.5-", lambda x: x[:, :2], "belongs to NKI 0.5 and later"),
    "reshape(new_shape)": (new_shape, X, "0.2-", same, ""),
    "shared_constant(dtype)": (constant(dtype="bfloat16"), X, "0.2", lambda x: np.arange(6).reshape(2, 3),
                               "no keyword 'dtype'; NKI 0.1 to 0.2 have it"),
    "output in nl.hbm": (private_output, X, "0.2-", same, ""),
}  # fmt: skip


@pytest.mark.parametrize("version", LATER)
@pytest.mark.parametrize("name", CASES)
def test_calls(name, version):
    body, x, having, reference, message = CASES[name]
    if version in versions(having):
        result, call = run(version, body, x.copy())
        expected = np.asarray(reference(x))
        np.testing.assert_allclose(
            np.asarray(result, np.float64).reshape(expected.shape), expected.astype(np.float64), rtol=1e-5
        )
        assert (call.nki_version, call.nki_version_source) == (version, "given")
    elif message is not None:
        with pytest.raises(TrnsimError, match=message):
            run(version, body, x.copy())


@pytest.mark.parametrize(
    ("name", "version", "kind"),
    [
        ("range_select ignores", "0.2", "ignored-argument"),
        ("tensor_reduce(dtype)", "0.2", "ignored-dtype"),
        ("hwdge between dtypes", "0.2", "raw-bytes"),
        ("output in nl.hbm", "0.2", None),
        ("output in nl.hbm", "0.3", "output-memory"),
    ],
)
def test_what_is_reported(name, version, kind):
    body, x, *_ = CASES[name]
    _, call = run(version, body, x.copy())
    assert {f.kind for f in call.findings} == ({kind} if kind else set())


def test_square_is_an_operator_of_vector_since_0_4():
    for version in ("0.2", "0.3"):
        with pytest.raises(CompilerError, match=r"since NKI 0.4"):
            run(version, square_of_scalar_unit, X.copy(), chip="trn3")
    result, _ = run("0.4", square_of_scalar_unit, X.copy(), chip="trn3")
    np.testing.assert_array_equal(result, X * X)


@pytest.mark.parametrize(("version", "use", "partitions", "error"), [
    ("0.2", {"use_gpsimd_dma": True}, 16, ""),
    ("0.2", {"dma_engine": None}, 16, "no keyword 'dma_engine'"),
    ("0.3", {"use_gpsimd_dma": True}, 16, "no keyword 'use_gpsimd_dma'.*dma_engine.gpsimd_dma"),
    ("0.2", {"use_gpsimd_dma": True}, 8, "gpsimd_dma takes multiples of 16 partitions before 0.4"),
    ("0.3", {"dma_engine": dma_engine.gpsimd_dma}, 8, "gpsimd_dma takes multiples of 16 partitions before 0.4"),
    ("0.4", {"dma_engine": dma_engine.gpsimd_dma}, 8, ""),
    ("0.2", {}, 8, ""),
    ("0.3", {}, 1, ""),
])  # fmt: skip
def test_sendrecv(version, use, partitions, error):
    def body(nki, x):
        t, nl = load(nki, x), nki.language
        other = 1 - nl.program_id(0)
        got = tile(nki, x)
        nki.isa.sendrecv(t, got, other, other, 0, **use)
        return save(nki, got)

    x = ramp(partitions, 8)
    if error:
        with pytest.raises((CompilerError, HardwareError), match=error):
            run(version, body, x, lnc=2)
    else:
        np.testing.assert_array_equal(run(version, body, x, lnc=2)[0], x)


@pytest.mark.parametrize(("version", "step"), [("0.4", 1), ("0.5", 2), ("0.6", 2)])
def test_block_scales_of_quantize_mx(version, step):
    """Since 0.5 a block's scale is twice that of the OCP specification: the power of two at its largest value / 2^8."""

    def body(nki, x):
        t, nl = load(nki, x), nki.language
        packed = tile(nki, x, dtype=nl.float8_e4m3fn_x4, shape=(32, 1))
        scales = tile(nki, x, dtype=nl.uint8, shape=(32, 1))
        nki.isa.memset(scales, 0)
        nki.isa.quantize_mx(packed, t, scales)
        return save(nki, scales)

    x = np.full((32, 4), 256.0, ml_dtypes.bfloat16)
    result, _ = run(version, body, x, chip="trn3")
    np.testing.assert_array_equal(result[:4].ravel(), [127 + step - 1] * 4)


@pytest.mark.parametrize(("version", "free", "dtype", "error"), [
    ("0.3", 64, "float8_e4m3fn", "TensorE does not take this dtype"), ("0.4", 64, "float8_e4m3fn", ""),
    ("0.4", 8192, "bfloat16", "free size 8192 exceeds 4096"), ("0.5", 8192, "bfloat16", ""),
])  # fmt: skip
def test_products_on_trn3(version, free, dtype, error):
    def body(nki, a, b):
        left, right = load(nki, a), load(nki, b)
        p = tile(nki, a, "psum", dtype="bfloat16", shape=(a.shape[1], free))
        nki.isa.nc_matmul(p, left, right)
        out = tile(nki, p)
        nki.isa.tensor_copy(out, p)
        return save(nki, out)

    kind = getattr(ml_dtypes, dtype)
    a, b = np.ones((16, 8), kind), np.ones((16, free), kind)
    if error:
        with pytest.raises(HardwareError, match=error):
            run(version, body, a, b, chip="trn3")
    else:
        assert np.all(np.asarray(run(version, body, a, b, chip="trn3")[0], np.float32) == 16)


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", LATER)
def test_every_name_is_there_in_its_releases_only(version):
    found = modules(Release(version, "given"))
    for row in NAMES:
        module, _, name = row.name.rpartition(".")
        if module == "nki.language.tile_size":
            place = found["nki.language"].tile_size
        elif module == "nki.language.NkiTensor" or row.name == "nki.typing":
            continue
        else:
            place = found.get(module)
        if place is None:
            assert version not in versions(row.versions), row.name
        elif version in versions(row.versions):
            assert hasattr(place, name), row.name
        else:
            with pytest.raises(releases.MissingNameError, match=re.escape(releases.spell(row.versions))):
                getattr(place, name)


@pytest.mark.parametrize("version", ["0.2", "0.6"])
def test_nl_functions_are_operators_only_in_0_2(version):
    def body(nki, x):
        t, nl = load(nki, x), nki.language
        nki.isa.activation(t, nl.exp, t)
        return save(nki, nl.add(t, t))

    if version == "0.2":
        with pytest.raises(CompilerError, match=r"nl.add is not a function in NKI 0.2"):
            run(version, body, X / 100)
    else:
        np.testing.assert_allclose(run(version, body, X / 100)[0], 2 * np.exp(X / 100), rtol=1e-5)


def test_names_of_no_release_and_dunders():
    nl = view(LATEST).language
    with pytest.raises(releases.MissingNameError, match="in any release"):
        _ = nl.frobnicate
    assert not hasattr(nl, "__frobnicate__")
    assert getattr(nl, "frobnicate", 3) == 3


@pytest.mark.parametrize("row", SIGNATURES, ids=lambda row: f"{row.function} {row.versions}")
def test_the_views_have_the_signatures_of_the_table(row):
    arguments = ast.parse(f"def call{row.text}: ...").body[0].args
    written = [a.arg for a in (*arguments.args, *arguments.kwonlyargs)]
    for version in versions(row.versions):
        module, _, name = row.function.rpartition(".")
        function = getattr(modules(Release(version, "given"))[module], name)
        assert list(inspect.signature(function).parameters) == written


# -- wrong calls -------------------------------------------------------------------------------------------------------

WRONG = {
    "mask": (lambda n, t: n.isa.activation(t, n.language.exp, t, mask=None),
             "nki.isa.activation of NKI {v} has no keyword 'mask'; NKI 0.1 has it"),
    "returns a tile": (lambda n, t: n.isa.activation(n.language.exp, t),
                       "nki.isa.activation of NKI {v} needs data; calls without dst that return a tile are NKI 0.1's"),
    "two operands": (lambda n, t: n.isa.nc_matmul(t, t), "nki.isa.nc_matmul of NKI {v} needs moving"),
    "shifted by one": (lambda n, t: n.isa.local_gather(t, t, 1, t),
                       "index must be a tensor of the kernel, not int; calls without dst .* are NKI 0.1's"),
    "a tensor as a number": (lambda n, t: n.isa.local_gather(t, t, t, t),
                             "num_elem_per_idx takes no tensor; calls without dst"),
    "a tensor as operator": (lambda n, t: n.isa.tensor_scalar(t, t, t, 1.0, False),
                             "op0 is not an operator .*calls without dst"),
    "used as a tile": (lambda n, t: n.isa.tensor_copy(t, n.isa.reciprocal(t, t)), "writes its dst and returns no tile"),
    "index tensors": (lambda n, t: n.language.arange(4), "nki.language.arange is not in NKI {v}: it belongs to"),
    "no such keyword": (lambda n, t: n.isa.tensor_copy(t, t, frob=1), "nki.isa.tensor_copy of NKI {v} has no keyword"),
    "loop options": (lambda n, t: n.language.affine_range(4, precise_schedule=True), "NKI 0.1 has it"),
    "too many": (lambda n, t: n.isa.reciprocal(t, t, None, t, t), "reciprocal of NKI {v} takes fewer positional"),
    "launcher": (lambda n, t: n.trace(t), "nki.trace is not in NKI {v}: it belongs to NKI 0.1 .*call the function"),
    "collective": (lambda n, t: n.collectives.all_gather([t], [t], None, 0, channel=1), "no keyword 'channel'"),
}  # fmt: skip


@pytest.mark.parametrize("version", LATER)
@pytest.mark.parametrize("name", WRONG)
def test_wrong_calls_name_the_release(name, version):
    call, message = WRONG[name]
    with pytest.raises(CompilerError, match=message.format(v=re.escape(version))) as caught:
        run(version, lambda nki, x: call(nki, load(nki, x)), X.copy())
    assert caught.value.location is not None
    assert caught.value.location.file == __file__


def test_two_generations_in_one_kernel():
    from trnsim.nki.versions import beta1

    with pytest.raises(CompilerError, match=r"a kernel of NKI 0.6 calls neuronxcc.nki, which is NKI 0.1"):
        run("0.6", lambda nki, x: beta1.language.load(x), X.copy())

    def first(x):
        t = beta1.language.load(x)
        view("0.6").isa.tensor_copy(t, t)

    with pytest.raises(CompilerError, match=r"of NKI 0.1 .*a kernel uses one release"):
        trnsim.simulate(beta1.jit(first), X.copy())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda n, t: n.isa.activation(dst=t, op=n.language.exp, data=t),
            "no keyword 'dst'; NKI 0.2 and later have it",
        ),
        (lambda n, t: n.isa.activation(t, n.language.exp, t), "a dst before the other arguments is of NKI 0.2"),
        (lambda n, t: n.isa.topk(t), "nki.isa.topk is not in NKI 0.1: it belongs to NKI 0.6"),
        (lambda n, t: n.language.fori_loop(0, 1, t), "it belongs to NKI 0.6"),
    ],
)
def test_later_calls_in_the_first_release(call, message):
    from trnsim.nki.versions import beta1

    def kernel(x):
        call(beta1, beta1.language.load(x))

    with pytest.raises(CompilerError, match=message):
        trnsim.simulate(beta1.jit(kernel), X.copy())

"""What the compiler of NKI 0.1 refused: each case after the error page of SDK 2.26 that describes it."""

from __future__ import annotations

import functools

import numpy as np
import pytest

import trnsim
from trnsim.errors import CompilerError, HardwareError
from trnsim.nki.versions import beta1 as nki
from trnsim.nki.versions.beta1 import isa as nisa
from trnsim.nki.versions.beta1 import language as nl
from trnsim.nki.versions.beta1 import typing as nt

DATA = np.ones((128, 128), np.float32)


def run(body, **options):
    """Run ``body`` as a kernel; its findings."""
    session = trnsim.Session(trnsim.SimulationOptions(chip="trn2"))
    with session.active():
        nki.jit(body, **options)(DATA.copy())
    return session.calls[-1].findings


def out_like(x):
    return nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)


def sbuf(*shape, dtype=np.float32):
    return nl.zeros(shape, dtype=dtype, buffer=nl.sbuf)


@nki.jit
def inner(x):
    return nl.exp(x)


# -- calls: (error page, what the kernel does with its argument, type, message) ----------------------------------------

CALLS = [
    ("1d_arange_not_supported", lambda x: nl.exp(nl.load(x)[nl.arange(64), 0]), CompilerError, "with 1d arange"),
    ("activation_bias_invalid_type",
     lambda x: nisa.activation(op=nl.exp, data=nl.load(x), bias=nisa.memset((128, 1), 1, dtype=np.int8)),
     CompilerError, "bias of activation must be"),
    ("activation_scale_invalid_type",
     lambda x: nisa.activation(op=nl.exp, data=nl.load(x), scale=nisa.memset((128, 1), 1, dtype=np.float16)),
     CompilerError, "scale of activation must be"),
    ("activation_scale_scalar_or_vector",
     lambda x: nl.exp(nisa.activation(op=nl.exp, data=nl.load(x), scale=sbuf(128, 128))), HardwareError, "scale"),
    ("ambiguous_tensor_truth_value", lambda x: not nl.load(x) > 0, CompilerError, "Cannot evaluate truth value"),
    ("dynamic_control_flow_not_supported", lambda x: bool(nl.load(x[0:1, 0:1])), CompilerError, "dynamic control-flow"),
    ("cannot_assign_to_index", lambda x: nl.mgrid[0:1, 0:8][1].__setitem__((0, 5), 1), CompilerError,
     "'index' tensor does not support item assignment"),
    ("control_flow_condition_depending_on_arange", lambda x: 1 if nl.arange(4)[None, :] > 2 else 0, CompilerError,
     "control flow cannot depend"),
    ("exceed_max_supported_dimension", lambda x: nl.transpose(sbuf(64, 32, 2)), CompilerError,
     r"parameter 'x\[64, 32, 2\]' of 'transpose' exceed max supported number of dimensions of 2"),
    ("failed_to_infer_tile_from_local_tensor",
     lambda x: nl.add(nl.zeros((4, nl.par_dim(8), 8), dtype=nl.float32, buffer=nl.sbuf), 32), CompilerError,
     "one block"),
    ("hbm_tensor_with_init_value_not_supported",
     lambda x: nl.full((3, 128, 512), 1.0, dtype=nl.float32, buffer=nl.private_hbm), CompilerError,
     "Creating HBM tensor with init value is not supported"),
    ("nested_kernel_with_spmd_grid", lambda x: inner[4, 4](nl.load(x)), CompilerError,
     r"Calling kernel with spmd grid \(inner\[4, 4\]\) inside another kernel is not supported"),
    ("num_partition_exceed_arch_limit", lambda x: sbuf(256, 1024), HardwareError, "partition size 256 exceeds 128"),
    ("num_partition_mismatch", lambda x: nisa.tensor_tensor(nl.load(x), sbuf(1, 128), op=nl.add), CompilerError,
     r"mismatch in parameters \(data1\[128, 128\], data2\[1, 128\]\) of 'tensor_tensor'"),
    ("shared_hbm_must_in_kernel_level", out_like, CompilerError, "top level kernel scope.*another function"),
    ("size_of_dimension_exceed_arch_limit", lambda x: nl.exp(nl.transpose(sbuf(128, 512))), HardwareError, "512"),
    ("store_dst_shape_smaller_than_other_shape", lambda x: sbuf(128, 1).__setitem__(..., nl.load(x)), CompilerError,
     r"shape \[128, 1\] of parameter 'a' is smaller than other parameter shapes b\[128, 128\]"),
    ("tensor_access_out_of_bound", lambda x: nl.exp(nl.load(x[0:128, 0:512])), IndexError,
     r"tensor `x` on dimension 1: index range \[0, 511\] exceed dimension size of 128"),
    ("unsupported_expression_in_mask", lambda x: nl.exp(nl.load(x), mask=nl.load(x) > 2), CompilerError,
     "a mask is made of comparisons of index expressions"),
    ("unsupported_memory", lambda x: nl.load(sbuf(4, 4)), CompilerError,
     "Expected operand 'src' of 'load' to be in address space 'hbm', but got a tile in 'sbuf' instead"),
    ("unsupported_memory", nl.exp, CompilerError,
     r"Expected operand 'x' of 'exp' to be in address space 'psum\|sbuf', but got a tile in 'hbm' instead"),
    ("unsupported_memory", lambda x: nl.store(sbuf(4, 4), 1.0), CompilerError, "operand 'dst' of 'store'"),
    ("unsupported_memory", lambda x: nl.add(1.0, x), CompilerError, "operand 'y' of 'add'"),
    ("unsupported_memory", lambda x: nl.sum(x, axis=1), CompilerError, "operand 'x' of 'sum'"),
    ("unsupported_memory", lambda x: nisa.tensor_scalar(x, np.add, 1.0), CompilerError, "'data' of 'tensor_scalar'"),
    ("unsupported_mixing_basic_advanced_tensor_indexing", lambda x: nl.exp(nl.load(x)[nl.arange(4)[:, None], :]),
     CompilerError, "Mixing basic tensor indexing and advanced tensor indexing is not supported"),
]  # fmt: skip


@pytest.mark.parametrize(("page", "call", "error", "message"), CALLS, ids=[c[0] for c in CALLS])
def test_calls(page, call, error, message):
    def kernel(x):
        call(x)

    with pytest.raises(error, match=message) as caught:
        run(kernel)
    if error is not IndexError:
        assert caught.value.location.file == __file__


@pytest.mark.parametrize("call", [lambda: nl.load(DATA), lambda: sbuf(4, 4), lambda: nl.program_id(0)])
def test_nki_api_outside_of_nki_kernel(call):
    with pytest.raises(CompilerError, match="only inside a kernel"):
        call()


# -- parameters --------------------------------------------------------------------------------------------------------


def update(x):
    nl.store(x, nl.load(x) + 1.0)


def update_by_copy(x):
    nisa.dma_copy(dst=x, src=nl.load(x) + 1.0)


def update_by_constant(x):
    nl.store(x[0:1, 0:1], 2.0)


@pytest.mark.parametrize("change", [update, update_by_copy, update_by_constant])
def test_parameters(change):
    def immutable(x):
        change(x)
        return x

    def mutable(x: nt.mutable_tensor):
        change(x)
        return x

    def mutable_by_shape(x: nt.tensor[nt.mutable]):
        change(x)
        return x

    def not_returned(x: nt.mutable_tensor):
        out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
        nl.store(out, nl.load(x))
        change(x)
        return out

    def not_changed(x: nt.mutable_tensor):
        out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
        nl.store(out, nl.load(x))
        return out

    def older_style(x):
        change(x)

    immutable.__annotations__ = {"x": nt.tensor}
    mutable.__annotations__ = {"x": nt.mutable_tensor}
    mutable_by_shape.__annotations__ = {"x": nt.tensor[nt.mutable]}
    for legal in (mutable, mutable_by_shape, not_changed, older_style):
        run(legal)
    with pytest.raises(CompilerError, match="Cannot update immutable parameter `x`") as caught:
        run(immutable)
    assert caught.value.location.function == change.__name__
    with pytest.raises(CompilerError, match="Mutable kernel parameter `x` not returned"):
        run(not_returned)
    run(not_returned, experimental_flags="enable-mutable-parameter, skip-mutable-return-check")


def test_the_truth_value_of_a_parameter_is_reported():
    def kernel(x, bias=None):
        out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
        nl.store(out, nl.load(x) if x and not bias else 0.0)
        return out

    (finding,) = run(kernel)
    assert finding.kind == "tensor-truth-value"
    assert "`is not None`" in finding.message


# -- scopes ------------------------------------------------------------------------------------------------------------


def test_shared_tensors_in_loops():
    def in_affine(x):
        for _ in nl.affine_range(2):
            nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)

    def in_static(x):
        for _ in nl.static_range(2):
            nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)

    def after_a_loop(x):
        for _ in nl.sequential_range(2):
            nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.private_hbm)
        nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)

    @functools.wraps(after_a_loop)
    def wrapper(x):
        return after_a_loop(x)

    run(wrapper)
    run(functools.partial(after_a_loop))
    with pytest.raises(CompilerError, match=r"top level kernel scope.*in a loop"):
        run(in_affine)
    run(in_static)
    run(after_a_loop)

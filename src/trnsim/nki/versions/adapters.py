"""What calls of older releases of NKI do where it is not what the latest release's call of that name does.

Each takes the arguments of its release (``trnsim.releases.signatures``) by keyword. Rules of the hardware that changed
with a release are where the instruction is (``launch.release`` in ``isa/``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from trnsim.errors import CompilerError
from trnsim.isa import control, dma, reductions, scalar, tensor, vector
from trnsim.isa.alu import ACTIVATIONS
from trnsim.isa.constants import dge_mode as DgeMode
from trnsim.isa.constants import dma_engine, reduce_cmd
from trnsim.isa.instruction import NkiInstruction
from trnsim.isa.operators import FP32_MIN
from trnsim.machine import core as machine
from trnsim.machine.form import HBM
from trnsim.machine.tensor import NkiTensor
from trnsim.nki import collectives, language
from trnsim.nki.language.operands import result_dtype, tile
from trnsim.numerics import as_dtype
from trnsim.releases import versions

Adapter = Callable[..., Any]
ADAPTERS: dict[tuple[str, str], Adapter] = {}


def _of(name: str, releases: str) -> Callable[[Adapter], Adapter]:
    """Enter a function as what ``name`` does in these releases."""

    def enter(function: Adapter) -> Adapter:
        for version in versions(releases):
            ADAPTERS[name, version] = function
        return function

    return enter


def _report(kind: str, message: str) -> None:
    core = machine.current()
    core.launch.add_finding(kind, message, core.caller_line())


# -- data movement -----------------------------------------------------------------------------------------------------


@_of("nki.isa.dma_copy", "0.2")
def _dma_copy(
    dst: Any, src: Any, dst_rmw_op: Any, oob_mode: Any, dge_mode: Any, unique_indices: bool, name: str | None
) -> NkiInstruction:
    """With ``dst_rmw_op`` what ``dma_compute`` does since 0.3 (update guide); hwdge did not compare dtypes."""
    if dst_rmw_op is not None:
        return dma.dma_compute(dst, [src, dst], dst_rmw_op, unique_indices=unique_indices, oob_mode=oob_mode, name=name)
    tensors = isinstance(dst, NkiTensor) and isinstance(src, NkiTensor)
    if tensors and not src.size:
        src.storage.full = True  # of a tensor without elements, which only this release has, nothing is unwritten
    if dge_mode is DgeMode.hwdge and tensors and dst.dtype != src.dtype and dst.dtype.itemsize == src.dtype.itemsize:
        _report("raw-bytes", f"hwdge moves the bytes of {src.dtype} to {dst.dtype} as they are; since 0.3 an error")
        src = src.view(dst.dtype)
    return dma.dma_copy(dst, src, oob_mode=oob_mode, dge_mode=dge_mode, name=name)


@_of("nki.isa.dma_transpose", "0.2-0.3")
def _dma_transpose(dst: Any, src: Any, axes: Any, dge_mode: Any, oob_mode: Any, name: str | None) -> NkiInstruction:
    """A destination of lower rank is padded to the shape of the transposed source (release notes of 2.30)."""
    if isinstance(dst, NkiTensor) and isinstance(src, NkiTensor) and dst.ndim < src.ndim and dst.size == src.size:
        order = tuple(axes) if axes is not None else {3: (2, 1, 0), 4: (3, 1, 2, 0)}[src.ndim]
        dst = dst.reshape([src.shape[a] for a in order])
    return dma.dma_transpose(dst, src, axes, dge_mode=dge_mode, oob_mode=oob_mode, name=name)


@_of("nki.isa.sendrecv", "0.2")
def _sendrecv(use_gpsimd_dma: bool, **given: Any) -> NkiInstruction:
    return control.sendrecv(**given, dma_engine=dma_engine.gpsimd_dma if use_gpsimd_dma else dma_engine.dma)


@_of("nki.isa.register_move", "0.2")
def _register_move(dst: Any, imm: Any) -> NkiInstruction:
    return control.register_move(dst, imm)


@_of("nki.isa.memset", "0.2")
def _memset(dst: Any, value: Any, engine: Any, name: str | None) -> NkiInstruction:
    """A float is cast to the integers of ``dst`` (update guide)."""
    whole = isinstance(dst, NkiTensor) and dst.dtype.kind in ("int", "uint")
    if whole and isinstance(value, (float, np.floating)) and np.isfinite(value):
        value = int(value)
    return vector.memset(dst, value, engine, name)


@_of("nki.isa.tensor_copy_dynamic_src", "0.2-0.3")
@_of("nki.isa.tensor_copy_dynamic_dst", "0.2-0.3")
def _tensor_copy_dynamic(dst: Any, src: Any, engine: Any, name: str | None) -> NkiInstruction:
    return vector.tensor_copy(dst, src, engine, name=name)


# -- computing ---------------------------------------------------------------------------------------------------------


@_of("nki.isa.nc_matmul", "0.2")
def _nc_matmul(is_moving_zero: Any, psumAccumulateFlag: Any, **given: Any) -> NkiInstruction:
    """Two keywords that SDK 2.27 had: another name, and one without effect (release notes of 2.28)."""
    del psumAccumulateFlag
    if is_moving_zero is not None:
        given["is_moving_onezero"] = is_moving_zero
    return tensor.nc_matmul(**given)


def _without_dtype(function: Callable[..., Any], short: str) -> Adapter:
    """``dtype`` of public kernels for 0.2, which ignored keywords that it did not know (release notes of 2.28)."""

    def call(dst: Any, dtype: Any, **given: Any) -> Any:
        if dtype is not None and isinstance(dst, NkiTensor) and as_dtype(dtype) != dst.dtype:
            _report(
                "ignored-dtype", f"{short}(dtype={dtype}) has no effect: the result has the dtype of dst, {dst.dtype}"
            )
        return function(dst=dst, **given)

    return call


for _function in (vector.tensor_copy, tensor.nc_transpose, vector.scalar_tensor_tensor):
    _short = _function.instruction.short
    _of(f"nki.isa.{_short}", "0.2")(_without_dtype(_function, _short))


@_of("nki.isa.tensor_reduce", "0.2")
def _tensor_reduce(axis: Any, data: Any, **given: Any) -> Any:
    """``axis=1`` is the last free dimension of any tile (update guide).

    Lists may name the last ones as if there were four free dimensions, ``[4]``, ``[3, 4]``, ...: the front end of that
    time (leanprover/KLR, ``dimsFromPythonDefs``) knew no others, and kernels of nki-library at 0759719 use them.
    """
    listed = list(axis) if isinstance(axis, (tuple, list)) else [axis]
    of_four = isinstance(axis, (tuple, list)) and listed == list(range(5 - len(listed), 5))
    if isinstance(data, NkiTensor) and (listed == [1] or of_four):
        axis = tuple(range(max(1, data.ndim - len(listed)), data.ndim))
    return _without_dtype(reductions.tensor_reduce, "tensor_reduce")(axis=axis, data=data, **given)


@_of("nki.isa.range_select", "0.2")
def _range_select(range_start: Any, on_false_value: Any, **given: Any) -> NkiInstruction:
    """``on_false_value`` is the least float32 and ``reduce_cmd`` reset_reduce, whatever is given (notes of 2.28)."""
    if np.float32(on_false_value) != FP32_MIN or given["reduce_cmd"] is not reduce_cmd.reset_reduce:
        _report(
            "ignored-argument",
            "range_select of NKI 0.2 ignores on_false_value and reduce_cmd: the least float32, reset_reduce",
        )
    given["reduce_cmd"] = reduce_cmd.reset_reduce
    if isinstance(range_start, float) and range_start.is_integer():
        range_start = int(range_start)
    return reductions.range_select(range_start=range_start, **given)


def _early_operators(function: Callable[..., Any], short: str) -> Adapter:
    """``square`` and ``relu`` became operators of VectorE with 0.4 (release notes of 2.30)."""

    def call(op0: Any, **given: Any) -> Any:
        operator = getattr(op0, "__trnsim_op__", "")
        if operator in ("square", "relu"):
            raise CompilerError(
                f"nl.{operator} is op0 of {short} since NKI 0.4; use nisa.activation", instruction=short,
                operand="op0", value=operator,
            )  # fmt: skip
        return function(op0=op0, **given)

    return call


for _function in (vector.tensor_scalar, reductions.tensor_scalar_reduce):
    _short = _function.instruction.short
    _of(f"nki.isa.{_short}", "0.2-0.3")(_early_operators(_function, _short))


# -- nki.language and nki.collectives ----------------------------------------------------------------------------------


def _in_kernels(function: Callable[..., Any]) -> Adapter:
    """None outside of kernels: the functions of 0.2 had no bodies, and its front end knew them by name.

    ``topk`` of nki-library at 0759719 is configured on the host and takes its own number of programs for None.
    """

    def call(**given: Any) -> Any:
        return function(**given) if machine.running() else None

    return call


for _grid in (language.program_id, language.num_programs, language.program_ndim):
    _of(f"nki.language.{_grid.__name__}", "0.2")(_in_kernels(_grid))


@_of("nki.language.copy", "0.3-0.5")
def _copy(x: Any, dtype: Any) -> NkiTensor:
    """ScalarE copies through float32 into the memory that ``x`` is in (stubs of 2.29 to 2.31)."""
    source = tile(x, "nl.copy")
    return _on_scalar_engine("copy", source, dtype)


@_of("nki.language.rsqrt", "0.3-0.4")
def _rsqrt(x: Any, dtype: Any) -> NkiTensor:
    """ScalarE's, which takes PSUM; GpSimdE's since 0.5 (release notes of 2.31)."""
    source = tile(x, "nl.rsqrt")
    return _on_scalar_engine("rsqrt", source, dtype)


def _on_scalar_engine(op: str, source: NkiTensor, dtype: Any) -> NkiTensor:
    if source.memory == HBM:
        raise CompilerError("x must be a tile on chip", instruction=f"nl.{op}", operand="x", value=source.memory)
    result = machine.current().ndarray(source.shape, result_dtype(dtype, source), source.buffer)
    scalar.activation(result, ACTIVATIONS[op], source)
    return result


def par_dim(size: Any) -> Any:
    """``size``: in NKI 0.2 a first dimension may be marked as the partitions still (leanprover/KLR, ``Lang.lean``)."""
    return size


@_of("nki.language.shared_constant", "0.2")
def _shared_constant(constant: Any, dtype: Any) -> Any:
    if dtype is not None and not isinstance(constant, str):
        constant = np.asarray(constant).astype(as_dtype(dtype).numpy)
    return language.shared_constant(constant)


@_of("nki.collectives.collective_permute_implicit_current_processing_rank_id", "0.2")
def _current_rank(num_channels: int, channel_id: int, **given: Any) -> Any:
    """``num_channels`` said how many rings there are; each is computed by itself."""
    if not 0 <= channel_id < num_channels:
        raise CompilerError(
            "channel_id is below num_channels", operand="channel_id", value=channel_id, limit=num_channels
        )
    return collectives.collective_permute_implicit_current_processing_rank_id(channel_id=channel_id, **given)

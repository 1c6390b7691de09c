"""Making tensors: uninitialised, filled, random, constant."""

from __future__ import annotations

import hashlib
import math
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.errors import CompilerError, InputError
from trnsim.isa import dma, vector
from trnsim.isa.alu import ALU
from trnsim.machine import core as machine
from trnsim.machine.core import as_region
from trnsim.machine.form import HBM
from trnsim.machine.tensor import NkiTensor
from trnsim.nki.language.constants import sbuf, shared_hbm, uint8, uint32
from trnsim.nki.language.operands import constant_for, new, number, tile
from trnsim.numerics import as_dtype

if TYPE_CHECKING:
    from collections.abc import Sequence

_STAGE_PARTITIONS, _STAGE_ELEMENTS = 128, 2048  # the SBUF tile that HBM is filled from


def ndarray(
    shape: Sequence[int], dtype: Any, buffer: Any = sbuf, name: str = "", address: tuple[int, int] | None = None
) -> NkiTensor:
    """An uninitialised tensor.

    Args:
        shape: positive sizes; on chip the first is the partitions.
        dtype: its number format.
        buffer: ``nl.sbuf``, ``nl.psum``, ``nl.hbm`` (``nl.private_hbm``) or ``nl.shared_hbm``.
        name: for reports and schedules.
        address: ``(partition, byte in the partition)`` in SBUF or PSUM; None places it automatically.

    Raises:
        CompilerError: outside a kernel, or sizes, dtype or buffer that do not exist.
        HardwareError: more partitions or bytes than the memory has, or an illegal address.
    """
    core = machine._current
    if core is None:
        core = machine.current()
    return core.ndarray(shape, dtype, buffer, name, address)


def zeros(shape: Sequence[int], dtype: Any, buffer: Any = sbuf, name: str = "") -> NkiTensor:
    """A tensor of zeros; arguments as for ``full``."""
    return full(shape, 0, dtype, buffer, name)


def ones(shape: Sequence[int], dtype: Any, buffer: Any = sbuf, name: str = "") -> NkiTensor:
    """A tensor of ones; arguments as for ``full``."""
    return full(shape, 1, dtype, buffer, name)


def full(shape: Sequence[int], fill_value: Any, dtype: Any, buffer: Any = sbuf, name: str = "") -> NkiTensor:
    """A tensor filled with a number: by a memset on chip, in HBM by DMA from a tile in SBUF.

    Raises:
        CompilerError: ``fill_value`` is no number, or a fraction for an integer dtype.
        HardwareError: as ``ndarray``; a packed dtype with a value other than 0.
    """
    result = ndarray(shape, dtype, buffer, name)
    value = number(fill_value)
    if value is None:
        raise CompilerError(
            "fill_value must be a number", instruction="nl.full", operand="fill_value", value=type(fill_value).__name__
        )
    _fill(result, constant_for(value, result.dtype, "nl.full"))
    return result


def _fill(result: NkiTensor, value: float) -> None:
    if result.storage.memory == HBM:
        count = result.size
        columns = min(count, _STAGE_ELEMENTS)
        stage = new((min(_STAGE_PARTITIONS, -(-count // columns)), columns), result.dtype)
        vector.memset(stage, value)
        _store_flat(result, stage)
    else:
        vector.memset(result, value)


def _store_flat(result: NkiTensor, stage: NkiTensor) -> None:
    """Write ``stage`` again and again over the elements of an HBM tensor."""
    flat = result.reshape((result.size,))
    rows, columns = stage.shape
    at = 0
    while at < result.size:
        count = min(rows, (result.size - at) // columns)
        if count:
            dma.dma_copy(flat[at : at + count * columns].reshape((count, columns)), stage[0:count])
            at += count * columns
        else:
            rest = result.size - at
            dma.dma_copy(flat[at:].reshape((1, rest)), stage[0:1, 0:rest])
            at += rest


def zeros_like(x: NkiTensor, dtype: Any = None, buffer: Any = None, name: str = "") -> NkiTensor:
    """Zeros with the shape of ``x``, by default with its dtype and in SBUF."""
    like = _tensor(x, "nl.zeros_like")
    return zeros(like.shape, like.dtype if dtype is None else dtype, sbuf if buffer is None else buffer, name)


def empty_like(x: NkiTensor, dtype: Any = None, buffer: Any = None, name: str = "") -> NkiTensor:
    """An uninitialised tensor with the shape of ``x``, by default with its dtype and buffer."""
    like = _tensor(x, "nl.empty_like")
    return ndarray(like.shape, like.dtype if dtype is None else dtype, like.buffer if buffer is None else buffer, name)


def _tensor(x: Any, function: str) -> NkiTensor:
    machine.current()
    if not isinstance(x, NkiTensor):
        raise CompilerError("x must be a tensor", instruction=function, operand="x", value=type(x).__name__)
    return x


# -- random numbers ----------------------------------------------------------------------------------------------------

_MANTISSA_SHIFT, _MANTISSA_STEP = 8, 2.0**-24


def rand(shape: Sequence[int], dtype: Any, buffer: Any = sbuf, name: str = "") -> NkiTensor:
    """A tensor of random numbers, uniform in [0, 1).

    VectorE makes 32 random bits an element; the upper 24 become a multiple of 2**-24, which is rounded to ``dtype``.

    Raises:
        CompilerError: an integer dtype.
        HardwareError: as ``ndarray``.
    """
    from trnsim.nki import isa

    kind = as_dtype(dtype)
    if kind.kind != "float":
        raise CompilerError("random numbers need a float dtype", instruction="nl.rand", operand="dtype", value=kind)
    result = ndarray(shape, kind, buffer, name)
    if as_region(buffer).memory == HBM:
        sizes = result.shape
        rows = result.reshape((math.prod(sizes[:-1]), sizes[-1]))
        for start in range(0, rows.shape[0], _STAGE_PARTITIONS):
            part = rows[start : min(start + _STAGE_PARTITIONS, rows.shape[0])]
            dma.dma_copy(part, rand(part.shape, kind))
        return result
    bits = new(result.shape, uint32)
    rng: Any = isa.rng
    rng(bits)
    vector.tensor_scalar(bits, bits, ALU["right_shift"], _MANTISSA_SHIFT)
    vector.tensor_scalar(result, bits, ALU["multiply"], _MANTISSA_STEP)
    return result


def random_seed(seed: NkiTensor) -> None:
    """Seed the random numbers of ``nl.rand`` with a (1, 1) tile of 32 bits.

    Raises:
        CompilerError: ``seed`` is no tensor.
        HardwareError: it is in HBM, or of another size.
    """
    from trnsim.nki import isa

    set_rng_seed: Any = isa.set_rng_seed
    set_rng_seed(tile(seed, "nl.random_seed", "seed"))


# -- constants ---------------------------------------------------------------------------------------------------------


def _constant(data: np.ndarray[Any, Any], name: str) -> NkiTensor:
    """``data`` in shared HBM; equal constants of a launch are one storage, which all its cores see."""
    core = machine.current()
    constants = core.launch.cores[0].state.setdefault("constants", {})
    key = (str(data.dtype), data.shape, hashlib.blake2b(np.ascontiguousarray(data).tobytes()).digest())
    known = constants.get(key)
    if known is None:
        known = constants[key] = core.constant(np.array(data), shared_hbm, name)
    return known  # type: ignore[no-any-return]


def shared_constant(constant: Any) -> NkiTensor:
    """A tensor in shared HBM that holds a NumPy array, or the array of a ``.npy`` file, from the start.

    Raises:
        CompilerError: outside a kernel, or ``constant`` is neither an array nor a path.
        InputError: a file that is not there, or a dtype that NKI does not have.
    """
    machine.current()
    if isinstance(constant, (str, os.PathLike)):
        try:
            data = np.load(constant, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(f"nl.shared_constant cannot read {os.fspath(constant)}: {error}") from error
    elif isinstance(constant, np.ndarray):
        data = constant
    else:
        raise CompilerError(
            "constant must be a NumPy array or the path of a .npy file",
            instruction="nl.shared_constant",
            operand="constant",
            value=type(constant).__name__,
        )
    return _constant(data, "")


def shared_identity_matrix(n: int, dtype: Any = uint8, dst: NkiTensor | None = None) -> NkiTensor:
    """The identity matrix ``(n, n)`` in SBUF.

    It is a constant in HBM, which each core loads by DMA once for each ``n`` and ``dtype`` and uses again; with ``dst``
    it is loaded into that tile.

    Raises:
        HardwareError: ``n`` exceeds the partitions.
    """
    core = machine.current()
    kind = as_dtype(dtype if dst is None else dst.dtype)
    key = f"identity {n} {kind}"
    if dst is None and key in core.state:
        return core.state[key]  # type: ignore[no-any-return]
    target = new((n, n), kind) if dst is None else dst
    dma.dma_copy(target, _constant(np.eye(n, dtype=np.float32).astype(kind.numpy), f"identity_{n}_{kind}"))
    if dst is None:
        core.state[key] = target
    return target

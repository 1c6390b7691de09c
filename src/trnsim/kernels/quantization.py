"""Quantisation to 8-bit floats: a scale a row, a scale a tensor, and MXFP8 with a scale for each 32 elements."""

from __future__ import annotations

from typing import Any

from trnsim import nki
from trnsim.kernels.contract import Axis, Contract, Limit, Problem
from trnsim.kernels.elementwise import flat_tiles, flat_view, load_flat
from trnsim.kernels.reductions import over_partitions
from trnsim.kernels.shapes import array, flat_axis, item, moved, row_limits, rows_axis
from trnsim.kernels.tiles import (
    FLAT,
    PARTITIONS,
    check_format,
    check_width,
    filled,
    item_bytes,
    load_group,
    over_cores,
    own_groups,
    pieces,
    share,
    store_group,
)
from trnsim.nki import isa as nisa
from trnsim.nki import language as nl
from trnsim.numerics import as_dtype

# What a tensor of zeros is taken to reach, so that its scale has an inverse.
LEAST = 1e-30
# Bytes a partition of a tensor that stays in SBUF between finding its scale and applying it.
KEPT_BYTES = 96 * 1024
# Columns of a tile of MXFP8: its four rows a partition and their copy fill a quarter of SBUF each two times.
MX_COLUMNS = 4096


def _largest(kind: Any) -> float:
    """The largest number of an 8-bit format."""
    if kind == nl.float8_e4m3:
        return 240.0
    if kind == nl.float8_e4m3fn:
        return 448.0
    assert kind == nl.float8_e5m2, f"no quantisation to {kind}: there are float8_e4m3, float8_e4m3fn and float8_e5m2"
    return 57344.0


def _magnitudes(data: Any) -> Any:
    """The largest magnitude of each row of a group [lanes, count, width], float32 [lanes, count]."""
    lanes, count = data.shape[0], data.shape[1]
    # In the format of the data, where VectorE is up to four times as fast.
    sizes = nl.ndarray(data.shape, dtype=data.dtype, buffer=nl.sbuf)
    nisa.tensor_scalar(dst=sizes, data=data, op0=nl.abs, operand0=None, engine=nisa.engine.vector)
    high = nl.ndarray((lanes, count), dtype=data.dtype, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=high, op=nl.maximum, data=sizes, axis=2)
    result = nl.ndarray((lanes, count), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(dst=result, src=high, engine=nisa.engine.vector)
    return result


def _scales(magnitudes: Any, kind: Any) -> tuple[Any, Any]:
    """(largest magnitude / largest number of the format, its inverse)."""
    scale = nl.ndarray(magnitudes.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_scalar(
        dst=scale, data=magnitudes, op0=nl.maximum, operand0=LEAST, op1=nl.multiply, operand1=1.0 / _largest(kind)
    )
    inverse = nl.ndarray(magnitudes.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.reciprocal(dst=inverse, data=scale)
    return scale, inverse


@nki.jit
def quantize_rows(x: Any, kind: Any = nl.float8_e4m3) -> Any:
    """Each row divided by a scale that takes its largest magnitude to the largest number of the format.

    Args:
        x: [rows, width] in HBM, float32, bfloat16 or float16. A row has 32 KiB at most.
        kind: ``nl.float8_e4m3`` (largest 240), ``nl.float8_e4m3fn`` (448) or ``nl.float8_e5m2`` (57344).

    Returns:
        ([rows, width] of that format, [rows] float32 scales): x is about their product. Two cores share the rows.
    """
    assert len(x.shape) == 2, f"x is {tuple(x.shape)}: it must be [rows, width]"
    check_format("x", x.dtype)
    rows, width = x.shape
    check_width(width, x.dtype)
    result = nl.ndarray(x.shape, dtype=kind, buffer=nl.shared_hbm)
    scales = nl.ndarray((rows,), dtype=nl.float32, buffer=nl.shared_hbm)
    for start, lanes, count in own_groups(x):
        data = load_group(x, start, lanes, count)
        scale, inverse = _scales(_magnitudes(data), kind)
        out = nl.ndarray(data.shape, dtype=kind, buffer=nl.sbuf)
        for row in range(count):
            nisa.activation(dst=out[:, row, :], op=nl.copy, data=data[:, row, :], scale=inverse[:, row : row + 1])
        store_group(result, start, out)
        nisa.dma_copy(dst=scales[start : start + lanes * count].reshape((lanes, count)), src=scale)
    return result, scales


@nki.jit
def quantize_tensor(x: Any, kind: Any = nl.float8_e4m3) -> Any:
    """A tensor divided by one scale that takes its largest magnitude to the largest number of the format.

    Args:
        x: of any shape in HBM, float32, bfloat16 or float16. What a core has of it is read once if that is 96 KiB a
            partition at most, else twice.
        kind: as ``quantize_rows`` takes.

    Returns:
        (the shape of x in that format, [1] float32 scale). Two cores share the elements.
    """
    check_format("x", x.dtype)
    result = nl.ndarray(x.shape, dtype=kind, buffer=nl.shared_hbm)
    scales = nl.ndarray((1,), dtype=nl.float32, buffer=nl.shared_hbm)
    tiles = flat_tiles(x)
    keep = len(tiles) * FLAT * item_bytes(x.dtype) <= KEPT_BYTES
    kept = []
    parts = filled((PARTITIONS, max(1, len(tiles))), 0.0)
    for index, tile in enumerate(tiles):
        data = load_flat(x, tile)
        found = _magnitudes(data.reshape((tile[1], 1, tile[2])))
        nisa.tensor_copy(dst=parts[0 : tile[1], index : index + 1], src=found)
        if keep:
            kept.append(data)
    single = over_cores(over_partitions(parts, "max"), nl.maximum, 0)
    # To all partitions: a product with a row of ones.
    spread = nl.ndarray((PARTITIONS, 1), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(dst=spread, stationary=filled((1, PARTITIONS), 1.0), moving=single)
    largest = nl.ndarray((PARTITIONS, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(dst=largest, src=spread)
    scale, inverse = _scales(largest, kind)
    for index, tile in enumerate(tiles):
        data = kept[index] if keep else load_flat(x, tile)
        out = nl.ndarray(data.shape, dtype=kind, buffer=nl.sbuf)
        nisa.activation(dst=out, op=nl.copy, data=data, scale=inverse[0 : tile[1], :])
        nisa.dma_copy(dst=flat_view(result, tile), src=out)
    if nl.program_id(0) == 0:
        nisa.dma_copy(dst=scales.reshape((1, 1)), src=scale[0:1, :])
    return result, scales


@nki.jit
def quantize_mxfp8(x: Any, kind: Any = nl.float8_e4m3fn_x4) -> Any:
    """MXFP8 along the first dimension, as ``nc_matmul_mx`` contracts it. NeuronCore-v4 only.

    Args:
        x: [K, N] in HBM, bfloat16 or float16; K a multiple of 128.
        kind: ``nl.float8_e4m3fn_x4`` or ``nl.float8_e5m2_x4``.

    Returns:
        ([K / 4, N] packed, [K / 32, N] uint8): element (p, n) packs x[4 p : 4 p + 4, n], scale (g, n) is that of
        x[32 g : 32 g + 32, n]. Two cores share the columns.
    """
    assert len(x.shape) == 2, f"x is {tuple(x.shape)}: it must be [K, N]"
    assert x.dtype in (nl.bfloat16, nl.float16), f"x is {x.dtype}: MXFP8 is made of bfloat16 and float16"
    depth, width = x.shape
    assert depth % 128 == 0, f"K is {depth}: it must be a multiple of 128"
    result = nl.ndarray((depth // 4, width), dtype=kind, buffer=nl.shared_hbm)
    scales = nl.ndarray((depth // 32, width), dtype=nl.uint8, buffer=nl.shared_hbm)
    rows = x.reshape((depth // 4, 4, width))
    first, last = share(width, 4)
    for at, size in pieces(first, last, MX_COLUMNS):
        for start, lanes in pieces(0, depth // 4, PARTITIONS):
            data = nl.ndarray((lanes, 4, size), dtype=x.dtype, buffer=nl.sbuf)
            nisa.dma_copy(dst=data, src=rows[start : start + lanes, :, at : at + size])
            beside = nl.ndarray((lanes, size, 4), dtype=x.dtype, buffer=nl.sbuf)
            nisa.tensor_copy(dst=beside.permute((0, 2, 1)), src=data, engine=nisa.engine.vector)
            packed = nl.ndarray((lanes, size), dtype=kind, buffer=nl.sbuf)
            found = nl.ndarray((lanes, size), dtype=nl.uint8, buffer=nl.sbuf)
            nisa.quantize_mx(dst=packed, src=beside.reshape((lanes, size * 4)), dst_scale=found)
            nisa.dma_copy(dst=result[start : start + lanes, at : at + size], src=packed)
            for quadrant in range(0, lanes, 32):
                group = (start + quadrant) // 8
                nisa.dma_copy(dst=scales[group : group + 4, at : at + size], src=found[quadrant : quadrant + 4, :])
    return result, scales


_BEFORE_V4 = ("float8_e4m3", "float8_e5m2")


def _x(problem: Problem, first: str = "rows", second: str = "width") -> Any:
    return array(problem.sizes[first], problem.sizes[second], dtype=problem.dtype)


def _keeps(problem: Problem) -> Any:
    return problem.sizes["rows"] * problem.sizes["width"] <= _kept_elements(problem)


def _kept_elements(problem: Problem) -> int:
    return KEPT_BYTES // (FLAT * item(problem)) * PARTITIONS * FLAT * problem.cores


def _tensor_axes(problem: Problem) -> tuple[Axis, ...]:
    kept = _kept_elements(problem) // problem.sizes["width"]
    return flat_axis(problem, high=int(kept)) if _keeps(problem) else flat_axis(problem, low=int(kept) + 1)


def _mx_axes(problem: Problem) -> tuple[Axis, ...]:
    return (
        Axis("k", 4 * PARTITIONS, 8 * PARTITIONS, low=128, grain=128, first=2, far=32),
        Axis("n", 512 * problem.cores, MX_COLUMNS * problem.cores, low=128, grain=128, far=8),
    )


CONTRACTS = (
    Contract(
        name="quantize_rows",
        kernel=quantize_rows,
        sizes=("rows", "width"),
        fixed=("width",),
        options={"kind": _BEFORE_V4},
        limits=row_limits,
        arguments=lambda p: (_x(p), as_dtype(p.options["kind"])),
        axes=lambda p: rows_axis(p, p.sizes["width"]),
        flops=lambda p: 3 * p.sizes["rows"] * p.sizes["width"],
        bytes=lambda p: p.sizes["rows"] * (p.sizes["width"] * (item(p) + 1) + 4),
        summary="8-bit floats with a scale a row",
    ),
    Contract(
        name="quantize_tensor",
        kernel=quantize_tensor,
        sizes=("rows", "width"),
        fixed=("width",),
        options={"kind": _BEFORE_V4},
        regime=lambda p: (_keeps(p),),
        arguments=lambda p: (_x(p), as_dtype(p.options["kind"])),
        axes=_tensor_axes,
        flops=lambda p: 3 * p.sizes["rows"] * p.sizes["width"],
        bytes=lambda p: p.sizes["rows"] * p.sizes["width"] * (item(p) + 1),
        summary="8-bit floats with one scale",
    ),
    Contract(
        name="quantize_mxfp8",
        kernel=quantize_mxfp8,
        sizes=("k", "n"),
        dtypes={"v2": (), "v3": (), "v4": ("bfloat16", "float16")},
        options={"kind": ("float8_e4m3fn_x4", "float8_e5m2_x4")},
        limits=lambda _: {"k": Limit(low=128, multiple=128)},
        arguments=lambda p: (_x(p, "k", "n"), as_dtype(p.options["kind"])),
        axes=_mx_axes,
        flops=lambda p: 3 * p.sizes["k"] * p.sizes["n"],
        bytes=lambda p: moved(p, p.sizes["k"] * p.sizes["n"]) + p.sizes["k"] * p.sizes["n"] * 33 // 32,
        summary="MXFP8 along the first dimension, with a scale for each 32 elements",
    ),
)

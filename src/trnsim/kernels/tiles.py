"""What the kernels share: pieces of a dimension, rows in partitions, sums over partitions.

A group of rows is up to 128 partitions of the same number of consecutive rows, so that what a partition loads or stores
is contiguous in HBM: short rows travel together in descriptors of ``GROUP_BYTES``, long ones alone.
"""

from __future__ import annotations

from typing import Any

from trnsim.nki import isa as nisa
from trnsim.nki import language as nl

PARTITIONS = 128
# Bytes a partition of a group of rows: two packets of the DMA engines, so that what a DMA costs besides is little.
GROUP_BYTES = 8 * 1024
# Elements a partition of a tile where rows do not matter: 8 KiB of the widest format.
FLAT = 2048
# Bytes a partition of tiles that are loaded ahead, and of what they are needed for: two thirds of NeuronCore-v2's SBUF.
AHEAD_BYTES = 120 * 1024
# Elements of a row that a partition takes at least: 64 bytes of the narrowest format, less is slow to move.
LEAST_PART = 32
# Bytes of the longest row: four such rows, loaded while others are computed, fill most of NeuronCore-v2's SBUF.
ROW_BYTES = 32 * 1024


def pieces(first: int, last: int, size: int) -> list[tuple[int, int]]:
    """(start, length) of pieces of at most ``size`` from ``first`` to ``last``."""
    return [(at, min(size, last - at)) for at in range(first, last, size)]


def even_pieces(begin: int, end: int, most: int, step: int) -> list[tuple[int, int]]:
    """(start, length) of as few pieces as have ``most`` at most, of about one length, multiples of ``step``."""
    steps, count = -(-(end - begin) // step), -(-(end - begin) // most)
    found, at = [], begin
    for number in range(count):
        after = min(end, begin + (number + 1) * steps // count * step)
        found.append((at, after - at))
        at = after
    return found


def share(total: int, step: int) -> tuple[int, int]:
    """The part of ``total`` that is this core's, a multiple of ``step`` where there are several."""
    cores = nl.num_programs(0)
    part = -(-total // (cores * step)) * step if cores > 1 else total
    first = min(total, nl.program_id(0) * part)
    return first, min(total, first + part)


def item_bytes(dtype: Any) -> int:
    """Bytes of an element."""
    if dtype in (nl.float32, nl.int32, nl.uint32):
        return 4
    return 2 if dtype in (nl.bfloat16, nl.float16, nl.int16, nl.uint16) else 1


def check_format(name: str, dtype: Any) -> None:
    """Refuse what is not float32, bfloat16 or float16."""
    known = dtype in (nl.float32, nl.bfloat16, nl.float16)
    assert known, f"{name} is {dtype}: the kernel takes float32, bfloat16 and float16"


def check_rows(name: str, tensor: Any, shape: Any, dtype: Any) -> None:
    """Refuse a tensor that has not this shape and format."""
    assert tuple(tensor.shape) == tuple(shape), f"{name} is {tuple(tensor.shape)}: it must be {tuple(shape)}"
    assert tensor.dtype == dtype, f"{name} is {tensor.dtype}: it must be {dtype}"


def check_norm(x: Any, weight: Any) -> None:
    """Refuse what is no [rows, width] that fits, and a weight that is not of its width and format."""
    assert len(x.shape) == 2, f"x is {tuple(x.shape)}: it must be [rows, width]"
    check_format("x", x.dtype)
    check_rows("weight", weight, (x.shape[1],), x.dtype)
    check_width(x.shape[1], x.dtype)


def check_width(width: int, dtype: Any) -> None:
    """Refuse rows that SBUF cannot hold beside their results."""
    limit = ROW_BYTES // item_bytes(dtype)
    assert width <= limit, f"rows have {width} elements of {dtype}: SBUF holds up to {limit}"


def row_groups(first: int, last: int, width: int, dtype: Any) -> list[tuple[int, int, int]]:
    """(first row, partitions, rows a partition) of groups from ``first`` to ``last``."""
    count = max(1, GROUP_BYTES // (width * item_bytes(dtype)))
    groups = []
    at = first
    while at < last:
        rows = min(count, (last - at) // PARTITIONS)
        if rows == 0:
            groups.append((at, last - at, 1))
            at = last
        else:
            groups.append((at, PARTITIONS, rows))
            at = at + PARTITIONS * rows
    return groups


def own_groups(tensor: Any) -> list[tuple[int, int, int]]:
    """Groups of this core's part of the rows of a tensor, [rows, width]."""
    first, last = share(tensor.shape[0], PARTITIONS)
    return row_groups(first, last, tensor.shape[1], tensor.dtype)


def group_of(tensor: Any, start: int, lanes: int, count: int) -> Any:
    """A group of rows of a tensor in HBM, [lanes, count, width]."""
    return tensor[start : start + lanes * count, :].reshape((lanes, count, tensor.shape[1]))


def load_group(tensor: Any, start: int, lanes: int, count: int) -> Any:
    """A group of rows in SBUF, [lanes, count, width]."""
    tile = nl.ndarray((lanes, count, tensor.shape[1]), dtype=tensor.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=group_of(tensor, start, lanes, count))
    return tile


def load_ahead(loaded: list[Any], groups: list[tuple[int, int, int]], until: int, tensors: list[Any]) -> None:
    """Load groups of each of ``tensors`` until ``until`` of them are loaded or on their way."""
    for start, lanes, count in groups[len(loaded) : until]:
        loaded.append([load_group(tensor, start, lanes, count) for tensor in tensors])


def groups_ahead(width: int, dtype: Any, loads: int, others: int) -> int:
    """How many groups of rows to load before they are needed, two at most: no load waits behind a store then.

    As many as SBUF holds of ``loads`` tiles a group, beside one group and ``others`` tiles of that size.
    """
    size = max(1, GROUP_BYTES // (width * item_bytes(dtype))) * width * item_bytes(dtype)
    return max(0, min(2, (AHEAD_BYTES // size - loads - others) // loads))


def store_group(tensor: Any, start: int, tile: Any) -> None:
    """What ``load_group`` loads, written back."""
    nisa.dma_copy(dst=group_of(tensor, start, tile.shape[0], tile.shape[1]), src=tile)


def load_to_all(vector: Any, parts: int = 1) -> Any:
    """A vector [width] of HBM in every partition, or in as many as ``parts``, again and again: [128, width / parts]."""
    width = vector.shape[0] // parts
    tile = nl.ndarray((PARTITIONS, width), dtype=vector.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=vector.ap(pattern=[[0, PARTITIONS // parts], [width, parts], [1, width]]))
    return tile


def parts_of_rows(rows: int, width: int) -> int:
    """How many partitions a row takes: 1, or, where 64 rows a core or fewer leave partitions idle, a power of two."""
    each = -(-rows // nl.num_programs(0))
    parts = 1
    while 2 * parts * each <= PARTITIONS and width % (2 * parts) == 0 and width // (2 * parts) >= LEAST_PART:
        parts *= 2
    return parts


def in_parts(tensor: Any, parts: int) -> Any:
    """Rows in HBM, each as ``parts`` rows."""
    return tensor.reshape((tensor.shape[0] * parts, tensor.shape[1] // parts))


def mean_of_parts(parts: int) -> Any:
    """The matrix whose product with a column is, in each partition, the mean over the parts of its row; None for 1."""
    if parts == 1:
        return None
    matrix = filled((PARTITIONS, PARTITIONS // parts, parts), 1.0 / parts)
    kept = nl.ndarray(matrix.shape, dtype=nl.float32, buffer=nl.sbuf)
    # Kept where partition - parts * row is 0 to parts - 1.
    for sign, offset in ((1, 0), (-1, parts - 1)):
        nisa.affine_select(
            dst=kept,
            pattern=[[-sign * parts, PARTITIONS // parts], [0, parts]],
            offset=offset,
            channel_multiplier=sign,
            on_true_tile=matrix,
            on_false_value=0.0,
            cmp_op=nl.greater_equal,
        )
        matrix = kept
    return kept.reshape((PARTITIONS, PARTITIONS))


def over_parts(columns: Any, mean: Any) -> Any:
    """``mean`` of ``mean_of_parts`` times [lanes, count] float32, in PSUM; the columns themselves where it is None."""
    if mean is None:
        return columns
    lanes = columns.shape[0]
    result = nl.ndarray(columns.shape, dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(dst=result, stationary=mean[0:lanes, 0:lanes], moving=columns)
    return result


def filled(shape: Any, value: float, dtype: Any = nl.float32) -> Any:
    """A tile in SBUF that holds ``value``."""
    tile = nl.ndarray(shape, dtype=dtype, buffer=nl.sbuf)
    nisa.memset(dst=tile, value=value)
    return tile


def column_totals(width: int) -> Any:
    """Where ``add_columns`` adds up: [128, blocks of 128 columns] in PSUM."""
    blocks = -(-width // PARTITIONS)
    assert blocks <= 512, f"sums of {width} columns: a bank of PSUM holds 65536"
    return nl.ndarray((PARTITIONS, blocks), dtype=nl.float32, buffer=nl.psum)


def add_columns(totals: Any, rows: Any, weights: Any) -> None:
    """Add each column of ``rows``, [lanes, width], weighted by ``weights``, [lanes, 1] of the same format.

    On TensorE, which transposes on the way: column 128 b + p is summed in partition p, block b.
    """
    for block, (at, size) in enumerate(pieces(0, rows.shape[1], PARTITIONS)):
        nisa.nc_matmul(dst=totals[0:size, block : block + 1], stationary=rows[:, at : at + size], moving=weights)


def store_columns(result: Any, totals: Any, own: bool, pipe: int, factor: float = 1.0) -> None:
    """The sums over all rows of both cores, times ``factor``, to ``result``, [width].

    Args:
        own: whether this core has added anything.
        pipe: number of the exchange between cores, different for each call in a kernel.
    """
    width = result.shape[0]
    full, rest = width // PARTITIONS, width % PARTITIONS
    sums = filled((PARTITIONS, full + (rest > 0)), 0.0)
    if own and full:
        nisa.tensor_copy(dst=sums[:, 0:full], src=totals[:, 0:full])
    if own and rest:
        nisa.tensor_copy(dst=sums[0:rest, full : full + 1], src=totals[0:rest, full : full + 1])
    sums = over_cores(sums, nl.add, pipe)
    if factor != 1.0:
        nisa.tensor_scalar(dst=sums, data=sums, op0=nl.multiply, operand0=factor)
    write_columns(result, sums)


def write_columns(result: Any, values: Any) -> None:
    """One core writes ``values``, [128, blocks] as ``add_columns`` lays columns out, to ``result``, [width]."""
    if nl.program_id(0) > 0:
        return
    width = result.shape[0]
    full, rest = width // PARTITIONS, width % PARTITIONS
    for at, size in pieces(0, values.shape[1], PARTITIONS):
        turned = nl.ndarray((size, PARTITIONS), dtype=nl.float32, buffer=nl.psum)
        nisa.nc_transpose(dst=turned, data=values[:, at : at + size], engine=nisa.engine.tensor)
        rows = nl.ndarray((size, PARTITIONS), dtype=result.dtype, buffer=nl.sbuf)
        nisa.tensor_copy(dst=rows, src=turned)
        whole = min(size, full - at)
        if whole:
            here = result[at * PARTITIONS : (at + whole) * PARTITIONS].reshape((whole, PARTITIONS))
            nisa.dma_copy(dst=here, src=rows[0:whole, :])
        if whole < size:
            here = result[full * PARTITIONS : width].reshape((1, rest))
            nisa.dma_copy(dst=here, src=rows[whole : whole + 1, 0:rest])


def over_cores(tile: Any, op: Any, pipe: int) -> Any:
    """``tile`` of both cores combined by ``op``, on each of them; the tile itself where there is one core."""
    if nl.num_programs(0) == 1:
        return tile
    other = nl.ndarray(tile.shape, dtype=tile.dtype, buffer=nl.sbuf)
    peer = 1 - nl.program_id(0)
    nisa.sendrecv(src=tile, dst=other, send_to_rank=peer, recv_from_rank=peer, pipe_id=pipe)
    both = nl.ndarray(tile.shape, dtype=tile.dtype, buffer=nl.sbuf)
    nisa.tensor_tensor(dst=both, data1=tile, data2=other, op=op)
    return both

"""Attention of many queries (prefill): softmax(scale Q K^T + mask) V, without the scores in HBM.

128 queries pass over all their keys twice. The first pass finds each query's largest score; NeuronCore-v4 writes its
products in bfloat16, which VectorE reduces at twice the rate, as softmax only needs a number near the largest. The
second computes the scores again, and ScalarE their exponentials and sums; these are transposed, by the DMA engines
where they can and else by TensorE, and multiplied with V. So nothing is ever scaled again. The first pass of the next
queries runs beside the second. Masks are added by TensorE, as a product with the identity, only where an edge crosses.
"""

from __future__ import annotations

from typing import Any

from trnsim import nki
from trnsim.nki import isa as nisa
from trnsim.nki import language as nl

ROWS = 128
LOAD = 2048  # keys of a tile
SCAN_BYTES = 4096  # of products of a step of the first pass: two banks of PSUM
STEP = 1024  # keys of a step of the second pass: two banks of PSUM
AHEAD = 3  # steps of the second pass between a transposition and the product that needs it
BANK = 512  # columns of a product
SIXTEEN = 16  # rows that DMA engines transpose at a time
# Bytes a partition that the keys and values of a head may take in SBUF; longer ones are loaded for each 128 queries.
KEPT_BYTES = 136 * 1024
MASKED = -1e30


class Block(nl.NKIObject):
    """Queries ``first`` to ``first + rows`` of a head, at ``position`` among the keys; they see keys low to high."""

    head: int
    number: int
    first: int
    rows: int
    position: int
    low: int
    high: int
    scale: float
    window: int
    causal: bool
    tiles: Any
    keys: Any
    shift: Any
    scans: Any
    largest: Any
    steps: Any
    sums: Any
    output: Any
    totals: Any
    shifts: Any


class _Keys(nl.NKIObject):
    """Keys and values of a head: tiles of 2,048 where they stay in SBUF, none where they are loaded as needed."""

    k: Any
    v: Any
    head: int
    key_tiles: Any
    value_tiles: Any


class Masks(nl.NKIObject):
    """What is added to scores, by distance of the first query from the first key, and the identity."""

    identity: Any
    made: Any


@nki.jit
def attention(
    q: Any,
    k: Any,
    v: Any,
    scale: float = 1.0,
    causal: bool = False,
    window: int = 0,
    first_query: int = 0,
    with_lse: bool = False,
) -> Any:
    """Attention of each query head.

    Args:
        q: [heads, D, queries] in HBM, bfloat16, float16 or float32; the heads of all sequences in a row. D <= 256.
        k: [key heads, D, keys] of that format. Each key head serves heads / key heads successive heads.
        v: [key heads, keys, E] of that format. E <= 512.
        scale: of the scores, positive.
        causal: query i sees keys up to first_query + i.
        window: with ``causal``, a query sees the last ``window`` of them only; 0: all.
        first_query: position of query 0 among the keys.
        with_lse: return the logarithm of the sum of exponentials of the scaled scores too.

    Returns:
        [heads, queries, E] in the format of q; with ``with_lse`` also [heads, queries] in float32.
    """
    check(q, k, v, scale, causal, window, first_query)
    heads, _, queries = q.shape
    key_heads, _, keys = k.shape
    result = nl.ndarray((heads, queries, v.shape[2]), dtype=q.dtype, buffer=nl.shared_hbm)
    lse = nl.ndarray((heads, queries), dtype=nl.float32, buffer=nl.shared_hbm) if with_lse else None
    masks = Masks(identity=identity(nl.bfloat16), made={})
    cores, core = nl.num_programs(0), nl.program_id(0)
    by_head = heads % cores == 0
    count = -(-queries // ROWS)
    loaded = _Keys(head=-1)
    before = None
    waiting: list[Any] = []  # steps whose exponentials are on their way through a transposition
    for number in range(heads // cores if by_head else heads):
        head = core * (heads // cores) + number if by_head else number
        if head // (heads // key_heads) != loaded.head:
            loaded = _keys(k, v, head // (heads // key_heads))
        totals = shifts = None
        if with_lse:
            totals = nl.ndarray((ROWS, count), dtype=nl.float32, buffer=nl.sbuf)
            shifts = nl.ndarray((ROWS, count), dtype=nl.float32, buffer=nl.sbuf)
            nisa.memset(dst=totals, value=1.0)
            nisa.memset(dst=shifts, value=0.0)
        own: list[Any] = []
        own_chunk = -1
        for index in range(count):
            if not by_head and index % cores != core:
                continue
            first = index * ROWS
            rows = min(ROWS, queries - first)
            if first // LOAD != own_chunk:  # queries of 16 blocks at once: a small load waits behind transpositions
                own_chunk = first // LOAD
                own = depth_tiles(q, head, own_chunk * LOAD, min(LOAD, queries - own_chunk * LOAD))
            low, high = 0, keys
            if causal:
                high = first_query + first + rows
                if window:
                    low = max(0, first_query + first - window + 1) // ROWS * ROWS
            block = Block(
                head=head, number=index, first=first, rows=rows, position=first_query + first, low=low, high=high,
                scale=scale, window=window, causal=causal, keys=loaded, totals=totals, shifts=shifts,
                tiles=[tile[:, first % LOAD : first % LOAD + rows] for tile in own],
            )  # fmt: skip
            _begin(block)
            _advance(block, before, masks, waiting, result)
            before = block
        if with_lse:
            _advance(None, before, masks, waiting, result)
            _finish(waiting, 0, result)
            before = None
            _store_lse(lse, head, totals, shifts, queries, by_head, cores, core)
    _advance(None, before, masks, waiting, result)
    _finish(waiting, 0, result)
    return (result, lse) if with_lse else result


def _advance(block: Any, before: Any, masks: Masks, waiting: list[Any], result: Any) -> None:
    """The first pass of ``block`` beside the second of ``before``; products follow transpositions."""
    scans = len(block.scans) if block is not None else 0
    steps = len(before.steps) if before is not None else 0
    for number in range(max(scans, steps)):
        if number < steps:
            waiting.append((before, number, _weigh(before, masks, number, result.dtype)))
        if number < scans:
            _scan(block, masks, number)
        _finish(waiting, AHEAD, result)


def _finish(waiting: list[Any], keep: int, result: Any) -> None:
    while len(waiting) > keep:
        block, number, turned = waiting.pop(0)
        _multiply(block, number, turned, result)


def check(q: Any, k: Any, v: Any, scale: float, causal: bool, window: int, first_query: int) -> None:
    """The contract of shapes."""
    heads, depth, queries = q.shape
    key_heads, _, keys = k.shape
    assert depth <= 256, f"head dimension {depth} exceeds 256"
    assert k.shape[1] == depth, f"q has head dimension {depth}, k {k.shape[1]}"
    assert heads % key_heads == 0, f"{heads} heads are no multiple of {key_heads} key heads"
    assert (v.shape[0], v.shape[1]) == (key_heads, keys), f"v is {v.shape}, k has {key_heads} heads of {keys} keys"
    assert v.shape[2] <= 512, f"values of {v.shape[2]} elements exceed 512"
    assert scale > 0, f"scale {scale} is not positive"
    assert causal or (window == 0 and first_query == 0), "window and first_query are for causal attention"
    assert min(window, first_query) >= 0, f"negative window {window} or first_query {first_query}"
    assert not causal or first_query + queries <= keys, f"{queries} queries from {first_query} on pass {keys} keys"


def identity(dtype: Any) -> Any:
    """The identity of 128 x 128 in SBUF."""
    ones = nl.ndarray((ROWS, ROWS), dtype=dtype, buffer=nl.sbuf)
    result = nl.ndarray((ROWS, ROWS), dtype=dtype, buffer=nl.sbuf)
    nisa.memset(dst=ones, value=1.0)
    nisa.affine_select(
        dst=result, pattern=[[-1, ROWS]], channel_multiplier=1, on_true_tile=ones, on_false_value=0.0, cmp_op=nl.equal
    )
    return result


def depth_tiles(source: Any, head: int, first: int, length: int) -> list[Any]:
    """Columns of source[head] in SBUF: [128 of D, length] each."""
    tiles = []
    depth = source.shape[1]
    for at in range(0, depth, 128):
        size = min(128, depth - at)
        tile = nl.ndarray((size, length), dtype=source.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=tile, src=source[head, at : at + size, first : first + length])
        tiles.append(tile)
    return tiles


def row_tiles(source: Any, head: int, first: int, length: int) -> Any:
    """Rows of source[head] in SBUF: [128, pieces of 128 rows, E]."""
    pieces, width = -(-length // ROWS), source.shape[2]
    tile = nl.ndarray((ROWS, pieces, width), dtype=source.dtype, buffer=nl.sbuf)
    whole = length // ROWS
    if whole:
        rows = source[head, first : first + whole * ROWS, :].reshape_dim(0, (whole, ROWS))
        nisa.dma_copy(dst=tile[:, 0:whole, :], src=rows.permute((1, 0, 2)))
    rest = length - whole * ROWS
    if rest:
        nisa.dma_copy(dst=tile[0:rest, whole, :], src=source[head, first + whole * ROWS : first + length, :])
    return tile


def _keys(k: Any, v: Any, head: int) -> _Keys:
    size = k.shape[2]
    columns = -(-k.shape[1] // 128) * size + -(-size // ROWS) * v.shape[2]
    found = _Keys(k=k, v=v, head=head, key_tiles=[], value_tiles=[])
    if columns * (4 if k.dtype == nl.float32 else 2) <= KEPT_BYTES:
        for at in range(0, size, LOAD):
            found.key_tiles.append(depth_tiles(k, head, at, min(LOAD, size - at)))
        for at in range(0, size, LOAD):
            found.value_tiles.append(row_tiles(v, head, at, min(LOAD, size - at)))
    return found


def _key_tile(keys: _Keys, number: int) -> Any:
    if keys.key_tiles:
        return keys.key_tiles[number]
    return depth_tiles(keys.k, keys.head, number * LOAD, min(LOAD, keys.k.shape[2] - number * LOAD))


def _value_tile(keys: _Keys, number: int) -> Any:
    if keys.value_tiles:
        return keys.value_tiles[number]
    return row_tiles(keys.v, keys.head, number * LOAD, min(LOAD, keys.v.shape[1] - number * LOAD))


def cut(low: int, high: int, size: int) -> list[tuple[int, int]]:
    """(start, length) of pieces between multiples of ``size``."""
    found = []
    at = low
    while at < high:
        end = min(high, (at // size + 1) * size)
        found.append((at, end - at))
        at = end
    return found


def scores_of(block: Block, masks: Masks, keys: Any, at: int, length: int, dtype: Any) -> Any:
    """Products of the block's queries with keys ``at`` to ``at + length``, and masks, in PSUM."""
    scores = nl.ndarray((block.rows, length), dtype=dtype, buffer=nl.psum)
    for start, width in cut(0, length, BANK):
        column = at % LOAD + start
        for part in range(len(block.tiles)):
            nisa.nc_matmul(
                dst=scores[:, start : start + width],
                stationary=block.tiles[part],
                moving=keys[part][:, column : column + width],
            )
        if block.causal:
            last = block.position + block.rows - 1  # position of the last query
            _add_masks(block, masks, scores, at, start, start + width, block.position + 1, last + 1, "later")
            if block.window:
                _add_masks(
                    block, masks, scores, at, start, start + width, block.low, last - block.window + 1, "earlier"
                )
    return scores


def _add_masks(
    block: Block, masks: Masks, scores: Any, at: int, start: int, end: int, first: int, last: int, kind: str
) -> None:
    """Mask keys ``first`` to ``last`` where they are in columns ``start`` to ``end``, whose first key is ``at``."""
    begin, finish = max(start, first - at), min(end, last - at)
    for column in range(begin, finish, ROWS):
        width = min(ROWS, finish - column)
        distance = block.position - (at + column)
        mask = _mask(masks, kind, distance, width, block.window)
        nisa.nc_matmul(
            dst=scores[:, column : column + width],
            stationary=masks.identity[0 : block.rows, 0 : block.rows],
            moving=mask[0 : block.rows, :],
        )


def _mask(masks: Masks, kind: str, distance: int, width: int, window: int) -> Any:
    """0 where query p may see key j, ``distance`` + p - j behind it; elsewhere a number that outweighs all scores."""
    name = f"{kind} {distance} {width}"
    if name not in masks.made:
        zeros = nl.ndarray((ROWS, width), dtype=nl.bfloat16, buffer=nl.sbuf)
        mask = nl.ndarray((ROWS, width), dtype=nl.bfloat16, buffer=nl.sbuf)
        nisa.memset(dst=zeros, value=0.0)
        sign = 1 if kind == "later" else -1
        nisa.affine_select(
            dst=mask,
            pattern=[[-sign, width]],
            channel_multiplier=sign,
            on_true_tile=zeros,
            on_false_value=MASKED,
            cmp_op=nl.greater_equal,
            offset=distance if kind == "later" else window - 1 - distance,
        )
        masks.made[name] = mask
    return masks.made[name]


def _begin(block: Block) -> None:
    """Steps of both passes, and where they leave their results."""
    scan = nl.bfloat16 if nisa.get_nc_version() >= nisa.nc_version.gen4 else nl.float32
    block.scans = cut(block.low, block.high, SCAN_BYTES // (2 if scan == nl.bfloat16 else 4))
    block.largest = nl.ndarray((block.rows, len(block.scans)), dtype=scan, buffer=nl.sbuf)
    block.steps = cut(block.low, block.high, STEP)
    block.sums = nl.ndarray((block.rows, len(block.steps)), dtype=nl.float32, buffer=nl.sbuf)


def _scan(block: Block, masks: Masks, number: int) -> None:
    """A step of the first pass; after the last, minus scale times the largest score of each query."""
    at, length = block.scans[number]
    scores = scores_of(block, masks, _key_tile(block.keys, at // LOAD), at, length, block.largest.dtype)
    nisa.tensor_reduce(dst=block.largest[:, number : number + 1], op=nl.maximum, data=scores, axis=1)
    if number < len(block.scans) - 1:
        return
    largest = block.largest
    if number:
        largest = nl.ndarray((block.rows, 1), dtype=largest.dtype, buffer=nl.sbuf)
        nisa.tensor_reduce(dst=largest, op=nl.maximum, data=block.largest, axis=1)
    block.shift = nl.ndarray((block.rows, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_scalar(dst=block.shift, data=largest, op0=nl.multiply, operand0=-block.scale)


def _weigh(block: Block, masks: Masks, number: int, dtype: Any) -> Any:
    """A step of the second pass: exponentials of scores, transposed, and their sums."""
    at, length = block.steps[number]
    scores = scores_of(block, masks, _key_tile(block.keys, at // LOAD), at, length, nl.float32)
    weights = to_transpose(block.rows, length, dtype)
    nisa.activation(
        dst=weights[0 : block.rows, 0:length],
        op=nl.exp,
        data=scores,
        bias=block.shift,
        scale=block.scale,
        reduce_op=nl.add,
        reduce_res=block.sums[:, number : number + 1],
        reduce_cmd=nisa.reduce_cmd.reset_reduce,
    )
    return transposed(weights, weights.shape[0], weights.shape[1])


def _multiply(block: Block, number: int, turned: Any, result: Any) -> None:
    """The product of a step's exponentials with V; after the last, the block's result."""
    at, length = block.steps[number]
    width = result.shape[2]
    if number == 0:
        block.output = nl.ndarray((block.rows, width), dtype=nl.float32, buffer=nl.psum)
    values = _value_tile(block.keys, at // LOAD)
    for piece, start in enumerate(range(0, length, ROWS)):
        size = min(ROWS, length - start)
        nisa.nc_matmul(
            dst=block.output,
            stationary=turned[0:size, piece, 0 : block.rows],
            moving=values[0:size, at % LOAD // ROWS + piece, :],
        )
    if number < len(block.steps) - 1:
        return
    rows = block.rows
    total = block.sums
    if number:
        total = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_reduce(dst=total, op=nl.add, data=block.sums, axis=1)
    inverse = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.reciprocal(dst=inverse, data=total)
    final = nl.ndarray((rows, width), dtype=result.dtype, buffer=nl.sbuf)
    nisa.tensor_scalar(dst=final, data=block.output, op0=nl.multiply, operand0=inverse)
    nisa.dma_copy(dst=result[block.head, block.first : block.first + rows, :], src=final)
    if block.totals is not None:
        nisa.tensor_copy(dst=block.totals[0:rows, block.number : block.number + 1], src=total)
        nisa.tensor_copy(dst=block.shifts[0:rows, block.number : block.number + 1], src=block.shift)


def to_transpose(rows: int, length: int, dtype: Any) -> Any:
    """A tile for ``transposed``: DMA engines take whole blocks of 16 x 128, so there are zeros around others."""
    if not _by_dma(dtype):
        return nl.ndarray((rows, length), dtype=dtype, buffer=nl.sbuf)
    below, beside = -(-rows // SIXTEEN) * SIXTEEN, -(-length // ROWS) * ROWS
    tile = nl.ndarray((below, beside), dtype=dtype, buffer=nl.sbuf)
    if rows < below:
        nisa.memset(dst=tile, value=0.0)
    elif length < beside:
        nisa.memset(dst=tile[:, length:beside], value=0.0)
    return tile


def _by_dma(dtype: Any) -> bool:
    return nisa.get_nc_version() >= nisa.nc_version.gen3 and dtype != nl.float32


def transposed(tile: Any, rows: int, length: int, into: Any = None) -> Any:
    """[rows, length] in SBUF as [128 of length, pieces, rows]: by DMA (two bytes, NeuronCore-v3 on) or TensorE.

    ``into`` is where to, None a tile of its own.
    """
    pieces = -(-length // ROWS)
    turned = nl.ndarray((ROWS, pieces, rows), dtype=tile.dtype, buffer=nl.sbuf) if into is None else into
    whole = length // ROWS
    by_dma = _by_dma(tile.dtype) and rows % SIXTEEN == 0
    first = 0
    if by_dma and whole:
        nisa.dma_transpose(dst=turned[:, 0:whole, :], src=tile[:, 0 : whole * ROWS].reshape_dim(1, (whole, ROWS)))
        first = whole
    each = 4 if tile.dtype == nl.float32 else 8  # of a bank
    for group in range(first, pieces, each):
        count = min(each, pieces - group)
        bank = nl.ndarray((ROWS, count, rows), dtype=tile.dtype, buffer=nl.psum)
        for piece in range(count):
            start = (group + piece) * ROWS
            size = min(ROWS, length - start)
            nisa.nc_transpose(dst=bank[0:size, piece, :], data=tile[:, start : start + size])
        full = min(count, whole - group) if group < whole else 0
        if full:
            nisa.tensor_copy(dst=turned[:, group : group + full, :], src=bank[:, 0:full, :])
        if full < count:
            size = length - whole * ROWS
            nisa.tensor_copy(dst=turned[0:size, whole, :], src=bank[0:size, full, :])
    return turned


def _store_lse(lse: Any, head: int, totals: Any, shifts: Any, queries: int, whole: bool, cores: int, core: int) -> None:
    """log(total) - shift of all blocks of a head, transposed so that HBM gets whole rows."""
    blocks = totals.shape[1]
    logs = nl.ndarray((ROWS, blocks), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(dst=logs, op=nl.log, data=totals)
    nisa.tensor_tensor(dst=logs, data1=logs, data2=shifts, op=nl.subtract)
    for at in range(0, blocks, ROWS):
        count = min(ROWS, blocks - at)
        bank = nl.ndarray((count, ROWS), dtype=nl.float32, buffer=nl.psum)
        nisa.nc_transpose(dst=bank, data=logs[:, at : at + count])
        rows = nl.ndarray((count, ROWS), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_copy(dst=rows, src=bank)
        for block in range(count):
            if whole or (at + block) % cores == core:
                first = (at + block) * ROWS
                size = min(ROWS, queries - first)
                nisa.dma_copy(dst=lse[head, first : first + size], src=rows[block : block + 1, 0:size])

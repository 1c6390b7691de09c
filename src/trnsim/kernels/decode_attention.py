"""Attention of one query a sequence over a cache of keys and values in blocks (decoding): MHA, GQA, and MLA.

A partition gathers a block, or a part of one, so that a DMA's descriptors are long. Scores have tokens in partitions
and query heads in the free dimension: exponentials of thousands of tokens are one short instruction, and their product
with the values needs no transposition. The keys need one, on TensorE. The largest score of a head crosses partitions
by a transposition and comes back as a product with ones. Contexts whose scores do not fit are taken part by part, with
the running maximum and sum of flash attention. Parts overlap, of one sequence or of two: scores of one are found while
exponentials of the one before pass from engine to engine and the one before that meets its values. Cores share the
sequences.
"""

from __future__ import annotations

from typing import Any

from trnsim import nki
from trnsim.nki import isa as nisa
from trnsim.nki import language as nl

ROWS = 128
BANK = 512  # float32 columns of a bank of PSUM
SCORE_BYTES = 16 * 1024  # of scores of a part in a partition
GATHER_BYTES = 16 * 1024  # of keys of a part in a partition, and of values
MASKED = -1e30


class _Cache(nl.NKIObject):
    """How the caches are taken apart: ``tokens`` in a partition, ``pieces`` of a block, ``partitions`` of a context."""

    tokens: int
    pieces: int
    partitions: int
    group: int
    heads: int
    key_heads: int
    depth: int
    width: int
    index: Any
    positions: Any
    ends: Any
    identity: Any
    ones: Any
    scored: Any  # the part whose scores are there
    weighted: Any  # the one before it, whose exponentials are
    largest: Any  # scores of a sequence so far
    state: Any


class _Part(nl.NKIObject):
    """Chunks of a sequence: what they gather, and their scores."""

    sequence: int
    place: int
    first: int
    chunks: Any
    last: bool
    queries: Any
    mask: Any
    keys: Any
    values: Any
    scores: Any
    before: Any  # largest scores before this part
    largest: Any
    weights: Any


@nki.jit
def decode_attention(
    q: Any,
    k_cache: Any,
    table: Any,
    lengths: Any,
    v_cache: Any = None,
    scale: float = 1.0,
    window: int = 0,
    value_size: int = 0,
) -> Any:
    """Attention of the newest token of each sequence.

    Args:
        q: [sequences, D, heads] in HBM, bfloat16, float16 or float32. heads / key heads <= 128.
        k_cache: [blocks, block length, key heads, D] of that format. Each key head serves heads / key heads successive
            heads. D is any size: MLA has one key head of 512 + 64.
        table: [sequences, W] int32, numbers of the blocks of a sequence; those past its end are any valid number.
        lengths: [sequences, 1] int32, tokens of a sequence in the blocks of its row of ``table``, the newest included;
            at least 1.
        v_cache: [blocks, block length, key heads, E] of that format, E <= 512; None: the first ``value_size`` elements
            of each key (MLA's latent cache).
        scale: of the scores, positive.
        window: only the last ``window`` tokens are seen; 0: all. ``table`` may then list the last blocks only.
        value_size: E where there is no ``v_cache``.

    Returns:
        [sequences, heads, E] in the format of q.
    """
    sequences, depth, heads = q.shape
    _, block_length, key_heads, _ = k_cache.shape
    _check(q, k_cache, table, lengths, v_cache, scale, window, value_size)
    width = value_size if v_cache is None else v_cache.shape[3]
    result = nl.ndarray((sequences, heads, width), dtype=q.dtype, buffer=nl.shared_hbm)
    cores, core = nl.num_programs(0), nl.program_id(0)
    share = -(-sequences // cores)
    begin, end = min(sequences, core * share), min(sequences, (core + 1) * share)
    if begin == end:
        return result
    pieces = _pieces(block_length, table.shape[1], key_heads * depth * (4 if q.dtype == nl.float32 else 2))
    cache = _Cache(
        tokens=block_length // pieces, pieces=pieces, partitions=table.shape[1] * pieces, group=heads // key_heads,
        heads=heads, key_heads=key_heads, depth=depth, width=width,
    )  # fmt: skip
    _prepare(cache, table, lengths, begin, end)
    chunks = [(at, min(ROWS, cache.partitions - at)) for at in range(0, cache.partitions, ROWS)]
    token_bytes = key_heads * depth * (4 if q.dtype == nl.float32 else 2)
    each = max(1, min(SCORE_BYTES // (4 * heads), GATHER_BYTES // token_bytes) // cache.tokens)
    cache.scored, cache.weighted, cache.largest = None, None, None
    gathered: Any = None  # one ahead
    for sequence in range(begin, end):
        for first in range(0, len(chunks), each):
            part = _Part(
                sequence=sequence, place=sequence - begin, first=first, chunks=chunks[first : first + each],
                last=first + each >= len(chunks),
            )  # fmt: skip
            _gather_part(cache, part, q, k_cache, v_cache, window, len(chunks))
            if gathered is not None:
                _advance(cache, gathered, scale, result)
            gathered = part
    for rest in (gathered, None, None):
        _advance(cache, rest, scale, result)
    return result


def _check(
    q: Any, k_cache: Any, table: Any, lengths: Any, v_cache: Any, scale: float, window: int, value_size: int
) -> None:
    sequences, depth, heads = q.shape
    key_heads = k_cache.shape[2]
    assert k_cache.shape[3] == depth, f"q has head dimension {depth}, k_cache {k_cache.shape[3]}"
    assert heads % key_heads == 0, f"{heads} heads are no multiple of {key_heads} key heads"
    assert heads // key_heads <= ROWS, f"{heads // key_heads} heads a key head exceed {ROWS}"
    assert table.shape[0] == sequences, f"{sequences} sequences, table has {table.shape[0]}"
    assert lengths.shape == (sequences, 1), f"lengths is {lengths.shape}, not {(sequences, 1)}"
    assert table.dtype == nl.int32, f"table is {table.dtype}, not int32"
    assert lengths.dtype == nl.int32, f"lengths is {lengths.dtype}, not int32"
    assert scale > 0, f"scale {scale} is not positive"
    assert window >= 0, f"window {window} is negative"
    if v_cache is None:
        assert 0 < value_size <= min(depth, BANK), f"value_size {value_size} is not 1 to {min(depth, BANK)}"
    else:
        assert value_size == 0, "value_size is for a cache without values"
        assert v_cache.shape[0:3] == k_cache.shape[0:3], f"v_cache is {v_cache.shape}, k_cache {k_cache.shape}"
        assert v_cache.shape[3] <= BANK, f"values of {v_cache.shape[3]} elements exceed {BANK}"


def _pieces(block_length: int, width: int, token_bytes: int) -> int:
    """Into how many pieces a block is cut: a power of two, so that a context fills the partitions and a piece fits."""
    pieces = 1
    while block_length % (2 * pieces) == 0 and (
        width * pieces < ROWS or block_length // pieces * token_bytes > GATHER_BYTES
    ):
        pieces *= 2
    assert pieces <= ROWS, f"blocks of {block_length} tokens do not fit SBUF"
    return pieces


def _prepare(cache: _Cache, table: Any, lengths: Any, begin: int, end: int) -> None:
    """Numbers of pieces by partition, positions of tokens, lengths in all partitions, and constants."""
    count = end - begin
    chunks = -(-cache.partitions // ROWS)
    width = table.shape[1]
    numbers = nl.ndarray((ROWS, count, chunks), dtype=nl.int32, buffer=nl.sbuf)
    step = ROWS // cache.pieces
    for chunk in range(chunks):
        blocks = min(step, width - chunk * step)
        source = table.ap(
            pattern=[[1, blocks], [0, cache.pieces], [width, count]], offset=begin * width + chunk * step
        )  # each block's number once for each piece
        nisa.dma_copy(dst=numbers[0 : blocks * cache.pieces, :, chunk], src=source, dge_mode=nisa.dge_mode.swdge)
    cache.index = numbers
    if cache.pieces > 1:
        lane = nl.ndarray((ROWS, 1), dtype=nl.int32, buffer=nl.sbuf)
        nisa.iota(dst=lane, pattern=[[0, 1]], channel_multiplier=1)
        piece = nl.ndarray((ROWS, 1), dtype=nl.int32, buffer=nl.sbuf)
        nisa.tensor_scalar(dst=piece, data=lane, op0=nl.bitwise_and, operand0=cache.pieces - 1)
        offset = nl.ndarray((ROWS, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_copy(dst=offset, src=piece)
        cache.index = nl.ndarray((ROWS, count, chunks), dtype=nl.int32, buffer=nl.sbuf)
        for chunk in range(chunks):
            rows = min(ROWS, cache.partitions - chunk * ROWS)
            nisa.tensor_scalar(
                dst=cache.index[0:rows, :, chunk],
                data=numbers[0:rows, :, chunk],
                op0=nl.multiply,
                operand0=float(cache.pieces),
                op1=nl.add,
                operand1=offset[0:rows, :],
            )
    cache.positions = nl.ndarray((ROWS, chunks, cache.tokens), dtype=nl.float32, buffer=nl.sbuf)
    nisa.iota(
        dst=cache.positions,
        pattern=[[ROWS * cache.tokens, chunks], [1, cache.tokens]],
        channel_multiplier=cache.tokens,
    )
    ends = nl.ndarray((ROWS, count), dtype=nl.int32, buffer=nl.sbuf)
    nisa.dma_copy(dst=ends, src=lengths.ap(pattern=[[0, ROWS], [1, count]], offset=begin))
    cache.ends = nl.ndarray((ROWS, count), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(dst=cache.ends, src=ends)
    cache.ones = nl.ndarray((ROWS, ROWS), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=cache.ones, value=1.0)
    cache.identity = nl.ndarray((cache.group, cache.group), dtype=nl.float32, buffer=nl.sbuf)
    nisa.affine_select(
        dst=cache.identity,
        pattern=[[-1, cache.group]],
        channel_multiplier=1,
        on_true_tile=cache.ones[0 : cache.group, 0 : cache.group],
        on_false_value=0.0,
        cmp_op=nl.equal,
    )


def _queries(q: Any, sequence: int) -> list[Any]:
    """[128 of D, heads] each, in SBUF."""
    tiles = []
    for at in range(0, q.shape[1], ROWS):
        size = min(ROWS, q.shape[1] - at)
        tile = nl.ndarray((size, q.shape[2]), dtype=q.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=tile, src=q[sequence, at : at + size, :])
        tiles.append(tile)
    return tiles


def _mask(cache: _Cache, sequence: int, chunks: int, window: int) -> Any:
    """0 for the tokens that the query sees, else a number that outweighs all scores: [128, chunks, tokens]."""
    end = cache.ends[:, sequence : sequence + 1]
    mask = nl.ndarray((ROWS, chunks, cache.tokens), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_scalar(
        dst=mask, data=cache.positions, op0=nl.greater_equal, operand0=end, op1=nl.multiply, operand1=MASKED
    )
    if window:
        start = nl.ndarray((ROWS, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_scalar(dst=start, data=end, op0=nl.subtract, operand0=float(window))
        early = nl.ndarray((ROWS, chunks, cache.tokens), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_scalar(
            dst=early, data=cache.positions, op0=nl.less, operand0=start, op1=nl.multiply, operand1=MASKED
        )
        nisa.tensor_tensor(dst=mask, data1=mask, data2=early, op=nl.add)
    return mask


def _gather(cache: _Cache, source: Any, sequence: int, chunk: int, rows: int) -> Any:
    """Pieces of blocks, one in each partition: [128, tokens, key heads, elements]."""
    size = source.shape[2] * source.shape[3]
    tile = nl.ndarray((ROWS, cache.tokens, source.shape[2], source.shape[3]), dtype=source.dtype, buffer=nl.sbuf)
    pieces = source.reshape((source.shape[0] * cache.pieces, cache.tokens * size))
    nisa.dma_copy(
        dst=tile[0:rows, :, :, :],
        src=pieces.ap(
            pattern=[[cache.tokens * size, rows], [1, cache.tokens * size]],
            vector_offset=cache.index[0:rows, sequence, chunk : chunk + 1],
        ),
    )
    return tile


def _gather_part(
    cache: _Cache, part: _Part, q: Any, k_cache: Any, v_cache: Any, window: int, chunks: int
) -> None:  # fmt: skip
    """Queries, masks, keys and values."""
    part.queries = _queries(q, part.sequence)
    part.mask = _mask(cache, part.place, chunks, window)
    part.keys = []
    part.values = []
    for number, (_, rows) in enumerate(part.chunks):
        part.keys.append(_gather(cache, k_cache, part.place, part.first + number, rows))
        if v_cache is not None:
            part.values.append(_gather(cache, v_cache, part.place, part.first + number, rows))
    if v_cache is None:
        part.values = part.keys


def _score_part(cache: _Cache, part: _Part) -> None:
    """Scores of a part's tokens, and the mask. Keys are transposed one bank ahead of the products with them."""
    tokens, group, heads = cache.tokens, cache.group, cache.heads
    part.scores = nl.ndarray((ROWS, heads, len(part.chunks) * tokens), dtype=nl.float32, buffer=nl.sbuf)
    together = max(1, min(tokens, BANK // group))  # tokens of a bank of scores
    tiles = -(-cache.depth // ROWS)
    item = 4 if part.queries[0].dtype == nl.float32 else 2
    room = max(1, 2048 // (ROWS * item) // tiles)  # tokens of a bank of transposed keys
    steps = [
        (number, head, start, begin, min(room, tokens - begin, start + together - begin))
        for number in range(len(part.chunks))
        for head in range(cache.key_heads)
        for start in range(0, tokens, together)
        for begin in range(start, min(tokens, start + together), room)
    ]
    bank: Any = None
    following = _turned_keys(cache, part, steps[0])
    for place, (number, head, start, begin, some) in enumerate(steps):
        turned = following
        if place + 1 < len(steps):
            following = _turned_keys(cache, part, steps[place + 1])
        rows, length = part.chunks[number][1], min(together, tokens - start)
        if begin == start:
            bank = nl.ndarray((rows, group, length), dtype=nl.float32, buffer=nl.psum)
        for token in range(some):
            for tile in range(tiles):
                nisa.nc_matmul(
                    dst=bank[:, :, begin - start + token],
                    stationary=turned[tile][:, token, :],
                    moving=part.queries[tile][:, head * group : (head + 1) * group],
                )
        if begin + some == start + length:
            at, those = number * tokens + start, slice(head * group, (head + 1) * group)
            if rows < ROWS:
                nisa.memset(dst=part.scores[:, those, at : at + length], value=MASKED)
            seen = part.mask[0:rows, part.first + number, start : start + length].expand_dim(1).broadcast(1, group)
            nisa.tensor_tensor(dst=part.scores[0:rows, those, at : at + length], data1=bank, data2=seen, op=nl.add)


def _turned_keys(cache: _Cache, part: _Part, step: Any) -> list[Any]:
    number, head, _, begin, some = step
    keys, rows = part.keys[number], part.chunks[number][1]
    return [_turned(keys, rows, head, begin, some, first, cache.depth) for first in range(0, cache.depth, ROWS)]


def _advance(cache: _Cache, following: Any, scale: float, result: Any) -> None:
    """Scores of a part, exponentials of the one before it, and the results of the one before that.

    Maxima and exponentials pass from engine to engine; TensorE has work of the other two parts meanwhile.
    """
    ready, weighted = cache.scored, cache.weighted
    if ready is not None:
        lanes = nl.ndarray((ROWS, cache.heads), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_reduce(dst=lanes, op=nl.maximum, data=ready.scores, axis=2)
        _find_largest(cache, ready, lanes)
    if following is not None:
        _score_part(cache, following)
    if ready is not None:
        ready.weights = _exponentials(ready, _everywhere(cache, ready.largest), scale, result.dtype)
    if weighted is not None:
        _sum_up(cache, weighted, scale)
        if weighted.last:
            _store(cache, weighted.sequence, result)
    cache.scored, cache.weighted = following, ready


def _find_largest(cache: _Cache, part: _Part, lanes: Any) -> None:
    """The largest scores of a sequence up to the end of a part, and before it."""
    part.before = cache.largest if part.first else None
    part.largest = _across(cache, lanes)
    if part.before is not None:
        both = nl.ndarray((cache.group, cache.key_heads), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_tensor(dst=both, data1=part.largest, data2=part.before, op=nl.maximum)
        part.largest = both
    cache.largest = part.largest


def _exponentials(part: _Part, shift: Any, scale: float, dtype: Any) -> Any:
    """exp(scale * (score - shift)), [128, heads, tokens]."""
    scores = part.scores
    nisa.tensor_tensor(
        dst=scores, data1=scores, data2=shift.expand_dim(2).broadcast(2, scores.shape[2]), op=nl.subtract
    )
    weights = nl.ndarray(scores.shape, dtype=dtype, buffer=nl.sbuf)
    nisa.activation(dst=weights, op=nl.exp, data=scores, scale=scale)
    return weights


def _sum_up(cache: _Cache, part: _Part, scale: float) -> None:
    """The state after a part: sums [group, key heads], results [group, key heads, E]."""
    tokens, group, heads, weights = cache.tokens, cache.group, cache.heads, part.weights
    state = cache.state if part.first else []
    lane_sums = nl.ndarray((ROWS, heads), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=lane_sums, op=nl.add, data=weights, axis=2)
    sums = nl.ndarray((group, cache.key_heads), dtype=nl.float32, buffer=nl.psum)
    for head in range(cache.key_heads):
        nisa.nc_matmul(
            dst=sums[:, head : head + 1],
            stationary=lane_sums[:, head * group : (head + 1) * group],
            moving=cache.ones[:, 0:1],
        )
    decay: Any = None
    total = nl.ndarray((group, cache.key_heads), dtype=nl.float32, buffer=nl.sbuf)
    if state:
        decay = nl.ndarray((group, cache.key_heads), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_tensor(dst=decay, data1=part.before, data2=part.largest, op=nl.subtract)
        nisa.activation(dst=decay, op=nl.exp, data=decay, scale=scale)
        nisa.tensor_tensor(dst=total, data1=state[0], data2=decay, op=nl.multiply)
        nisa.tensor_tensor(dst=total, data1=total, data2=sums, op=nl.add)
    else:
        nisa.tensor_copy(dst=total, src=sums)
    output = nl.ndarray((group, cache.key_heads, cache.width), dtype=nl.float32, buffer=nl.sbuf)
    for head in range(cache.key_heads):
        product = nl.ndarray((group, cache.width), dtype=nl.float32, buffer=nl.psum)
        for number, (_, rows) in enumerate(part.chunks):
            for token in range(tokens):
                nisa.nc_matmul(
                    dst=product,
                    stationary=weights[0:rows, head * group : (head + 1) * group, number * tokens + token],
                    moving=part.values[number][0:rows, token, head, 0 : cache.width],
                )
        if state:
            nisa.scalar_tensor_tensor(
                dst=output[:, head, :],
                data=state[1][:, head, :],
                op0=nl.multiply,
                operand0=decay[:, head : head + 1],
                op1=nl.add,
                operand1=product,
            )
        else:
            nisa.tensor_copy(dst=output[:, head, :], src=product)
    cache.state = [total, output]


def _store(cache: _Cache, sequence: int, result: Any) -> None:
    sums, output = cache.state
    key_heads, width = cache.key_heads, cache.width
    inverse = nl.ndarray((cache.group, key_heads), dtype=nl.float32, buffer=nl.sbuf)
    nisa.reciprocal(dst=inverse, data=sums)
    final = nl.ndarray((cache.group, key_heads, width), dtype=result.dtype, buffer=nl.sbuf)
    nisa.tensor_tensor(dst=final, data1=output, data2=inverse.expand_dim(2).broadcast(2, width), op=nl.multiply)
    rows = result[sequence, :, :].reshape_dim(0, (key_heads, cache.group)).permute((1, 0, 2))
    if nisa.get_nc_version() >= nisa.nc_version.gen3:  # not on ScalarE's queue, whose exponentials others wait for
        nisa.dma_copy(dst=rows, src=final, dge_mode=nisa.dge_mode.hwdge, engine=nisa.engine.sync)
    else:
        nisa.dma_copy(dst=rows, src=final)


def _turned(keys: Any, rows: int, head: int, start: int, count: int, first: int, depth: int) -> Any:
    """Elements from ``first`` on of the keys of some tokens of each partition: [128 of D, count, rows]."""
    size = min(ROWS, depth - first)
    bank = nl.ndarray((size, count, rows), dtype=keys.dtype, buffer=nl.psum)
    for token in range(count):
        nisa.nc_transpose(dst=bank[:, token, :], data=keys[0:rows, start + token, head, first : first + size])
    turned = nl.ndarray((size, count, rows), dtype=keys.dtype, buffer=nl.sbuf)
    nisa.tensor_copy(dst=turned, src=bank, engine=nisa.engine.vector)
    return turned


def _across(cache: _Cache, lanes: Any) -> Any:
    """The largest over partitions of [128, heads]: [group, key heads]."""
    result = nl.ndarray((cache.group, cache.key_heads), dtype=nl.float32, buffer=nl.sbuf)
    for first in range(0, cache.key_heads, BANK // ROWS):
        count = min(BANK // ROWS, cache.key_heads - first)
        bank = nl.ndarray((cache.group, count, ROWS), dtype=nl.float32, buffer=nl.psum)
        for number in range(count):
            start = (first + number) * cache.group
            nisa.nc_transpose(dst=bank[:, number, :], data=lanes[:, start : start + cache.group])
        nisa.tensor_reduce(dst=result[:, first : first + count], op=nl.maximum, data=bank, axis=2)
    return result


def _everywhere(cache: _Cache, values: Any) -> Any:
    """[group, key heads] in all partitions: [128, heads], as products of ones with diagonal matrices."""
    group = cache.group
    result = nl.ndarray((ROWS, cache.heads), dtype=nl.float32, buffer=nl.sbuf)
    diagonal = nl.ndarray((group, cache.key_heads, group), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_tensor(
        dst=diagonal,
        data1=cache.identity.expand_dim(1).broadcast(1, cache.key_heads),
        data2=values.expand_dim(2).broadcast(2, group),
        op=nl.multiply,
    )
    each = BANK // group
    for first in range(0, cache.key_heads, each):
        count = min(each, cache.key_heads - first)
        bank = nl.ndarray((ROWS, count * group), dtype=nl.float32, buffer=nl.psum)
        nisa.nc_matmul(dst=bank, stationary=cache.ones[0:group, :], moving=diagonal[:, first : first + count, :])
        nisa.tensor_copy(dst=result[:, first * group : (first + count) * group], src=bank)
    return result

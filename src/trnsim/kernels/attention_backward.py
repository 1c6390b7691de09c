"""Gradients of attention from the logarithms of its sums (flash attention's backward pass).

512 keys at a time meet all queries that see them, 128 at a time. With queries in partitions, the exponentials and the
gradients of scores are the stationary operands of the products for V and K, which accumulate in PSUM over queries; only
the gradients of scores are transposed, for Q, which accumulates in SBUF over keys. Products follow their operands a few
steps later, so that TensorE does not wait. Heads of keys are shared by cores; where there are fewer, keys are, and the
gradients of Q are added at the end.
"""

from __future__ import annotations

from typing import Any

from trnsim import nki
from trnsim.kernels.attention import (
    BANK,
    LOAD,
    ROWS,
    Block,
    Masks,
    check,
    depth_tiles,
    identity,
    row_tiles,
    scores_of,
    to_transpose,
    transposed,
)
from trnsim.nki import isa as nisa
from trnsim.nki import language as nl

AHEAD = 2  # steps between the transposition of gradients and the product that needs it
# Bytes a partition that a head's queries, keys, values and gradients may take in SBUF.
KEPT_BYTES = 168 * 1024


class _Side(nl.NKIObject):
    """A matrix in both layouts: tiles [D, 2,048] and [128, 16, D], from ``first`` on."""

    columns: Any
    rows: Any


class _Step(nl.NKIObject):
    """128 queries and up to 512 keys: exponentials, gradients of scores, and those transposed."""

    block: Any
    at: int
    length: int
    weights: Any
    grads: Any
    turned: Any


class _Head(nl.NKIObject):
    """What a query head has in SBUF."""

    head: int
    q: Any
    dy: Any
    minus_lse: Any
    row_sums: Any
    dq: Any
    touched: Any


@nki.jit
def attention_backward(
    q: Any,
    k: Any,
    v: Any,
    result: Any,
    lse: Any,
    dy: Any,
    scale: float = 1.0,
    causal: bool = False,
    window: int = 0,
    first_query: int = 0,
) -> Any:
    """Gradients of ``attention(q, k, v, scale, causal, window, first_query)``.

    Args:
        q: [heads, D, queries] in HBM, bfloat16, float16 or float32. D <= 128.
        k: [key heads, D, keys] of that format.
        v: [key heads, keys, E] of that format. E <= 128.
        result: [heads, queries, E] of that format, what ``attention`` returned.
        lse: [heads, queries] in float32, the logarithms that it returned.
        dy: [heads, queries, E] of that format, the gradient of ``result``.
        scale, causal, window, first_query: as for ``attention``.

    Queries and keys of a head must fit SBUF: about 8,192 of each in bfloat16 with D = E = 128.

    Returns:
        dq [heads, queries, D], dk [key heads, keys, D] and dv [key heads, keys, E] in the format of q.
    """
    check(q, k, v, scale, causal, window, first_query)
    heads, depth, queries = q.shape
    key_heads, _, keys = k.shape
    width = v.shape[2]
    _check(q, k, v, result, lse, dy)
    dq = nl.ndarray((heads, queries, depth), dtype=q.dtype, buffer=nl.shared_hbm)
    dk = nl.ndarray((key_heads, keys, depth), dtype=q.dtype, buffer=nl.shared_hbm)
    dv = nl.ndarray((key_heads, keys, width), dtype=q.dtype, buffer=nl.shared_hbm)
    cores, core = nl.num_programs(0), nl.program_id(0)
    by_head = key_heads % cores == 0
    parts: Any = None
    if not by_head:
        parts = nl.ndarray((cores, heads, queries, depth), dtype=nl.float32, buffer=nl.shared_hbm)
    masks = Masks(identity=identity(nl.bfloat16), made={})
    group = heads // key_heads
    own = key_heads // cores if by_head else key_heads
    for number in range(own):
        key_head = core * own + number if by_head else number
        key = _from_columns(k, key_head)
        value = _from_rows(v, key_head)
        before: list[Any] = []  # gradients of keys and values, summed over the heads of the group so far
        for head in range(key_head * group, (key_head + 1) * group):
            last = head == (key_head + 1) * group - 1
            state = _head(q, result, lse, dy, head)
            sums: list[Any] = []
            for index, first in enumerate(range(0, keys, BANK)):
                turn = index % cores if index // cores % 2 == 0 else cores - 1 - index % cores
                if by_head or turn == core:
                    length = min(BANK, keys - first)
                    blocks = _blocks(state, q, first, length, scale, causal, window, first_query, keys)
                    so_far = before[len(sums)] if before else []
                    found = _pass(state, blocks, masks, key, value, first, length, so_far, last, dk, dv, key_head)
                    sums.append(found)
            before = sums
            _store_queries(state, dq if by_head else parts[core], scale if by_head else 1.0, queries)
    if not by_head:
        nisa.core_barrier(data=parts, cores=tuple(range(cores)))
        _add_parts(parts, dq, scale, cores, core)
    return dq, dk, dv


def _check(q: Any, k: Any, v: Any, result: Any, lse: Any, dy: Any) -> None:
    heads, depth, queries = q.shape
    keys, width = v.shape[1], v.shape[2]
    assert depth <= ROWS, f"head dimension {depth} exceeds {ROWS}"
    assert width <= ROWS, f"values of {width} elements exceed {ROWS}"
    assert result.shape == (heads, queries, width), f"result is {result.shape}, not {(heads, queries, width)}"
    assert dy.shape == (heads, queries, width), f"dy is {dy.shape}, not {(heads, queries, width)}"
    assert lse.shape == (heads, queries), f"lse is {lse.shape}, not {(heads, queries)}"
    assert lse.dtype == nl.float32, f"lse is {lse.dtype}, not float32"
    size = 4 if q.dtype == nl.float32 else 2
    per_row = -(-queries // ROWS) * (depth + 2 * width), -(-keys // ROWS) * depth
    kept = size * (2 * queries + 2 * keys + per_row[0] + per_row[1]) + 4 * -(-queries // ROWS) * depth
    if heads > k.shape[0]:
        kept += 4 * -(-keys // ROWS) * (depth + width)
    assert kept <= KEPT_BYTES, f"{queries} queries and {keys} keys need {kept} bytes a partition, of {KEPT_BYTES}"


def _from_columns(source: Any, head: int) -> _Side:
    """Both layouts of source[head], [D, length]."""
    length, depth = source.shape[2], source.shape[1]
    side = _Side(columns=[], rows=[])
    for at in range(0, length, LOAD):
        size = min(LOAD, length - at)
        tile = depth_tiles(source, head, at, size)[0]
        rows = nl.ndarray((ROWS, -(-size // ROWS), depth), dtype=source.dtype, buffer=nl.sbuf)
        each = BANK // ROWS
        pieces = -(-size // ROWS)
        for group in range(0, pieces, each):
            count = min(each, pieces - group)
            bank = nl.ndarray((ROWS, count, depth), dtype=source.dtype, buffer=nl.psum)
            for piece in range(count):
                start = (group + piece) * ROWS
                part = min(ROWS, size - start)
                nisa.nc_transpose(dst=bank[0:part, piece, :], data=tile[:, start : start + part])
            full = count if (group + count) * ROWS <= size else count - 1
            if full:
                nisa.tensor_copy(dst=rows[:, group : group + full, :], src=bank[:, 0:full, :])
            if full < count:
                part = size - (group + full) * ROWS
                nisa.tensor_copy(dst=rows[0:part, group + full, :], src=bank[0:part, full, :])
        side.columns.append([tile])
        side.rows.append(rows)
    return side


def _from_rows(source: Any, head: int) -> _Side:
    """Both layouts of source[head], [length, E]."""
    length, width = source.shape[1], source.shape[2]
    side = _Side(columns=[], rows=[])
    for at in range(0, length, LOAD):
        size = min(LOAD, length - at)
        rows = row_tiles(source, head, at, size)
        tile = nl.ndarray((width, size), dtype=source.dtype, buffer=nl.sbuf)
        for start in range(0, size, BANK):
            some = min(BANK, size - start)
            bank = nl.ndarray((width, some), dtype=source.dtype, buffer=nl.psum)
            for piece in range(0, some, ROWS):
                part = min(ROWS, some - piece)
                nisa.nc_transpose(dst=bank[:, piece : piece + part], data=rows[0:part, (start + piece) // ROWS, :])
            nisa.tensor_copy(dst=tile[:, start : start + some], src=bank)
        side.columns.append([tile])
        side.rows.append(rows)
    return side


def _head(q: Any, result: Any, lse: Any, dy: Any, head: int) -> _Head:
    queries = q.shape[2]
    count = -(-queries // ROWS)
    state = _Head(head=head, q=_from_columns(q, head), dy=_from_rows(dy, head), touched=[])
    state.row_sums = nl.ndarray((ROWS, count), dtype=nl.float32, buffer=nl.sbuf)
    for number, at in enumerate(range(0, queries, LOAD)):
        size = min(LOAD, queries - at)
        other = row_tiles(result, head, at, size)
        rows = state.dy.rows[number]
        for first, some, part in _whole_and_rest(size):
            products = nl.ndarray((part, some, result.shape[2]), dtype=nl.float32, buffer=nl.sbuf)
            nisa.tensor_tensor(
                dst=products,
                data1=rows[0:part, first : first + some, :],
                data2=other[0:part, first : first + some, :],
                op=nl.multiply,
            )
            place = at // ROWS + first
            nisa.tensor_reduce(dst=state.row_sums[0:part, place : place + some], op=nl.add, data=products, axis=2)
    state.minus_lse = nl.ndarray((ROWS, count), dtype=nl.float32, buffer=nl.sbuf)
    for at in range(0, count, ROWS):
        some = min(ROWS, count - at)
        lines = nl.ndarray((some, ROWS), dtype=nl.float32, buffer=nl.sbuf)
        whole = min(some, (queries - at * ROWS) // ROWS)
        if whole < some:
            nisa.memset(dst=lines, value=0.0)
            rest = queries - (at + whole) * ROWS
            nisa.dma_copy(dst=lines[whole : whole + 1, 0:rest], src=lse[head, (at + whole) * ROWS : queries])
        if whole:
            source = lse[head, at * ROWS : (at + whole) * ROWS].reshape((whole, ROWS))
            nisa.dma_copy(dst=lines[0:whole, :], src=source)
        bank = nl.ndarray((ROWS, some), dtype=nl.float32, buffer=nl.psum)
        nisa.nc_transpose(dst=bank, data=lines)
        nisa.tensor_scalar(dst=state.minus_lse[:, at : at + some], data=bank, op0=nl.multiply, operand0=-1.0)
    state.dq = nl.ndarray((ROWS, count, q.shape[1]), dtype=nl.float32, buffer=nl.sbuf)
    return state


def _whole_and_rest(length: int) -> list[tuple[int, int, int]]:
    """(first piece, pieces, partitions) of the whole pieces of 128 rows, and of what is left."""
    whole, rest = length // ROWS, length % ROWS
    found = []
    if whole:
        found.append((0, whole, ROWS))
    if rest:
        found.append((whole, 1, rest))
    return found


def _blocks(
    state: _Head, q: Any, first: int, length: int, scale: float, causal: bool, window: int, first_query: int, keys: int
) -> list[Any]:
    """Blocks of 128 queries that see some of the keys ``first`` to ``first + length``: ``low`` to ``high`` of them."""
    found = []
    queries = q.shape[2]
    for number, start in enumerate(range(0, queries, ROWS)):
        rows = min(ROWS, queries - start)
        position = first_query + start
        low, high = 0, keys
        if causal:
            high = position + rows
            if window:
                low = max(0, position - window + 1) // ROWS * ROWS
        low, high = max(low, first), min(high, first + length)
        if low < high:
            column = start % LOAD
            tile = state.q.columns[start // LOAD][0][:, column : column + rows]
            found.append(
                Block(
                    head=state.head, number=number, first=start, rows=rows, position=position, low=low, high=high,
                    scale=scale, window=window, causal=causal, tiles=[tile],
                )
            )  # fmt: skip
    return found


def _pass(
    state: _Head, blocks: list[Any], masks: Masks, key: _Side, value: _Side, first: int, length: int,
    before: list[Any], last: bool, dk: Any, dv: Any, key_head: int,
) -> list[Any]:  # fmt: skip
    """Up to 512 keys and all queries that see them; the gradients of these keys and values, stored if final."""
    pieces = -(-length // ROWS)
    for_keys = nl.ndarray((ROWS, pieces, dk.shape[2]), dtype=nl.float32, buffer=nl.psum)
    for_values = nl.ndarray((ROWS, pieces, dv.shape[2]), dtype=nl.float32, buffer=nl.psum)
    fresh: list[Any] = []
    turning: list[Any] = []
    for block in blocks:
        fresh.append(_differentiate(state, block, masks, key, value, dk.dtype))
        if len(fresh) > 1:
            step = fresh.pop(0)
            _for_keys(state, step, for_keys, for_values, first)
            turning.append(step)
        if len(turning) > AHEAD:
            _for_queries(state, turning.pop(0), key)
    for step in fresh:
        _for_keys(state, step, for_keys, for_values, first)
        turning.append(step)
    for step in turning:
        _for_queries(state, step, key)
    found = []
    for number, (bank, output) in enumerate([(for_keys, dk), (for_values, dv)]):
        factor = blocks[0].scale if blocks and number == 0 else 1.0
        grads = nl.ndarray(bank.shape, dtype=output.dtype if last else nl.float32, buffer=nl.sbuf)
        for piece in range(pieces):
            at = first + piece * ROWS
            size = min(ROWS, length - piece * ROWS)
            end = at  # of the keys that some query sees
            for block in blocks:
                if block.low < at + size:
                    end = max(end, min(block.high, at + size))
            seen = end - at
            if seen < size:
                nisa.memset(dst=grads[0:size, piece, :], value=0.0)
            target = grads[0 : max(seen, 1), piece, :]
            if seen and before:
                nisa.scalar_tensor_tensor(
                    dst=target,
                    data=bank[0:seen, piece, :],
                    op0=nl.multiply,
                    operand0=factor,
                    op1=nl.add,
                    operand1=before[number][0:seen, piece, :],
                )
            elif seen:
                nisa.tensor_scalar(dst=target, data=bank[0:seen, piece, :], op0=nl.multiply, operand0=factor)
            if last:
                nisa.dma_copy(dst=output[key_head, at : at + size, :], src=grads[0:size, piece, :])
        found.append(grads)
    return found


def _differentiate(state: _Head, block: Block, masks: Masks, key: _Side, value: _Side, dtype: Any) -> _Step:
    """Exponentials of scores, divided by their sums; gradients of scaled scores; those transposed."""
    at, length, rows = block.low, block.high - block.low, block.rows
    scores = scores_of(block, masks, key.columns[at // LOAD], at, length, nl.float32)
    weights = nl.ndarray((rows, length), dtype=dtype, buffer=nl.sbuf)
    nisa.activation(
        dst=weights,
        op=nl.exp,
        data=scores,
        bias=state.minus_lse[0:rows, block.number : block.number + 1],
        scale=block.scale,
    )
    products = nl.ndarray((rows, length), dtype=nl.float32, buffer=nl.psum)
    column = block.first % LOAD
    nisa.nc_matmul(
        dst=products,
        stationary=state.dy.columns[block.first // LOAD][0][:, column : column + rows],
        moving=value.columns[at // LOAD][0][:, at % LOAD : at % LOAD + length],
    )
    grads = to_transpose(rows, length, dtype)
    nisa.scalar_tensor_tensor(
        dst=grads[0:rows, 0:length],
        data=products,
        op0=nl.subtract,
        operand0=state.row_sums[0:rows, block.number : block.number + 1],
        op1=nl.multiply,
        operand1=weights,
    )
    turned = transposed(grads, grads.shape[0], grads.shape[1])
    return _Step(block=block, at=at, length=length, weights=weights, grads=grads[0:rows, 0:length], turned=turned)


def _for_keys(state: _Head, step: _Step, for_keys: Any, for_values: Any, first: int) -> None:
    block = step.block
    chunk, place = block.first // LOAD, block.first % LOAD // ROWS
    for start in range(0, step.length, ROWS):
        size = min(ROWS, step.length - start)
        piece = (step.at + start - first) // ROWS
        nisa.nc_matmul(
            dst=for_values[0:size, piece, :],
            stationary=step.weights[:, start : start + size],
            moving=state.dy.rows[chunk][0 : block.rows, place, :],
        )
        nisa.nc_matmul(
            dst=for_keys[0:size, piece, :],
            stationary=step.grads[:, start : start + size],
            moving=state.q.rows[chunk][0 : block.rows, place, :],
        )


def _for_queries(state: _Head, step: _Step, key: _Side) -> None:
    block = step.block
    product = nl.ndarray((block.rows, state.dq.shape[2]), dtype=nl.float32, buffer=nl.psum)
    for piece, start in enumerate(range(0, step.length, ROWS)):
        size = min(ROWS, step.length - start)
        nisa.nc_matmul(
            dst=product,
            stationary=step.turned[0:size, piece, 0 : block.rows],
            moving=key.rows[step.at // LOAD][0:size, step.at % LOAD // ROWS + piece, :],
        )
    total = state.dq[0 : block.rows, block.number, :]
    if block.number in state.touched:
        nisa.tensor_tensor(dst=total, data1=product, data2=total, op=nl.add)
    else:
        nisa.tensor_copy(dst=total, src=product)
        state.touched.append(block.number)


def _store_queries(state: _Head, output: Any, scale: float, queries: int) -> None:
    """The gradients of a head's queries, and zeros for those that saw none of this core's keys."""
    depth = output.shape[2]
    for number, start in enumerate(range(0, queries, ROWS)):
        rows = min(ROWS, queries - start)
        final = nl.ndarray((rows, depth), dtype=output.dtype, buffer=nl.sbuf)
        if number in state.touched:
            nisa.tensor_scalar(dst=final, data=state.dq[0:rows, number, :], op0=nl.multiply, operand0=scale)
        else:
            nisa.memset(dst=final, value=0.0)
        nisa.dma_copy(dst=output[state.head, start : start + rows, :], src=final)


def _add_parts(parts: Any, dq: Any, scale: float, cores: int, core: int) -> None:
    """Gradients of Q: the sum of what the cores found, each for blocks of 128 queries in turn."""
    heads, queries, depth = dq.shape
    for head in range(heads):
        for number, start in enumerate(range(0, queries, ROWS)):
            if number % cores != core:
                continue
            rows = min(ROWS, queries - start)
            tile = nl.ndarray((rows, cores, depth), dtype=nl.float32, buffer=nl.sbuf)
            nisa.dma_copy(dst=tile, src=parts[:, head, start : start + rows, :].permute((1, 0, 2)))
            total = nl.ndarray((rows, depth), dtype=nl.float32, buffer=nl.sbuf)
            nisa.tensor_tensor(dst=total, data1=tile[:, 0, :], data2=tile[:, 1, :], op=nl.add)
            final = nl.ndarray((rows, depth), dtype=dq.dtype, buffer=nl.sbuf)
            nisa.tensor_scalar(dst=final, data=total, op0=nl.multiply, operand0=scale)
            nisa.dma_copy(dst=dq[head, start : start + rows, :], src=final)

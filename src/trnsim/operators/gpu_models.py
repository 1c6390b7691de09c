"""What a GPU's libraries take, as functions of shapes: closed forms whose constants ``gpu.toml`` holds.

Each model is a launch of fixed length and work whose parts overlap more or less: products in waves of tiles over the
streaming multiprocessors, each tile as fast as the tensor cores or the L2 cache allow, and traffic of HBM at a share of
its rate. Shapes are arrays of one length; times are microseconds; rates are operations and bytes a microsecond.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Constants = Mapping[str, float]

# Tiles (rows, columns of the result) that a library chooses from, and into how many parts it cuts the contraction.
_SHAPES = ((256, 256), (256, 128), (128, 256), (128, 128), (128, 64), (64, 128), (64, 256), (64, 64), (128, 32))
_CHOICES = [(*tile, parts) for tile in (*_SHAPES, (64, 32), (64, 16)) for parts in (1, 2, 4, 8, 16)]
TILES = np.array(_CHOICES, np.float64).T[:, :, None]
_GROUPED = [(rows, columns, 1) for rows in (16, 32, 64, 128, 256) for columns in (64, 128, 256)]
GROUPED_TILES = np.array(_GROUPED, np.float64).T[:, :, None]
# Uses that are computed together: as many as a cache of the host holds, with all choices.
CHUNK = 1024
# Rows that one instruction of the tensor cores multiplies; fewer take as long.
INSTRUCTION_ROWS = 64
# Step of the contraction, queries of an attention tile, keys of a piece of a cache, rows of queries of a decode tile.
STEP, QUERY_TILE, PIECE, GROUP_TILE = 64, 128, 128, 8


@dataclass(frozen=True)
class GpuRates:
    """Peak rates of one GPU for one format.

    ``flops``: of the format's tensor cores; ``flops16``: of its 16-bit formats; both operations a microsecond;
    ``bandwidth``: of HBM, bytes a microsecond; ``sms``: streaming multiprocessors; ``itemsize``: bytes an operand, with
    its scales.
    """

    flops: float
    flops16: float
    bandwidth: float
    sms: int
    itemsize: float


def matmul(c: Constants, r: GpuRates, m: Array, k: Array, n: Array) -> Array:
    """[m, k] @ [k, n]: one launch; formats of one byte or less also make their left operand from 16 bits."""
    products = _least(c, r, TILES, np.ones(len(m)), m, k, n)
    moved = (m * k + k * n) * r.itemsize + 2 * m * n
    result: Array = c["fixed_us"] + _overlapped(c, products, moved / (c["memory"] * r.bandwidth))
    if r.itemsize < 2:
        result = result + m * k * (2 + r.itemsize) / (c["memory"] * r.bandwidth)
    return result


def grouped_matmul(c: Constants, r: GpuRates, tokens: Array, k: Array, n: Array, experts: Array) -> Array:
    """[tokens, k] @ [experts, k, n], tokens spread evenly over as many of the experts as they reach; no launch."""
    active = np.minimum(experts, tokens)
    products = _least(c, r, GROUPED_TILES, active, tokens / active, k, n)
    moved = active * k * n * r.itemsize + tokens * (k * r.itemsize + 2 * n)
    return _overlapped(c, products, moved / (c["memory"] * r.bandwidth))


def moe(c: Constants, r: GpuRates, tokens: Array, routed: Array, width: Array, hidden: Array, experts: Array) -> Array:
    """A layer of gated experts on one GPU: routing, permutation, both grouped products, activation, sum.

    ``tokens``: of the layer's input; ``routed``: pairs of token and expert that this GPU computes.
    """
    first = grouped_matmul(c, r, routed, width, 2 * hidden, experts)
    second = grouped_matmul(c, r, routed, hidden, width, experts)
    moved = 2 * (routed * (width + hidden) + tokens * width)
    return c["fixed_us"] + first + second + c["passes"] * moved / r.bandwidth


def attention(
    c: Constants,
    r: GpuRates,
    heads: Array,
    key_heads: Array,
    queries: Array,
    keys: Array,
    depth: Array,
    value_depth: Array,
    causal: Array,
    window: Array,
) -> Array:
    """Prefill: tiles of 128 queries over the keys that they see. Heads are those of all sequences.

    Libraries that pack (``packs`` 1) put queries of all heads of a key head into a tile where a head has few.
    """
    blocks = np.ceil(queries / QUERY_TILE)
    mean, most = seen(queries, keys, causal, window)
    pair = 2 * (depth + value_depth) / (r.flops * c["compute"]) + 1 / (r.flops16 * c["exponentials"])
    pair = pair * r.sms * QUERY_TILE
    count = heads * blocks
    if c["packs"]:
        count = np.minimum(count, key_heads * np.ceil(heads / key_heads * queries / QUERY_TILE))
    products = np.maximum(count * mean * pair / r.sms, most * pair) + np.ceil(count / r.sms) * c["tile_us"]
    moved = (heads * queries + key_heads * keys) * (depth + value_depth) * min(r.itemsize, 2)
    return c["fixed_us"] + products + moved / (c["memory"] * r.bandwidth)


def seen(queries: Array, keys: Array, causal: Array, window: Array) -> tuple[Array, Array]:
    """Keys that a tile of queries is multiplied with, in whole tiles: the mean over tiles, and the most.

    Queries are the last of the keys; the window is that of causal attention, 0: none.
    """
    blocks = np.ceil(queries / QUERY_TILE)
    whole = np.ceil(keys / QUERY_TILE) * QUERY_TILE
    before = np.maximum(keys - queries, 0)
    cap = np.where(window > 0, np.minimum(window + QUERY_TILE, whole), whole)
    # The tile number j, from 0, sees before + (j + 1) tiles, up to the cap.
    growing = np.clip(np.floor((cap - before) / QUERY_TILE), 0, blocks)
    total = growing * (before + (growing + 1) / 2 * QUERY_TILE) + (blocks - growing) * cap
    mean = np.where(causal > 0, total / blocks, whole)
    most = np.where(causal > 0, np.minimum(before + blocks * QUERY_TILE, cap), whole)
    return mean, most


def decode(
    c: Constants,
    r: GpuRates,
    sequences: Array,
    heads: Array,
    key_heads: Array,
    keys: Array,
    depth: Array,
    value_depth: Array,
) -> Array:
    """One query a sequence over a cache, in pieces over the SMs. ``value_depth`` 0: values are a part of the keys."""
    lanes = sequences * key_heads
    pieces = np.clip(np.floor(2 * r.sms / lanes), 1, np.ceil(keys / PIECE))
    length = np.ceil(keys / pieces / PIECE) * PIECE
    output = np.where(value_depth > 0, value_depth, depth)
    elements = lanes * keys * (depth + value_depth)
    moved = elements * r.itemsize + 2 * sequences * heads * (depth + output)
    rows = np.ceil(heads / key_heads / GROUP_TILE) * GROUP_TILE
    products = 2 * lanes * rows * keys * (depth + output) / (r.flops16 * c["compute"])
    serial = length * (depth + output) / 256 * c["key_us"]
    serial = serial + (lanes * pieces * c["tile_us"] + sequences * heads * c["head_us"]) / r.sms
    return c["fixed_us"] + _overlapped(c, moved / (c["memory"] * r.bandwidth), serial, products)


def moving(c: Constants, r: GpuRates, moved: Array) -> Array:
    """Anything that reads and writes and does little else."""
    return c["fixed_us"] + moved / (c["memory"] * r.bandwidth)


def _least(c: Constants, r: GpuRates, choices: Array, groups: Array, m: Array, k: Array, n: Array) -> Array:
    """Products of ``groups`` matrices [m, k] @ [k, n] by the best choice of tiles, in waves over the SMs."""
    result = np.empty(len(m))
    rows, columns, parts = choices
    bytes_rate, flops_rate = r.flops16 / r.sms * c["l2"], r.flops / r.sms * c["compute"]
    operands = (rows + columns) * r.itemsize / bytes_rate
    products = 2 * np.maximum(rows, INSTRUCTION_ROWS) * columns / flops_rate
    per_depth = np.maximum(products, operands)  # as slow as the tensor cores or the operands through the L2 cache
    split = np.where(parts > 1, c.get("split_us", 0.0), 0.0)
    for start in range(0, len(m), CHUNK):
        part = slice(start, start + CHUNK)
        waves = np.ceil(groups[part] * np.ceil(m[part] / rows) * np.ceil(n[part] / columns) * parts / r.sms)
        depth = np.ceil(k[part] / parts / STEP) * STEP
        result[part] = (waves * (per_depth * depth + c["tile_us"]) + split).min(axis=0)
    return result


def _overlapped(c: Constants, *parts: Array) -> Array:
    """A sum of parts that run beside each other, more so the higher the power."""
    power = c["overlap"]
    longest = np.maximum.reduce(parts)
    total: Array = longest * np.sum([(part / longest) ** power for part in parts], axis=0) ** (1 / power)
    return total

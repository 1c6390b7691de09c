"""Matrix products of groups of tokens, each with the weights of its expert.

How many tokens an expert has is known at run time only (``expert_blocks``). The rows of a block are gathered, and its
expert's weights loaded, all ahead of their products. A block with no tokens takes as long as any other. Cores take
turns with blocks.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trnsim import nki
from trnsim.kernels.attention import transposed
from trnsim.kernels.contract import Axis, Contract, Limit, Problem, Sizes, least, most
from trnsim.kernels.expert_blocks import Blocks, block_count, check_offsets, gathered, lanes_of, locate, rows_of
from trnsim.kernels.shapes import array, moved
from trnsim.nki import isa as nisa
from trnsim.nki import language as nl

ROWS, BANK = 128, 512
STEP_BYTES = 48 * 1024  # of weights that a step loads in a partition
AHEAD_BYTES = 64 * 1024  # of those that may be loaded before they are needed


class _Step(nl.NKIObject):
    """A block's tokens, and the columns of weights that they are multiplied with."""

    tokens: Any
    column: int
    length: int
    weights: Any


@nki.jit
def grouped_matmul(x: Any, w: Any, offsets: Any, block: int = 256, contract_w: int = 0) -> Any:
    """x[offsets[e] : offsets[e + 1]] @ w[e] for each expert e.

    Args:
        x: [tokens, K] in HBM, the tokens of an expert in a row; bfloat16, float16 or float32. Up to 2^23 tokens.
        w: [experts, K, N] of that format, or [experts, N, K] with ``contract_w=1``.
        offsets: [1, experts + 1] int32, from 0 to tokens, ascending.
        block: 128, 256 or 512 tokens that share a load of weights. 512 experts at most.
        contract_w: which dimension of an expert's weights is the contraction; 1, as the gradient of ``x`` wants it,
            costs a transposition in SBUF.

    Returns:
        [tokens, N] in the format of x, accumulated in float32.
    """
    tokens, size = x.shape
    experts, width = w.shape[0], w.shape[2 - contract_w]
    assert w.shape[1 + contract_w] == size, f"x has {size} elements a token, w {w.shape[1 + contract_w]}"
    check_offsets(offsets, experts, block, tokens)
    result = nl.ndarray((tokens, width), dtype=x.dtype, buffer=nl.shared_hbm)
    count = block_count(tokens, experts, block)
    blocks, lanes = locate(offsets, experts, block, count), lanes_of()
    depths = [(at, min(ROWS, size - at)) for at in range(0, size, ROWS)]
    cores, core = nl.num_programs(0), nl.program_id(0)
    column_bytes = len(depths) * (4 if x.dtype == nl.float32 else 2)
    step = max(BANK, STEP_BYTES // column_bytes // BANK * BANK)  # wide: long descriptors, few in a ring
    if BANK * column_bytes > AHEAD_BYTES:  # no such step fits beside another
        step = max(ROWS, STEP_BYTES // column_bytes // ROWS * ROWS)
    early = max(1, min(3, AHEAD_BYTES // (min(step, width) * column_bytes)))
    waiting: list[Any] = []
    ahead = _tokens(x, blocks, lanes, core, block) if core < count else []
    for number in range(core, count, cores):
        tokens_of = ahead  # the next block's pass DMA queues before this block's weights
        if number + cores < count:
            ahead = _tokens(x, blocks, lanes, number + cores, block)
        for column in range(0, width, step):
            length = min(step, width - column)
            load = _turned_weights if contract_w else _weights
            weights = load(w, blocks.expert[0:1, number : number + 1], depths, column, length)
            waiting.append(_Step(tokens=tokens_of, column=column, length=length, weights=weights))
            if len(waiting) > early:
                _multiply(waiting.pop(0), result, depths)
    for late in waiting:
        _multiply(late, result, depths)
    return result


def _tokens(x: Any, blocks: Blocks, lanes: Any, number: int, block: int) -> list[Any]:
    """[index, transposed rows] of each 128 tokens of a block."""
    tokens, size = x.shape
    found = []
    for start in range(0, block, ROWS):
        index = rows_of(blocks, lanes, number, start, tokens)
        rows = gathered(x, index, 0, size)
        found.append([index, transposed(rows, ROWS, size)])
    return found


def _multiply(step: _Step, result: Any, depths: list[tuple[int, int]]) -> None:
    """A block's tokens with some columns of its expert's weights."""
    width = result.shape[1]
    for index, turned in step.tokens:
        final = nl.ndarray((ROWS, step.length), dtype=result.dtype, buffer=nl.sbuf)
        for start in range(0, step.length, BANK):
            end = min(start + BANK, step.length)
            product = nl.ndarray((ROWS, end - start), dtype=nl.float32, buffer=nl.psum)
            for part, (_, depth) in enumerate(depths):
                nisa.nc_matmul(
                    dst=product, stationary=turned[0:depth, part, :], moving=step.weights[part][:, start:end]
                )
            nisa.tensor_copy(dst=final[:, start:end], src=product)
        nisa.dma_copy(
            dst=result.ap(pattern=[[width, ROWS], [1, step.length]], offset=step.column, vector_offset=index),
            src=final,
            oob_mode=nisa.oob_mode.skip,
        )


def _weights(w: Any, expert: Any, depths: list[tuple[int, int]], column: int, length: int) -> list[Any]:
    """Columns of the weights of an expert: [128 of K, length] each."""
    width = w.shape[2]
    tiles = []
    for at, depth in depths:
        tile = nl.ndarray((depth, length), dtype=w.dtype, buffer=nl.sbuf)
        pattern = [[width, depth], [1, length]]
        source = w.ap(pattern=pattern, offset=at * width + column, scalar_offset=expert, indirect_dim=0)
        nisa.dma_copy(dst=tile, src=source)
        tiles.append(tile)
    return tiles


def _turned_weights(w: Any, expert: Any, depths: list[tuple[int, int]], column: int, length: int) -> list[Any]:
    """Rows of the weights of an expert, transposed: [128 of K, length] each."""
    size = w.shape[2]
    turned = nl.ndarray((ROWS, len(depths), length), dtype=w.dtype, buffer=nl.sbuf)
    for at in range(0, length, ROWS):
        rows = min(ROWS, length - at)
        tile = nl.ndarray((rows, size), dtype=w.dtype, buffer=nl.sbuf)
        pattern = [[size, rows], [1, size]]
        source = w.ap(pattern=pattern, offset=(column + at) * size, scalar_offset=expert, indirect_dim=0)
        nisa.dma_copy(dst=tile, src=source)
        transposed(tile, rows, size, turned[:, :, at : at + rows])
    return [turned[0:depth, part, :] for part, (_, depth) in enumerate(depths)]


def _count(problem: Problem) -> Any:
    """Blocks that hold one expert's tokens each."""
    block = int(problem.options["block"])
    return (problem.sizes["tokens"] + problem.sizes["experts"] * (block - 1)) // block


def _axes(problem: Problem) -> tuple[Axis, ...]:
    block, experts, cores = int(problem.options["block"]), problem.sizes["experts"], problem.cores
    return (Axis("blocks", cores, 4 * cores, low=max(1, (1 + experts * (block - 1)) // block)),)


def _placed(problem: Problem, coordinates: Sizes) -> Sizes:
    block, experts = int(problem.options["block"]), problem.sizes["experts"]
    return {**problem.sizes, "tokens": most(1, coordinates["blocks"] * block - experts * (block - 1))}


def _arguments(problem: Problem) -> tuple[Any, ...]:
    tokens, experts, k, n = (problem.sizes[name] for name in ("tokens", "experts", "k", "n"))
    contract = int(problem.options["contract_w"])
    lines = (n, k) if contract else (k, n)
    x, w = array(tokens, k, dtype=problem.dtype), array(experts, *lines, dtype=problem.dtype)
    # Which tokens are whose decides no time: a block with few tokens takes as long as any other.
    offsets = (np.arange(experts + 1, dtype=np.int64) * tokens // experts).astype(np.int32)
    return x, w, offsets[None], int(problem.options["block"]), contract


CONTRACTS = (
    Contract(
        name="grouped_matmul",
        kernel=grouped_matmul,
        sizes=("tokens", "experts", "k", "n"),
        fixed=("experts", "k", "n"),
        options={"block": (256, 128, 512), "contract_w": (0, 1)},
        limits=lambda _: {"experts": Limit(high=512), "tokens": Limit(high=2**23 - 1)},
        arguments=_arguments,
        axes=_axes,
        coordinates=lambda p: {"blocks": _count(p)},
        placed=_placed,
        flops=lambda p: 2 * p.sizes["tokens"] * p.sizes["k"] * p.sizes["n"],
        bytes=lambda p: moved(
            p,
            p.sizes["tokens"] * (p.sizes["k"] + p.sizes["n"]),
            least(p.sizes["experts"], p.sizes["tokens"]) * p.sizes["k"] * p.sizes["n"],
        ),
        summary="tokens, sorted by expert, with the weights of their experts",
    ),
)

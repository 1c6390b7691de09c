"""Feed-forward networks: SwiGLU and other gated ones, and the plain one with GeLU.

512 tokens at a time meet all weights, which is enough for TensorE to take longer than the DMAs. The hidden layer is
computed transposed, [hidden, tokens]: weights as they lie are the stationary operand, and what comes out stays in SBUF
and is what the second product contracts. Eight products grow at once, one in each bank of PSUM, so that weights are
used as they come and need no room.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trnsim import nki
from trnsim.errors import InputError
from trnsim.kernels.blocks import TILE_K, TILE_M, TILE_N, TOGETHER, columns_of, load_block
from trnsim.kernels.contract import Axis, Contract, Problem
from trnsim.kernels.elementwise import activation_of
from trnsim.kernels.shapes import array, item, moved, row_limits, up
from trnsim.kernels.tiles import (
    check_format,
    check_rows,
    check_width,
    even_pieces,
    item_bytes,
    load_to_all,
    pieces,
    share,
)
from trnsim.nki import isa as nisa
from trnsim.nki import language as nl
from trnsim.numerics import as_dtype

BLOCK_TOKENS = 512  # a bank of PSUM
BLOCK_K = 1024  # of a contraction that is loaded at a time
BANKS = 8
# Bytes a partition that the tokens of a block and their hidden layer may take in SBUF.
FIT_BYTES = 144 * 1024
# From this many tokens a core on, cores share the tokens; fewer are multiplied by half of the weights each.
SHARED_TOKENS = 256


def _check(x: Any, weights: list[Any], down: Any) -> None:
    assert len(x.shape) == 2, f"x is {tuple(x.shape)}: it must be [tokens, width]"
    check_format("x", x.dtype)
    check_width(x.shape[1], x.dtype)
    hidden = down.shape[0]
    for weight in weights:
        check_rows("the first weight", weight, (x.shape[1], hidden), x.dtype)
    check_rows("the second weight", down, (hidden, down.shape[1]), x.dtype)


@nki.jit
def gated_mlp(x: Any, gate: Any, up: Any, down: Any, activation: str = "silu") -> Any:
    """(activation(x gate) * (x up)) down; with ``silu`` it is SwiGLU.

    Args:
        x: [tokens, width] in HBM, float32, bfloat16 or float16. A token has 32 KiB at most.
        gate, up: [width, hidden] in that format.
        down: [hidden, outputs] in that format.
        activation: ``silu``, ``gelu``, ``gelu_tanh``, ``relu``, ``sigmoid`` or ``identity``.

    Returns:
        [tokens, outputs] in that format; products are accumulated in float32, activation and hidden layer rounded to
        the format. Two cores share the tokens, or, if they are few, hidden layer and outputs.
    """
    _check(x, [gate, up], down)
    return _feed_forward(x, gate, up, down, activation, None, None)


@nki.jit
def mlp(x: Any, up: Any, down: Any, bias_up: Any = None, bias_down: Any = None, activation: str = "gelu") -> Any:
    """activation(x up + bias_up) down + bias_down.

    Args:
        x: [tokens, width] in HBM, float32, bfloat16 or float16. A token has 32 KiB at most.
        up: [width, hidden] in that format.
        down: [hidden, outputs] in that format.
        bias_up, bias_down: [hidden] and [outputs] in that format, or None.
        activation: as ``gated_mlp`` takes.

    Returns:
        [tokens, outputs] in that format, as ``gated_mlp`` computes it.
    """
    _check(x, [up], down)
    if bias_up is not None:
        check_rows("bias_up", bias_up, (up.shape[1],), x.dtype)
    if bias_down is not None:
        check_rows("bias_down", bias_down, (down.shape[1],), x.dtype)
    return _feed_forward(x, up, None, down, activation, bias_up, bias_down)


def _feed_forward(x: Any, first: Any, second: Any, down: Any, activation: str, bias_up: Any, bias_down: Any) -> Any:
    tokens, hidden_size, outputs = x.shape[0], down.shape[0], down.shape[1]
    result = nl.ndarray((tokens, outputs), dtype=x.dtype, buffer=nl.shared_hbm)
    cores = nl.num_programs(0)
    by_token = tokens >= cores * SHARED_TOKENS
    rows = share(tokens, TILE_M) if by_token else (0, tokens)
    features = (0, hidden_size) if by_token else share(hidden_size, TILE_M)
    columns = (0, outputs) if by_token else share(outputs, TILE_N)
    exchanged = None
    if cores > 1 and not by_token:
        exchanged = nl.ndarray((hidden_size, tokens), dtype=x.dtype, buffer=nl.shared_hbm)
    weights = [first] if second is None else [first, second]
    for at, count in pieces(rows[0], rows[1], block_of(x.shape[1], hidden_size, x.dtype)):
        hidden = _hidden_layer(x, at, count, weights, activation, bias_up, features)
        if exchanged is not None:
            hidden = _exchange(exchanged, hidden, features, at, count)
        _second_layer(result, at, hidden, down, columns, bias_down)
    return result


def block_of(width: int, hidden: int, dtype: Any) -> int:
    """Tokens of a block: 512, or what of them SBUF holds, at least 128."""
    column_bytes = (-(-width // TILE_K) + -(-hidden // TILE_K)) * item_bytes(dtype)
    fitting = FIT_BYTES // column_bytes // TILE_M * TILE_M
    assert fitting, f"tokens of {width} elements and {hidden} hidden ones do not fit SBUF by the {TILE_M}"
    return min(BLOCK_TOKENS, fitting)


def _hidden_layer(
    x: Any, at: int, count: int, weights: list[Any], activation: str, bias: Any, features: tuple[int, int]
) -> list[Any]:
    """activation(first^T x^T + bias) times second^T x^T of ``count`` tokens: [128 of these features, tokens] each."""
    op = activation_of(activation)
    moving: list[Any] = []
    hidden = []
    # Products of few tokens leave room for others in their banks: longer rows of weights at a time.
    sweep = TILE_M * (BANKS // len(weights)) * (2 if count <= TILE_M else 1)
    group, together = (sweep, 2) if count <= TILE_M else (TILE_N, TOGETHER)
    in_order = _in_order(count)
    for feature, length in even_pieces(features[0], features[1], sweep, TILE_M if in_order else sweep):
        parts = pieces(0, length, TILE_M)
        products = [[nl.ndarray((size, count), dtype=nl.float32, buffer=nl.psum) for _ in weights] for _, size in parts]
        for chunk, (k_first, k_length) in enumerate(pieces(0, x.shape[1], BLOCK_K)):
            if chunk == len(moving):  # not before: what comes first is multiplied first
                moving.append(load_block(x, 1, k_first, k_length, at, count)[0])
            loaded = [
                load_block(
                    weight, 0, k_first, k_length, feature, length, group=group, together=together, in_order=in_order
                )
                for weight in weights
            ]
            for k in range(len(moving[chunk])):
                for number, (part, size) in enumerate(parts):
                    for index in range(len(weights)):
                        nisa.nc_matmul(
                            dst=products[number][index],
                            stationary=columns_of(loaded[index], k, part, size),
                            moving=moving[chunk][k],
                        )
        for number, (part, size) in enumerate(parts):
            tile = nl.ndarray((size, count), dtype=x.dtype, buffer=nl.sbuf)
            offset = None
            if bias is not None:
                offset = nl.ndarray((size, 1), dtype=bias.dtype, buffer=nl.sbuf)
                begin = feature + part
                nisa.dma_copy(dst=offset, src=bias[begin : begin + size].reshape((size, 1)))
            nisa.activation(dst=tile, op=op, data=products[number][0], bias=offset)
            if len(weights) > 1:
                nisa.tensor_tensor(dst=tile, data1=tile, data2=products[number][1], op=nl.multiply)
            hidden.append(tile)
    return hidden


def _in_order(tokens: int) -> bool:
    """Whether weights come by one ring, in the order of their use.

    Products of few tokens wait for weights. Of two rings ScalarE's stands still until its activations are done, while
    SyncE's brings what is used later. One ring is as fast where its DMAs are long: with all of the weights on one core.
    """
    return tokens <= TILE_M and nl.num_programs(0) == 1 and nisa.get_nc_version() >= nisa.nc_version.gen3


def _exchange(exchanged: Any, own: list[Any], features: tuple[int, int], at: int, count: int) -> list[Any]:
    """All features of the hidden layer, of which each core has its own, by way of HBM."""
    for number, (feature, size) in enumerate(pieces(features[0], features[1], TILE_M)):
        nisa.dma_copy(dst=exchanged[feature : feature + size, at : at + count], src=own[number])
    nisa.core_barrier(data=exchanged, cores=(0, 1))
    return load_block(exchanged, 0, 0, exchanged.shape[0], at, count)[0]


def _second_layer(result: Any, at: int, hidden: list[Any], down: Any, columns: tuple[int, int], bias: Any) -> None:
    """``columns`` of the rows of ``result`` from ``at`` on: hidden^T down + bias."""
    tokens = pieces(0, hidden[0].shape[1], TILE_M)
    # Few tokens wait for weights, which then come in the order of use: whole rows, long descriptors.
    group, together = (result.shape[1], 1) if len(tokens) == 1 else (TILE_N, TOGETHER)
    in_order = _in_order(hidden[0].shape[1])
    sweep = TILE_N * (BANKS // len(tokens))
    for column, length in even_pieces(columns[0], columns[1], sweep, TILE_N if in_order else sweep):
        offsets = load_to_all(bias[column : column + length]) if bias is not None else None
        parts = pieces(0, length, TILE_N)
        products = [[nl.ndarray((rows, n), dtype=nl.float32, buffer=nl.psum) for _, n in parts] for _, rows in tokens]
        for k_first, k_length in pieces(0, down.shape[0], BLOCK_K):
            loaded = load_block(
                down, 0, k_first, k_length, column, length, group=group, together=together, in_order=in_order
            )
            for k in range(len(loaded[0])):
                for row, (token, rows) in enumerate(tokens):
                    for number, (part, size) in enumerate(parts):
                        nisa.nc_matmul(
                            dst=products[row][number],
                            stationary=hidden[k_first // TILE_K + k][:, token : token + rows],
                            moving=columns_of(loaded, k, part, size),
                        )
        for row, (token, rows) in enumerate(tokens):
            out = nl.ndarray((rows, length), dtype=result.dtype, buffer=nl.sbuf)
            for number, (part, size) in enumerate(parts):
                here = out[:, part : part + size]
                if offsets is None:
                    nisa.tensor_copy(dst=here, src=products[row][number])
                else:
                    added = offsets[0:rows, part : part + size]
                    nisa.tensor_tensor(dst=here, data1=products[row][number], data2=added, op=nl.add)
            begin = at + token
            nisa.dma_copy(dst=result[begin : begin + rows, column : column + length], src=out)


_ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "sigmoid", "identity")


def _by_token(problem: Problem) -> Any:
    return (problem.sizes["tokens"] >= problem.cores * SHARED_TOKENS) | (problem.cores == 1)


def _axes(problem: Problem) -> tuple[Axis, ...]:
    cores = problem.cores
    block = block_of(problem.sizes["width"], problem.sizes["hidden"], as_dtype(problem.dtype))
    if not _by_token(problem):
        return (Axis("tokens", TILE_M, block, high=cores * SHARED_TOKENS - 1),)
    return (Axis("tokens", TILE_M * cores, block * cores, low=cores * SHARED_TOKENS if cores > 1 else 1),)


def _fits(problem: Problem) -> None:
    """Refuse hidden layers that SBUF does not hold."""
    tiles = up(problem.sizes["width"], TILE_K) + up(problem.sizes["hidden"], TILE_K)
    most_tiles = FIT_BYTES // (TILE_M * item(problem))
    if np.any(tiles > most_tiles):
        nearest = (most_tiles - up(int(np.max(problem.sizes["width"])), TILE_K)) * TILE_K
        raise InputError(
            f"{TILE_M} tokens and their hidden layer do not fit SBUF; nearest: hidden {nearest}",
            operand="hidden",
            value=int(np.max(problem.sizes["hidden"])),
            limit=nearest,
        )


def _arguments(problem: Problem) -> tuple[Any, ...]:
    tokens, width, hidden, outputs = (problem.sizes[name] for name in ("tokens", "width", "hidden", "outputs"))
    x = array(tokens, width, dtype=problem.dtype)
    gate, up = (array(width, hidden, dtype=problem.dtype) for _ in range(2))
    down = array(hidden, outputs, dtype=problem.dtype)
    if "bias" not in problem.options:
        return x, gate, up, down, problem.options["activation"]
    biases: tuple[Any, ...] = (None, None)
    if problem.options["bias"]:
        biases = (array(hidden, dtype=problem.dtype), array(outputs, dtype=problem.dtype))
    return x, up, down, *biases, problem.options["activation"]


def _contract(name: str, kernel: Any, weights: int, options: dict[str, Any], summary: str) -> Contract:
    return Contract(
        name=name,
        kernel=kernel,
        sizes=("tokens", "width", "hidden", "outputs"),
        fixed=("width", "hidden", "outputs"),
        options=options,
        limits=lambda p: {"width": row_limits(p)["width"]},
        arguments=_arguments,
        regime=lambda p: (_by_token(p),),
        check=_fits,
        axes=_axes,
        flops=lambda p: 2 * p.sizes["tokens"] * p.sizes["hidden"] * (weights * p.sizes["width"] + p.sizes["outputs"]),
        bytes=lambda p: moved(
            p,
            p.sizes["tokens"] * (p.sizes["width"] + p.sizes["outputs"]),
            p.sizes["hidden"] * (weights * p.sizes["width"] + p.sizes["outputs"]),
        ),
        summary=summary,
    )


CONTRACTS = (
    _contract(
        "gated_mlp", gated_mlp, 2, {"activation": _ACTIVATIONS}, "(activation(x gate) * (x up)) down; SwiGLU with silu"
    ),
    _contract(
        "mlp", mlp, 1, {"activation": ("gelu", *(a for a in _ACTIVATIONS if a != "gelu")), "bias": (0, 1)},
        "activation(x up + bias) down + bias",
    ),
)  # fmt: skip

"""Feed-forward networks: SwiGLU and other gated ones, and the plain one with GeLU.

The hidden layer is computed transposed, [hidden, tokens]: weights as they lie are the stationary operand, and what
comes out is what the second product contracts. Tokens stay in SBUF, transposed once, while all weights pass.
"""

from __future__ import annotations

from typing import Any

from trnsim import nki
from trnsim.kernels.elementwise import activation_of
from trnsim.kernels.matmul import TILE_K, TILE_M, TILE_N, columns_of, load_block, multiply
from trnsim.kernels.tiles import check_format, check_rows, check_width, item_bytes, pieces, share
from trnsim.nki import isa as nisa
from trnsim.nki import language as nl

# Bytes a partition of the tokens that stay, and of the columns of one weight that pass at a time.
TOKEN_BYTES = 64 * 1024
WEIGHT_BYTES = 16 * 1024
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
    hidden = nl.ndarray((hidden_size, tokens), dtype=x.dtype, buffer=nl.shared_hbm)
    result = nl.ndarray((tokens, outputs), dtype=x.dtype, buffer=nl.shared_hbm)
    cores = nl.num_programs(0)
    by_token = tokens >= cores * SHARED_TOKENS
    rows = share(tokens, TILE_M) if by_token else (0, tokens)
    features = (0, hidden_size) if by_token else share(hidden_size, TILE_M)
    columns = (0, outputs) if by_token else share(outputs, TILE_N)
    _hidden_layer(hidden, x, first, second, activation, bias_up, rows, features)
    if cores > 1 and not by_token:
        nisa.core_barrier(data=hidden, cores=(0, 1))
    multiply(result, hidden, down, (0, 0), rows, columns, bias_down)
    return result


def _hidden_layer(
    hidden: Any,
    x: Any,
    first: Any,
    second: Any,
    activation: str,
    bias: Any,
    rows: tuple[int, int],
    features: tuple[int, int],
) -> None:
    """``hidden`` [hidden, tokens] of these tokens and features: activation(first^T x^T + bias) times second^T x^T."""
    op = activation_of(activation)
    depth = x.shape[1]
    column_bytes = -(-depth // TILE_K) * item_bytes(x.dtype)
    block = min(2048, max(TILE_M, TOKEN_BYTES // column_bytes // TILE_M * TILE_M))
    # Few tokens leave room, and need longer pieces of rows of weights: then DMA is what takes time.
    weight_bytes = WEIGHT_BYTES if rows[1] - rows[0] > TILE_N else 2 * WEIGHT_BYTES
    group = min(1024, max(TILE_M, weight_bytes // column_bytes // TILE_M * TILE_M))
    for at, count in pieces(rows[0], rows[1], block):
        moving = load_block(x, 1, 0, depth, at, count)
        for feature, length in pieces(features[0], features[1], group):
            weights = [_load_weight(first, feature, length)]
            if second is not None:
                weights.append(_load_weight(second, feature, length))
            for part, size in pieces(0, length, TILE_M):
                offset = None
                if bias is not None:
                    offset = nl.ndarray((size, 1), dtype=bias.dtype, buffer=nl.sbuf)
                    begin = feature + part
                    nisa.dma_copy(dst=offset, src=bias[begin : begin + size].reshape((size, 1)))
                tile = nl.ndarray((size, count), dtype=x.dtype, buffer=nl.sbuf)
                for token, width in pieces(0, count, TILE_N):
                    products = []
                    for weight in weights:
                        product = nl.ndarray((size, width), dtype=nl.float32, buffer=nl.psum)
                        for k in range(len(moving[0])):
                            nisa.nc_matmul(
                                dst=product,
                                stationary=weight[k][:, part : part + size],
                                moving=columns_of(moving, k, token, width),
                            )
                        products.append(product)
                    here = tile[:, token : token + width]
                    nisa.activation(dst=here, op=op, data=products[0], bias=offset)
                    if second is not None:
                        nisa.tensor_tensor(dst=here, data1=here, data2=products[1], op=nl.multiply)
                begin = feature + part
                nisa.dma_copy(dst=hidden[begin : begin + size, at : at + count], src=tile)


def _load_weight(weight: Any, first: int, length: int) -> list[Any]:
    """Columns ``first`` to ``first + length`` of a weight in SBUF: views [128 of its rows, length].

    Eight blocks of rows come by one DMA, so that starting DMAs costs little beside what they move.
    """
    depth = weight.shape[0]
    views = []
    for at, size in pieces(0, depth // TILE_K, 8):
        tile = nl.ndarray((TILE_K, size, length), dtype=weight.dtype, buffer=nl.sbuf)
        rows = weight[at * TILE_K : (at + size) * TILE_K, first : first + length]
        nisa.dma_copy(dst=tile, src=rows.reshape_dim(0, (size, TILE_K)).permute((1, 0, 2)))
        views += [tile[:, block, :] for block in range(size)]
    rest = depth % TILE_K
    if rest:
        tile = nl.ndarray((rest, length), dtype=weight.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=tile, src=weight[depth - rest : depth, first : first + length])
        views.append(tile)
    return views

"""Router of a mixture of experts: which experts take a token, and with what weights.

TensorE finds the logits of 128 tokens at a time, tokens in partitions; VectorE the largest eight at once. Cores take
turns.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trnsim import nki
from trnsim.errors import InputError
from trnsim.kernels.contract import Axis, Contract, Limit, Problem
from trnsim.kernels.shapes import array, item
from trnsim.nki import isa as nisa
from trnsim.nki import language as nl

ROWS, BANK = 128, 512
TOKENS = 512  # loaded at once
LEAST = -3e38  # less than any score


@nki.jit
def router(
    x: Any, w: Any, k: int, bias: Any = None, function: str = "softmax", normalized: bool = False, scale: float = 1.0
) -> Any:
    """The ``k`` experts with the largest scores of each token.

    Args:
        x: [H, tokens] in HBM, bfloat16, float16 or float32.
        w: [H, experts] of that format; experts <= 4,096. It stays in SBUF.
        k: 1 to experts.
        bias: [1, experts] in float32, added to scores for the choice but not for the weights; None: nothing.
        function: ``softmax`` or ``sigmoid``, of the logits x.T @ w: the scores.
        normalized: weights are divided by their sum over the chosen experts.
        scale: of the weights.

    Returns:
        weights [tokens, k] in float32 and experts [tokens, k] in uint32, best first. Of equal scores either may come
        first.
    """
    size, tokens = x.shape
    experts = w.shape[1]
    assert w.shape[0] == size, f"x has {size} elements a token, w {w.shape[0]}"
    assert 1 <= k <= experts, f"k is {k}, not 1 to {experts}"
    assert experts <= 4096, f"{experts} experts exceed 4096"
    assert function in ("softmax", "sigmoid"), f"function is {function!r}, not softmax or sigmoid"
    assert bias is None or bias.shape == (1, experts), f"bias is {bias.shape}, not {(1, experts)}"
    weights = nl.ndarray((tokens, k), dtype=nl.float32, buffer=nl.shared_hbm)
    chosen = nl.ndarray((tokens, k), dtype=nl.uint32, buffer=nl.shared_hbm)
    kept = load_depths(w, 0, experts)
    added = None
    if bias is not None:
        added = nl.ndarray((ROWS, experts), dtype=nl.float32, buffer=nl.sbuf)
        nisa.dma_copy(dst=added, src=bias.broadcast(0, ROWS))
    cores, core = nl.num_programs(0), nl.program_id(0)
    step = TOKENS if tokens >= TOKENS * cores else ROWS
    for group, first in enumerate(range(0, tokens, step)):
        if group % cores != core:
            continue
        count = min(step, tokens - first)
        loaded = load_depths(x, first, count)
        for start in range(0, count, ROWS):
            rows = min(ROWS, count - start)
            logits = _logits(loaded, kept, start, rows, experts)
            scores = _scores(logits, function)
            values, places = _choose(scores, added, k)
            if normalized or scale != 1.0:
                values = _scaled(values, normalized, scale)
            at = first + start
            nisa.dma_copy(dst=weights[at : at + rows, :], src=values)
            nisa.dma_copy(dst=chosen[at : at + rows, :], src=places)
    return weights, chosen


def load_depths(source: Any, first: int, count: int) -> list[Any]:
    """Columns ``first`` to ``first + count`` in SBUF: [128 rows, count] each, in two DMAs and the rest."""
    size = source.shape[0]
    whole = size // ROWS
    tiles = []
    step = max(1, -(-whole // 2))
    for at in range(0, whole, step):
        pieces = min(step, whole - at)
        tile = nl.ndarray((ROWS, pieces, count), dtype=source.dtype, buffer=nl.sbuf)
        rows = source[at * ROWS : (at + pieces) * ROWS, first : first + count].reshape_dim(0, (pieces, ROWS))
        nisa.dma_copy(dst=tile, src=rows.permute((1, 0, 2)))
        tiles += [tile[:, piece, :] for piece in range(pieces)]
    if size % ROWS:
        tile = nl.ndarray((size % ROWS, count), dtype=source.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=tile, src=source[whole * ROWS : size, first : first + count])
        tiles.append(tile)
    return tiles


def _logits(x: list[Any], w: list[Any], start: int, rows: int, experts: int) -> Any:
    """[rows, experts] in float32 in SBUF."""
    logits = nl.ndarray((rows, experts), dtype=nl.float32, buffer=nl.sbuf)
    for column in range(0, experts, BANK):
        width = min(BANK, experts - column)
        product = nl.ndarray((rows, width), dtype=nl.float32, buffer=nl.psum)
        for part in range(len(x)):
            nisa.nc_matmul(
                dst=product, stationary=x[part][:, start : start + rows], moving=w[part][:, column : column + width]
            )
        nisa.tensor_copy(dst=logits[:, column : column + width], src=product)
    return logits


def _scores(logits: Any, function: str) -> Any:
    rows, experts = logits.shape
    scores = nl.ndarray((rows, experts), dtype=nl.float32, buffer=nl.sbuf)
    if function == "sigmoid":
        nisa.activation(dst=scores, op=nl.sigmoid, data=logits)
        return scores
    shift = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=shift, op=nl.maximum, data=logits, axis=1, negate=True)
    total = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
    exponentials = nl.ndarray((rows, experts), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation_reduce(dst=exponentials, op=nl.exp, data=logits, bias=shift, reduce_op=nl.add, reduce_res=total)
    inverse = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.reciprocal(dst=inverse, data=total)
    nisa.tensor_scalar(dst=scores, data=exponentials, op0=nl.multiply, operand0=inverse)
    return scores


def _choose(scores: Any, added: Any, k: int) -> tuple[Any, Any]:
    """Weights and places of the ``k`` best, [rows, k]: eight at a time, each taken out before the next."""
    rows, experts = scores.shape
    padded = max(8, experts)
    left = scores
    if added is not None or padded > experts:
        left = nl.ndarray((rows, padded), dtype=nl.float32, buffer=nl.sbuf)
        if padded > experts:
            nisa.memset(dst=left[:, experts:padded], value=LEAST)
        if added is None:
            nisa.tensor_copy(dst=left[:, 0:experts], src=scores)
        else:
            nisa.tensor_tensor(dst=left[:, 0:experts], data1=scores, data2=added[0:rows, :], op=nl.add)
    eights = -(-k // 8)
    best = nl.ndarray((rows, 8 * eights), dtype=nl.float32, buffer=nl.sbuf)
    places = nl.ndarray((rows, 8 * eights), dtype=nl.uint32, buffer=nl.sbuf)
    for number in range(eights):
        top = best[:, 8 * number : 8 * number + 8]
        nisa.max8(dst=top, src=left)
        nisa.nc_find_index8(dst=places[:, 8 * number : 8 * number + 8], data=left, vals=top)
        if number < eights - 1:
            rest = nl.ndarray((rows, padded), dtype=nl.float32, buffer=nl.sbuf)
            nisa.nc_match_replace8(dst=rest, data=left, vals=top, imm=LEAST)
            left = rest
    if added is None:
        return best[:, 0:k], places[:, 0:k]
    values = nl.ndarray((rows, k), dtype=nl.float32, buffer=nl.sbuf)
    nisa.nc_n_gather(dst=values, data=scores, indices=places[:, 0:k])
    return values, places[:, 0:k]


def _scaled(values: Any, normalized: bool, scale: float) -> Any:
    rows, k = values.shape
    result = nl.ndarray((rows, k), dtype=nl.float32, buffer=nl.sbuf)
    if not normalized:
        nisa.tensor_scalar(dst=result, data=values, op0=nl.multiply, operand0=scale)
        return result
    total = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=total, op=nl.add, data=values, axis=1)
    inverse = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.reciprocal(dst=inverse, data=total)
    nisa.tensor_scalar(dst=result, data=values, op0=nl.multiply, operand0=inverse, op1=nl.multiply, operand1=scale)
    return result


def _many(problem: Problem) -> Any:
    return problem.sizes["tokens"] >= TOKENS * problem.cores


def _axes(problem: Problem) -> tuple[Axis, ...]:
    cores = problem.cores
    if _many(problem):
        return (Axis("tokens", ROWS, TOKENS * cores, low=TOKENS * cores, far=32),)
    return (Axis("tokens", ROWS, ROWS * cores, high=TOKENS * cores - 1),)


def _arguments(problem: Problem) -> tuple[Any, ...]:
    tokens, width, experts, k = (problem.sizes[name] for name in ("tokens", "width", "experts", "k"))
    x, w = array(width, tokens, dtype=problem.dtype), array(width, experts, dtype=problem.dtype)
    bias = array(1, experts, dtype="float32") if problem.options["bias"] else None
    return x, w, k, bias, problem.options["function"], bool(problem.options["normalized"])


def _fits(problem: Problem) -> None:
    k, experts = np.max(problem.sizes["k"]), np.min(problem.sizes["experts"])
    if k > experts:
        raise InputError(
            f"router: k is {k}, more than {experts} experts; nearest: {experts}",
            operand="k",
            value=int(k),
            limit=int(experts),
        )


CONTRACTS = (
    Contract(
        name="router",
        kernel=router,
        sizes=("tokens", "width", "experts", "k"),
        fixed=("width", "experts", "k"),
        options={"function": ("softmax", "sigmoid"), "normalized": (0, 1), "bias": (0, 1)},
        limits=lambda _: {"experts": Limit(high=4096)},
        check=_fits,
        arguments=_arguments,
        regime=lambda p: (_many(p),),
        axes=_axes,
        flops=lambda p: 2 * p.sizes["tokens"] * p.sizes["width"] * p.sizes["experts"],
        bytes=lambda p: (
            (p.sizes["tokens"] + p.sizes["experts"]) * p.sizes["width"] * item(p) + 8 * p.sizes["tokens"] * p.sizes["k"]
        ),
        summary="the k experts with the largest scores of each token",
    ),
)

"""Rotary position embedding: each pair of elements of a head, half a head apart, is turned by an angle."""

from __future__ import annotations

from typing import Any

import numpy as np

from trnsim import nki
from trnsim.errors import InputError
from trnsim.kernels.contract import Contract, Limit, Problem
from trnsim.kernels.shapes import array, item, moved, rows_axis
from trnsim.kernels.tiles import (
    ROW_BYTES,
    check_format,
    check_rows,
    check_width,
    group_of,
    load_group,
    row_groups,
    share,
)
from trnsim.nki import isa as nisa
from trnsim.nki import language as nl


@nki.jit
def rope(x: Any, cosines: Any, sines: Any, inverse: bool = False) -> Any:
    """Pairs (x[i], x[i + half]) turned: (x[i] cos - x[i + half] sin, x[i + half] cos + x[i] sin).

    Args:
        x: [tokens, heads, size] in HBM, float32, bfloat16 or float16, size even. The heads of a token have 32 KiB at
            most.
        cosines, sines: [tokens, size / 2] in that format.
        inverse: turns the other way, which takes a gradient of the result to that of ``x``.

    Returns:
        [tokens, heads, size] in that format; products are rounded to it before they are added. Two cores share the
        tokens.
    """
    assert len(x.shape) == 3, f"x is {tuple(x.shape)}: it must be [tokens, heads, size]"
    tokens, heads, size = x.shape
    assert size % 2 == 0, f"heads have {size} elements: they must be even to pair them"
    half = size // 2
    check_format("x", x.dtype)
    check_rows("cosines", cosines, (tokens, half), x.dtype)
    check_rows("sines", sines, (tokens, half), x.dtype)
    check_width(heads * size, x.dtype)
    result = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    rows, turned = x.reshape((tokens, heads * size)), result.reshape((tokens, heads * size))
    first, last = share(tokens, 128)
    for start, lanes, count in row_groups(first, last, heads * size, x.dtype):
        data = load_group(rows, start, lanes, count).reshape((lanes, count, heads, 2, half))
        cosine, sine = load_group(cosines, start, lanes, count), load_group(sines, start, lanes, count)
        out = nl.ndarray((lanes, count, heads, 2, half), dtype=x.dtype, buffer=nl.sbuf)
        cross = nl.ndarray((lanes, count, heads, 2, half), dtype=x.dtype, buffer=nl.sbuf)
        for row in range(count):
            cos = cosine[:, row, :].reshape((lanes, 1, half)).broadcast(1, heads)
            sin = sine[:, row, :].reshape((lanes, 1, half)).broadcast(1, heads)
            for part in range(2):
                mine, other = data[:, row, :, part, :], data[:, row, :, 1 - part, :]
                plus = (part == 1) != inverse
                nisa.tensor_tensor(dst=out[:, row, :, part, :], data1=mine, data2=cos, op=nl.multiply)
                nisa.tensor_tensor(dst=cross[:, row, :, part, :], data1=other, data2=sin, op=nl.multiply)
                nisa.tensor_tensor(
                    dst=out[:, row, :, part, :],
                    data1=out[:, row, :, part, :],
                    data2=cross[:, row, :, part, :],
                    op=nl.add if plus else nl.subtract,
                )
        nisa.dma_copy(dst=group_of(turned, start, lanes, count), src=out.reshape((lanes, count, heads * size)))
    return result


def _arguments(problem: Problem) -> tuple[Any, ...]:
    tokens, heads, depth = (problem.sizes[name] for name in ("tokens", "heads", "depth"))
    cosines, sines = (array(tokens, depth // 2, dtype=problem.dtype) for _ in range(2))
    return array(tokens, heads, depth, dtype=problem.dtype), cosines, sines, bool(problem.options["inverse"])


def _fits(problem: Problem) -> None:
    width, most = problem.sizes["heads"] * problem.sizes["depth"], ROW_BYTES // item(problem)
    wrong = np.max(width) > most
    if wrong:
        raise InputError(
            f"rope: the heads of a token have more than {most} elements; nearest: "
            f"{most // int(np.max(problem.sizes['depth']))} heads",
            operand="heads",
            value=int(np.max(width)),
            limit=most,
        )


CONTRACTS = (
    Contract(
        name="rope",
        kernel=rope,
        sizes=("tokens", "heads", "depth"),
        fixed=("heads", "depth"),
        options={"inverse": (0, 1)},
        limits=lambda _: {"depth": Limit(low=2, multiple=2)},
        check=_fits,
        arguments=_arguments,
        axes=lambda p: rows_axis(p, p.sizes["heads"] * p.sizes["depth"], "tokens"),
        flops=lambda p: 3 * p.sizes["tokens"] * p.sizes["heads"] * p.sizes["depth"],
        bytes=lambda p: moved(
            p, 2 * p.sizes["tokens"] * p.sizes["heads"] * p.sizes["depth"], p.sizes["tokens"] * p.sizes["depth"]
        ),
        summary="rotary position embedding",
    ),
)

"""Contracts of attention: of many queries, forward and backward, and of one query a sequence over a paged cache.

Causal queries are the last of the keys: ``queries`` of them see ``keys - queries`` that came before. A block of queries
more is one with more keys before it, so what it takes is known from fewer queries. ``width`` is the size of a value
where it is not that of a key.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trnsim.errors import InputError
from trnsim.kernels import attention_backward as backward
from trnsim.kernels import decode_attention as decode
from trnsim.kernels.attention import KEPT_BYTES, LOAD, ROWS, STEP, attention
from trnsim.kernels.contract import Axis, Contract, Limit, Problem, Sizes, most, up
from trnsim.kernels.shapes import array, item, moved

_SIZES = ("heads", "kv_heads", "queries", "keys", "depth", "width", "window")
_HEADS = ("heads", "kv_heads")
# Parts of SBUF: gradients for keys of another number than queries are told apart by how many of them the keys take.
SHARES = 4


def _any(value: Any) -> bool:
    """Whether a number, or one of an array of them, is not 0."""
    return bool(value) if isinstance(value, int) else bool(np.any(value))


def _width(problem: Problem) -> Any:
    width = problem.sizes["width"]
    return width + problem.sizes["depth"] * (width == 0)


def _causal(problem: Problem) -> int:
    return int(problem.options["causal"])


def _before(problem: Problem) -> Any:
    """Keys that the first query sees beside itself."""
    return problem.sizes["keys"] - problem.sizes["queries"]


def _kept(problem: Problem) -> Any:
    """Whether keys and values of a head stay in SBUF."""
    keys = problem.sizes["keys"]
    columns = up(problem.sizes["depth"], ROWS) * keys + up(keys, ROWS) * _width(problem)
    return columns * item(problem) <= KEPT_BYTES


def _most_kept(problem: Problem) -> int:
    each = up(problem.sizes["depth"], ROWS) * ROWS + _width(problem)
    return int(KEPT_BYTES // (each * item(problem)) * ROWS)


def _alone(problem: Problem) -> Any:
    """Whether the queries are all there is: none came before them."""
    return (_before(problem) == 0) & (_causal(problem) == 1)


def _by_head(problem: Problem) -> Any:
    """How cores share: key heads (2), heads of a key head (1), queries (0)."""
    cores = problem.cores
    return 0 + (problem.sizes["kv_heads"] % cores == 0) + (problem.sizes["heads"] % cores == 0)


def _group(problem: Problem) -> Any:
    return problem.sizes["heads"] // problem.sizes["kv_heads"]


def _coordinates(problem: Problem) -> Sizes:
    sizes = problem.sizes
    before = _before(problem) if _causal(problem) else sizes["keys"] - ROWS
    found = {"key heads": sizes["kv_heads"], "group": _group(problem), "queries": sizes["queries"]}
    return {**found, "before": before + ROWS}


def _placed(problem: Problem, coordinates: Sizes) -> Sizes:
    """Sizes from coordinates: those that are no axis stay as they are in the problem."""
    at = {**_coordinates(problem), **coordinates}
    before = at["before"] - ROWS
    heads = at["key heads"] * at["group"]
    keys = at["queries"] + before if _causal(problem) else before + ROWS
    return {**problem.sizes, "heads": heads, "kv_heads": at["key heads"], "queries": at["queries"], "keys": keys}


def _head_axes(problem: Problem) -> tuple[Axis, ...]:
    shared = _by_head(problem)
    if shared == 0:
        return ()
    if shared == 1:
        return (Axis("group", problem.cores, problem.cores, grain=problem.cores, far=1),)
    return (
        Axis("key heads", problem.cores, problem.cores, low=problem.cores, grain=problem.cores, first=0, far=1),
        Axis("group", far=1),
    )


def _axes(problem: Problem) -> tuple[Axis, ...]:
    window = problem.sizes["window"]
    tile = ROWS * (problem.cores if _by_head(problem) == 0 else 1)
    # Keys of a step of a pass: of the first one on NeuronCore-v4, whose products are half as wide.
    step = 2 * STEP if problem.generation == "v4" else STEP
    most_kept = _most_kept(problem)
    if not _causal(problem):
        kept = _kept(problem)
        keys = Axis("before", ROWS, step, low=1 if kept else most_kept + 1, high=most_kept if kept else None)
        return (*_head_axes(problem), Axis("queries", tile, LOAD, far=1), keys)
    if window:
        ramp = up(window, step)
        queries = Axis("queries", tile, step, first=ramp + 1)
        if _alone(problem):
            return (*_head_axes(problem), queries)
        return (*_head_axes(problem), queries, Axis("before", ROWS, step, low=ROWS, first=ramp))
    if not _kept(problem) and _alone(problem):
        return (*_head_axes(problem), Axis("queries", tile, LOAD, low=most_kept + 1, degree=2))
    queries = Axis("queries", tile, LOAD, carries="before")
    low = ROWS if _kept(problem) else most_kept + ROWS
    # Steps differ by how those of both passes fall together: some of them at a time. Samples are as the use is.
    fitting = [count for count in (4, 2, 1) if not _kept(problem) or 2 * LOAD + 4 * count * STEP <= most_kept]
    if not fitting:
        return ()
    return (*_head_axes(problem), queries, Axis("before", ROWS, fitting[0] * STEP, low=low))


def _regime(problem: Problem) -> tuple[Any, ...]:
    shared = _by_head(problem)
    # What is no axis is part of the regime: key heads and group where cores do not share them.
    heads = problem.sizes["kv_heads"] * (shared < 2)
    alone = _alone(problem) & ((problem.sizes["window"] > 0) | (_kept(problem) == 0))
    return _kept(problem), alone, shared, heads, _group(problem) * (shared < 1)


def _fits(problem: Problem) -> None:
    sizes = problem.sizes
    heads, key_heads = sizes["heads"], sizes["kv_heads"]
    if _any(heads % key_heads):
        first = int(np.max(key_heads))
        nearest = max(first, round(int(np.max(heads)) / first) * first)
        raise InputError(
            f"heads must be a multiple of kv_heads; nearest: {nearest}",
            operand="heads",
            value=int(np.max(heads)),
            limit=first,
        )
    if _causal(problem):
        if _any(_before(problem) < 0):
            raise InputError(
                f"causal queries are the last of the keys; nearest: {int(np.max(sizes['queries']))} keys",
                operand="keys",
                value=int(np.min(sizes["keys"])),
                limit=int(np.max(sizes["queries"])),
            )
    elif _any(sizes["window"]):
        raise InputError("a window is for causal attention; nearest: causal 1", operand="window", limit=0)


def _inputs(problem: Problem) -> tuple[Any, ...]:
    heads, key_heads, queries, keys, depth = (problem.sizes[name] for name in _SIZES[:5])
    q = array(heads, depth, queries, dtype=problem.dtype)
    k = array(key_heads, depth, keys, dtype=problem.dtype)
    return q, k, array(key_heads, keys, _width(problem), dtype=problem.dtype)


def _choices(problem: Problem) -> tuple[Any, ...]:
    """scale, causal, window, first_query."""
    causal = _causal(problem)
    first = _before(problem) if causal else 0
    return problem.sizes["depth"] ** -0.5, bool(causal), problem.sizes["window"], first


def _scores(problem: Problem) -> Any:
    """How many scores there are that are not masked."""
    queries, keys = problem.sizes["queries"], problem.sizes["keys"]
    if not _causal(problem):
        return queries * keys
    window = problem.sizes["window"]
    every = queries * _before(problem) + queries * (queries + 1) // 2
    if not _any(window):
        return every
    return (
        every
        - most(0, keys - window) * (most(0, keys - window) + 1) // 2
        + (most(0, _before(problem) - window) * (most(0, _before(problem) - window) + 1) // 2)
    )


def _bytes(problem: Problem, times: int) -> Any:
    heads, key_heads, queries, keys, depth = (problem.sizes[name] for name in _SIZES[:5])
    width = _width(problem)
    return moved(problem, times * heads * queries * (depth + width), times * key_heads * keys * (depth + width))


def _limits(depth: int, width: int) -> Any:
    zero = Limit(low=0)
    return lambda _: {"depth": Limit(high=depth), "width": Limit(low=0, high=width), "window": zero}


def _backward_arguments(problem: Problem) -> tuple[Any, ...]:
    heads, queries = problem.sizes["heads"], problem.sizes["queries"]
    result, dy = (array(heads, queries, _width(problem), dtype=problem.dtype) for _ in range(2))
    return *_inputs(problem), result, array(heads, queries, dtype="float32"), dy, *_choices(problem)


def _backward_bytes(problem: Problem) -> Any:
    """Bytes a partition that a head takes in SBUF, as the kernel counts them."""
    queries, keys, depth = (problem.sizes[name] for name in ("queries", "keys", "depth"))
    width, size = _width(problem), item(problem)
    rows = up(queries, ROWS) * (depth + 2 * width) + up(keys, ROWS) * depth
    kept = size * (2 * queries + 2 * keys + rows) + 4 * up(queries, ROWS) * depth
    return kept + (_group(problem) > 1) * 4 * up(keys, ROWS) * (depth + width)


def _backward_fits(problem: Problem) -> None:
    _fits(problem)
    most_bytes = _backward_bytes(problem)
    needed = most_bytes if isinstance(most_bytes, int) else int(np.max(most_bytes))
    if needed > backward.KEPT_BYTES:
        nearest = int(np.max(problem.sizes["queries"])) * backward.KEPT_BYTES // needed // ROWS * ROWS
        raise InputError(
            f"attention_backward: queries and keys of a head need {needed} bytes a partition; nearest: about {nearest} "
            "queries",
            operand="queries",
            value=needed,
            limit=backward.KEPT_BYTES,
        )


def _same(problem: Problem) -> Any:
    return problem.sizes["queries"] == problem.sizes["keys"]


def _each(problem: Problem) -> tuple[Any, Any]:
    """Bytes a partition that 128 queries of a head and 128 keys take in SBUF."""
    sizes = {**problem.sizes, "queries": ROWS, "keys": ROWS}
    both, more = (_backward_bytes(problem.resized({**sizes, "keys": keys})) for keys in (ROWS, 2 * ROWS))
    return 2 * both - more, more - both


def _of_keys(problem: Problem) -> Any:
    """How many quarters of what there is of SBUF the keys take at most, or those that come before causal queries."""
    before = _before(problem) if _causal(problem) else problem.sizes["keys"]
    return most(1, up(SHARES * up(before, ROWS) * _each(problem)[1], backward.KEPT_BYTES))


def _backward_axes(problem: Problem) -> tuple[Axis, ...]:
    """Of whole sequences, queries and keys of one number; else both, each in its part of SBUF."""
    cores = problem.cores
    for_queries, for_keys = (int(each) for each in _each(problem))
    whole = problem.sizes["kv_heads"] % cores == 0
    # With more than one head the gradients of keys and values are kept from head to head.
    heads: tuple[Axis, ...] = (Axis("group", low=2, far=1),) if _group(problem) > 1 else ()
    if whole:
        heads = (Axis("key heads", cores, cores, low=cores, grain=cores, far=1), *heads)
    high = backward.KEPT_BYTES // (for_queries + for_keys) * ROWS
    if _same(problem):
        return (*heads, Axis("queries", ROWS, LOAD, high=high, degree=2))
    share = int(_of_keys(problem))
    if share >= SHARES:  # a few queries, and all keys that fit
        return ()
    left = (SHARES - share) * backward.KEPT_BYTES // SHARES
    most_before = share * backward.KEPT_BYTES // SHARES // for_keys * ROWS
    if not _causal(problem):
        queries = Axis("queries", ROWS, LOAD, high=left // for_queries * ROWS, far=1)
        return (*heads, queries, Axis("before", ROWS, LOAD, high=most_before, far=1))
    queries = Axis("queries", ROWS, LOAD, high=left // (for_queries + for_keys) * ROWS, carries="before")
    return (*heads, queries, Axis("before", ROWS, LOAD, low=ROWS, high=most_before + ROWS))


def _backward_placed(problem: Problem, coordinates: Sizes) -> Sizes:
    if not _same(problem):
        return _placed(problem, coordinates)
    at = {**_coordinates(problem), **coordinates}
    heads, queries = at["key heads"] * at["group"], at["queries"]
    return {**problem.sizes, "heads": heads, "kv_heads": at["key heads"], "queries": queries, "keys": queries}


def _backward_regime(problem: Problem) -> tuple[Any, ...]:
    whole = problem.sizes["kv_heads"] % problem.cores == 0
    heads = problem.sizes["kv_heads"] * (1 - whole)
    share = _of_keys(problem) * (1 - _same(problem))
    return _same(problem), whole, heads, _group(problem) > 1, share


_DECODE_SIZES = ("sequences", "heads", "kv_heads", "context", "depth", "width", "window", "block")


def _value_width(problem: Problem) -> Any:
    return _width(problem)


def _token_bytes(problem: Problem) -> Any:
    return problem.sizes["kv_heads"] * problem.sizes["depth"] * item(problem)


def _pieces(problem: Problem) -> Any:
    """Into how many pieces a block of the cache is cut, as the kernel does."""
    block, width = problem.sizes["block"], up(problem.sizes["context"], problem.sizes["block"])
    token = _token_bytes(problem)
    pieces = 1 + 0 * width
    for _ in range(8):
        long = block // pieces * token > decode.GATHER_BYTES
        more = ((width * pieces < ROWS) | long) & (block % (2 * pieces) == 0)
        if not _any(more):
            break
        pieces = pieces * (1 + more)
    return pieces


def _decode_axes(problem: Problem) -> tuple[Axis, ...]:
    block, pieces, cores = problem.sizes["block"], int(_pieces(problem)), problem.cores
    sequences = Axis("sequences", cores, 4 * cores)
    # Blocks of contexts whose blocks are cut into as many pieces: fewer the longer they are, until they fill a chunk.
    alike = [
        n for n in range(1, 2 * ROWS + 1) if _pieces(problem.resized({**problem.sizes, "context": n * block})) == pieces
    ]
    low = (alike[0] - 1) * block + 1
    if alike[-1] < 2 * ROWS:
        return sequences, Axis("context", block, ROWS * block, low=low, high=alike[-1] * block, grain=block)
    each = min(decode.SCORE_BYTES // (4 * problem.sizes["heads"]), decode.GATHER_BYTES // _token_bytes(problem))
    chunks = max(1, each // (block // pieces))
    return sequences, Axis("context", block, chunks * (ROWS // pieces) * block, low=low, grain=block)


def _decode_arguments(problem: Problem) -> tuple[Any, ...]:
    sequences, heads, key_heads, context, depth, _, window, block = (problem.sizes[n] for n in _DECODE_SIZES)
    blocks = up(context, block)
    latent = bool(problem.options["latent"])
    width = _value_width(problem)
    keys = array(sequences * blocks, block, key_heads, depth, dtype=problem.dtype)
    values = None if latent else array(sequences * blocks, block, key_heads, width, dtype=problem.dtype)
    q = array(sequences, depth, heads, dtype=problem.dtype)
    table, lengths = array(sequences, blocks, dtype="int32"), array(sequences, 1, dtype="int32")
    return q, keys, table, lengths, values, depth**-0.5, window, width if latent else 0


def _decode_fits(problem: Problem) -> None:
    heads, key_heads = problem.sizes["heads"], problem.sizes["kv_heads"]
    if _any(heads % key_heads) or _any(heads // key_heads > ROWS):
        first = int(np.max(key_heads))
        raise InputError(
            f"decode_attention: heads must be a multiple of kv_heads, {ROWS} times them at most; nearest: "
            f"{min(ROWS * first, max(first, round(int(np.max(heads)) / first) * first))}",
            operand="heads",
            value=int(np.max(heads)),
            limit=ROWS * first,
        )


def _decode_bytes(problem: Problem) -> Any:
    sequences, heads, key_heads, context, depth = (problem.sizes[n] for n in _DECODE_SIZES[:5])
    width = _value_width(problem)
    token = key_heads * (depth if problem.options["latent"] else depth + width)
    return moved(problem, sequences * context * token, sequences * heads * (depth + width))


def _seen(problem: Problem) -> Any:
    """Tokens whose scores count."""
    return problem.sizes["context"]


CONTRACTS = (
    Contract(
        name="attention",
        kernel=attention,
        sizes=_SIZES,
        defaults={"width": 0, "window": 0},
        fixed=("depth", "width", "window"),
        options={"causal": (1, 0), "with_lse": (0, 1)},
        limits=_limits(256, 512),
        check=_fits,
        arguments=lambda p: (*_inputs(p), *_choices(p), bool(p.options["with_lse"])),
        regime=_regime,
        axes=_axes,
        coordinates=_coordinates,
        placed=_placed,
        flops=lambda p: 2 * p.sizes["heads"] * _scores(p) * (p.sizes["depth"] + _width(p)),
        bytes=lambda p: _bytes(p, 1),
        summary="attention of many queries: MHA, GQA, sliding window, MLA's prefill",
    ),
    Contract(
        name="attention_backward",
        kernel=backward.attention_backward,
        sizes=_SIZES,
        defaults={"width": 0, "window": 0},
        fixed=("depth", "width", "window"),
        options={"causal": (1, 0)},
        limits=_limits(128, 128),
        check=_backward_fits,
        arguments=_backward_arguments,
        regime=_backward_regime,
        axes=_backward_axes,
        coordinates=_coordinates,
        placed=_backward_placed,
        flops=lambda p: 2 * p.sizes["heads"] * _scores(p) * (3 * p.sizes["depth"] + 2 * _width(p)),
        bytes=lambda p: _bytes(p, 2),
        summary="gradients of attention with respect to q, k and v",
    ),
    Contract(
        name="decode_attention",
        kernel=decode.decode_attention,
        sizes=_DECODE_SIZES,
        defaults={"width": 0, "window": 0, "block": 128},
        fixed=("heads", "kv_heads", "depth", "width", "window", "block"),
        options={"latent": (0, 1)},
        limits=lambda _: {"width": Limit(low=0, high=512), "window": Limit(low=0)},
        check=_decode_fits,
        arguments=_decode_arguments,
        regime=lambda p: (_pieces(p),),
        axes=_decode_axes,
        flops=lambda p: 2 * p.sizes["sequences"] * p.sizes["heads"] * _seen(p) * (p.sizes["depth"] + _value_width(p)),
        bytes=_decode_bytes,
        summary="attention of one query a sequence over a paged cache; latent: MLA, values are parts of keys",
    ),
)

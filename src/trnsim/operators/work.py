"""The operators of a transformer as work: sizes, operations, bytes, and the parts that fitted models know.

One table for all implementations that are fits (``compiler``, ``gpu``). Everything holds for numbers and for arrays of
many uses alike. Operations count two a multiplication and addition; bytes are what must cross HBM at least.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trnsim.errors import InputError
from trnsim.hardware.model import flops_key
from trnsim.operators.cost import OperatorCosts

# A size, or an array of as many as there are uses.
Size = Any
Sizes = Mapping[str, Size]
# A class of models ("matmul", "moving", ...) and the shapes that it takes.
Part = tuple[str, Mapping[str, Size]]

# Bytes an element with its scales: a byte for 32 elements in MX formats, for 16 in the one of GPUs.
ITEMSIZES = {
    "float32": 4.0,
    "tfloat32": 4.0,
    "bfloat16": 2.0,
    "float16": 2.0,
    "float8": 1.0,
    "mxfp8": 1 + 1 / 32,
    "mxfp4": 0.5 + 1 / 32,
    "float4": 0.5 + 1 / 16,
}


def itemsize(dtype: str) -> float:
    """Bytes an element of ``dtype`` takes.

    Raises:
        InputError: no format of tensors of a model.
    """
    found = ITEMSIZES.get(flops_key(dtype))
    if found is None:
        raise InputError(f"no {dtype} among the formats of operators", operand="dtype", limit=sorted(ITEMSIZES))
    return found


def wide(dtype: str) -> float:
    """Bytes an element of what products of ``dtype`` make: formats of a byte or less make bfloat16."""
    return max(itemsize(dtype), 2.0)


@dataclass(frozen=True)
class Operator:
    """One operator.

    Attributes:
        sizes: that a use gives; ``defaults`` those that it need not give, and options, as numbers.
        check: refuses sizes that do not fit each other.
        ignored: options that decide what is computed, and hardly how long it takes.
        flops: from sizes.
        bytes: from sizes and the format.
        parts: what a fitted model adds up, from sizes and the format.
        products: whether the format must be one that the matrix engine multiplies.
        assumed: why models of another operator stand for this one; empty where its own class was measured.
    """

    name: str
    sizes: tuple[str, ...]
    flops: Callable[[Sizes], Size]
    bytes: Callable[[Sizes, str], Size]
    parts: Callable[[Sizes, str], tuple[Part, ...]]
    defaults: Mapping[str, int] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    check: Callable[[Sizes], None] | None = None
    products: bool = True
    assumed: str = ""

    def use(self, given: Mapping[str, Any]) -> dict[str, Size]:
        """All sizes of a use, checked.

        Raises:
            InputError: a size that is missing, unknown or below 1 (options: below 0).
        """
        takes = tuple(dict.fromkeys((*self.sizes, *self.defaults, *self.ignored)))
        unknown = sorted(set(given) - set(takes))
        missing = sorted(set(self.sizes) - set(given))
        if unknown or missing:
            parts = [f"no {', '.join(missing)}"] * bool(missing) + [f"unknown {', '.join(unknown)}"] * bool(unknown)
            raise InputError(f"{self.name}: {'; '.join(parts)}", operand="sizes", limit=takes)
        found = {name: value for name, value in given.items() if name not in self.ignored}
        for name, value in found.items():
            least = 1 if name in self.sizes else 0
            if isinstance(value, str) or np.min(value) < least:
                raise InputError(f"{self.name}: {name} must be at least {least}", operand=name, value=value)
        if self.check is not None:
            self.check({**self.defaults, **found})
        return {**self.defaults, **found}


def _heads_fit(s: Sizes) -> None:
    heads, kv_heads = np.broadcast_arrays(s["heads"], s["kv_heads"])
    wrong = np.flatnonzero(heads % kv_heads)
    if wrong.size:
        have, each = int(heads.flat[wrong[0]]), int(kv_heads.flat[wrong[0]])
        nearest = max(1, round(have / each)) * each
        raise InputError(f"heads must be a multiple of kv_heads; nearest: {nearest}", operand="heads", value=have)


def _queries_fit(s: Sizes) -> None:
    _heads_fit(s)
    causal, queries, keys = np.broadcast_arrays(s["causal"], s["queries"], s["keys"])
    wrong = np.flatnonzero((causal > 0) & (keys < queries))
    if wrong.size:
        least = int(queries.flat[wrong[0]])
        raise InputError(
            f"causal queries are the last of the keys; nearest: {least} keys",
            operand="keys",
            value=int(keys.flat[wrong[0]]),
        )


def pairs(s: Sizes) -> Size:
    """Pairs of a query and a key that it sees, of one head. Causal queries are the last of the keys."""
    queries, keys = s["queries"], s["keys"]
    before = np.maximum(keys - queries, 0)
    # Causal queries that see fewer keys than the window holds: each further one sees one more.
    window = _or(s["window"], keys)
    short = np.clip(window - before, 0, queries)
    causal = short * before + short * (short + 1) / 2 + (queries - short) * window
    return np.where(np.asarray(s["causal"]) > 0, causal, queries * keys)


def _or(value: Size, other: Size) -> Size:
    """``value``, or ``other`` where that is 0."""
    return np.where(np.asarray(value) > 0, value, other)


def _attention_shapes(s: Sizes) -> dict[str, Size]:
    names = ("heads", "queries", "keys", "depth", "causal", "window")
    return {**{n: s[n] for n in names}, "key_heads": s["kv_heads"], "value_depth": _or(s["width"], s["depth"])}


def _attention_bytes(s: Sizes, dtype: str, times: int = 1) -> Size:
    value = _or(s["width"], s["depth"])
    read = s["heads"] * s["queries"] * s["depth"] + s["kv_heads"] * s["keys"] * (s["depth"] + value)
    return times * (read * itemsize(dtype) + s["heads"] * s["queries"] * value * wide(dtype))


def _attention_flops(s: Sizes, keys: int = 1, values: int = 1) -> Size:
    """``keys`` and ``values``: how many products have the size of a key, of a value, as one side."""
    return 2 * s["heads"] * pairs(s) * (keys * s["depth"] + values * _or(s["width"], s["depth"]))


def _decode_keys(s: Sizes) -> Size:
    return np.minimum(s["context"], _or(s["window"], s["context"]))


def _decode_parts(s: Sizes, _: str) -> tuple[Part, ...]:
    latent = np.asarray(s["latent"]) > 0
    if np.any(latent) and not np.all(latent):
        raise InputError("decode_attention: latent must be the same for all uses", operand="latent")
    shapes = {n: s[n] for n in ("sequences", "heads", "depth")} | {"key_heads": s["kv_heads"], "keys": _decode_keys(s)}
    if np.all(latent):
        return (("latent decode", {**shapes, "value_depth": 0 * s["depth"]}),)
    return (("decode", {**shapes, "value_depth": _or(s["width"], s["depth"])}),)


def _decode_bytes(s: Sizes, dtype: str) -> Size:
    value = _or(s["width"], s["depth"])
    stored = np.where(np.asarray(s["latent"]) > 0, s["depth"], s["depth"] + value)
    cache = s["sequences"] * s["kv_heads"] * _decode_keys(s) * stored * itemsize(dtype)
    return cache + s["sequences"] * s["heads"] * (s["depth"] + value) * wide(dtype)


def _matmul(m: Size, k: Size, n: Size) -> Part:
    return "matmul", {"m": m, "k": k, "n": n}


def _matmul_bytes(m: Size, k: Size, n: Size, dtype: str) -> Size:
    return (m * k + k * n) * itemsize(dtype) + m * n * wide(dtype)


def _product_of(name: str, ignored: tuple[str, ...], defaults: Mapping[str, int] | None = None) -> Operator:
    """A product of matrices; ``scaled`` adds a float32 scale for each row and column."""
    return Operator(
        name,
        ("m", "k", "n"),
        lambda s: 2 * s["m"] * s["k"] * s["n"],
        lambda s, dtype: _matmul_bytes(s["m"], s["k"], s["n"], dtype) + 4 * s.get("scaled", 0) * (s["m"] + s["n"]),
        lambda s, _: (_matmul(s["m"], s["k"], s["n"]),),
        defaults=defaults or {},
        ignored=ignored,
    )


def _product(s: Sizes, names: tuple[str, ...]) -> Size:
    found: Size = 1
    for name in names:
        found = found * s[name]
    return found


def _moving(
    name: str,
    sizes: tuple[str, ...],
    tensors: float,
    flops: float,
    besides: Callable[[Sizes, str], Size] = lambda _, __: 0,
    ignored: tuple[str, ...] = (),
    defaults: Mapping[str, int] | None = None,
    unused: tuple[str, ...] = (),
) -> Operator:
    """An operator that reads and writes ``tensors`` tensors of ``sizes``, and the bytes ``besides``."""

    def moved(s: Sizes, dtype: str) -> Size:
        return tensors * _product(s, sizes) * itemsize(dtype) + besides(s, dtype)

    return Operator(
        name,
        (*sizes, *unused),
        lambda s: flops * _product(s, sizes),
        moved,
        lambda s, dtype: (("moving", {"moved": moved(s, dtype)}),),
        defaults=defaults or {},
        ignored=ignored,
        products=False,
        assumed="as any kernel that only moves data",
    )


def _mlp(name: str, first: int, ignored: tuple[str, ...]) -> Operator:
    """``first`` products with the width before the activation, one after it."""

    def weights(s: Sizes) -> Size:
        return s["hidden"] * (first * s["width"] + s["outputs"])

    def parts(s: Sizes, dtype: str) -> tuple[Part, ...]:
        tokens, hidden = s["tokens"], s["hidden"]
        activation = ("moving", {"moved": (first + 1) * tokens * hidden * wide(dtype)})
        return _matmul(tokens, s["width"], first * hidden), activation, _matmul(tokens, hidden, s["outputs"])

    return Operator(
        name,
        ("tokens", "width", "hidden", "outputs"),
        lambda s: 2 * s["tokens"] * weights(s),
        lambda s, dtype: s["tokens"] * (s["width"] + s["outputs"]) * wide(dtype) + weights(s) * itemsize(dtype),
        parts,
        ignored=ignored,
        assumed="products and activation one after the other",
    )


def _router_bytes(s: Sizes, dtype: str) -> Size:
    return (s["tokens"] + s["experts"]) * s["width"] * itemsize(dtype) + 8 * s["tokens"] * s["k"]


def _router_parts(s: Sizes, _: str) -> tuple[Part, ...]:
    scores = 4 * 2 * s["tokens"] * s["experts"] + 8 * s["tokens"] * s["k"]
    return _matmul(s["tokens"], s["width"], s["experts"]), ("moving", {"moved": scores})


def _grouped(s: Sizes, dtype: str) -> Size:
    active = np.minimum(s["experts"], s["tokens"])
    return (s["tokens"] * s["k"] + active * s["k"] * s["n"]) * itemsize(dtype) + s["tokens"] * s["n"] * wide(dtype)


def _moe_shapes(s: Sizes) -> dict[str, Size]:
    routed = np.maximum(s["tokens"] * s["topk"] * s["experts"] / np.maximum(s["all_experts"], s["experts"]), 1)
    return {"tokens": s["tokens"], "routed": routed, **{n: s[n] for n in ("width", "hidden", "experts")}}


def _moe_bytes(s: Sizes, dtype: str) -> Size:
    active = np.minimum(s["experts"], _moe_shapes(s)["routed"])
    return 3 * active * s["width"] * s["hidden"] * itemsize(dtype) + 2 * s["tokens"] * s["width"] * wide(dtype)


_ROWS = ("rows", "width")
_ATTENTION = ("heads", "kv_heads", "queries", "keys", "depth")
_OPTIONS = {"width": 0, "causal": 1, "window": 0}

OPERATORS: Mapping[str, Operator] = {
    o.name: o
    for o in (
        _product_of("matmul", ("contract_lhs", "contract_rhs")),
        _product_of("matmul_fp8", ("contract_lhs", "contract_rhs"), {"scaled": 1}),
        _product_of("matmul_mx", ()),
        Operator(
            "grouped_matmul",
            ("tokens", "k", "n", "experts"),
            lambda s: 2 * s["tokens"] * s["k"] * s["n"],
            _grouped,
            lambda s, _: (("grouped matmul", {name: s[name] for name in ("tokens", "k", "n", "experts")}),),
            ignored=("block", "contract_w"),
        ),
        Operator(
            "moe",
            ("tokens", "width", "hidden", "experts", "topk"),
            lambda s: 6 * _moe_shapes(s)["routed"] * s["width"] * s["hidden"],
            _moe_bytes,
            lambda s, _: (("moe", _moe_shapes(s)),),
            defaults={"all_experts": 0},
        ),
        Operator(
            "attention",
            _ATTENTION,
            _attention_flops,
            _attention_bytes,
            lambda s, _: (("attention", _attention_shapes(s)),),
            defaults=_OPTIONS,
            check=_queries_fit,
            ignored=("with_lse",),
        ),
        Operator(
            "attention_backward",
            _ATTENTION,
            lambda s: _attention_flops(s, keys=3, values=2),
            lambda s, dtype: _attention_bytes(s, dtype, times=2),
            lambda s, _: (("attention backward", _attention_shapes(s)),),
            defaults=_OPTIONS,
            check=_queries_fit,
            assumed="five products where the forward pass has two, at its rates",
        ),
        Operator(
            "decode_attention",
            ("sequences", "heads", "kv_heads", "context", "depth"),
            lambda s: 2 * s["sequences"] * s["heads"] * _decode_keys(s) * (s["depth"] + _or(s["width"], s["depth"])),
            _decode_bytes,
            _decode_parts,
            defaults={"width": 0, "window": 0, "latent": 0},
            check=_heads_fit,
            ignored=("block",),
        ),
        _mlp("gated_mlp", 2, ("activation",)),
        _mlp("mlp", 1, ("activation", "bias")),
        Operator(
            "router",
            ("tokens", "width", "experts", "k"),
            lambda s: 2 * s["tokens"] * s["width"] * s["experts"],
            _router_bytes,
            _router_parts,
            ignored=("function", "normalized", "bias"),
            assumed="a product, and its scores once more through memory",
        ),
        _moving("rmsnorm", _ROWS, 2, 4, lambda s, d: s["width"] * itemsize(d)),
        _moving("rmsnorm_backward", _ROWS, 3, 12, lambda s, d: 2 * s["width"] * itemsize(d)),
        _moving("layernorm", _ROWS, 2, 8, lambda s, d: 2 * s["width"] * itemsize(d)),
        _moving("layernorm_backward", _ROWS, 3, 18, lambda s, d: 3 * s["width"] * itemsize(d)),
        _moving("softmax", _ROWS, 2, 5),
        _moving("softmax_backward", _ROWS, 3, 4),
        _moving(
            "elementwise",
            _ROWS,
            2,
            3,
            lambda s, d: s["residual"] * s["rows"] * s["width"] * itemsize(d),
            ignored=("activation", "bias"),
            defaults={"residual": 0},
        ),
        _moving("activation_backward", _ROWS, 3, 4, ignored=("activation",)),
        _moving("gated_activation", _ROWS, 3, 4, ignored=("activation",)),
        _moving("gated_activation_backward", _ROWS, 5, 6, ignored=("activation",)),
        _moving(
            "rope",
            ("tokens", "heads", "depth"),
            2,
            3,
            lambda s, d: s["tokens"] * s["depth"] * itemsize(d),
            ignored=("inverse",),
        ),
        _moving("embedding", ("tokens", "width"), 2, 0, lambda s, _: 4 * s["tokens"], unused=("rows",)),
        _moving(
            "embedding_backward",
            ("tokens", "width"),
            1,
            1,
            lambda s, _: s["width"] * (8 * s["tokens"] + 4 * s["rows"]),
            unused=("rows",),
        ),
        _moving("cross_entropy", ("rows", "vocabulary"), 1, 4, lambda s, _: 16 * s["rows"]),
        _moving("cross_entropy_backward", ("rows", "vocabulary"), 2, 3, lambda s, _: 16 * s["rows"]),
        _moving("quantize_rows", _ROWS, 1, 3, lambda s, _: s["rows"] * (s["width"] + 4), ignored=("kind",)),
        _moving("quantize_tensor", _ROWS, 1, 3, lambda s, _: s["rows"] * s["width"], ignored=("kind",)),
        _moving("quantize_mxfp8", ("k", "n"), 1, 3, lambda s, _: s["k"] * s["n"] * 33 / 32, ignored=("kind",)),
        _moving("reduce_rows", _ROWS, 1, 1, ignored=("operation",)),
        _moving("reduce_columns", _ROWS, 1, 1, ignored=("operation",)),
        _moving("reduce_all", _ROWS, 1, 1, ignored=("operation",)),
        _moving("adam", ("elements",), 2, 14, lambda s, _: 24 * s["elements"], ignored=("weight_decay",)),
    )
}


def operator(name: str) -> Operator:
    """The operator of that name.

    Raises:
        InputError: there is none.
    """
    found = OPERATORS.get(name)
    if found is None:
        raise InputError(f"no operator {name!r}", operand="operator", value=name, limit=sorted(OPERATORS))
    return found


def arrays(found: Operator, given: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes of many uses, arrays of one length; what the operator ignores stays as it is."""
    sizes = [name for name in given if name not in found.ignored]
    together = np.broadcast_arrays(*(np.asarray(given[name], np.float64) for name in sizes))
    return {**given, **{name: np.ravel(value) for name, value in zip(sizes, together, strict=True)}}


def many(
    found: Operator, dtype: str, sizes: Sizes, implementation: str, time_us: Any, busy: Mapping[str, Any]
) -> OperatorCosts:
    """The costs of many uses, as arrays of one length."""
    count = np.shape(time_us)

    def filled(values: Any) -> NDArray[np.float64]:
        return np.array(np.broadcast_to(np.asarray(values, np.float64), count))

    return OperatorCosts(
        operator=found.name,
        implementation=implementation,
        time_ps=filled(time_us) * 1e6,
        hbm_bytes=np.rint(filled(found.bytes(sizes, dtype))),
        flops=np.rint(filled(found.flops(sizes))),
        sbuf_bytes=np.zeros(count),
        busy_ps={name: filled(values) for name, values in busy.items()},
    )

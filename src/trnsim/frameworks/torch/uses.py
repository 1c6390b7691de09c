"""The operators of ``operators/`` that a piece is, with their sizes: what it is priced as.

``chain`` stands for no kernel of its own: element-wise work of any length, by the bytes that it moves and the
operations on its elements.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trnsim.errors import UnsupportedError
from trnsim.frameworks.torch.operators import ACTIVATIONS, kind, plain
from trnsim.frameworks.torch.patterns import Piece, outside
from trnsim.frameworks.torch.stream import Call, Value

PRODUCT_DTYPES = {
    "float32": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
    "fp8": "float8_e4m3",
    "mxfp8": "float8_e4m3fn_x4",
}
_ENGINES = ("float32", "bfloat16", "float16")
# Of products in 8 bits; attention and other operators take their operands in this.
_RESULT = "bfloat16"


@dataclass(frozen=True, slots=True)
class Used:
    """One operator, ``times`` times. For ``chain``: ``moved`` bytes over HBM, ``work`` operations on elements."""

    operator: str
    dtype: str
    sizes: Mapping[str, Any]
    times: int = 1
    moved: int = 0
    work: int = 0

    @property
    def text(self) -> str:
        """As a report writes it: ``matmul 2048 x 4096 x 4096 bfloat16``."""
        given = ", ".join(f"{name} {value}" for name, value in self.sizes.items())
        return f"{self.operator} ({given}) {self.dtype}" + (f" x {self.times}" if self.times > 1 else "")


def uses(piece: Piece, *, trains: bool) -> list[Used]:
    """What a piece is. ``trains``: the backward pass needs what a kernel can leave for it."""
    make = _MAKERS.get(piece.kind)
    if make is not None:
        return make(piece, trains)
    if piece.kind.endswith("_backward") and f"{piece.kind}" not in _MAKERS:
        return [*_products_in(piece), chain(_light(piece.calls))]
    return [chain(piece.calls)]


def engine_dtype(*values: Value) -> str:
    """The widest format of values that engines compute with; bfloat16 where there is none (integers)."""
    found = [v.dtype for v in values if v.dtype in _ENGINES]
    return "float32" if "float32" in found else (found[0] if found else _RESULT)


def attention_dtype(format: str) -> str:
    """Of the products inside attention: that of the policy, bfloat16 where it has 8 bits."""
    dtype = PRODUCT_DTYPES[format]
    return dtype if dtype in _ENGINES else _RESULT


def chain(calls: list[Call]) -> Used:
    """Element-wise work: what is read from elsewhere and what is made crosses HBM once."""
    reads, writes = outside(calls)
    last = {v.producer for call in calls for v in call.inputs}
    ends = [v for v in writes if v.producer not in last] or writes
    moved = sum(_held(v) for v in reads) + sum(v.nbytes for v in ends)
    work = sum(max((v.elements for v in (*c.outputs, *c.inputs)), default=0) for c in calls)
    return Used("chain", engine_dtype(*ends, *reads), {"bytes": moved, "operations": work}, 1, moved, work)


def product(call: Call, format: str) -> list[Used]:
    """A product of matrices with what brings its operands to 8 bits, if need be."""
    name = plain(call.operator)
    if name.startswith("convolution"):
        return _convolution(call, format)
    if name == "_grouped_mm":
        return [_grouped(call, format)]
    left, right = _operands(call)
    k = left.shape[-1]
    n = right.shape[-1] if len(right.shape) > 1 else 1
    batch = 1
    if name in ("bmm", "baddbmm") or len(right.shape) > 2:
        batch = max(right.elements // max(right.shape[-1] * right.shape[-2], 1), 1)
    m = max(left.elements // max(k * batch, 1), 1)
    dtype = PRODUCT_DTYPES[format]
    weighted = left.kind == "weight" or right.kind == "weight"
    found: list[Used] = []
    if dtype not in _ENGINES:
        step = 128 if format == "mxfp8" else 2
        k = -(-k // step) * step
        m += m % 2
        for value, rows in ((left, m), (right, n)):
            if value.kind != "weight" or call.phase == "backward":
                found.append(_quantized(format, rows, k, batch))
        found.append(Used("matmul", dtype, {"m": m, "k": k, "n": n}, batch))
        return found
    return [Used("matmul", dtype, {"m": m, "k": k, "n": n, "contract_lhs": int(weighted)}, batch)]


def _convolution(call: Call, format: str) -> list[Used]:
    """A convolution as the product of its patches with its weights; of its gradient one for each of the two."""
    back = plain(call.operator) == "convolution_backward"
    inputs, weights = call.inputs[1:3] if back else call.inputs[:2]
    result = call.inputs[0] if back else call.outputs[0]
    groups = next((a for a in reversed(call.arguments) if isinstance(a, int) and not isinstance(a, bool)), 1)
    channels = weights.shape[0] // groups
    patches = max(result.elements // weights.shape[0], 1)
    depth = max(weights.elements // weights.shape[0], 1)
    dtype = attention_dtype(format)
    if not back:
        return [Used("matmul", dtype, {"m": patches, "k": depth, "n": channels, "contract_lhs": 1}, groups)]
    return [
        Used("matmul", dtype, {"m": depth, "k": patches, "n": channels, "contract_lhs": 0}, groups),
        *([Used("matmul", dtype, {"m": patches, "k": channels, "n": depth, "contract_lhs": 1}, groups)]
          if inputs.kind != "input" else []),
    ]  # fmt: skip


def _operands(call: Call) -> tuple[Value, Value]:
    wide = [v for v in call.inputs if v.shape]
    return wide[-2], wide[-1]


def _quantized(format: str, rows: int, k: int, batch: int) -> Used:
    if format == "mxfp8":
        return Used("quantize_mxfp8", _RESULT, {"k": k, "n": rows}, batch)
    return Used("quantize_rows", _RESULT, {"rows": rows, "width": k}, batch)


def _grouped(call: Call, format: str) -> Used:
    left, right = call.inputs[:2]
    dtype = attention_dtype(format)
    if len(right.shape) == 3:
        experts, k, n = right.shape
        tokens = left.shape[0]
    else:  # the gradient of weights: tokens are contracted
        experts, k, n = call.outputs[0].shape
        tokens = left.shape[-1]
    return Used("grouped_matmul", dtype, {"tokens": tokens, "experts": experts, "k": k, "n": n})


def _product(piece: Piece, trains: bool) -> list[Used]:
    return [used for call in piece.calls for used in product(call, call.format)]


def _products_in(piece: Piece) -> list[Used]:
    return [u for c in piece.calls if kind(c.operator) == "product" for u in product(c, c.format)]


def _light(calls: list[Call]) -> list[Call]:
    return [c for c in calls if kind(c.operator) != "product"]


def _attention(piece: Piece, trains: bool) -> list[Used]:
    facts, dtype = piece.facts, attention_dtype(piece.first.format)
    if "queries" not in facts:
        raise UnsupportedError(f"no kernel for {piece.first.operator} as it was called")
    shapes = {"depth": facts["depth"], "width": facts["width"]}
    if facts["queries"] == 1:
        sequences = facts["sequences"]
        heads = {"heads": facts["heads"] // sequences, "kv_heads": max(facts["kv_heads"] // sequences, 1)}
        return [Used("decode_attention", dtype, {"sequences": sequences, **heads, "context": facts["keys"], **shapes})]
    common = {name: facts[name] for name in ("heads", "kv_heads", "queries", "keys", "causal")} | shapes
    return [Used("attention", dtype, {**common, "with_lse": int(trains)})]


def _attention_backward(piece: Piece, trains: bool) -> list[Used]:
    facts = piece.facts
    if "heads" not in facts:
        return [chain(piece.calls)]
    names = ("heads", "kv_heads", "queries", "keys", "depth", "width", "causal")
    return [Used("attention_backward", attention_dtype(piece.first.format), {name: facts[name] for name in names})]


def _rows(operator: str) -> Any:
    """An operator over the rows of its widest value."""

    def make(piece: Piece, trains: bool) -> list[Used]:
        values = [v for c in piece.calls for v in (*c.inputs, *c.outputs)]
        widest = max(values, key=lambda v: v.elements)
        width = piece.facts.get("width") or (widest.shape[-1] if widest.shape else 1)
        rows = max(widest.elements // width, 1)
        source = piece.first.inputs[0] if piece.first.inputs else widest
        return [Used(operator, engine_dtype(source), {"rows": rows, "width": width})]

    return make


def _loss(operator: str) -> Any:
    def make(piece: Piece, trains: bool) -> list[Used]:
        facts = piece.facts
        dtype = engine_dtype(*piece.calls[-1].inputs) if piece.kind.endswith("backward") else None
        dtype = dtype or engine_dtype(*piece.first.inputs)
        return [Used(operator, dtype, {"rows": facts["rows"], "vocabulary": facts["vocabulary"]})]

    return make


def _rope(piece: Piece, trains: bool) -> list[Used]:
    names = ("tokens", "heads", "depth")
    dtype = engine_dtype(*piece.calls[-1].outputs)
    options = {"inverse": 1} if piece.kind.endswith("_backward") else {}
    return [Used("rope", dtype, {name: piece.facts[name] for name in names} | options)]


def _router(piece: Piece, trains: bool) -> list[Used]:
    return [Used("router", attention_dtype(piece.first.format), {n: piece.facts[n] for n in _ROUTER})]


def _router_backward(piece: Piece, trains: bool) -> list[Used]:
    return [*_products_in(piece), chain(_light(piece.calls))]


_ROUTER = ("tokens", "width", "experts", "k")


def _gather(piece: Piece, trains: bool) -> list[Used]:
    """Rows of a table by number."""
    call = piece.first
    table, result = call.inputs[0], call.outputs[0]
    if len(table.shape) < 2 or call.inputs[-1].elements * table.shape[-1] != result.elements:
        return [chain(piece.calls)]
    sizes = {"tokens": call.inputs[-1].elements, "width": table.shape[-1], "rows": table.elements // table.shape[-1]}
    return [Used("embedding", engine_dtype(result), sizes)]


def _scatter(piece: Piece, trains: bool) -> list[Used]:
    """Rows added to those of a table by number."""
    found: list[Used] = []
    rest: list[Call] = []
    for call in piece.calls:
        if kind(call.operator) != "scatter" or len(call.outputs[0].shape) < 2:
            rest.append(call)
            continue
        table = call.outputs[0]
        width = table.shape[-1]
        numbers = [v for v in call.inputs if v.dtype.startswith("int")]
        tokens = numbers[0].elements if numbers else table.elements // width
        sizes = {"tokens": max(tokens, 1), "width": width, "rows": max(table.elements // width, 1)}
        found.append(Used("embedding_backward", engine_dtype(table), sizes))
    return [*found, chain(rest)] if rest else found


def _optimizer(piece: Piece, trains: bool) -> list[Used]:
    """Adam where two states are kept for each weight; else by bytes."""
    weights = {v.storage.id: v for c in piece.calls for v in c.outputs if v.kind == "weight"}
    if not weights:
        return [chain(piece.calls)]
    states = {v.storage.id: v for c in piece.calls for v in c.outputs if v.kind == "optimizer" and v.shape}
    elements = sum(v.elements for v in weights.values())
    if sum(v.elements for v in states.values()) >= 2 * elements:
        return [Used("adam", engine_dtype(*weights.values()), {"elements": elements})]
    return [chain(piece.calls)]


def _chain(piece: Piece, trains: bool) -> list[Used]:
    """Element-wise work; a gated activation and its gradient have kernels."""
    gated = gate(piece)
    if gated is None:
        return [chain(piece.calls)]
    rows, width, activation = gated
    return [Used("gated_activation", engine_dtype(*piece.calls[-1].outputs), {
        "rows": rows, "width": width, "activation": activation,
    })]  # fmt: skip


def gate(piece: Piece) -> tuple[int, int, str] | None:
    """Rows, width and activation of ``activation(gate) * up``, if a chain is that and nothing else."""
    calls = [c for c in piece.calls if plain(c.operator) not in ("_to_copy", "clone")]
    if len(calls) != 2 or plain(calls[1].operator) != "mul":
        return None
    activation = ACTIVATIONS.get(plain(calls[0].operator))
    wide = [v for v in calls[1].inputs if v.elements == calls[1].outputs[0].elements]
    if activation not in ("silu", "gelu") or len(wide) != 2:
        return None
    result = calls[1].outputs[0]
    return max(result.elements // result.shape[-1], 1), result.shape[-1], activation


def _chain_backward(piece: Piece, trains: bool) -> list[Used]:
    gated = gate(piece.forward) if piece.forward is not None else None
    light = _light(piece.calls)
    if gated is None or len(light) != len(piece.calls):
        return [*_products_in(piece), chain(light)]
    rows, width, activation = gated
    dtype = engine_dtype(*piece.calls[-1].outputs)
    return [Used("gated_activation_backward", dtype, {"rows": rows, "width": width, "activation": activation})]


def _held(value: Value) -> int:
    """Bytes of a value as they lie in HBM: a broadcast one is read once."""
    return min(value.nbytes, value.storage.nbytes) if value.storage.nbytes else value.nbytes


_MAKERS = {
    "product": _product,
    "attention": _attention,
    "attention_backward": _attention_backward,
    "rmsnorm": _rows("rmsnorm"),
    "rmsnorm_backward": _rows("rmsnorm_backward"),
    "layernorm": _rows("layernorm"),
    "layernorm_backward": _rows("layernorm_backward"),
    "native_layer_norm_backward": _rows("layernorm_backward"),
    "softmax": _rows("softmax"),
    "softmax_backward": _rows("softmax_backward"),
    "log_softmax": _rows("softmax"),
    "cross_entropy": _loss("cross_entropy"),
    "cross_entropy_backward": _loss("cross_entropy_backward"),
    "rope": _rope,
    "rope_backward": _rope,
    "router": _router,
    "router_backward": _router_backward,
    "embedding": _gather,
    "gather": _gather,
    "embedding_backward": _scatter,
    "scatter": _scatter,
    "elementwise": _chain,
    "elementwise_backward": _chain_backward,
    "optimizer": _optimizer,
}

"""Which kernel computes which aten call, and how its arguments become the kernel's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from trnsim.frameworks.torch import formats
from trnsim.frameworks.torch.chains import CHAINS, Unmatched, chain, product
from trnsim.frameworks.torch.formats import FLOAT32, Tensor
from trnsim.frameworks.torch.plans import LAYERS, Plan
from trnsim.kernels.adam import adam_step
from trnsim.kernels.attention import attention
from trnsim.kernels.attention_backward import attention_backward
from trnsim.kernels.cross_entropy import cross_entropy
from trnsim.kernels.elementwise import activation_backward
from trnsim.kernels.embedding import embedding, embedding_backward
from trnsim.kernels.grouped_gradient import grouped_weight_gradient
from trnsim.kernels.grouped_matmul import grouped_matmul
from trnsim.kernels.layernorm import layernorm, layernorm_backward
from trnsim.kernels.matmul_fp8 import matmul_fp8
from trnsim.kernels.matmul_mx import matmul_mx
from trnsim.kernels.quantization import quantize_mxfp8, quantize_tensor
from trnsim.kernels.reductions import reduce_all, reduce_columns, reduce_rows
from trnsim.kernels.rmsnorm import rmsnorm, rmsnorm_backward
from trnsim.kernels.softmax import softmax, softmax_backward
from trnsim.numerics import DType, as_dtype

if TYPE_CHECKING:
    from trnsim.frameworks.torch.exact import ExactExecutor

Array = Any
# Elements of the contraction that MX products take at once, and double rows.
MX_STEP, PAIR = 128, 2


def _require(fits: bool, why: str) -> None:
    if not fits:
        raise Unmatched(why)


# -- products ----------------------------------------------------------------------------------------------------------


def _matrices(x: ExactExecutor, a: Tensor, b: Tensor, out: DType, *, layer: bool) -> Array:
    """[M, K] times [K, N] in the policy's format, in ``out``."""
    _require(a.numel() > 0 and b.numel() > 0, "no elements")
    policy = x.policy
    if layer and policy.narrow:
        kinds = [policy.product(t.dtype, gradient=x.gradient(t)) for t in (a, b)]
        return _in_blocks(x, a, b, kinds, out) if policy.scaling == "block" else _scaled(x, a, b, kinds, out)
    kind = policy.product(a.dtype, layer=layer)
    # As they lie: what is transposed for PyTorch has the contraction first in memory.
    turned, flat = _turned(a), _turned(b)
    left = x.operand(a.t() if turned else a, kind)
    right = x.operand(b.t() if flat else b, kind)
    return x.launch(product, left, right, 0 if turned else 1, 1 if flat else 0, out)


def _turned(tensor: Tensor) -> bool:
    return tensor.stride(0) == 1 and tensor.stride(1) != 1


def _scaled(x: ExactExecutor, a: Tensor, b: Tensor, kinds: Sequence[DType], out: DType) -> Array:
    """A product in 8-bit floats with a scale a tensor."""
    codes, scales = [], []
    for tensor, kind in ((a.t(), kinds[0]), (b, kinds[1])):
        array = x.operand(tensor)
        if array.shape[0] % PAIR:
            array = np.concatenate([array, np.zeros((1, array.shape[1]), array.dtype)])
        quantized, scale = x.launch(quantize_tensor, array, kind)
        codes.append(quantized)
        scales.append(np.float32(np.asarray(scale).reshape(-1)[0]))
    if x.generation == "v2":  # TensorE multiplies 8-bit floats there, but not two rows at once
        sums = x.launch(product, codes[0], codes[1], 0, 0, FLOAT32)
        return x.launch(chain, (sums,), (("multiply", 0, float(scales[0] * scales[1])),), out)
    rows = np.full((codes[0].shape[1], 1), scales[0], np.float32)
    columns = np.full((1, codes[1].shape[1]), scales[1], np.float32)
    return x.launch(matmul_fp8, codes[0], codes[1], rows, columns, out)


def _in_blocks(x: ExactExecutor, a: Tensor, b: Tensor, kinds: Sequence[DType], out: DType) -> Array:
    """A product of MX operands; zeros fill the contraction up to whole groups, and an odd number of rows."""
    operands: list[Any] = []
    for tensor, kind, even in ((a.t(), kinds[0], 2), (b, kinds[1], 1)):
        array = x.operand(tensor, formats.BFLOAT16 if tensor.dtype is torch.float32 else None)
        k, n = array.shape
        array = np.pad(array, ((0, -k % MX_STEP), (0, -n % even)))
        operands += x.launch(quantize_mxfp8, array, as_dtype(f"{kind}_x4"))
    result = x.launch(matmul_mx, *operands, f"{kinds[0]}_x4", f"{kinds[1]}_x4", out)
    return result[: a.shape[0]]


def _out(tensor: Tensor) -> DType:
    return as_dtype(tensor.dtype)


def _mm(x: ExactExecutor, plan: Plan, args: Any, kwargs: Any) -> Array:
    a, b = args[:2]
    return _matrices(x, a, b, _out(a), layer=plan.name in LAYERS)


def _addmm(x: ExactExecutor, plan: Plan, args: Any, kwargs: Any) -> Array:
    bias, a, b = args[:3]
    sums = _matrices(x, a, b, FLOAT32, layer=plan.name in LAYERS)
    return _added(x, bias, sums, kwargs, _out(a))


def _added(x: ExactExecutor, bias: Tensor, sums: Array, kwargs: Any, out: DType) -> Array:
    """Factors alpha and beta times ``sums`` and ``bias``, added and rounded once."""
    alpha, beta = float(kwargs.get("alpha", 1)), float(kwargs.get("beta", 1))
    added = np.ascontiguousarray(np.broadcast_to(x.operand(bias, FLOAT32), sums.shape))
    values = {"sums": 0, "bias": 1}
    steps: list[Any] = []
    for name, factor in (("sums", alpha), ("bias", beta)):
        if factor != 1:
            steps.append(("multiply", values[name], factor))
            values[name] = 1 + len(steps)
    steps.append(("add", values["sums"], values["bias"]))
    return x.launch(chain, (sums, added), tuple(steps), out)


def _bmm(x: ExactExecutor, plan: Plan, args: Any, kwargs: Any) -> Array:
    a, b = args[:2]
    return np.stack([_matrices(x, a[i], b[i], _out(a), layer=False) for i in range(a.shape[0])])


def _baddbmm(x: ExactExecutor, plan: Plan, args: Any, kwargs: Any) -> Array:
    bias, a, b = args[:3]
    sums = np.stack([_matrices(x, a[i], b[i], FLOAT32, layer=False) for i in range(a.shape[0])])
    return _added(x, bias, sums, kwargs, _out(a))


def _mv(x: ExactExecutor, plan: Plan, args: Any, kwargs: Any) -> Array:
    matrix, vector = args
    return _matrices(x, matrix, vector.reshape(-1, 1), _out(matrix), layer=False)


def _grouped_mm(x: ExactExecutor, plan: Plan, args: Any, kwargs: Any) -> Array:
    """Rows of each expert times its matrix, or, of two matrices, the gradient of the experts' matrices."""
    a, b, ends = (*args, *(kwargs.get(name) for name in ("offs",)[len(args) - 2 :]))[:3]
    _require(not x.policy.narrow, "experts in 8 bits")
    _require(ends is not None and a.dim() == 2, "groups of the second operand")
    _require(kwargs.get("bias") is None and len(args) < 4, "a bias")
    kind = x.policy.product(a.dtype)
    offsets = np.concatenate([[0], ends.numpy()]).astype(np.int32)[None]
    tokens = a.shape[0] if b.dim() == 3 else a.shape[1]
    _require(int(offsets[0, -1]) == tokens, "tokens of no expert")
    if b.dim() == 2:
        return x.launch(grouped_weight_gradient, x.operand(a.t(), kind), x.operand(b, kind), offsets)
    flat = b.stride(1) == 1 and b.stride(2) != 1
    weights = x.operand(b.transpose(1, 2) if flat else b, kind)
    return x.launch(grouped_matmul, x.operand(a, kind), weights, offsets, contract_w=1 if flat else 0)


# -- attention ---------------------------------------------------------------------------------------------------------


def _heads(x: ExactExecutor, tensor: Tensor, *, turned: bool) -> Array:
    """[batch, heads, tokens, size] as [batch heads, tokens, size], or with the last two exchanged, as kernels want."""
    kind = x.policy.product(tensor.dtype, layer=False)
    whole = tensor.transpose(2, 3) if turned else tensor
    return x.operand(whole.reshape(-1, *whole.shape[2:]), kind)


def _scale_of(q: Tensor, scale: Any) -> float:
    return float(q.shape[-1] ** -0.5 if scale is None else scale)


def _seen(q: Tensor, k: Tensor, causal: bool, mask: Any) -> dict[str, Any]:
    """Which keys a query sees, as the kernel is told: all, or those up to its own place."""
    if mask is None:
        return {"causal": causal}
    allowed = mask if mask.dtype is torch.bool else mask == 0
    _require(not causal, "a mask besides the causal one")
    _require(mask.dtype is torch.bool or bool((mask[~allowed] <= -1e30).all()), "a mask that adds to scores")
    queries, keys = q.shape[2], k.shape[2]
    rows = allowed.expand(*allowed.shape[:-2], queries, keys).reshape(-1, queries, keys)
    if bool(rows.all()):
        return {"causal": False}
    first = int(rows[0, 0].sum()) - 1
    _require(first >= 0, "a query that sees no key")
    steps = torch.ones(queries, keys, dtype=torch.bool).tril(first)
    _require(bool((rows == steps).all()), "a mask that is no causal one")
    return {"causal": True, "first_query": first}


def _attention(x: ExactExecutor, plan: Plan, args: Any, kwargs: Any) -> Array:
    q, k, v = args[:3]
    dropout, causal = args[3] if len(args) > 3 else 0.0, args[4] if len(args) > 4 else False
    _require(not dropout, "dropout")
    seen = _seen(q, k, bool(causal), kwargs.get("attn_mask"))
    result, logs = x.launch(
        attention,
        _heads(x, q, turned=True),
        _heads(x, k, turned=True),
        _heads(x, v, turned=False),
        scale=_scale_of(q, kwargs.get("scale")),
        with_lse=True,
        **seen,
    )
    return result, logs


def _attention_backward(x: ExactExecutor, plan: Plan, args: Any, kwargs: Any) -> Array:
    dy, q, k, v, result, logs, dropout, causal = args[:8]
    _require(not dropout, "dropout")
    seen = _seen(q, k, bool(causal), kwargs.get("attn_mask"))
    dq, dk, dv = x.launch(
        attention_backward,
        _heads(x, q, turned=True),
        _heads(x, k, turned=True),
        _heads(x, v, turned=False),
        _heads(x, result, turned=False),
        x.operand(logs.reshape(-1, logs.shape[-1])),
        _heads(x, dy, turned=False),
        scale=_scale_of(q, kwargs.get("scale")),
        **seen,
    )
    return dq, dk, dv


# -- norms and softmax -------------------------------------------------------------------------------------------------


def _rows(x: ExactExecutor, tensor: Tensor, kind: DType | None = None) -> Array:
    """[rows, width] of the last dimension."""
    return x.operand(tensor.reshape(-1, tensor.shape[-1]), kind)


def _last(tensor: Tensor, shape: Any) -> None:
    _require(len(shape) == 1 and shape[0] == tensor.shape[-1], "more than the last dimension is normalised")


def _layer_norm(x: ExactExecutor, plan: Plan, args: Any, kwargs: Any) -> Array:
    data, shape, weight, bias, eps = args
    _last(data, shape)
    kind = as_dtype(data.dtype)
    one = torch.ones(shape, dtype=data.dtype) if weight is None else weight
    zero = torch.zeros(shape, dtype=data.dtype) if bias is None else bias
    result = x.launch(layernorm, _rows(x, data), x.operand(one, kind), x.operand(zero, kind), float(eps))
    # The kernel's backward computes them again; PyTorch wants them as results.
    wide = data.float()
    variance, mean = torch.var_mean(wide, -1, correction=0, keepdim=True)
    deviation = torch.rsqrt(variance + eps)
    x.pending = float(eps)
    return result, mean, deviation


def _eps(x: ExactExecutor, deviation: Tensor) -> float:
    eps = x.noted(deviation)
    _require(eps is not None, "its forward pass was computed by no kernel")
    return float(eps)


def _layer_norm_backward(x: ExactExecutor, plan: Plan, args: Any, kwargs: Any) -> Array:
    dy, data, shape, _, deviation, weight, _, wanted = args
    _last(data, shape)
    kind = as_dtype(data.dtype)
    one = torch.ones(shape, dtype=data.dtype) if weight is None else weight
    made = x.launch(layernorm_backward, _rows(x, dy, kind), _rows(x, data), x.operand(one, kind), _eps(x, deviation))
    return tuple(m if w else None for m, w in zip(made, wanted, strict=True))


def _rms_norm(x: ExactExecutor, plan: Plan, args: Any, kwargs: Any) -> Array:
    data, shape, weight, eps = args
    _last(data, shape)
    kind = as_dtype(data.dtype)
    eps = float(torch.finfo(data.dtype).eps if eps is None else eps)
    one = torch.ones(shape, dtype=data.dtype) if weight is None else weight
    result = x.launch(rmsnorm, _rows(x, data), x.operand(one, kind), eps)
    deviation = torch.rsqrt(data.float().square().mean(-1, keepdim=True) + eps)
    x.pending = eps
    return result, deviation


def _rms_norm_backward(x: ExactExecutor, plan: Plan, args: Any, kwargs: Any) -> Array:
    dy, data, shape, deviation, weight, wanted = args
    _last(data, shape)
    kind = as_dtype(data.dtype)
    one = torch.ones(shape, dtype=data.dtype) if weight is None else weight
    made = x.launch(rmsnorm_backward, _rows(x, dy, kind), _rows(x, data), x.operand(one, kind), _eps(x, deviation))
    return tuple(m if w else None for m, w in zip(made, wanted, strict=True))


def _is_last(tensor: Tensor, dim: int) -> None:
    _require(dim in (-1, tensor.dim() - 1), "not the last dimension")


def _softmax(x: ExactExecutor, plan: Plan, args: Any, kwargs: Any) -> Array:
    data, dim, _ = args
    _is_last(data, dim)
    return x.launch(softmax, _rows(x, data))


def _softmax_backward(x: ExactExecutor, plan: Plan, args: Any, kwargs: Any) -> Array:
    dy, result, dim, _ = args
    _is_last(result, dim)
    return x.launch(softmax_backward, _rows(x, dy, as_dtype(result.dtype)), _rows(x, result))


def _log_softmax(x: ExactExecutor, plan: Plan, args: Any, kwargs: Any) -> Array:
    data, dim, _ = args
    _is_last(data, dim)
    rows = _rows(x, data)
    _, logs = x.launch(cross_entropy, rows, np.zeros(len(rows), np.int32))
    return x.launch(chain, (rows, _columns(logs, rows)), (("subtract", 0, 1),), as_dtype(data.dtype))


def _log_softmax_backward(x: ExactExecutor, plan: Plan, args: Any, kwargs: Any) -> Array:
    dy, result, dim, _ = args
    _is_last(result, dim)
    gradient, logs = _rows(x, dy), _rows(x, result)
    sums = x.launch(reduce_rows, gradient, "sum")
    steps = (("exp", 1), ("multiply", 3, 2), ("subtract", 0, 4))
    return x.launch(chain, (gradient, logs, _columns(sums, logs)), steps, as_dtype(dy.dtype))


def _columns(values: Array, rows: Array) -> Array:
    """A number a row, for each of its elements."""
    return np.ascontiguousarray(np.broadcast_to(np.asarray(values)[:, None], rows.shape))


# -- the rest ----------------------------------------------------------------------------------------------------------


def _embedding_backward(x: ExactExecutor, plan: Plan, args: Any, kwargs: Any) -> Array:
    dy, numbers, rows, padding, by_frequency = args
    _require(not by_frequency, "scale_grad_by_freq")
    flat, gradient = numbers.reshape(-1).to(torch.int32).numpy(), _rows(x, dy)
    if padding >= 0:  # tokens that have no gradient
        kept = flat != padding
        flat, gradient = flat[kept], np.ascontiguousarray(gradient[kept])
    _require(flat.size > 0, "no tokens")
    return x.launch(embedding_backward, gradient, flat, int(rows))


def _embedding(x: ExactExecutor, plan: Plan, args: Any, kwargs: Any) -> Array:
    table, numbers = args[:2]
    return x.launch(embedding, numbers.reshape(-1).to(torch.int32).numpy(), x.operand(table))


def _activation_backward(name: str) -> Callable[..., Array]:
    def call(x: ExactExecutor, plan: Plan, args: Any, kwargs: Any) -> Array:
        dy, data = args[:2]
        kind = as_dtype(data.dtype)
        of = "gelu_tanh" if name == "gelu" and kwargs.get("approximate", "none") == "tanh" else name
        return x.launch(activation_backward, x.operand(dy, kind).reshape(-1), x.operand(data).reshape(-1), of)

    return call


def _reduce(operation: str) -> Callable[..., Array]:
    def call(x: ExactExecutor, plan: Plan, args: Any, kwargs: Any) -> Array:
        data = args[0]
        dims = args[1] if len(args) > 1 else kwargs.get("dim")
        every = list(range(data.dim()))
        reduced = every if dims is None or dims == [] else sorted(d % data.dim() for d in _listed(dims))
        _require(data.numel() > 0, "no elements")
        kept = [d for d in every if d not in reduced]
        if not kept:
            return x.launch(reduce_all, x.operand(data), operation)
        width = math.prod(data.shape[d] for d in reduced)
        others = data.numel() // width
        if reduced == list(range(len(reduced))):
            return x.launch(reduce_columns, x.operand(data.reshape(width, others)), operation)
        rows = data.permute(*kept, *reduced).reshape(others, width)
        return x.launch(reduce_rows, x.operand(rows), operation)

    return call


def _norm(x: ExactExecutor, plan: Plan, args: Any, kwargs: Any) -> Array:
    data, order, dims = args[0], args[1] if len(args) > 1 else 2, args[2] if len(args) > 2 else None
    _require(order == 2 and dims is None and kwargs.get("dtype") is None, "not the root of all squares")
    _require(data.numel() > 0, "no elements")
    squares = x.launch(chain, (x.operand(data.reshape(-1)),), (("square", 0),), FLOAT32)
    total = x.launch(reduce_all, squares, "sum")
    return x.launch(chain, (total,), (("sqrt", 0),), FLOAT32)


def _listed(dims: Any) -> list[int]:
    return [dims] if isinstance(dims, int) else list(dims)


def _adam(x: ExactExecutor, plan: Plan, args: Any, kwargs: Any) -> list[tuple[Tensor, Array]]:
    weights, gradients, firsts, seconds, _, steps = args
    _require(not kwargs["amsgrad"] and not kwargs["maximize"], "amsgrad or maximize")
    _require(kwargs.get("grad_scale") is None and kwargs.get("found_inf") is None, "grad_scale or found_inf")
    made: list[tuple[Tensor, Array]] = []
    beta1, beta2 = float(kwargs["beta1"]), float(kwargs["beta2"])
    for weight, gradient, first, second, step in zip(weights, gradients, firsts, seconds, steps, strict=True):
        count = float(step)
        schedule = np.array([float(kwargs["lr"]), 1 - beta1**count, 1 - beta2**count], np.float32)
        # the kernel changes its arguments in place
        state = [np.array(x.operand(t, FLOAT32)).reshape(-1) for t in (weight, first, second)]
        x.launch(
            adam_step,
            *state,
            x.operand(gradient).reshape(-1),
            schedule,
            np.empty_like(state[0]),
            beta1=beta1,
            beta2=beta2,
            eps=float(kwargs["eps"]),
            weight_decay=float(kwargs["weight_decay"]),
            decoupled=plan.name == "_fused_adamw",
        )
        made += zip((weight, first, second), state, strict=True)
    return made


def _chain(x: ExactExecutor, plan: Plan, args: Any, kwargs: Any) -> Array:
    """An element-wise operator."""
    place, name = plan.writes[0] if plan.writes else (0, "")
    written = None
    if plan.writes:
        written = args[place] if place < len(args) else kwargs[name]
    return _elements(x, plan.name, args, {k: v for k, v in kwargs.items() if k not in ("out", "dtype")}, written)


def foreach(x: ExactExecutor, plan: Plan, args: Any, kwargs: Any) -> Any:
    """The same for each tensor of lists."""
    name = plan.name.removeprefix("_foreach_")
    _require(name in CHAINS, "no kernel")
    made = []
    for number, first in enumerate(args[0]):
        one = [a[number] if isinstance(a, (list, tuple)) else a for a in args]
        made.append(_elements(x, name, one, kwargs, first if plan.writes else None))
    return list(zip(args[0], made, strict=True)) if plan.writes else made


def _elements(x: ExactExecutor, name: str, args: Any, kwargs: Any, written: Tensor | None) -> Array:
    """A chain of instructions, to be written to a tensor or not; what broadcasts is written out first."""
    tensors, steps = CHAINS[name](*args, **kwargs)
    kinds = {t.dtype for t in tensors}
    _require(all(k.is_floating_point for k in kinds), "integers with floats")
    if written is not None:
        shape, out = written.shape, written.dtype
        if x.fast.rng is not None:
            out = torch.float32  # rounded, stochastically, where it is stored
    else:
        shape = torch.broadcast_shapes(*(t.shape for t in tensors))
        out = tensors[0].dtype
        for kind in kinds:
            out = torch.promote_types(out, kind)
    _require(math.prod(shape) > 0, "no elements")
    arrays = tuple(x.operand(t.expand(shape).reshape(-1)) for t in tensors)
    return x.launch(chain, arrays, steps, as_dtype(out))


#: By name of the operator: what computes (executor, plan, args, kwargs) with kernels.
CALLS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(CHAINS, _chain),
    "mm": _mm,
    "addmm": _addmm,
    "bmm": _bmm,
    "mv": _mv,
    "_grouped_mm": _grouped_mm,
    "baddbmm": _baddbmm,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward,
    "native_layer_norm": _layer_norm,
    "native_layer_norm_backward": _layer_norm_backward,
    "_fused_rms_norm": _rms_norm,
    "_fused_rms_norm_backward": _rms_norm_backward,
    "_softmax": _softmax,
    "_softmax_backward_data": _softmax_backward,
    "_log_softmax": _log_softmax,
    "_log_softmax_backward_data": _log_softmax_backward,
    "embedding": _embedding,
    "embedding_dense_backward": _embedding_backward,
    "silu_backward": _activation_backward("silu"),
    "gelu_backward": _activation_backward("gelu"),
    "sum": _reduce("sum"),
    "mean": _reduce("mean"),
    "amax": _reduce("max"),
    "linalg_vector_norm": _norm,
    "_fused_adamw": _adam,
    "_fused_adam": _adam,
}

"""One layer on one rank: its operators with the exchanges of tensor parallelism around them, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from trnsim.errors import InternalError
from trnsim.workloads.model import Layer, Model
from trnsim.workloads.operators import BACKWARD, Exchange, Pass, Step, Use, format_bytes, quantization, quantized
from trnsim.workloads.parts import Experts, Kept, Part
from trnsim.workloads.parts.base import norm, product
from trnsim.workloads.weights import Count, ceil_div

RESULT = "bfloat16"  # of products in 8 bits, and of their gradients


def layer_forward(layer: Layer, p: Pass) -> Step:
    """The operators of a layer in order."""
    step: Step = []
    before = 1 if layer.parallel else min(layer.norms, len(layer.parts))
    after = layer.norms - before
    for number, part in enumerate(layer.parts):
        if number < before:
            step.append(norm(layer.norm_kind, p.rows, layer.hidden, p, f"{part.name}.layer_norm"))
        if layer.streams > 1:
            step.append(_mix(layer, part, p))
        step += _inside(part, layer, p, joined=layer.parallel and number > 0)
        if after > 0:
            step.append(norm(layer.norm_kind, p.rows, layer.hidden, p, f"{part.name}.layer_norm_after"))
            after -= 1
        rows = {"rows": p.rows * layer.streams, "width": layer.hidden, "residual": 1}
        step.append(Use("elementwise", rows, p.dtype, f"{part.name}.residual"))
    step += [product(w, p, p.rows) for w in layer.extra if w.kind == "matmul"]
    return quantized(step, p.dtype) if p.product_dtype else step


def _mix(layer: Layer, part: Part, p: Pass) -> Use:
    """Weights of the residual streams, one product of all of them."""
    n = layer.streams
    sizes = {"m": p.rows, "k": n * layer.hidden, "n": (2 + n) * n}
    return Use("matmul", sizes, p.dtype, f"{part.name}.mix")


def _inside(part: Part, layer: Layer, p: Pass, joined: bool) -> Step:
    """A part between its exchanges; of parts side by side (``joined``) only the first exchanges."""
    step = part.forward(p)
    alone = isinstance(p.tp, int) and p.tp == 1
    if alone or joined:
        return step
    whole = p.tokens * layer.hidden * p.itemsize
    if isinstance(part, Experts):
        return _experts_inside(part, step, p, whole)
    if p.sequence_parallel:
        return [
            Exchange("all_gather", "tp", p.tp, whole, f"{part.name}.input"),
            *step,
            Exchange("reduce_scatter", "tp", p.tp, whole, f"{part.name}.output"),
        ]
    return [*step, Exchange("all_reduce", "tp", p.tp, whole, f"{part.name}.output")]


def _experts_inside(part: Experts, step: Step, p: Pass, whole: Count) -> Step:
    """Routed tokens need no exchange of tp where each rank has its own; networks that all tokens pass do."""
    if not p.sequence_parallel:
        return [*step, Exchange("all_reduce", "tp", p.tp, whole, "experts.output")]
    if not (part.shared or part.dense):
        return step
    return [
        *step,
        Exchange("all_gather", "tp", p.tp, whole, "shared.input"),
        Exchange("reduce_scatter", "tp", p.tp, whole, "shared.output"),
    ]


def embedding_forward(model: Model, p: Pass) -> Step:
    """Rows of the vocabulary's table, of which each rank of tp has a share, and what stands before the layers."""
    width = model.embedding.n
    step: Step = [
        Use(
            "embedding",
            {"tokens": p.tokens, "width": width, "rows": ceil_div(model.vocabulary, p.tp)},
            p.dtype,
            "embedding",
        )
    ]
    if not (isinstance(p.tp, int) and p.tp == 1):
        operation = "reduce_scatter" if p.sequence_parallel else "all_reduce"
        step.append(Exchange(operation, "tp", p.tp, p.tokens * width * p.itemsize, "embedding"))
    for weight in model.outer:
        if weight.kind == "table":
            step.append(Use("embedding", {"tokens": p.rows, "width": weight.n, "rows": weight.k}, p.dtype, weight.name))
        elif weight.kind == "matmul" and weight.name.startswith("per_layer"):
            step.append(_plain(product(weight, p, p.rows), p))
    return step


def _plain(use: Use, p: Pass) -> Use:
    """A product outside of layers, in the format of activations."""
    return replace(use, dtype=p.dtype)


def head_forward(model: Model, p: Pass, tokens: Count, *, loss: bool) -> Step:
    """Final norm, the product with the vocabulary for ``tokens``, and the loss where one is trained."""
    rows = ceil_div(tokens, p.tp) if p.sequence_parallel else tokens
    step: Step = [norm(model.norm_kind, rows, model.hidden, p, "final_norm")]
    step += [
        _plain(product(w, p, rows), p) for w in model.outer if w.kind == "matmul" and not w.name.startswith("per_layer")
    ]
    several = not (isinstance(p.tp, int) and p.tp == 1)
    if several and p.sequence_parallel:
        step.append(Exchange("all_gather", "tp", p.tp, tokens * model.hidden * p.itemsize, "head.input"))
    width = ceil_div(model.vocabulary, p.tp)
    step.append(
        Use("matmul", {"m": tokens, "k": model.head.k, "n": width}, p.dtype, "head", weight_dtype=p.weight_dtype)
    )
    if loss:
        step.append(Use("cross_entropy", {"rows": tokens, "vocabulary": width}, p.dtype, "loss"))
        if several:
            # The largest logit, the sum of exponentials and the target's logit, in float32.
            step.append(Exchange("all_reduce", "tp", p.tp, 3 * tokens * 4, "loss"))
    elif several:
        step.append(Exchange("all_gather", "tp", p.tp, tokens * model.vocabulary * p.itemsize, "head"))
    return step


def backward(step: Step) -> Step:
    """The backward pass of a forward one: its operators in reverse, each with what it becomes."""
    found: Step = []
    for item in reversed(step):
        found += _exchange_back(item) if isinstance(item, Exchange) else _use_back(item)
    return found


def _exchange_back(item: Exchange) -> Step:
    def turned(operation: str) -> Exchange:
        return replace(item, operation=operation, phase=BACKWARD)

    if item.operation == "all_gather" and item.group in ("tp", "cp"):
        # What was gathered is gathered again for the gradients of weights (of scores): only shares are kept.
        return [turned("all_gather"), turned("reduce_scatter")]
    opposite = {"all_gather": "reduce_scatter", "reduce_scatter": "all_gather"}
    return [turned(opposite.get(item.operation, item.operation))]


def _use_back(use: Use) -> Step:
    if use.operator.startswith("quantize"):
        return []  # gradients pass as they are
    if use.operator not in _BACKWARD:
        raise InternalError(f"no backward pass known of {use.operator}")
    found: Step = [
        replace(use, operator=operator, sizes=sizes, phase=BACKWARD, where=use.where + suffix)
        for operator, sizes, suffix in _BACKWARD[use.operator](use.sizes)
    ]
    if use.operator in ("matmul", "grouped_matmul") and format_bytes(use.dtype) < 2:
        rows = use.sizes["m"] if use.operator == "matmul" else use.sizes["tokens"]
        before = replace(use, phase=BACKWARD, where=f"{use.where}.gradient")
        found.insert(0, quantization(before, rows, use.sizes["n"], RESULT))
    return found


_Backward = Callable[[Mapping[str, Any]], list[tuple[str, Mapping[str, Any], str]]]


def _products_back(name: str) -> _Backward:
    def turn(s: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any], str]]:
        if name == "grouped_matmul":
            # Gradients of an expert's weights contract its tokens: sizes stay those of the forward product.
            return [
                (name, {**s, "k": s["n"], "n": s["k"]}, ".input"),
                (name, {**s, "contract": 1}, ".weight"),
            ]
        return [
            (name, {"m": s["m"], "k": s["n"], "n": s["k"]}, ".input"),
            (name, {"m": s["k"], "k": s["m"], "n": s["n"]}, ".weight"),
        ]

    return turn


def _same(name: str) -> _Backward:
    return lambda s: [(name, s, "")]


def _router_back(s: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any], str]]:
    return [
        ("matmul", {"m": s["tokens"], "k": s["experts"], "n": s["width"]}, ".input"),
        ("matmul", {"m": s["width"], "k": s["tokens"], "n": s["experts"]}, ".weight"),
    ]


_BACKWARD: dict[str, _Backward] = {
    "matmul": _products_back("matmul"),
    "grouped_matmul": _products_back("grouped_matmul"),
    "router": _router_back,
    "rope": _same("rope"),
    "permute": _same("combine"),
    "combine": _same("permute"),
    "elementwise": lambda s: [("elementwise" if s.get("residual", 0) else "activation_backward", s, "")],
    **{
        name: _same(f"{name}_backward")
        for name in (
            "attention",
            "conv",
            "cross_entropy",
            "embedding",
            "gated_activation",
            "index_scores",
            "layernorm",
            "linear_attention",
            "rmsnorm",
        )
    },
}


def layer_kept(layer: Layer, p: Pass, recompute: str) -> list[Kept]:
    """Bytes that a rank keeps of a layer and micro-batch for the backward pass.

    ``none``: everything a backward pass reads: inputs of norms and parts, what is inside the parts, masks of dropout.
    The sums that norms keep of a row (8 bytes) are left out. ``selective`` drops scores and what comes of them,
    or, where a fused kernel keeps none, what norms, activations and projections out of a latent give (Megatron-Core's
    ``recompute_modules``); ``full`` all but the input of the layer.
    """
    a = p.itemsize
    stream = p.rows * layer.hidden * a
    if recompute == "full":
        return [Kept("layer.input", stream * layer.streams)]
    inputs = p.rows * layer.hidden * p.cast_bytes * (1 if layer.parallel else len(layer.parts))
    found = [Kept("norms", stream * layer.norms), Kept("inputs", inputs, again=True)]
    if layer.streams > 1:
        found.append(Kept("streams", stream * layer.streams * len(layer.parts)))
    if p.dropout:
        found.append(Kept("masks", p.rows * layer.hidden * len(layer.parts)))
    found += [Kept(w.name, p.rows * w.n * a) for w in layer.extra if w.kind == "matmul"]
    for part in layer.parts:
        found += part.kept(p)
    if recompute == "selective":
        found = [kept for kept in found if not (kept.again if p.flash else kept.core)]
    return found

"""What aten operators are to the chip: products, norms, element-wise work, movement, or nothing of the kind."""

from __future__ import annotations

from functools import cache

# Whose result has one element for each of the largest input's (broadcast), computed from few.
_UNARY = (
    "abs acos asin atan bitwise_not ceil clamp clamp_min clamp_max cos cosh elu erf erfc exp exp2 expm1 floor frac gelu "
    "hardsigmoid hardswish hardtanh isinf isnan leaky_relu log log10 log1p log2 log_sigmoid_forward logical_not logit mish "
    "nan_to_num neg reciprocal relu relu6 round rsqrt sigmoid sign signbit silu sin sinh softplus sqrt square tan tanh "
    "threshold trunc celu selu isfinite positive sgn"
)
_BINARY = (
    "add addcdiv addcmul atan2 bitwise_and bitwise_or bitwise_xor div eq floor_divide fmod ge gt le lerp logical_and "
    "logical_or logical_xor lt maximum minimum mul ne pow remainder rsub sub where masked_fill xlogy copysign hypot "
    "fmax fmin fma bitwise_left_shift bitwise_right_shift"
)
_SLOPES = (
    "elu_backward gelu_backward hardsigmoid_backward hardswish_backward hardtanh_backward leaky_relu_backward "
    "log_sigmoid_backward mish_backward sigmoid_backward silu_backward softplus_backward tanh_backward threshold_backward "
    "native_dropout_backward logit_backward"
)
_RANDOM = "bernoulli normal uniform rand_like randn_like native_dropout exponential random multinomial randint_like"
RANDOM = frozenset(_RANDOM.split())
ELEMENTWISE = frozenset(f"{_UNARY} {_BINARY} {_SLOPES} {_RANDOM}".split())
# What only moves data, by patterns that DMA or an access pattern knows beforehand.
MOVES = frozenset(
    "cat clone _to_copy copy stack repeat constant_pad_nd slice_scatter select_scatter slice_backward select_backward "
    "flip roll expand_copy contiguous as_strided_scatter diagonal_backward tril triu fill zero unfold_backward resize "
    "_reshape_copy view_copy permute_copy split_with_sizes_copy index_fill masked_scatter_backward "
    "constant_pad_nd_backward repeat_interleave new_empty_strided set lift_fresh lift_fresh_copy unbind_copy".split()
)
REDUCTIONS = frozenset(
    "sum mean amax amin max min var std var_mean norm linalg_vector_norm argmax argmin any all prod logsumexp "
    "count_nonzero aminmax".split()
)
# Rows chosen by numbers: indirect DMA, as an embedding does it.
GATHERS = frozenset("index index_select gather embedding take _unsafe_index".split())
SCATTERS = frozenset(
    "index_put index_add scatter scatter_add index_copy embedding_dense_backward _index_put_impl".split()
)
PRODUCTS = frozenset("mm addmm bmm baddbmm mv addmv dot matmul linear _grouped_mm".split())
SOFTMAXES = frozenset(("_softmax", "_safe_softmax"))
ATTENTION = frozenset(
    "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
    "_scaled_dot_product_efficient_attention _scaled_dot_product_attention_math "
    "scaled_dot_product_attention _scaled_dot_product_fused_attention_overrideable".split()
)
NORMS = frozenset(("native_layer_norm", "_fused_rms_norm"))
# The host decides, or the shape of the result depends on data.
HOST = frozenset(
    "nonzero item _local_scalar_dense unique _unique2 unique_dim unique_consecutive masked_select bincount equal "
    "is_nonzero nonzero_static histogram".split()
)
_MADE = frozenset(
    "arange empty empty_like empty_strided eye full full_like linspace new_empty new_full new_ones new_zeros ones ones_like "
    "scalar_tensor zeros zeros_like rand randn randint randperm tril_indices triu_indices new_empty_strided "
    "logspace hann_window empty_permuted _efficientzerotensor".split()
)
ACTIVATIONS = {
    "silu": "silu", "gelu": "gelu", "relu": "relu", "tanh": "tanh", "sigmoid": "sigmoid", "erf": "gelu",
}  # fmt: skip


@cache
def plain(operator: str) -> str:
    """The operator of a call without namespace, overload, and the underscore of what is in place: ``add``."""
    parts = operator.split(".")
    name = parts[1] if len(parts) > 1 else parts[0]
    if name.endswith("_") and not name.endswith("__"):
        name = name[:-1]
    return name.removeprefix("_foreach_")


@cache
def kind(operator: str) -> str:
    """``product``, ``attention``, ``norm``, ``softmax``, ``elementwise``, ``move``, ``reduction``, ``gather``, ``scatter``,
    ``made`` (of no data), ``host``, ``kernel`` (the user's), or ``other``, what no kernel stands for."""
    if operator.startswith("nki."):
        return "kernel"
    name = plain(operator)
    for names, found in (
        (PRODUCTS, "product"), (ATTENTION, "attention"), (NORMS, "norm"), (SOFTMAXES, "softmax"), (_MADE, "made"),
        (HOST, "host"), (GATHERS, "gather"), (SCATTERS, "scatter"), (ELEMENTWISE, "elementwise"), (MOVES, "move"),
        (REDUCTIONS, "reduction"),
    ):  # fmt: skip
        if name in names:
            return found
    if name in ("_log_softmax", "_log_softmax_backward_data", "_softmax_backward_data", "nll_loss_forward",
                "nll_loss_backward", "topk", "cumsum", "native_layer_norm_backward", "_fused_rms_norm_backward"):  # fmt: skip
        return name.strip("_")
    return "other"

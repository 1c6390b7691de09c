"""What sort of operator an aten call is, as far as its numbers go.

A *move* gives values as they were, chooses among them, or draws them: it runs in the formats that it finds. A *product*
contracts operands on TensorE. All other operators are computed in float32 by the other engines, which read narrower
formats into it and round what they write.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MOVE, PRODUCT, COMPUTE, FOREIGN = "move", "product", "compute", "foreign"

# Overloads of these names, and their in-place forms, do no arithmetic on floats.
_MOVES = frozenset(  # as text, which is a tenth of the lines
    """
    _assert_async _assert_scalar _assert_tensor_metadata _copy_from _embedding_bag_per_sample_weights_dummy
    _has_compatible_shallow_copy_type _local_scalar_dense _nested_tensor_from_mask _pin_memory _reshape_copy
    _resize_output _to_copy _unsafe_index _unsafe_masked_index _unsafe_view alias_copy arange argmax argmin argsort
    as_strided_scatter bernoulli block_diag bucketize cat cauchy channel_shuffle clone constant_pad_nd copy
    count_nonzero detach_copy diag_embed diagonal_backward diagonal_scatter embedding empty empty_like
    empty_permuted empty_strided equal expand_copy exponential eye fill fill_diagonal flip full full_like gather
    geometric hash_tensor index index_copy index_fill index_select is_same_size isfinite isinf isnan isneginf
    isposinf item lift lift_fresh lift_fresh_copy log_normal masked_fill masked_scatter masked_select
    max_pool2d_with_indices max_pool3d_with_indices multinomial narrow_copy native_channel_shuffle new_empty
    new_empty_strided new_full new_ones new_zeros nonzero nonzero_static normal ones ones_like permute_copy
    pixel_shuffle pixel_unshuffle put rand rand_like randint randint_like randn randn_like random randperm
    record_stream reflection_pad1d reflection_pad2d reflection_pad3d relu repeat repeat_interleave replication_pad1d
    replication_pad2d replication_pad3d resize resize_as roll rot90 scalar_tensor searchsorted select_backward
    select_copy select_scatter set signbit slice_backward slice_copy slice_scatter sort split_copy
    split_with_sizes_copy squeeze_copy stack sym_size sym_stride t_copy take topk transpose_copy tril triu
    unbind_copy unfold_copy uniform unique_consecutive unique_dim unsafe_chunk unsafe_split unsqueeze_copy view_copy
    where zero zeros zeros_like
    """.split()  # noqa: SIM905
)
# These only move what they are given, unless they add it up; the place and name of the argument that says so.
_MOVES_UNLESS = {
    "index_put": (3, "accumulate"),
    "_index_put_impl": (3, "accumulate"),
    "_unsafe_index_put": (3, "accumulate"),
}
_WITHOUT_NUMBERS = ("profiler", "prim", "c10d", "_c10d_functional")
_MOVING_OVERLOADS = frozenset({"aten.scatter.src", "aten.scatter.value", "aten.scatter_.src", "aten.scatter_.value"})

# Products with weights, which 8-bit policies are for: the places of their two operands.
LAYERS = {"mm": (0, 1), "addmm": (1, 2), "linear": (0, 1), "_grouped_mm": (0, 1), "_addmm_activation": (1, 2)}
# Other products, and the places of what TensorE multiplies. ``attn_mask`` and biases are added in float32.
_OPERANDS = {
    "bmm": (0, 1),
    "baddbmm": (1, 2),
    "addbmm": (1, 2),
    "mv": (0, 1),
    "addmv": (1, 2),
    "dot": (0, 1),
    "vdot": (0, 1),
    "addr": (1, 2),
    "ger": (0, 1),
    "matmul": (0, 1),
    "_trilinear": (0, 1, 2),
    "convolution": (0, 1),
    "_convolution": (0, 1),
    "convolution_overrideable": (0, 1),
    "mkldnn_convolution": (0, 1),
    "_slow_conv2d_forward": (0, 1),
    "convolution_backward": (0, 1, 2),
    "_scaled_dot_product_attention_math": (0, 1, 2),
    "_scaled_dot_product_flash_attention_for_cpu": (0, 1, 2),
    "_scaled_dot_product_flash_attention_for_cpu_backward": (0, 1, 2, 3, 4),
    "_scaled_dot_product_flash_attention": (0, 1, 2),
    "_scaled_dot_product_efficient_attention": (0, 1, 2),
    **LAYERS,
}
# Arguments that are changed though the schema does not say so.
_HIDDEN_WRITES = {"native_batch_norm": (3, 4), "cudnn_batch_norm": (3, 4), "miopen_batch_norm": (3, 4)}


@dataclass(frozen=True)
class Plan:
    """How calls of one overload are computed.

    Attributes:
        kind: ``move``, ``product``, ``compute`` or ``foreign`` (not an operator of aten: its own calls are computed).
        name: without namespace and overload.
        view: results share storage with arguments and nothing is written.
        writes: (place, name) of arguments that are changed.
        operands: places of what a product multiplies.
        unless: (place, name) of the argument that makes a move add.
        overload: full name, ``aten.mm.default``.
    """

    kind: str
    name: str
    view: bool
    writes: tuple[tuple[int, str], ...]
    operands: tuple[int, ...] = ()
    unless: tuple[int, str] | None = None
    overload: str = ""


def plan_of(func: Any) -> Plan:
    """The plan of an overload."""
    schema = func._schema
    namespace, _, name = schema.name.partition("::")
    base = name[:-1] if name.endswith("_") and not name.endswith("__") else name
    changed = [
        (i, a.name) for i, a in enumerate(schema.arguments) if a.alias_info is not None and a.alias_info.is_write
    ]
    changed += [(i, schema.arguments[i].name) for i in _HIDDEN_WRITES.get(name, ())]
    writes = tuple(changed)
    shares = any(r.alias_info is not None for r in schema.returns)
    view = not writes and (shares or name in ("_reshape_alias", "_unsafe_view"))
    overload = str(func)
    if namespace in _WITHOUT_NUMBERS:
        return Plan(MOVE, name, False, writes, overload=overload)
    if namespace not in ("aten", "prims"):
        return Plan(FOREIGN, name, False, writes, overload=overload)
    if view or base in _MOVES or overload in _MOVING_OVERLOADS:
        return Plan(MOVE, base, view, writes, overload=overload)
    if base in _OPERANDS:
        return Plan(PRODUCT, base, False, writes, _OPERANDS[base], overload=overload)
    return Plan(COMPUTE, base, False, writes, unless=_MOVES_UNLESS.get(base), overload=overload)

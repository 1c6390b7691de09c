"""How calls differ between releases of NKI, and keywords that only some have.

A ``Signature`` is a call of an older release where it is not that of the latest. Its text is Python; defaults may use
the enums of ``nki.isa``; ``required`` marks what has to be given after arguments that need not be. ``KLR`` is the
public front end of NKI 0.2 (leanprover/KLR).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Signature:
    """A call as releases before the latest have it; ``reordered`` if positional calls mean something else there."""

    function: str
    versions: str
    text: str
    source: str = "stubs"
    reordered: bool = False


@dataclass(frozen=True)
class Keyword:
    """A keyword that not every release has, or none did but programs use; ``*`` is every function of the module."""

    function: str
    keyword: str
    versions: str
    instead: str = ""
    source: str = "stubs"
    evidence: bool = True  # whether a program that uses it is one for these releases


def _isa(function: str, versions: str, text: str, source: str = "stubs", *, reordered: bool = False) -> Signature:
    return Signature(f"nki.isa.{function}", versions, text, source, reordered)


def _collectives(before: str, functions: dict[str, str]) -> tuple[Signature, ...]:
    """``priority`` came with 0.4, ``name`` with 0.5."""
    rows = []
    for function, text in functions.items():
        rows.append(Signature(f"nki.collectives.{function}", f"{before}-0.3", f"({text})", "stubs, rn 2.30"))
        rows.append(Signature(f"nki.collectives.{function}", "0.4", f"({text}, priority=None)", "stubs, rn 2.31"))
    return tuple(rows)


_MATMUL = "dst, stationary, moving, is_stationary_onezero=False, is_moving_onezero=False, is_transpose=False"
_RANGE = "(dst, on_true_tile, comp_op0, comp_op1, bound0, bound1"

SIGNATURES: tuple[Signature, ...] = (
    _isa("affine_select", "0.2",
         "(dst, pattern, offset=0, channel_multiplier=0, on_true_tile=required, on_false_value=required, "
         "cmp_op=equal, name=None)", "stubs, update, KLR", reordered=True),
    _isa("core_barrier", "0.2", "(data, cores, engine=engine.unknown, name=None)", "stubs, rn 2.29"),
    _isa("dma_compute", "0.2", "(dst, srcs, scales, reduce_op, name=None)", "stubs, update", reordered=True),
    _isa("dma_compute", "0.3", "(dst, srcs, reduce_op, scales=None, unique_indices=True, name=None)", "rn 2.30"),
    _isa("dma_copy", "0.2", "(dst, src, dst_rmw_op=None, oob_mode=oob_mode.error, dge_mode=dge_mode.unknown, "
         "unique_indices=True, name=None)", "stubs, update"),
    _isa("dma_copy", "0.3", "(dst, src, oob_mode=oob_mode.error, dge_mode=dge_mode.unknown, engine=engine.unknown, "
         "name=None)"),
    _isa("dma_transpose", "0.2-0.3",
         "(dst, src, axes=None, dge_mode=dge_mode.unknown, oob_mode=oob_mode.error, name=None)", "stubs, rn 2.30"),
    _isa("dma_transpose", "0.4-0.5", "(dst, src, axes=None, priority=None, dge_mode=dge_mode.unknown, "
         "oob_mode=oob_mode.error, name=None)", "rn 2.32"),
    _isa("exponential", "0.2",
         "(dst, src, max_value=0.0, reduce_res=None, reduce_cmd=reduce_cmd.idle, reduce_init=0.0)"),
    _isa("memset", "0.2", "(dst, value, engine=engine.unknown, name=None)", "update"),
    _isa("nc_matmul", "0.2", f"({_MATMUL}, tile_position=(), tile_size=(), perf_mode=matmul_perf_mode.none, name=None, "
         "*, is_moving_zero=None, psumAccumulateFlag=None)", "stubs, rn 2.28"),
    _isa("nc_matmul", "0.3", f"({_MATMUL}, accumulate=None, tile_position=(), tile_size=(), "
         "perf_mode=matmul_perf_mode.none, name=None)", "rn 2.30"),
    _isa("nc_matmul_mx", "0.2", "(dst, stationary, moving, stationary_scale, moving_scale, tile_position=None, "
         "tile_size=None, name=None)"),
    _isa("nc_transpose", "0.2", "(dst, data, engine=engine.unknown, name=None, *, dtype=None)", "public kernels"),
    _isa("nonzero_with_count", "0.2", "(dst, src, index_offset=0, padding_val=-1)"),
    _isa("quantize_mx", "0.2-0.4", "(dst, src, dst_scale, name=None)", "rn 2.31"),
    _isa("rand_get_state", "0.2-0.4", "(dst, engine=engine.unknown, name=None)"),
    _isa("rand_set_state", "0.2-0.4", "(src_seeds, engine=engine.unknown, name=None)"),
    _isa("range_select", "0.2", f"{_RANGE}, reduce_cmd=reduce_cmd.reset_reduce, reduce_res=None, reduce_op=maximum, "
         "range_start=0.0, on_false_value=-3.4028235e+38, name=None)", "rn 2.28, update"),
    _isa("register_move", "0.2", "(dst, imm)", "stubs, update"),
    _isa("rng", "0.2-0.4", "(dst, engine=engine.unknown, name=None)"),
    _isa("scalar_tensor_tensor", "0.2", "(dst, data, op0, operand0, op1, operand1, reverse0=False, reverse1=False, "
         "name=None, *, dtype=None)", "public kernels"),
    _isa("sendrecv", "0.2", "(src, dst, send_to_rank, recv_from_rank, pipe_id, name=None, *, use_gpsimd_dma=False)",
         "stubs, update"),
    _isa("sendrecv", "0.3", "(src, dst, send_to_rank, recv_from_rank, pipe_id, dma_engine=dma_engine.dma, name=None)",
         "rn 2.30"),
    _isa("tensor_copy", "0.2", "(dst, src, engine=engine.unknown, name=None, *, dtype=None)", "public kernels"),
    _isa("tensor_copy_dynamic_dst", "0.2-0.3", "(dst, src, engine=engine.unknown, name=None)", "stubs of 2.27"),
    _isa("tensor_copy_dynamic_src", "0.2-0.3", "(dst, src, engine=engine.unknown, name=None)", "stubs of 2.27"),
    _isa("tensor_reduce", "0.2", "(dst, op, data, axis, negate=False, keepdims=False, name=None, *, dtype=None)",
         "update, public kernels"),
    _isa("tensor_scalar_cumulative", "0.2",
         "(dst, src, op0, op1, imm0, imm1=None, reduce_cmd=reduce_cmd.reset_reduce)"),
    _isa("tensor_scalar_reduce", "0.2-0.3",
         "(dst, data, op0, operand0, reduce_op, reduce_res, reverse0=False, name=None)"),
    _isa("tensor_scalar_reduce", "0.4-0.5", "(dst, data, op0, operand0, reduce_op, reduce_res, reverse0=False, "
         "reduce_cmd=reduce_cmd.reset_reduce, reduce_init=None, name=None)", "stubs, rn 2.32"),
    Signature("nki.language.copy", "0.3-0.5", "(x, dtype=None)", "stubs, rn 2.32"),
    Signature("nki.language.rsqrt", "0.3-0.4", "(x, dtype=None)", "rn 2.31"),
    Signature("nki.language.ndarray", "0.2", "(shape, dtype, buffer=None, name='', address=None)", "stubs, guide"),
    Signature("nki.language.zeros", "0.2", "(shape, dtype, buffer=None, name='')"),
    Signature("nki.language.num_programs", "0.2", "(axes=None)", "stubs, rn 2.29"),
    Signature("nki.language.program_id", "0.2", "(axis)", "stubs, rn 2.29"),
    Signature("nki.language.shared_constant", "0.2", "(constant, dtype=None)"),
    Signature("nki.language.shared_identity_matrix", "0.2", "(n, dtype='uint8')"),
    *_collectives("0.2", {
        "all_gather": "srcs, dsts, replica_group, collective_dim",
        "all_reduce": "srcs, dsts, replica_group, op",
        "all_to_all": "srcs, dsts, replica_group, collective_dim",
        "collective_permute": "srcs, dsts, source_target_pairs",
        "collective_permute_implicit": "srcs_by_channel, dsts_by_channel, replica_group, channel_ids=(0,)",
        "collective_permute_implicit_reduce":
            "srcs0_by_channel, srcs1_by_channel, dsts_by_channel, replica_group, op, channel_ids=(0,)",
        "reduce_scatter": "srcs, dsts, replica_group, collective_dim, op",
    }),
    *_collectives("0.3", {
        "all_to_all_v": "srcs, dsts, replica_group, metadata_tensor, recv_counts_known=False, has_rdispls=False",
    }),
    Signature("nki.collectives.collective_permute_implicit_current_processing_rank_id", "0.2",
              "(iteration_id, replica_group, channel_id=0, num_channels=1)", "stubs, update"),
    Signature("nki.collectives.collective_permute_implicit_current_processing_rank_id", "0.3-0.4",
              "(iteration_id, replica_group, channel_id=0)"),
    Signature("nki.collectives.rank_id", "0.2-0.4", "()"),
)  # fmt: skip

_DTYPE = "the result has the dtype of dst"

KEYWORDS: tuple[Keyword, ...] = (
    Keyword("nki.isa.*", "mask", "0.1", "slice the operands to what is valid", "guide"),
    Keyword("nki.language.*", "mask", "0.1", "slice the operands to what is valid", "guide"),
    Keyword("nki.isa.*", "dtype", "0.1", _DTYPE, "rn 2.27"),
    # Every view takes the first, and nki-library, which is for NKI 0.3, has the second in a branch.
    *(Keyword(f"nki.isa.{f}", "dtype", "0.1-0.2", _DTYPE, "public kernels", evidence=False)
      for f in ("tensor_copy", "scalar_tensor_tensor")),
    *(Keyword(f"nki.isa.{f}", "dtype", "0.1-0.2", _DTYPE, "public kernels") for f in ("tensor_reduce", "nc_transpose")),
    Keyword("nki.isa.*", "dst", "0.2-", "in NKI 0.1 assign what the call returns", "guide"),
    Keyword("nki.isa.memset", "shape", "0.1", "dst has the shape", "rn 2.27"),
    Keyword("nki.isa.affine_select", "pred", "0.1", "use pattern, offset, channel_multiplier and cmp_op", "rn 2.27"),
    Keyword("nki.isa.iota", "expr", "0.1", "use pattern, offset and channel_multiplier", "rn 2.27"),
    Keyword("nki.isa.dma_copy", "dst_rmw_op", "0.1-0.2", "use nisa.dma_compute(dst, [src, dst], reduce_op=...)",
            "update"),
    Keyword("nki.isa.dma_copy", "unique_indices", "0.2", "use nisa.dma_compute(..., unique_indices=)", "update"),
    Keyword("nki.isa.dma_copy", "engine", "0.3-", "leave it out"),
    Keyword("nki.isa.dma_copy", "priority", "0.4-", "leave it out"),
    Keyword("nki.isa.dma_transpose", "priority", "0.4-", "leave it out"),
    Keyword("nki.isa.dma_compute", "unique_indices", "0.3-", "use nisa.dma_copy(dst_rmw_op=, unique_indices=)"),
    Keyword("nki.isa.dma_compute", "oob_mode", "0.4-", "", "rn 2.30"),
    Keyword("nki.isa.nc_matmul", "accumulate", "0.3-", "the first product overwrites, others add", "rn 2.29"),
    Keyword("nki.isa.nc_matmul_mx", "accumulate", "0.3-", "the first product overwrites, others add", "rn 2.29"),
    Keyword("nki.isa.nc_matmul", "is_moving_zero", "0.2", "use is_moving_onezero", "rn 2.28"),
    Keyword("nki.isa.nc_matmul", "psumAccumulateFlag", "0.2", "leave it out: it did nothing", "rn 2.28"),
    Keyword("nki.isa.register_move", "imm", "0.2", "use src=", "update"),
    Keyword("nki.isa.register_move", "src", "0.3-", "use imm=", "update"),
    Keyword("nki.isa.sendrecv", "use_gpsimd_dma", "0.2", "use dma_engine=nisa.dma_engine.gpsimd_dma", "update"),
    Keyword("nki.isa.sendrecv", "dma_engine", "0.3-", "use use_gpsimd_dma=True", "update"),
    Keyword("nki.isa.tensor_scalar_reduce", "reduce_cmd", "0.4-"),
    Keyword("nki.isa.tensor_scalar_reduce", "reduce_init", "0.4-"),
    Keyword("nki.isa.tensor_scalar_reduce", "reduce_res_negate", "0.6"),
    *(Keyword(f"nki.isa.{f}", "name", "0.3-") for f in
      ("exponential", "nonzero_with_count", "tensor_scalar_cumulative")),
    Keyword("nki.collectives.*", "priority", "0.4-", "leave it out", "stubs, rn 2.30"),
    Keyword("nki.collectives.*", "name", "0.5-", "leave it out", "rn 2.31"),
    Keyword("nki.collectives.collective_permute_implicit_current_processing_rank_id", "num_channels", "0.2",
            "give channel_ids to collective_permute_implicit", "update"),
    Keyword("nki.language.*", "precise_schedule", "0.1", "leave it out"),
    Keyword("nki.language.*", "directives", "0.1", "leave it out"),
    Keyword("nki.language.shared_identity_matrix", "dst", "0.3-"),
    Keyword("nki.language.shared_constant", "dtype", "0.1-0.2", "give an array of that dtype"),
    *(Keyword(f"nki.language.{f}", "compute_dtype", "0.1", "the dtype of the result is dtype=")
      for f in ("softmax",)),
    *(Keyword(f"nki.language.{f}", "lazy_initialization", "0.1", "leave it out") for f in ("ndarray", "zeros")),
)  # fmt: skip

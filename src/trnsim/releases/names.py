"""Functions, classes and constants that not every release of NKI has.

``source``: ``stubs`` are the API stubs of the public documentation at the tag of each SDK release; ``rn`` its release
notes, ``guide`` the migration guide to NKI 0.2, ``update`` the update guide to NKI 0.3.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Name:
    """A name with the releases that have it; ``instead`` says what replaces it in the others."""

    name: str
    versions: str
    instead: str = ""
    source: str = "stubs"


def _rows(module: str, versions: str, names: str, instead: str = "", source: str = "stubs") -> tuple[Name, ...]:
    return tuple(Name(f"{module}.{name}", versions, instead, source) for name in names.split())


_ISA, _LANGUAGE, _COLLECTIVES = "nki.isa", "nki.language", "nki.collectives"
_SLICE = "use slices, nl.ds or .ap()"
_NO_FUNCTION = "in NKI 0.2 issue the nki.isa instructions instead"

NAMES: tuple[Name, ...] = (
    # -- nki
    Name("nki.simulate", "0.3-", "call the kernel: every kernel is simulated", "rn 2.29"),
    Name("nki.trace", "0.1", "call the function"),
    Name("nki.typing", "0.1 0.3-", "leave the annotation out", "rn 2.29"),
    Name("nki.tensor", "0.1-0.2", "use nl.NkiTensor, or NumPy for constants", "rn 2.28, stubs of 2.28"),
    Name("nki.meta", "0.2", "use NumPy for constants", "rn 2.28"),
    *_rows("nki.tensor", "0.2", "arange identity zeros", "use NumPy for constants", "stubs of 2.28"),
    # -- nki.isa
    Name("nki.isa.builtin_custom_op", "0.1"),
    *_rows(_ISA, "0.1-0.3", "tensor_copy_dynamic_src tensor_copy_dynamic_dst",
           "use nisa.tensor_copy on tensor.ap(pattern, scalar_offset=...)", "rn 2.30"),
    *_rows(_ISA, "0.2-", "core_barrier dma_compute exponential nc_matmul_mx nc_n_gather nonzero_with_count quantize_mx "
           "rand2 rand_get_state rand_set_state register_alloc register_load register_move register_store rng sendrecv "
           "set_rng_seed tensor_scalar_cumulative"),
    *_rows(_ISA, "0.3-", "VirtualRegister NkiValidationError"),
    Name("nki.isa.activate2", "0.4-", "use nisa.tensor_scalar and nisa.activation", "rn 2.30"),
    Name("nki.isa.get_nc_sub_version", "0.5-"),
    Name("nki.isa.topk", "0.6", "use nisa.max8 and nisa.nc_match_replace8", "rn 2.32"),
    Name("nki.isa.NkiInstruction", "0.6"),
    Name("nki.isa.NKIObject", "0.3", "use nl.NKIObject"),
    # -- nki.language
    *_rows(_LANGUAGE, "0.1", "arange mgrid", _SLICE, "guide"),
    Name("nki.language.par_dim", "0.1-0.2", "the first dimension is the partitions; blocks are lists of tiles",
         "guide, KLR"),
    *_rows(_LANGUAGE, "0.1", "nc spmd_dim", "launch the kernel as kernel[lnc]"),
    Name("nki.language.all_reduce", "0.1", "use nki.collectives.all_reduce, or nisa.sendrecv between two cores"),
    Name("nki.language.loop_reduce", "0.1", "accumulate with nisa.tensor_tensor"),
    Name("nki.language.atomic_rmw", "0.1", "use nisa.dma_compute with a vector_offset"),
    Name("nki.language.static_cast", "0.1", "use nisa.tensor_copy into a tile of the dtype"),
    *_rows(_LANGUAGE, "0.1", "finfo fp32 bfp16", "use the number, such as -3.4028235e38"),
    *_rows(_LANGUAGE, "0.1", "gemm_grid gemm_stationary_grid"),
    *_rows(_LANGUAGE, "0.1 0.3-", "load store load_transpose2d", "in NKI 0.2 use nisa.dma_copy", "guide, rn 2.29"),
    *_rows(_LANGUAGE, "0.1 0.3-", "all broadcast_to ceil dropout empty_like expand_dims floor full gather_flattened "
           "matmul mean negative ones prod rand random_seed rms_norm softmax transpose trunc var where zeros_like",
           _NO_FUNCTION, "rn 2.27, rn 2.29"),
    *_rows(_LANGUAGE, "0.2-", "NKIObject float4_e2m1fn_x4 float8_e4m3fn_x4 float8_e5m2_x4 float8_e4m3fn "
           "gelu_apprx_sigmoid_dx"),
    *_rows(_LANGUAGE, "0.2-", "no_reorder", "", "rn 2.28"),
    *_rows(_LANGUAGE, "0.2-", "dynamic_range", "", "guide"),
    *_rows(_LANGUAGE, "0.3-", "MemoryRegion NkiTensor is_hbm is_on_chip is_psum is_sbuf"),
    *_rows(_LANGUAGE, "0.4-", "abs_max abs_min", "combine nl.abs with nl.maximum or nl.minimum", "rn 2.30"),
    *_rows(_LANGUAGE, "0.4-", "bypass prelu", "", "rn 2.30"),
    *_rows(_LANGUAGE, "0.5-", "average"),
    Name("nki.language.float8_e8m0fnu", "0.5-", "use nl.uint8 for MX scales", "rn 2.31"),
    *_rows(_LANGUAGE, "0.6", "fori_loop", "use nl.dynamic_range", "rn 2.32"),
    *_rows(_LANGUAGE, "0.6", "while_loop", "use while with a register", "rn 2.32"),
    *_rows(_LANGUAGE, "0.6", "DType _TileSize"),
    # -- nki.language.tile_size
    *_rows("nki.language.tile_size", "0.4-", "sbuf_size_bytes sbuf_fmax sbuf_fmax_bytes psum_bank_fmax "
           "psum_bank_fmax_bytes", "use tile_size.total_available_sbuf_size, or psum_fmax", "rn 2.30"),
    Name("nki.language.tile_size.psum_num_banks", "0.5-", "a partition of PSUM has 8 banks", "rn 2.31"),
    # -- methods of tensors
    *_rows("nki.language.NkiTensor", "0.5-", "broadcast expand_dim flatten_dims indirect is_contiguous is_indirect "
           "permute rearrange reshape_dim select slice squeeze_dim vector_select",
           "use slices, .reshape() or .ap()", "rn 2.31"),
    # -- nki.collectives
    *_rows(_COLLECTIVES, "0.2-", "all_gather all_reduce all_to_all collective_permute collective_permute_implicit "
           "collective_permute_implicit_current_processing_rank_id collective_permute_implicit_reduce rank_id "
           "reduce_scatter ReplicaGroup", "", "rn 2.28"),
    Name("nki.collectives.NKIObject", "0.2-0.3", "use nl.NKIObject"),
    Name("nki.collectives.all_to_all_v", "0.3-", "use all_to_all", "rn 2.29"),
    Name("nki.collectives.all_gather_v", "0.6", "use all_gather of the largest size", "rn 2.32"),
)  # fmt: skip

"""``nki.isa``: the instructions, enums and registers of NKI 0.6."""

from __future__ import annotations

from typing import Any

from trnsim import releases
from trnsim.errors import HardwareError as NkiValidationError
from trnsim.isa import constants
from trnsim.isa.activate2 import activate2
from trnsim.isa.constants import (
    dge_mode,
    dma_engine,
    engine,
    matmul_perf_mode,
    nc_version,
    oob_mode,
    reduce_cmd,
)
from trnsim.isa.control import (
    core_barrier,
    register_alloc,
    register_load,
    register_move,
    register_store,
    sendrecv,
)
from trnsim.isa.dma import dma_compute, dma_copy, dma_transpose
from trnsim.isa.gpsimd import affine_select, iota, local_gather, nc_n_gather, tensor_partition_reduce
from trnsim.isa.instruction import NkiInstruction
from trnsim.isa.randomness import dropout, rand2, rand_get_state, rand_set_state, rng, set_rng_seed
from trnsim.isa.reductions import (
    range_select,
    tensor_reduce,
    tensor_scalar_reduce,
    tensor_tensor_scan,
)
from trnsim.isa.scalar import activation, activation_reduce
from trnsim.isa.searches import nonzero_with_count, sequence_bounds, topk
from trnsim.isa.statistics import bn_aggr, bn_stats, exponential, select_reduce, tensor_scalar_cumulative
from trnsim.isa.tensor import nc_matmul, nc_matmul_mx, nc_transpose
from trnsim.isa.vector import (
    memset,
    reciprocal,
    scalar_tensor_tensor,
    tensor_copy,
    tensor_copy_predicated,
    tensor_scalar,
    tensor_tensor,
)
from trnsim.isa.vector_search import (
    max8,
    nc_find_index8,
    nc_match_replace8,
    nc_stream_shuffle,
    quantize_mx,
)
from trnsim.machine import core as _machine
from trnsim.machine.registers import VirtualRegister
from trnsim.nki.versions.calls import guard as _guard

tensor_engine = engine.tensor
vector_engine = engine.vector
scalar_engine = engine.scalar
gpsimd_engine = engine.gpsimd
unknown_engine = engine.unknown


def get_nc_version() -> nc_version:
    """The NeuronCore generation the kernel runs on; outside a kernel that of the chip that would be chosen."""
    return nc_version(int(_generation()[1:]))


def get_nc_sub_version() -> int:
    """The silicon revision within the generation: 0."""
    return 0


def _generation() -> str:
    if _machine.running():
        return _machine.current().generation
    from trnsim.session import SimulationOptions, choose_chip, current_session

    session = current_session()
    core = choose_chip(session.options if session else SimulationOptions()).core
    assert core is not None
    return core.version


__all__ = [
    "NkiInstruction", "NkiValidationError", "VirtualRegister", "activate2", "activation", "activation_reduce",
    "affine_select", "bn_aggr", "bn_stats", "constants", "core_barrier", "dge_mode", "dma_compute", "dma_copy",
    "dma_engine", "dma_transpose", "dropout", "engine", "exponential", "get_nc_sub_version", "get_nc_version",
    "gpsimd_engine", "iota", "local_gather", "matmul_perf_mode", "max8", "memset", "nc_find_index8",
    "nc_match_replace8", "nc_matmul", "nc_matmul_mx", "nc_n_gather", "nc_stream_shuffle", "nc_transpose",
    "nc_version", "nonzero_with_count", "oob_mode", "quantize_mx", "rand2", "rand_get_state", "rand_set_state",
    "range_select", "reciprocal", "reduce_cmd", "register_alloc", "register_load", "register_move",
    "register_store", "rng", "scalar_engine", "scalar_tensor_tensor", "select_reduce", "sendrecv",
    "sequence_bounds", "set_rng_seed", "tensor_copy", "tensor_copy_predicated", "tensor_engine",
    "tensor_partition_reduce", "tensor_reduce", "tensor_scalar", "tensor_scalar_cumulative", "tensor_scalar_reduce",
    "tensor_tensor", "tensor_tensor_scan", "topk", "unknown_engine", "vector_engine",
]  # fmt: skip

_guard(globals(), "nki.isa", __all__)


def __getattr__(name: str) -> Any:
    raise releases.no_attribute("nki.isa", name)

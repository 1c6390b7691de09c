"""``nki.isa``: the instructions, enums and registers of NKI 0.6."""

from __future__ import annotations

from trnsim.errors import HardwareError as NkiValidationError
from trnsim.isa import constants, control, dma, gpsimd, scalar, tensor, vector
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
from trnsim.isa.instruction import NkiInstruction
from trnsim.isa.tensor import nc_matmul, nc_matmul_mx, nc_transpose
from trnsim.machine import core as _machine
from trnsim.machine.registers import VirtualRegister

tensor_engine = engine.tensor
vector_engine = engine.vector
scalar_engine = engine.scalar
gpsimd_engine = engine.gpsimd
unknown_engine = engine.unknown

_DOCUMENTED_ONLY = {
    "activate2", "bn_aggr", "bn_stats", "dropout", "exponential", "local_gather", "nonzero_with_count", "rand2",
    "rand_get_state", "rand_set_state", "rng", "select_reduce", "sequence_bounds", "set_rng_seed",
    "tensor_scalar_cumulative", "topk",
}  # fmt: skip


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


def _collect() -> list[str]:
    names = []
    for module in (vector, scalar, gpsimd):
        for name, value in vars(module).items():
            if (hasattr(value, "instruction") and not name.startswith("_")) or (callable(value) and name in getattr(module, "__all__", ())):
                globals()[name] = value
                names.append(name)
    return names


_COLLECTED = _collect()


def __getattr__(name: str) -> object:
    if name in _DOCUMENTED_ONLY:
        from trnsim.errors import UnsupportedError

        raise UnsupportedError(f"nki.isa.{name} is documented but not supported yet", instruction=name)
    raise AttributeError(f"module 'nki.isa' has no attribute {name!r}")


__all__ = [  # noqa: PLE0604
    "NkiInstruction", "NkiValidationError", "VirtualRegister", "constants", "control", "core_barrier", "dge_mode",
    "dma", "dma_compute", "dma_copy", "dma_engine", "dma_transpose", "engine", "get_nc_sub_version", "get_nc_version",
    "gpsimd_engine", "matmul_perf_mode", "nc_matmul", "nc_matmul_mx", "nc_transpose", "nc_version", "oob_mode",
    "reduce_cmd", "register_alloc", "register_load", "register_move", "register_store", "scalar_engine", "sendrecv",
    "tensor", "tensor_engine", "unknown_engine", "vector_engine", *_COLLECTED,
]  # fmt: skip

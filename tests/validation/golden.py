"""Published measurements of public kernels that run here unmodified."""

from __future__ import annotations

from dataclasses import dataclass

MATMUL = "nki/examples/matrix_multiplication/matrix_multiplication_nki_kernels.py"


@dataclass(frozen=True)
class Measured:
    """A kernel of the SDK's matrix multiplication tutorial at 2048^3 in float32 on one core of trn2.

    The clock is the profiler's ``total_time``, median of three. Source: KernelTune (Team Skywalker), Hack the Chip,
    October 2026.
    """

    kernel: str
    microseconds: float


GOLDEN = (
    Measured("nki_matmul_tiled_", 1258.6),
    Measured("nki_matmul_hoist_load_", 1093.2),
    Measured("nki_matmul_block_free_dimension_", 1019.6),
    Measured("nki_matmul_fully_optimized_", 905.8),
)

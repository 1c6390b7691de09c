"""The enums of ``nki.isa``, with the values of NKI 0.6."""

from __future__ import annotations

from enum import Enum


class engine(Enum):
    """Engines of a NeuronCore."""

    __hash__ = object.__hash__  # members are keys in hot look-ups

    tensor = 1
    vector = 5
    scalar = 2
    gpsimd = 3
    dma = 4
    sync = 6
    unknown = 0


class reduce_cmd(Enum):
    """What an instruction does with its engine's accumulator registers."""

    __hash__ = object.__hash__  # members are keys in hot look-ups

    idle = 0
    reset = 1
    reduce = 2
    reset_reduce = 3
    load_reduce = 4


class dge_mode(Enum):
    """Who generates the DMA descriptors."""

    __hash__ = object.__hash__  # members are keys in hot look-ups

    unknown = 0
    swdge = 1
    hwdge = 2
    none = 3


class oob_mode(Enum):
    """What a run-time index out of bounds does."""

    __hash__ = object.__hash__  # members are keys in hot look-ups

    error = 0
    skip = 1


class matmul_perf_mode(Enum):
    """Performance modes of the matrix multiplication."""

    __hash__ = object.__hash__  # members are keys in hot look-ups

    none = "none"
    double_row = "double_row"


class nc_version(Enum):
    """NeuronCore generations; they compare by order."""

    gen2 = 2
    gen3 = 3
    gen4 = 4

    def __lt__(self, other: nc_version) -> bool:
        return self.value < other.value

    def __le__(self, other: nc_version) -> bool:
        return self.value <= other.value

    def __gt__(self, other: nc_version) -> bool:
        return self.value > other.value

    def __ge__(self, other: nc_version) -> bool:
        return self.value >= other.value


class dma_engine(Enum):
    """How ``sendrecv`` moves its data."""

    __hash__ = object.__hash__  # members are keys in hot look-ups

    dma = 1
    gpsimd_dma = 2

"""Number formats, memory regions and hardware limits of ``nki.language``.

Limits are those of the NKI reference (``nki.language.tile_size``, release 0.6); the sizes of SBUF and PSUM come from
the chip the kernel runs on.
"""

from __future__ import annotations

import inspect
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from trnsim.errors import InternalError
from trnsim.machine import core as machine
from trnsim.machine.core import as_region
from trnsim.machine.regions import MemoryRegion
from trnsim.numerics import as_dtype

if TYPE_CHECKING:
    from trnsim.hardware.model import Core as CoreSpec

DType = str

bool_ = as_dtype("bool")
int8 = as_dtype("int8")
int16 = as_dtype("int16")
int32 = as_dtype("int32")
uint8 = as_dtype("uint8")
uint16 = as_dtype("uint16")
uint32 = as_dtype("uint32")
float16 = as_dtype("float16")
float32 = as_dtype("float32")
bfloat16 = as_dtype("bfloat16")
tfloat32 = as_dtype("tfloat32")
float8_e4m3 = as_dtype("float8_e4m3")
float8_e4m3fn = as_dtype("float8_e4m3fn")
float8_e5m2 = as_dtype("float8_e5m2")
float8_e8m0fnu = as_dtype("float8_e8m0fnu")
float8_e4m3fn_x4 = as_dtype("float8_e4m3fn_x4")
float8_e5m2_x4 = as_dtype("float8_e5m2_x4")
float4_e2m1fn_x4 = as_dtype("float4_e2m1fn_x4")

sbuf = MemoryRegion.sbuf
psum = MemoryRegion.psum
private_hbm = MemoryRegion.private_hbm
shared_hbm = MemoryRegion.shared_hbm
hbm = private_hbm


def is_hbm(buffer: Any) -> bool:
    """Whether ``buffer`` is private or shared HBM. Raises CompilerError if it is no memory region."""
    return as_region(buffer) in (private_hbm, shared_hbm)


def is_on_chip(buffer: Any) -> bool:
    """Whether ``buffer`` is SBUF or PSUM. Raises CompilerError if it is no memory region."""
    return not is_hbm(buffer)


def is_psum(buffer: Any) -> bool:
    """Whether ``buffer`` is PSUM. Raises CompilerError if it is no memory region."""
    return as_region(buffer) is psum


def is_sbuf(buffer: Any) -> bool:
    """Whether ``buffer`` is SBUF. Raises CompilerError if it is no memory region."""
    return as_region(buffer) is sbuf


def _is_plain(value: Any) -> bool:
    """Whether a class attribute is a default value: no method, descriptor, class or mutable container."""
    return not (callable(value) or hasattr(value, "__get__") or type(value).__hash__ is None)


class NKIObject:
    """Base of classes that kernels use: configuration records and the like.

    A subclass without ``__init__`` gets that of a data class in which every field may be left out: fields are the
    annotated names, base classes first, None where they have no default. ``__post_init__`` is called at the end. A
    class without annotations takes any keyword argument.

    Raises:
        TypeError: an argument that is no field, or given twice.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let ``@dataclass`` on a subclass see its fields as the vendor's front end does.

        Attributes that have a value and no annotation are fields too, and annotated ones may be left out (None).
        """
        super().__init_subclass__(**kwargs)
        own = dict(inspect.get_annotations(cls))
        for name in own:
            if not hasattr(cls, name):
                setattr(cls, name, None)
        plain = {
            name: Any
            for name, value in vars(cls).items()
            if not name.startswith("_") and name not in own and _is_plain(value)
        }
        if plain:
            cls.__annotations__ = own | plain

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kind = type(self)
        fields = [n for base in reversed(kind.__mro__) for n in inspect.get_annotations(base)]
        if len(args) > len(fields):
            raise TypeError(f"{kind.__name__} takes at most {len(fields)} positional arguments, {len(args)} were given")
        values = dict(zip(fields, args, strict=False))
        for name, value in kwargs.items():
            if name in values:
                raise TypeError(f"{kind.__name__} got more than one value for {name!r}")
            if fields and name not in fields:
                raise TypeError(f"{kind.__name__} has no field {name!r}")
            values[name] = value
        for name in fields:
            if name not in values:
                values[name] = getattr(kind, name, None)
        for name, value in values.items():
            setattr(self, name, value)
        self.__post_init__()

    def __post_init__(self) -> None:
        """Called when all fields are set."""


@lru_cache(maxsize=1)
def _default_core() -> CoreSpec:
    """The NeuronCore that limits are told for outside a kernel: NeuronCore-v3 of Trainium2."""
    from trnsim.hardware import load_chip

    core = load_chip("trn2").core
    if core is None:
        raise InternalError("the chip file of trn2 has no NeuronCore")
    return core


class _TileSize(NKIObject):
    """Largest sizes of tiles. Sizes of SBUF depend on the chip: the running kernel's, else Trainium2's.

    Attributes:
        pmax: partitions of a tile.
        psum_bank_fmax, psum_fmax: float32 elements a partition of a PSUM bank.
        psum_bank_fmax_bytes: the same in bytes.
        gemm_stationary_fmax, gemm_moving_fmax: free size of the operands of a matrix multiplication.
        bn_stats_fmax: free size of ``nisa.bn_stats``.
        psum_min_align, sbuf_min_align: alignment of addresses within a partition, bytes.
    """

    pmax = 128
    psum_fmax = 512
    psum_bank_fmax = 512
    psum_bank_fmax_bytes = 2048
    gemm_stationary_fmax = 128
    gemm_moving_fmax = 512
    bn_stats_fmax = 512
    psum_min_align = 4
    sbuf_min_align = 1

    @staticmethod
    def _core() -> CoreSpec:
        return machine.current().launch.spec if machine.running() else _default_core()

    @property
    def psum_num_banks(self) -> int:
        """PSUM banks of a partition."""
        return self._core().psum.banks

    @property
    def sbuf_size_bytes(self) -> int:
        """Bytes of SBUF, all partitions together."""
        memory = self._core().sbuf
        return memory.partitions * memory.bytes_per_partition

    @property
    def sbuf_fmax_bytes(self) -> int:
        """Bytes of an SBUF partition that a kernel can use."""
        return self._core().sbuf.usable_bytes_per_partition

    @property
    def sbuf_fmax(self) -> int:
        """Float32 elements of an SBUF partition that a kernel can use."""
        return self.sbuf_fmax_bytes // 4

    @property
    def total_available_sbuf_size(self) -> int:
        """The older name of ``sbuf_fmax_bytes``: bytes of one partition, in spite of it."""
        return self.sbuf_fmax_bytes


tile_size = _TileSize()


def sizeinbytes(dtype: Any) -> int:
    """Bytes of an element. Kernels import it from this module, undocumented."""
    return as_dtype(dtype).itemsize

"""The operand text of a profiled instruction: tensors, semaphores, attributes.

The syntax is the vendor's profiler's, as seen in public profiles of trn2: ``src=fp32@0x2000000[1,1,1,1][512,1,1,1]`` is
a tensor (dtype, address, strides and counts in elements), ``S[5] (Tensor)>=4`` a wait, ``S[4] (Scalar)++@complete`` an
update.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from trnsim.errors import TrnsimError, UnsupportedError
from trnsim.machine.form import HBM, PSUM, SBUF
from trnsim.numerics import DType, as_dtype

PSUM_ADDRESS = 0x2000000
"""Addresses that instructions of the compute engines give to PSUM start here; SBUF's start at 0."""
PSUM_BANK_BYTES = 2048

_TENSOR = re.compile(r"(src|src0|src1|dst)=(?:(\w+)@)?(0x[0-9a-f]+)\[([-\d,]+)\]\[([\d,]+)\]")
_WAIT = re.compile(r"(?<![$\w])S\[(\d+)\](?: \([^)]*\))?(>=|==|<=|>|<)(\d+)")
_UPDATE = re.compile(r"(?<![$\w])S\[(\d+)\](?: \([^)]*\))?(\+\+|--|\+=\d+|-=\d+|=\d+)@(\w+)")
_ATTRIBUTE = re.compile(r"(?:^|\s)(\w+)=([^\s]+)")
_ARRAY = re.compile(r"(?:^|\s)(\d+)\*(\d+)(?:\s|$)")
# Short names of the profiler; others are as trnsim's own.
_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def dtype(name: str) -> DType:
    """The profiler's name of a dtype.

    Raises:
        UnsupportedError: the name is not known.
    """
    try:
        return as_dtype(_DTYPES.get(name, name))
    except (TrnsimError, TypeError) as error:
        raise UnsupportedError(f"dtype {name!r} of a profile is not known", value=name) from error


@dataclass(frozen=True)
class Tensor:
    """One tensor operand: strides and counts in elements, innermost first, without the partitions."""

    name: str
    dtype: str
    address: int
    strides: tuple[int, ...]
    counts: tuple[int, ...]

    @property
    def memory(self) -> str:
        return PSUM if self.address >= PSUM_ADDRESS else SBUF

    @property
    def elements(self) -> int:
        """Elements a partition."""
        total = 1
        for count in self.counts:
            total *= count
        return total

    def bank(self) -> int:
        """The PSUM bank of its first byte."""
        return (self.address - PSUM_ADDRESS) // PSUM_BANK_BYTES


@dataclass(frozen=True)
class Wait:
    """``semaphore >= value`` before the instruction starts."""

    semaphore: int
    value: int


@dataclass(frozen=True)
class Update:
    """What the semaphore gains when the instruction is done."""

    semaphore: int
    amount: int


@dataclass(frozen=True)
class Operands:
    """What the text of one instruction says."""

    tensors: tuple[Tensor, ...]
    waits: tuple[Wait, ...]
    updates: tuple[Update, ...]
    attributes: dict[str, str]
    words: tuple[str, ...]
    array: tuple[int, int]
    """Rows and columns of the systolic array that a TensorE instruction uses; (0, 0) for others."""

    def tensor(self, name: str) -> Tensor | None:
        """The operand called ``name``; None if it is absent."""
        return next((t for t in self.tensors if t.name == name), None)

    @property
    def channels(self) -> int:
        return int(self.attributes.get("channels", "128"))

    @property
    def shape(self) -> str:
        """What tells apart instructions of one opcode: dtypes, memories, elements, and what is computed."""
        parts = [f"{t.name} {t.dtype or '-'}:{t.memory}:{t.elements}" for t in self.tensors]
        chosen = [self.attributes[k] for k in ("op", "ops", "fp32_mode", "transpose_mode") if k in self.attributes]
        if "src_elem_size" in self.attributes:
            parts.append(f"elements of {self.attributes['src_elem_size']} B")
        return " ".join(parts + chosen + [w for w in self.words if w.isupper()])


@lru_cache(maxsize=65536)
def parse(text: str) -> Operands:
    """Parse the operand text of one instruction.

    Raises:
        UnsupportedError: a semaphore is compared or changed in a way other than ``>=`` and adding.
    """
    tensors = tuple(
        Tensor(name, kind or "", int(address, 16), _numbers(strides), _numbers(counts))
        for name, kind, address, strides, counts in _TENSOR.findall(text)
    )
    waits, updates = [], []
    for semaphore, compare, value in _WAIT.findall(text):
        if compare != ">=":
            raise UnsupportedError(
                f"a wait for semaphore {semaphore} {compare} {value}", value=text.strip(), limit=">="
            )
        waits.append(Wait(int(semaphore), int(value)))
    for semaphore, change, when in _UPDATE.findall(text):
        if not change.startswith("+") or when != "complete":
            raise UnsupportedError(
                f"semaphore {semaphore} {change}@{when}", value=text.strip(), limit="additions when complete"
            )
        updates.append(Update(int(semaphore), 1 if change == "++" else int(change[2:])))
    attributes = dict(_ATTRIBUTE.findall(text))
    if "semaphore" in attributes and "sem_increment" in attributes:
        updates.append(Update(int(attributes["semaphore"]), int(attributes["sem_increment"])))
    array = _ARRAY.search(text)
    words = tuple(w for w in text.split() if w.isalpha())
    size = (int(array[1]), int(array[2])) if array else (0, 0)
    return Operands(tensors, tuple(waits), tuple(updates), attributes, words, size)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(",") if n)


DMA_SBUF = 0x802000000000
"""Addresses of SBUF and PSUM as DMA descriptors of trn2 give them start here; those of HBM are lower or tables."""


@dataclass(frozen=True)
class DmaSide:
    """One side of a DMA: where it is, the elements that are contiguous there, strides (bytes) and counts."""

    memory: str
    element_bytes: int
    strides: tuple[int, ...]
    counts: tuple[int, ...]


_PATTERN = re.compile(r"(src|dst)_pattern=\[([-\d,]+)\]\[([\d,]+)\]")


def dma_sides(operands: str) -> tuple[DmaSide, DmaSide] | None:
    """Source and destination of a ``DMA_DIRECT2D``; None if the text does not say."""
    found = parse(operands).attributes
    patterns = {name: (_numbers(strides), _numbers(counts)) for name, strides, counts in _PATTERN.findall(operands)}
    sides = []
    for name in ("src", "dst"):
        size, pattern = found.get(f"{name}_elem_size"), patterns.get(name)
        if size is None or pattern is None:
            return None
        address = found.get(f"{name}_addr_imm")
        on_chip = address is not None and int(address, 16) >= DMA_SBUF
        sides.append(DmaSide(SBUF if on_chip else HBM, int(size), *pattern))
    return sides[0], sides[1]

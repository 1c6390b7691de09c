"""``neuronxcc.nki.compiler`` of NKI 0.1: allocators that say where the tiles of a tensor lie, and decorators.

``buffer=ncc.sbuf.mod_alloc(...)`` in ``nl.ndarray`` places block ``idx`` of the tensor at an address computed from
``idx`` modulo the numbers of tiles. Addresses are bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from trnsim.machine import core as machine
from trnsim.machine.form import PSUM, SBUF

_BANK_BYTES = 2048
__path__: list[str] = []  # names below it are the vendor's own; see versions/stubs.py


class Allocation:
    """Where the tiles of a tensor lie; ``func`` may be None: wherever there is room."""

    def __init__(self, memory: str, func: Callable[..., Any] | None) -> None:
        self.memory, self.func = memory, func

    def address(self, idx: tuple[int, ...], partitions: int, free_bytes: int) -> tuple[int, int] | None:
        """``(start partition, byte)`` of tile ``idx``."""
        if self.func is None:
            return None
        found = tuple(int(x) for x in self.func(idx=idx, pdim_size=partitions, fdim_size=free_bytes))
        if self.memory == SBUF:
            start, byte = found
            return start, byte
        bank, start, byte = found
        return start, bank * _BANK_BYTES + byte


def _linear(idx: Sequence[int], tiles: Sequence[int]) -> int:
    """The number of tile ``idx`` where tiles are reused modulo ``tiles``."""
    sizes = tuple(tiles) or (1,) * len(idx)
    number = 0
    for i, n in zip(idx, sizes, strict=False):  # the vendor's own modulo_allocate_func ignores what is too much
        number = number * n + i % n
    return number


class _Sbuf:
    """``ncc.sbuf``."""

    value = "sbuf"

    def alloc(self, func: Callable[..., Any]) -> Allocation:
        """Tile ``idx`` at ``func(idx, pdim_size, fdim_size)``: start partition and byte."""
        return Allocation(SBUF, func)

    def mod_alloc(
        self, *, base_addr: int, base_partition: int = 0, num_par_tiles: Any = (), num_free_tiles: Any = ()
    ) -> Allocation:
        """Tiles one after another from ``base_addr`` on, modulo the numbers of tiles."""

        def func(idx: tuple[int, ...], pdim_size: int, fdim_size: int) -> tuple[int, int]:
            return (
                base_partition + _linear(idx, num_par_tiles) * pdim_size,
                base_addr + _linear(idx, num_free_tiles) * fdim_size,
            )

        return Allocation(SBUF, func)

    def auto_alloc(self) -> Allocation:
        """Wherever there is room."""
        return Allocation(SBUF, None)


class _Psum:
    """``ncc.psum``."""

    value = "psum"

    def alloc(self, func: Callable[..., Any]) -> Allocation:
        """Tile ``idx`` at ``func(idx, pdim_size, fdim_size)``: bank, start partition and byte in the bank."""
        return Allocation(PSUM, func)

    def mod_alloc(
        self,
        *,
        base_bank: int,
        base_addr: int = 0,
        base_partition: int = 0,
        num_bank_tiles: Any = (),
        num_par_tiles: Any = (),
        num_free_tiles: Any = (),
    ) -> Allocation:
        """Tiles one after another from bank ``base_bank`` on, modulo the numbers of tiles."""

        def func(idx: tuple[int, ...], pdim_size: int, fdim_size: int) -> tuple[int, int, int]:
            return (
                base_bank + _linear(idx, num_bank_tiles),
                base_partition + _linear(idx, num_par_tiles) * pdim_size,
                base_addr + _linear(idx, num_free_tiles) * fdim_size,
            )

        return Allocation(PSUM, func)

    def auto_alloc(self) -> Allocation:
        """Wherever there is room."""
        return Allocation(PSUM, None)


sbuf = _Sbuf()
psum = _Psum()


def _decorator(func: Any = None, **_: Any) -> Any:
    """Choices of the vendor's compiler that change nothing here."""
    return func if func is not None else lambda f: f


enable_stack_allocator = force_auto_alloc = _decorator


def skip_middle_end_transformations(func: Any = None, **_: Any) -> Any:
    """The compiler schedules and places the kernel's instructions, and joins or drops none but repeated loads."""
    if func is None:
        return skip_middle_end_transformations
    getattr(func, "func", func).skips_middle_end = True  # a kernel's function, or the function itself
    return func


@contextmanager
def no_reorder() -> Iterator[None]:
    """Instructions inside keep their order."""
    with machine.current().no_reorder():
        yield


@contextmanager
def allocation_scope() -> Iterator[None]:
    """A scope of the stack allocator."""
    yield


@contextmanager
def multi_buffer(factor: int = 2) -> Iterator[None]:
    """Several buffers for the tensors of a loop."""
    del factor
    yield

"""Block dimensions of NKI 0.1: ``nl.ndarray((B, nl.par_dim(128), 512))`` is B tiles, each a storage of its own."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from trnsim.errors import CompilerError, UnsupportedError
from trnsim.machine.tensor import DynamicSlice, NkiTensor
from trnsim.nki.versions.beta1.index import Index
from trnsim.nki.versions.beta1.tensor import Tensor


class BlockTensor(Tensor):
    """A tensor on chip with block dimensions before its partitions: each block is a tile of its own."""

    __slots__ = ("blocks", "prefix", "table")

    def __init__(
        self, table: dict[tuple[int, ...], NkiTensor], blocks: tuple[int, ...], prefix: tuple[int, ...]
    ) -> None:
        tile = next(iter(table.values()))
        self.table, self.blocks, self.prefix = table, blocks, prefix
        super().__init__(None, (*blocks[len(prefix) :], *tile.shape), tile.dtype)

    @property
    def tile(self) -> NkiTensor:
        rest = self.blocks[len(self.prefix) :]
        if math.prod(rest) != 1:
            raise CompilerError("an instruction takes one block: index the block dimensions", value=repr(self))
        return self.table[(*self.prefix, *(0,) * len(rest))]

    @property
    def memory(self) -> str:
        return next(iter(self.table.values())).storage.memory

    @property
    def buffer(self) -> Any:
        return next(iter(self.table.values())).buffer

    def __getitem__(self, key: Any) -> Tensor:
        keys = tuple(key) if isinstance(key, tuple) else (key,)
        rest = self.blocks[len(self.prefix) :]
        rank = len(self.shape)
        if any(k is Ellipsis for k in keys):
            at = next(i for i, k in enumerate(keys) if k is Ellipsis)
            keys = keys[:at] + (slice(None),) * (rank - len(keys) + 1) + keys[at + 1 :]
        prefix = list(self.prefix)
        for position, (item, size) in enumerate(zip(keys, rest, strict=False)):
            number = _block_number(item, size)
            if number is None:
                if all(isinstance(k, slice) and k == slice(None) for k in keys[position:]):
                    return BlockTensor(self.table, self.blocks, tuple(prefix))
                raise UnsupportedError("a block dimension takes one index, not several", value=str(item))
            prefix.append(number)
        if len(prefix) < len(self.blocks):
            return BlockTensor(self.table, self.blocks, tuple(prefix))
        tile = self.table[tuple(prefix)]
        whole = Tensor(tile, tile.shape, tile.dtype)
        left = keys[len(rest) :]
        return whole[left] if left else whole

    def blocks_of_it(self, value: Any = None) -> list[tuple[Tensor, Any]]:
        """Its blocks, each with its part of ``value``."""
        found: list[tuple[Tensor, Any]] = []
        for position in np.ndindex(*self.blocks[len(self.prefix) :]):
            tile = self.table[(*self.prefix, *position)]
            part = value[position] if isinstance(value, BlockTensor) else value
            found.append((Tensor(tile, tile.shape, tile.dtype), part))
        return found


def _block_number(item: Any, size: int) -> int | None:
    if isinstance(item, Index):
        low, high = item.limits()
        return low if low == high else None
    if isinstance(item, slice):
        start, stop, _ = item.indices(size)
        return start if stop - start == 1 else None
    if isinstance(item, DynamicSlice):
        return int(item.start) if int(item.size) == 1 else None
    number = int(item.__index__())
    if not -size <= number < size:
        raise IndexError(f"index {number} is out of bounds for a block dimension of size {size}")
    return number % size

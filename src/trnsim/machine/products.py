"""Which bytes of a PSUM tensor a matmul wrote last: there ``nc_matmul(accumulate=None)`` adds, elsewhere it overwrites.

NKI's reference gives the rule by location ("first write overwrites, subsequent writes accumulate"), so it is kept by
byte, for each tensor since it was made; a write by any other instruction makes its bytes, and only those, new again.
Regions are kept as the forms that were written: a byte mask is made only where another instruction's write meets them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trnsim.errors import UnsupportedError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trnsim.machine.form import Form
    from trnsim.machine.storage import Storage

Bands = list[tuple[int, int, "NDArray[np.int64]"]]


class Products(dict[tuple[int, int, int], "Form"]):
    """Regions by ``(start partition, byte, form)``, and in ``rest`` the bytes left of regions that were cut."""

    rest: NDArray[np.bool_] | None = None


def forget(storage: Storage, form: Form, start: int, offset: int) -> None:
    """Another instruction than a matmul writes ``form`` at ``(start, offset)``."""
    regions = storage.pe_regions
    assert regions is not None
    key = (start, offset, form.id)
    alone = len(regions) == 1 and regions.rest is None and key in regions
    if alone or form is storage.whole or form.indirect or any(f.indirect for f in regions.values()):
        storage.pe_regions = None
        return
    met = [k for k, other in regions.items() if _meet(other, k[0], k[1], form, start, offset)]
    if not met and regions.rest is None:
        return
    mask = _mask(storage) if regions.rest is None else regions.rest
    for k in met:
        _paint(mask, regions.pop(k), k[0], k[1], value=True)
    _paint(mask, form, start, offset, value=False)
    regions.rest = mask if mask.any() else None
    if not regions and regions.rest is None:
        storage.pe_regions = None


def unwritten(storage: Storage, form: Form, start: int, offset: int) -> Bands | None:
    """The bytes of a region that no matmul wrote last, as ``(row, row end, byte intervals)``; None if that is all."""
    regions = storage.pe_regions
    assert regions is not None
    if form.indirect or any(f.indirect for f in regions.values()):
        raise UnsupportedError(
            f"matmuls write {storage.name!r} through different indices: say accumulate=True or accumulate=False",
            instruction="nc_matmul",
            operand="accumulate",
        )
    met = [k for k, other in regions.items() if _meet(other, k[0], k[1], form, start, offset)]
    if not met and regions.rest is None:
        return None
    wanted = _mask(storage)
    _paint(wanted, form, start, offset, value=True)
    missing = wanted.copy() if regions.rest is None else wanted & ~regions.rest
    for k in met:
        _paint(missing, regions[k], k[0], k[1], value=False)
    if np.array_equal(missing, wanted):
        return None
    return _bands(missing)


def _mask(storage: Storage) -> NDArray[np.bool_]:
    return np.zeros((storage.rows, storage.row_bytes), bool)


def _meet(a: Form, row_a: int, byte_a: int, b: Form, row_b: int, byte_b: int) -> bool:
    """Whether the bounding boxes of two regions overlap."""
    rows = row_a < row_b + b.partition_span and row_b < row_a + a.partition_span
    return rows and byte_a < byte_b + b.span and byte_b < byte_a + a.span


def _paint(mask: NDArray[np.bool_], form: Form, start: int, offset: int, *, value: bool) -> None:
    rows = slice(start, start + form.partition_span, form.strides[0] if form.partitions > 1 else 1)
    places = (form.interval_offsets + offset)[:, None] + np.arange(form.levels[-1][1])
    mask[rows, places.ravel()] = value


def _bands(mask: NDArray[np.bool_]) -> Bands:
    """The bytes of a mask as intervals of each row."""
    result: Bands = []
    for row in np.flatnonzero(mask.any(axis=1)).tolist():
        edges = np.flatnonzero(np.diff(mask[row], prepend=False, append=False))
        result.append((row, row + 1, edges.reshape(-1, 2).astype(np.int64)))
    return result

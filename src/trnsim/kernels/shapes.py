"""What contracts have in common: arguments without data, and the axes of kernels that take rows or elements in turn."""

from __future__ import annotations

from typing import Any

from trnsim.kernels.contract import Axis, Limit, Problem, Size, most, up
from trnsim.kernels.tiles import FLAT, GROUP_BYTES, PARTITIONS, ROW_BYTES
from trnsim.numerics import as_dtype
from trnsim.session import ShapeOnly


def array(*shape: int, dtype: str) -> ShapeOnly:
    """An argument without data."""
    return ShapeOnly(tuple(shape), as_dtype(dtype))


def item(problem: Problem) -> int:
    """Bytes of an element."""
    return as_dtype(problem.dtype).itemsize


def rows_axis(problem: Problem, width: int, name: str = "rows") -> tuple[Axis, ...]:
    """Rows in groups (``tiles.row_groups``), which cores share."""
    count = max(1, GROUP_BYTES // (width * item(problem)))
    tile = PARTITIONS * problem.cores
    return (Axis(name, tile, tile * count * max(1, 4 // count), first=2, far=32),)


def elements_axis(problem: Problem, high: int | None = None, low: int = 4096) -> tuple[Axis, ...]:
    """Elements in tiles (``elementwise.flat_tiles``), which cores share."""
    tile = PARTITIONS * FLAT * problem.cores
    return (Axis("elements", tile // 8, 4 * tile, low=low, high=high, grain=4096, far=32),)


def elements_of(problem: Problem) -> dict[str, Size]:
    """Rows of a width as elements."""
    return {"elements": problem.sizes["rows"] * problem.sizes["width"]}


def one_row(problem: Problem, coordinates: Any) -> dict[str, Size]:
    """Elements as one row: kernels that do not look at rows take as long."""
    return {**problem.sizes, "rows": 1, "width": coordinates["elements"]}


def row_limits(problem: Problem) -> dict[str, Limit]:
    """Rows that SBUF holds."""
    return {"width": Limit(high=ROW_BYTES // item(problem))}


def moved(problem: Problem, *elements: Size) -> Size:
    """Bytes of elements of the problem's format."""
    return sum(elements) * item(problem)


__all__ = [
    "array", "elements_axis", "elements_of", "item", "most", "moved", "one_row", "row_limits", "rows_axis", "up",
]  # fmt: skip

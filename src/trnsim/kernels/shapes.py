"""What contracts have in common: arguments without data, and the axes of kernels that take rows or elements in turn."""

from __future__ import annotations

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
    return (Axis(name, tile, tile * count * max(1, 4 // count), first=2, far=128),)


def elements_axis(problem: Problem) -> tuple[Axis, ...]:
    """Elements in tiles (``elementwise.flat_tiles``), which cores share."""
    tile = PARTITIONS * FLAT * problem.cores
    return (Axis("elements", tile // 8, 4 * tile, low=4096, grain=4096, far=128),)


def flat_axis(problem: Problem, high: int | None = None, low: int = 1) -> tuple[Axis, ...]:
    """Rows of a width whose elements are taken in tiles: where rows end matters to DMAs of NeuronCore-v2."""
    width = problem.sizes["width"]
    tile = max(1, up(4 * PARTITIONS * FLAT * problem.cores, width) // 32)
    return (Axis("rows", tile, 32 * tile, low=low, high=high, far=128),)


def row_limits(problem: Problem) -> dict[str, Limit]:
    """Rows that SBUF holds."""
    return {"width": Limit(high=ROW_BYTES // item(problem))}


def moved(problem: Problem, *elements: Size) -> Size:
    """Bytes of elements of the problem's format."""
    return sum(elements) * item(problem)


__all__ = [
    "array", "elements_axis", "flat_axis", "item", "most", "moved", "row_limits", "rows_axis", "up",
]  # fmt: skip

"""Time is an integer number of picoseconds; this is the one place where cycles become time."""

from __future__ import annotations

from typing import NewType

Picoseconds = NewType("Picoseconds", int)


def cycles_to_ps(cycles: float, clock_hz: float) -> Picoseconds:
    """Time of ``cycles`` at ``clock_hz``, rounded to the nearest picosecond."""
    return Picoseconds(round(cycles * 1e12 / clock_hz))


def ns_to_ps(nanoseconds: float) -> Picoseconds:
    """``nanoseconds`` as picoseconds."""
    return Picoseconds(round(nanoseconds * 1e3))


def format_time(ps: float) -> str:
    """``1_258_600_000`` as ``1,258.6 us``."""
    if abs(ps) < 1e6:
        return f"{ps / 1e3:,.1f} ns"
    if abs(ps) < 1e11:
        return f"{ps / 1e6:,.1f} us"
    return f"{ps / 1e9:,.2f} ms"


def format_bytes(count: float) -> str:
    """``2097152`` as ``2.0 MiB``."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024 or unit == "TiB":
            return f"{value:,.0f} B" if unit == "B" else f"{value:,.1f} {unit}"
        value /= 1024
    raise AssertionError

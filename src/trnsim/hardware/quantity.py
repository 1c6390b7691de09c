"""Quantities with units as they stand in the hardware catalogue: ``"0.96 GHz"``, ``"224 KiB"``, ``"3.5 TB/s"``.

Prefixes are the SI's (K, M, G, T: powers of 1000) and the IEC's (Ki, Mi, Gi, Ti: powers of 1024). ``B`` is a byte and
``b`` a bit; a rate in bits is converted to bytes. Everything is stored in base units: Hz, bytes, bytes a second,
operations a second, watts, picoseconds.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final

_SI: Final = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_IEC: Final = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
_NUMBER: Final = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(\S*)\s*")


def _scaled(unit: str, prefixes: dict[str, float], scale: float = 1.0) -> dict[str, float]:
    return {prefix + unit: factor * scale for prefix, factor in prefixes.items()}


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """A physical dimension: its name, its units, and whether values are whole numbers of the base unit."""

    name: str
    base_unit: str
    units: dict[str, float]
    whole: bool = False

    def parse(self, text: str) -> float:
        """Value of ``text`` in base units, an ``int`` if the dimension is whole; ``ValueError`` says what is wrong."""
        match = _NUMBER.fullmatch(text)
        if match is None:
            raise ValueError(f"is not a number with a unit of {self.name}, such as {self.example}")
        number, unit = match.groups()
        factor = self.units.get(unit)
        if factor is None:
            wrong = f"unit {unit!r} is not one" if unit else "has no unit: it needs one"
            raise ValueError(f"{wrong} of {self.name} ({', '.join(sorted(self.units))})")
        value = float(number) * factor
        if not math.isfinite(value):
            raise ValueError("is not finite")
        if not self.whole:
            return value
        if abs(value - round(value)) > 1e-6 * max(1.0, abs(value)):
            raise ValueError(f"is not a whole number of {self.base_unit}")
        return round(value)

    @property
    def example(self) -> str:
        """A unit to show in a message."""
        return f'"1 {next(iter(reversed(self.units)))}"'


FREQUENCY: Final = Dimension(name="frequency", base_unit="Hz", units=_scaled("Hz", _SI), whole=True)
SIZE: Final = Dimension(name="size", base_unit="B", units=_scaled("B", _SI | _IEC), whole=True)
RATE: Final = Dimension(
    name="data rate",
    base_unit="B/s",
    units=_scaled("b/s", _SI, 1 / 8) | {"B/ns": 1e9} | _scaled("B/s", _SI | _IEC),
    whole=True,
)
OPERATIONS: Final = Dimension(
    name="operations a second", base_unit="FLOPS", units=_scaled("OPS", _SI) | _scaled("FLOPS", _SI)
)
POWER: Final = Dimension(name="power", base_unit="W", units=_scaled("W", _SI))
DURATION: Final = Dimension(
    name="time", base_unit="ps", units={"s": 1e12, "ms": 1e9, "ps": 1.0, "ns": 1e3, "us": 1e6}, whole=True
)

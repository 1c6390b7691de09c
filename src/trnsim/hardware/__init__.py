"""What exists: chips, servers and prices, as TOML files in which each fact has a source and a date."""

from .load import chip_names, load_chip, load_system, system_names
from .model import Chip, Core, Fact, Price, System
from .timing_constants import Timing, load_timing

__all__ = [
    "Chip",
    "Core",
    "Fact",
    "Price",
    "System",
    "Timing",
    "chip_names",
    "load_chip",
    "load_system",
    "load_timing",
    "system_names",
]

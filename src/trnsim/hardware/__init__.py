"""What exists: chips, servers and prices, as TOML files in which each fact has a source and a date."""

from .load import chip_names, load_chip, load_system, system_names
from .model import Chip, Core, Fact, Price, System

__all__ = ["Chip", "Core", "Fact", "Price", "System", "chip_names", "load_chip", "load_system", "system_names"]

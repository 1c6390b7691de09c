"""``torch_xla.runtime``: one process with one device; see ``torch_xla.py``."""

from __future__ import annotations


def world_size() -> int:
    """1."""
    return 1


global_device_count = addressable_device_count = local_process_count = world_size


def global_ordinal() -> int:
    """0."""
    return 0


local_ordinal = process_index = global_ordinal


def device_type() -> str:
    """``NEURON``, as on a device."""
    return "NEURON"


def is_spmd() -> bool:
    """False."""
    return False

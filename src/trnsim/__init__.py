"""trnsim: an open simulator of Trainium systems, from one instruction to a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from trnsim.api import profile, simulate, simulate_ranks
    from trnsim.errors import TrnsimError
    from trnsim.hardware import load_chip
    from trnsim.installation import install
    from trnsim.session import Session, SimulationOptions

_HOME = {
    "Session": "trnsim.session",
    "SimulationOptions": "trnsim.session",
    "TrnsimError": "trnsim.errors",
    "install": "trnsim.installation",
    "load_chip": "trnsim.hardware",
    "profile": "trnsim.api",
    "simulate": "trnsim.api",
    "simulate_ranks": "trnsim.api",
}

__all__ = [
    "Session",
    "SimulationOptions",
    "TrnsimError",
    "install",
    "load_chip",
    "profile",
    "simulate",
    "simulate_ranks",
]

pytest_plugins = ("trnsim.pytest_plugin",)  # what ``pytest -p trnsim`` loads


def __getattr__(name: str) -> Any:
    import importlib

    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'trnsim' has no attribute {name!r}")

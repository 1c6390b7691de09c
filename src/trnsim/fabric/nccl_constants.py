"""NCCL's constants as ``nccl.toml`` has them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from trnsim.errors import UnsupportedError
from trnsim.hardware.quantity import DURATION, RATE, SIZE

from .nccl import COSTS, LATENCIES, NetworkConstants, NetworkShape, NvlinkConstants
from .selection import Tuner

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@cache
def _file() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads(Path(__file__).with_name("nccl.toml").read_text(encoding="utf-8"))
    return found


@cache
def tuner_of(technology: str) -> Tuner:
    """NCCL's own numbers for a generation of NVLink.

    Raises:
        UnsupportedError: NCCL has none, or they are not in ``nccl.toml``.
    """
    shared = _file()["tuner"]
    own = shared.get("generations", {}).get(technology)
    if own is None:
        known = ", ".join(shared["generations"])
        raise UnsupportedError(f"NCCL's choice over {technology} is not modelled", value=technology, limit=known)
    return Tuner(
        base_us=dict(shared["base_us"]),
        step_us=dict(shared["step_us"]),
        nvls_us=shared["nvls_us"],
        ring_share=shared["ring_share"],
        **{k: own[k] for k in ("ll_max", "nvls_head_max", "nvls_efficiency")},
    )


@cache
def nvlink(technology: str) -> NvlinkConstants:
    """The fitted constants of a generation of NVLink.

    Raises:
        UnsupportedError: no measurements of it.
    """
    found = _file()["nvlink"].get(technology)
    if found is None:
        raise UnsupportedError(
            f"no measurements of NCCL over {technology}", value=technology, limit=", ".join(_file()["nvlink"])
        )
    values: dict[str, float] = {name: float(DURATION.parse(found[name])) for name in LATENCIES if name in found}
    values |= {name: 1 / found[_efficiency(name)] for name in COSTS if _efficiency(name) in found}
    return NvlinkConstants(
        technology=technology,
        values=values,
        tuner=tuner_of(technology),
        chips={chip: tuple(ranks) for chip, ranks in found["chips"].items()},
        error=found["error"],
        largest_bytes=int(SIZE.parse(found["largest"])),
    )


def _efficiency(cost: str) -> str:
    return cost.replace("_cost", "_efficiency")


@cache
def networks() -> Mapping[str, NetworkConstants]:
    """The constants of adapters, by kind: fitted, and stated ones."""
    return {
        name: NetworkConstants(
            name=name,
            systems=tuple(found.get("systems", ())),
            latency_ps=float(DURATION.parse(found["latency"])),
            efficiency=float(found["efficiency"]),
            error=found.get("error", {}),
            largest_bytes=int(SIZE.parse(found.get("largest", "0 B"))),
            technology=found.get("technology", ""),
            reason=found.get("reason", ""),
        )
        for name, found in _file()["network"]["kinds"].items()
    }


@cache
def network_shape() -> NetworkShape:
    """What the adapters share."""
    found = _file()["network"]
    return NetworkShape(
        fill=found["fill"],
        window=found["window"],
        ll_share=found["ll_share"],
        ll_bytes_per_second=float(RATE.parse(found["ll_rate"])),
    )

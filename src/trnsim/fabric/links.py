"""What a step of a collective costs beside its bytes, and how much of a link's rate they reach, by link technology.

The constants are in ``links.toml``, with their fit or source. A technology that it does not list takes its latency from
the hardware catalogue and its whole rate, and says so (``support``).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from trnsim.errors import InputError
from trnsim.hardware.quantity import DURATION, SIZE

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SUPPORTS = ("calibrated", "interpolated", "extrapolated", "assumed")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One way to use a link: NCCL's LL, LL128 and Simple differ in latency and in the share of the rate they reach."""

    name: str
    step_latency_ps: int
    """Of one step of a schedule: synchronisation and the first byte."""
    efficiency: float = 1.0
    """Payload over the rate of the link: flags, headers and what the engines do not reach. Above 0, at most 1."""
    up_to_bytes: float = float("inf")
    """The largest collective that uses it, in bytes as the size of a collective is counted."""

    def __post_init__(self) -> None:
        if not 0 < self.efficiency <= 1:
            raise InputError("the efficiency of a protocol is above 0 and at most 1", operand=self.name,
                             value=self.efficiency)  # fmt: skip
        if self.step_latency_ps < 0 or self.up_to_bytes <= 0:
            raise InputError("a protocol has a latency of at least 0 and a limit above 0", operand=self.name,
                             value=(self.step_latency_ps, self.up_to_bytes))  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LinkModel:
    """The constants of one link technology."""

    technology: str
    protocols: tuple[Protocol, ...]
    """In ascending order of ``up_to_bytes``; the last has no limit."""
    launch_ps: int = 0
    """Once a collective."""
    hop_ps: int = 0
    """For each link of a route beyond the first."""
    support: str = "assumed"
    reason: str = ""

    def __post_init__(self) -> None:
        limits = [p.up_to_bytes for p in self.protocols]
        if not limits or limits != sorted(limits) or limits[-1] != float("inf"):
            raise InputError("the protocols of a link must be in order of size, the last without a limit",
                             operand=self.technology, value=limits)  # fmt: skip
        if self.support not in SUPPORTS:
            raise InputError("unknown support", operand=self.technology, value=self.support, limit=SUPPORTS)

    def protocol(self, nbytes: float) -> Protocol:
        """The protocol of a collective of ``nbytes``."""
        return next(p for p in self.protocols if nbytes <= p.up_to_bytes)


@cache
def link_models() -> Mapping[str, LinkModel]:
    """The models of ``links.toml``, by technology."""
    path = Path(__file__).with_name("links.toml")
    data = tomllib.loads(path.read_text(encoding="utf-8")).get("technologies", {})
    return {name: _model(name, values) for name, values in data.items()}


def link_model(technology: str, latency_ps: int | None = None) -> LinkModel:
    """The model of a technology; if none is fitted, the catalogue's latency (``latency_ps``) and the whole rate."""
    found = link_models().get(technology)
    if found is not None:
        return found
    known = f"the catalogue's {latency_ps / 1e6:g} us a step" if latency_ps else "no latency, for want of a source,"
    return LinkModel(
        technology=technology,
        protocols=(Protocol(name="", step_latency_ps=latency_ps or 0),),
        reason=f"no measurements of {technology}: {known} and the whole rate of the link",
    )


def _model(name: str, values: dict[str, Any]) -> LinkModel:
    protocols = tuple(
        Protocol(
            name=p["name"],
            step_latency_ps=round(DURATION.parse(p["step_latency"])),
            efficiency=float(p["efficiency"]),
            up_to_bytes=float(SIZE.parse(p["up_to"])) if "up_to" in p else float("inf"),
        )
        for p in values["protocols"]
    )
    return LinkModel(
        technology=name,
        protocols=protocols,
        launch_ps=round(DURATION.parse(values.get("launch", "0 us"))),
        hop_ps=round(DURATION.parse(values.get("hop", "0 us"))),
        support=values["support"],
        reason=values["reason"],
    )

"""Where the ranks of a layout sit, and how long their exchanges take.

Ranks are numbered as Megatron-LM and NeuronX Distributed number them: those of tensor parallelism next to each other,
then context, data and pipeline parallelism. Experts are spread over ranks in the same order, pipelines apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from trnsim.errors import InputError
from trnsim.fabric.group import Group, group
from trnsim.fabric.predict import predict
from trnsim.fabric.topology import Topology, topology
from trnsim.hardware.model import System
from trnsim.workloads.layout import Layout
from trnsim.workloads.operators import Exchange

def _shared(ranks: int, held: int) -> tuple[int, int]:
    """(ranks on each system, systems): as few systems as hold ``ranks``, and as many on each."""
    for systems in range(-(-ranks // held), ranks + 1):
        if ranks % systems == 0:
            return ranks // systems, systems
    return 1, ranks


_COLLECTIVES = {"send_receive": "permute"}


@dataclass(frozen=True)
class ExchangeCost:
    """Time of an exchange, all its repetitions, and how it is known."""

    microseconds: float
    support: str
    reason: str


class ExchangeCosts:
    """Times of exchanges of one layout on as many systems as its ranks fill."""

    def __init__(self, system: System, layout: Layout, lnc: int | None = None) -> None:
        one = topology(system.name, lnc=lnc)
        self._used, systems = _shared(layout.ranks, one.rank_count)
        self.topology: Topology = one if systems == 1 else topology(system.name, systems=systems, lnc=lnc)
        self.layout = layout
        self._groups: dict[str, Group] = {}
        self._known: dict[tuple[Any, ...], tuple[float, str, str]] = {}

    def cost(self, exchange: Exchange) -> ExchangeCost:
        """What an exchange takes when nothing else is on the links but the same exchange of all other groups.

        Raises:
            UnsupportedError: no model of these links or of a group of this form.
        """
        if exchange.ranks < 2 or exchange.bytes <= 0:
            return ExchangeCost(0.0, "calibrated", "")
        key = (exchange.operation, exchange.group, int(exchange.ranks), float(exchange.bytes))
        found = self._known.get(key)
        if found is None:
            name = _COLLECTIVES.get(exchange.operation, exchange.operation)
            told = predict(self._group(exchange.group, int(exchange.ranks)), name, round(exchange.bytes))
            found = self._known[key] = (told.time_ps / 1e6, told.support, told.reason)
        return ExchangeCost(found[0] * exchange.count, found[1], found[2])

    def _group(self, kind: str, ranks: int) -> Group:
        found = self._groups.get(kind)
        if found is None:
            stride = self.stride(kind)
            held = self.topology.rank_count // self.topology.systems
            if self._used == held or self.topology.systems == 1:
                found = group(self.topology, ranks, stride=stride)
            else:
                places = stride * np.arange(ranks)
                found = group(self.topology, (places // self._used * held + places % self._used).tolist())
            self._groups[kind] = found
        return found

    def stride(self, kind: str) -> int:
        """Ranks between neighbours of a group."""
        one = self.layout
        strides = {
            "tp": 1,
            "cp": one.tp,
            "dp": one.tp,
            "expert_tp": 1,
            "ep": one.expert_ranks,
            "expert_dp": one.expert_ranks * one.ep,
            "pp": one.tp * one.cp * one.dp,
            "embedding": one.tp * one.cp * one.dp * (one.pp - 1),
        }
        if kind not in strides:
            raise InputError(f"no group of ranks {kind!r}", operand="group", value=kind, limit=sorted(strides))
        return strides[kind]

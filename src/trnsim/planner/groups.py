"""Where the ranks of a layout sit, and how long their exchanges take.

Ranks are numbered as Megatron-LM and NeuronX Distributed number them: those of tensor parallelism next to each other,
then context, data and pipeline parallelism. Experts are spread over ranks in the same order, pipelines apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from trnsim.errors import InputError
from trnsim.fabric.group import Group, group
from trnsim.fabric.predict import predict
from trnsim.fabric.topology import Topology, topology

if TYPE_CHECKING:
    from trnsim.hardware.model import System
    from trnsim.workloads.layout import Layout

_COLLECTIVES = {"send_receive": "permute"}


@dataclass(frozen=True)
class ExchangeCost:
    """Time of an exchange, all its repetitions, and how it is known."""

    microseconds: float
    support: str
    reason: str


def shared(ranks: int, held: int) -> tuple[int, int]:
    """(ranks on each system, systems): as few systems as hold ``ranks``, and as many on each."""
    for systems in range(-(-ranks // held), ranks + 1):
        if ranks % systems == 0:
            return ranks // systems, systems
    return 1, ranks


def stride(layout: Layout, kind: str) -> int:
    """Ranks between neighbours of a group.

    Raises:
        InputError: no such group.
    """
    strides = {
        "tp": 1,
        "cp": layout.tp,
        "dp": layout.tp,
        "expert_tp": 1,
        "ep": layout.expert_ranks,
        "expert_dp": layout.expert_ranks * layout.ep,
        "pp": layout.tp * layout.cp * layout.dp,
        "embedding": layout.tp * layout.cp * layout.dp * (layout.pp - 1),
    }
    if kind not in strides:
        raise InputError(f"no group of ranks {kind!r}", operand="group", value=kind, limit=sorted(strides))
    return strides[kind]


_Groups = dict[tuple[int, int, int], Group]
_Known = dict[tuple[str, int, int, int, int], ExchangeCost]


@lru_cache(maxsize=64)
def _shared(_system: System, _lnc: int | None) -> tuple[_Groups, dict[int, Topology], _Known]:
    """What was asked for on a system: all plans of a process share it."""
    return {}, {}, {}


class ExchangeCosts:
    """Times of exchanges on as many of a system as they need, each of which holds ``used`` ranks of the layout."""

    def __init__(self, system: System, lnc: int | None = None) -> None:
        self._system, self._lnc = system, lnc
        self._held = topology(system, lnc=lnc).rank_count
        self._groups, self._topologies, self._known = _shared(system, lnc)

    def used(self, ranks: int) -> int:
        """Ranks on each system of a layout of so many."""
        return shared(ranks, self._held)[0]

    def cost(self, operation: str, ranks: int, stride: int, nbytes: float, used: int) -> ExchangeCost:
        """What an exchange takes when nothing else is on the links but the same exchange of all other groups.

        Args:
            stride: ranks between neighbours of the group; ``used``: ranks on each system.

        Raises:
            UnsupportedError: no model of these links or of a group of this form.
        """
        if ranks < 2 or nbytes <= 0:
            return ExchangeCost(0.0, "calibrated", "")
        key = (operation, ranks, stride, round(nbytes), used)
        found = self._known.get(key)
        if found is None:
            name = _COLLECTIVES.get(operation, operation)
            told = predict(self._group(ranks, stride, used), name, round(nbytes))
            found = self._known[key] = ExchangeCost(told.time_ps / 1e6, told.support, told.reason)
        return found

    def _group(self, ranks: int, stride: int, used: int) -> Group:
        key = (ranks, stride, used)
        found = self._groups.get(key)
        if found is None:
            # NCCL is modelled with as many ranks of a group on each system: where the last has fewer, as if it had all.
            each = max(used // stride, 1)
            ranks = ranks if ranks <= each else -(-ranks // each) * each
            places = stride * np.arange(ranks)
            if used != self._held:
                places = places // used * self._held + places % used
            systems = int(places[-1]) // self._held + 1
            where = self._topologies.get(systems)
            if where is None:
                where = self._topologies[systems] = topology(self._system, systems=systems, lnc=self._lnc)
            found = group(where, ranks, stride=stride) if used == self._held else group(where, places.tolist())
            self._groups[key] = found
        return found

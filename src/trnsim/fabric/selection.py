"""Which algorithm and protocol a collective uses: the rules that the libraries document or have in their source.

**NCCL** estimates the time of every pair of algorithm and protocol as a latency plus bytes over a bandwidth and takes
the least; the estimate is a rule of its own and no measurement. Its numbers are those of NCCL's ``src/graph/tuning.cc``
(table ``tuner`` of ``nccl.toml``). Rings reach 0.8 of the catalogue's rate in that estimate (20.0, 20.6 and 40.1
GB/s for each link of 25, 25 and 50). Trees are left out: on one node the ring's estimate is always less at small sizes
and no tree's is less at large ones by more than a few percent; across nodes ``nccl.py`` takes them for granted.

**Neuron** (intra-node collectives of the Neuron runtime's documentation): mesh below 1 MB, recursive halving and
doubling to 56 MB where the chips form a hypercube, above it the KangaRing where all ranks of each chip take part, else
the ring. The sizes are stated for 64 ranks on the 4 by 4 torus of trn2. For chips that a switch joins nothing is
documented: the same is assumed, but mesh where there is no hypercube, for a switch's links are not over-subscribed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from trnsim.errors import InputError

MESH_BELOW = 1_000_000
"""Bytes: the documentation says 1 MB."""
HALVING_TO = 56_000_000

WIRE = MappingProxyType({"LL": 0.5, "LL128": 120 / 128, "Simple": 1.0})
"""Share of payload in what a protocol sends: LL has 4 bytes of flag for 4 of data, LL128 8 of 128."""
RING_COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter")


@dataclass(frozen=True, kw_only=True)
class Tuner:
    """What NCCL's estimate knows of one generation of NVLink. Microseconds and GB/s, as its source has them."""

    base_us: Mapping[str, float]
    """By protocol, of rings."""
    step_us: Mapping[str, float]
    nvls_us: float
    ll_max: float
    """What LL reaches at most on one node."""
    ring_share: float
    """Of the catalogue's rate that it counts for rings."""
    nvls_head_max: float
    """Of one head of the switch's reduction; 0 where the switch cannot reduce."""
    nvls_efficiency: float


@dataclass(frozen=True)
class NcclChoice:
    """``algorithm`` is ``ring``, ``nvls`` or ``pairs``; ``protocol`` ``LL``, ``LL128``, ``Simple``."""

    algorithm: str
    protocol: str
    estimate_us: float
    """NCCL's own estimate, by which it chose; not our prediction."""


def ring_steps(collective: str, ranks: int) -> int:
    """Steps of a ring: twice round for an all_reduce, once for its halves."""
    return (2 if collective == "all_reduce" else 1) * (ranks - 1)


def nccl_choice(tuner: Tuner, collective: str, ranks: int, nbytes: int, rate: float) -> NcclChoice:
    """What NCCL takes on one node.

    Args:
        tuner: of the links' generation.
        collective: ``all_reduce``, ``all_gather``, ``reduce_scatter`` (rings), or another (pairs of sends).
        ranks: at least 2.
        nbytes: as the size of the collective is counted (``schedule.py``).
        rate: of a chip's links, one way, bytes a second, from the catalogue.
    """
    if collective not in RING_COLLECTIVES:
        return NcclChoice("pairs", "Simple", 0.0)
    steps = ring_steps(collective, ranks)
    to_algorithm = ranks / steps
    ring = tuner.ring_share * rate / 1e9
    bandwidth = {"LL": min(tuner.ll_max, ring * WIRE["LL"]), "LL128": ring * 0.92, "Simple": ring}
    found = [
        NcclChoice(
            "ring", p, tuner.base_us[p] + steps * tuner.step_us[p] + nbytes / (1e3 * bandwidth[p] * to_algorithm)
        )
        for p in ("LL", "LL128", "Simple")
    ]
    if collective == "all_reduce" and tuner.nvls_head_max and ranks > 2:
        head = min(tuner.nvls_head_max, ring / (ranks + 1))
        bus = ranks * head * tuner.nvls_efficiency * (ranks - 1) / ranks * 2
        found.append(NcclChoice("nvls", "Simple", tuner.nvls_us + nbytes / (1e3 * bus * to_algorithm)))
    return min(found, key=lambda choice: choice.estimate_us)


def neuron_algorithm(nbytes: int, *, chips: int, whole_chips: bool, grid: bool) -> str:
    """What the Neuron runtime takes within a server or UltraServer.

    Args:
        nbytes: as the size of the collective is counted.
        chips: that take part, with the same number of ranks each.
        whole_chips: every rank of each of them takes part.
        grid: they are joined by a torus (rather than a switch).
    """
    if nbytes < 0:
        raise InputError("a collective has no fewer than 0 bytes", operand="nbytes", value=nbytes, limit=0)
    if nbytes < MESH_BELOW or chips == 1:
        return "mesh"
    if nbytes <= HALVING_TO and chips & (chips - 1) == 0:
        return "rdh"
    if grid:
        return "kangaring" if whole_chips else "ring"
    return "mesh" if nbytes <= HALVING_TO else "ring"

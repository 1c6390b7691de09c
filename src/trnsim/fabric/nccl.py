"""The time of collectives of Nvidia GPUs: NCCL over NVLink on one node and over EFA or InfiniBand between nodes.

On one node a collective takes the launch, the steps of its ring at the latency of the protocol (``selection.py`` says
which), and its bytes at the rate the protocol reaches; a rank's own part costs as much as a part received, for it goes
through the same copy loop. The switch's reduction (NVLS) has one latency for all ranks. all_to_all and permute are
pairs of sends: a channel carries 64 KiB of a pair before NCCL adds another, so the first 64 KiB cost time that later
ones do not. The time is linear in the constants: ``terms`` gives their coefficients, for prediction and fit alike.

Between nodes an all_reduce goes up and down a double tree of nodes, inside each of them over NVLink. Until about one
latency's worth of bytes is on its way, nothing hides the latency: the time is ``L + W + fill * min(W, window * L)``
with ``W`` the bytes over the rate of the node's adapters. Small messages go as LL: less latency, little bandwidth.

Constants, their fit and errors: ``nccl.toml``, made by ``scripts/fit_collectives.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from trnsim.errors import InputError, UnsupportedError

from .selection import RING_COLLECTIVES, WIRE, NcclChoice, Tuner, nccl_choice, ring_steps

PART_BYTES = 65_536
"""What a channel carries of a pair before another is added (NCCL src/enqueue.cc: an eighth of a step of the buffer)."""

LATENCIES = ("launch", "ll_step", "ll128_step", "simple_step", "nvls_latency", "pair_part")
"""Constants in picoseconds."""
COSTS = ("ring_cost", "nvls_cost", "pair_cost", "copy_cost")
"""Constants that multiply bytes over the catalogue's rate: the inverse of an efficiency."""
CONSTANTS = LATENCIES + COSTS


@dataclass(frozen=True, kw_only=True)
class NvlinkConstants:
    """NCCL on one generation of NVLink. ``values`` has those of ``CONSTANTS`` that apply (no ``nvls`` on NVLink 3)."""

    technology: str
    values: Mapping[str, float]
    tuner: Tuner
    chips: Mapping[str, tuple[int, ...]]
    """On which they were fitted, with the numbers of ranks."""
    error: Mapping[str, float]
    """Mean absolute relative errors: ``fit``, ``held_out`` (four ranks), ``chip_left_out``."""
    largest_bytes: int
    """Of a fitted point."""


@dataclass(frozen=True, kw_only=True)
class NetworkConstants:
    """NCCL between two nodes of a kind of system."""

    name: str
    systems: tuple[str, ...]
    latency_ps: float
    """Of an all_reduce of two nodes: up and down."""
    efficiency: float
    """Of the rate of a node's adapters."""
    error: Mapping[str, float]
    largest_bytes: int = 0
    """Of a fitted point."""
    technology: str = ""
    """Of whose adapters these are, where they were stated for all systems that have them and not fitted."""
    reason: str = ""
    """What was stated, and where."""


@dataclass(frozen=True, kw_only=True)
class NetworkShape:
    """What all networks share."""

    fill: float
    window: float
    ll_share: float
    """Latency of LL over that of Simple."""
    ll_bytes_per_second: float


def terms(collective: str, ranks: int, nbytes: int, rate: float, choice: NcclChoice) -> dict[str, float]:
    """Coefficients of the constants in the time of a collective on one node; their sum is picoseconds."""
    ps_per_byte = 1e12 / rate
    found = {"launch": 1.0}
    if choice.algorithm == "ring":
        steps = ring_steps(collective, ranks)
        found[f"{choice.protocol.lower()}_step"] = float(steps)
        found["ring_cost"] = nbytes * (steps + 1) / ranks / WIRE[choice.protocol] * ps_per_byte
    elif choice.algorithm == "nvls":
        found["nvls_latency"] = 1.0
        found["nvls_cost"] = nbytes * 2 * (ranks - 1) / ranks * ps_per_byte
    elif collective == "all_to_all":
        part = nbytes / ranks
        found["ll_step"] = 2.0
        found["pair_part"] = min(1.0, part / PART_BYTES)
        found["pair_cost"] = (ranks - 1) * part * ps_per_byte
        found["copy_cost"] = part * ps_per_byte
    elif collective == "permute":
        found["ll_step"] = 2.0
        found["pair_part"] = min(1.0, nbytes / PART_BYTES)
        found["pair_cost"] = nbytes * ps_per_byte
    elif collective == "broadcast":
        # A ring that passes slices on: the last rank has all of it a step a rank later.
        found["simple_step"] = float(ranks - 1)
        found["ring_cost"] = nbytes * ps_per_byte
    else:
        raise UnsupportedError(f"NCCL's time of {collective} is not modelled", operand="collective", value=collective)
    return found


def node_ps(
    constants: NvlinkConstants, collective: str, ranks: int, nbytes: int, rate: float
) -> tuple[float, NcclChoice]:
    """Picoseconds of a collective on one node (or rack that a switch joins), and what NCCL chose.

    Raises:
        InputError: fewer than two ranks, negative bytes, or links of no bandwidth.
        UnsupportedError: no model of this collective.
    """
    if ranks < 2:
        raise InputError("a collective has at least two ranks", operand="ranks", value=ranks, limit=2)
    if nbytes < 0:
        raise InputError("a collective has no fewer than 0 bytes", operand="nbytes", value=nbytes, limit=0)
    if not rate > 0:
        raise InputError(f"{constants.technology}: a link of zero bandwidth", value=rate)
    choice = nccl_choice(constants.tuner, collective, ranks, nbytes, rate)
    found = terms(collective, ranks, nbytes, rate, choice)
    return sum(weight * constants.values[name] for name, weight in found.items()), choice


def network_ps(
    network: NetworkConstants, shape: NetworkShape, collective: str, nodes: int, ranks: int, nbytes: int, rate: float
) -> tuple[float, str]:
    """Picoseconds of the part between nodes, and its protocol.

    Args:
        network: constants of the adapters.
        shape: what all networks share.
        collective: as ``terms``.
        nodes: at least 2.
        ranks: of each node.
        nbytes: as the size of the collective is counted.
        rate: of the adapters that a node's ranks use together, one way, bytes a second.
    """
    if not rate > 0:
        raise InputError(f"{network.name}: a link of zero bandwidth", value=rate)
    hop = network.latency_ps / 2
    share = (nodes - 1) / nodes
    if collective == "all_reduce":
        latency, moved = 2 * math.ceil(math.log2(nodes)) * hop, 2 * share * nbytes
    elif collective in RING_COLLECTIVES:
        latency, moved = (nodes - 1) * hop, share * nbytes
    elif collective == "all_to_all":
        latency, moved = hop, ranks * share * nbytes
    elif collective == "permute":
        latency, moved = hop, ranks * nbytes
    else:
        latency, moved = math.ceil(math.log2(nodes)) * hop, float(nbytes)
    wire = moved / (network.efficiency * rate) * 1e12
    simple = latency + wire + shape.fill * min(wire, shape.window * latency)
    flags = shape.ll_share * latency + moved / shape.ll_bytes_per_second * 1e12
    return (flags, "LL") if flags < simple else (simple, "Simple")

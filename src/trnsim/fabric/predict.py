"""The time of one collective of one group, with how it is known: NCCL's for GPUs, the runtime's for Neuron devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trnsim.errors import InputError, UnsupportedError

from .closed import time_ps
from .group import Group
from .nccl import NetworkConstants, network_ps, node_ps
from .nccl_constants import network_shape, networks, nvlink
from .neuron import neuron_program, neuron_support
from .schedule import COLLECTIVES
from .selection import RING_COLLECTIVES

if TYPE_CHECKING:
    from trnsim.hardware.model import System

FITTED = (*RING_COLLECTIVES, "all_to_all")


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A time and how it is known."""

    collective: str
    ranks: int
    nbytes: int
    time_ps: float
    algorithm: str
    protocol: str
    support: str
    """``calibrated``, ``interpolated``, ``extrapolated`` or ``assumed``."""
    reason: str
    error_percent: float | None
    """Mean absolute relative error on published collectives of this kind that the fit did not see; None: no such."""

    @property
    def algorithm_bytes_per_second(self) -> float:
        """The size over the time."""
        return self.nbytes / self.time_ps * 1e12

    @property
    def bus_bytes_per_second(self) -> float:
        """What a rank's links carry each way in the best schedule, as NCCL's tests count it."""
        return self.algorithm_bytes_per_second * bus_factor(self.collective, self.ranks)


def bus_factor(collective: str, ranks: int) -> float:
    """Bus bandwidth over algorithm bandwidth."""
    share = (ranks - 1) / ranks
    return {"all_reduce": 2 * share, "broadcast": 1.0, "permute": 1.0}.get(collective, share)


def predict(group: Group, collective: str, nbytes: int) -> Prediction:
    """The time of a collective of ``nbytes`` (counted as ``schedule.py`` says) on a group.

    Raises:
        InputError: no such collective, fewer than two ranks or negative bytes.
        UnsupportedError: no model of these links or of a group of this form.
    """
    if collective not in COLLECTIVES:
        raise InputError(f"no such collective: {collective!r}", value=collective, limit=", ".join(COLLECTIVES))
    if group.size < 2:
        raise InputError("a collective has at least two ranks", operand="ranks", value=group.size, limit=2)
    if nbytes < 0:
        raise InputError("a collective has no fewer than 0 bytes", operand="nbytes", value=nbytes, limit=0)
    if group.topology.system.chip.family == "nvidia":
        return _nccl(group, collective, nbytes)
    return _neuron(group, collective, nbytes)


def _nccl(group: Group, collective: str, nbytes: int) -> Prediction:
    system, spread = group.topology.system, group.spread
    if spread is None:
        raise UnsupportedError("NCCL's time is modelled for the same number of ranks on each node", value=group.size)
    nodes = spread.systems
    ranks = group.size // nodes
    constants = nvlink(system.chip.scale_up.name)
    rate = float(system.scale_up_bytes_per_second)
    size = "large" if nbytes >= 1 << 20 else "small"
    if nodes == 1:
        time, choice = node_ps(constants, collective, ranks, nbytes, rate)
        support, reason, error = _node_support(group, collective, nbytes, size)
        algorithm, protocol = choice.algorithm, choice.protocol
    else:
        network = _network(system)
        rate_out = float(system.scale_out.bytes_per_second or 0) * ranks / system.chip_count
        between, protocol = network_ps(network, network_shape(), collective, nodes, ranks, nbytes, rate_out)
        time, algorithm = between, "tree" if collective == "all_reduce" else "ring" if collective in FITTED else "pairs"
        if ranks > 1:
            inside, _ = node_ps(constants, collective, ranks, nbytes, rate)
            time = max(time, inside)
        whole = ranks == system.chip_count
        seen = nbytes <= network.largest_bytes
        if nodes == 2 and whole and collective == "all_reduce" and system.name in network.systems and seen:
            support, error = "calibrated", network.error.get(f"held_out_{size}")
            reason = "fitted on all_reduce over two nodes of this kind"
        else:
            support, error = "extrapolated", None
            reason = network.reason or (
                f"NCCL over the network was measured as all_reduce over two whole nodes of {_known()} only"
            )
    return Prediction(
        collective=collective,
        ranks=group.size,
        nbytes=nbytes,
        time_ps=time,
        algorithm=algorithm,
        protocol=protocol,
        support=support,
        reason=reason,
        error_percent=error,
    )


def _node_support(group: Group, collective: str, nbytes: int, size: str) -> tuple[str, str, float | None]:
    chip = group.topology.system.chip
    constants = nvlink(chip.scale_up.name)
    if collective not in FITTED:
        return "extrapolated", f"NCCL's {collective} was not measured; from its other collectives", None
    unseen = constants.error.get(f"chip_left_out_{size}")
    ranks = constants.chips.get(chip.name, ())
    largest = max(ranks or [n for of in constants.chips.values() for n in of])
    if group.size > largest:
        return "extrapolated", f"measured up to {largest} ranks on one node", None
    if not ranks:
        return "extrapolated", f"{chip.name} was not measured; from {', '.join(constants.chips)}", unseen
    if nbytes > constants.largest_bytes:
        return "extrapolated", f"measured up to {constants.largest_bytes >> 20} MiB", unseen
    error = constants.error.get(f"held_out_{size}", unseen)
    if group.size not in ranks:
        return "interpolated", "between measured numbers of ranks", error
    return "calibrated", f"fitted on NCCL over {constants.technology}", error


def _network(system: System) -> NetworkConstants:
    """The constants of a system's adapters: its own; those stated for their technology; or those of the newest kind
    that was measured.
    """
    known = networks()
    own = (n for n in known.values() if system.name in n.systems)
    like = (n for n in known.values() if n.technology and n.technology in (system.scale_out.name or ""))
    newest = max(name for name, n in known.items() if n.systems)
    return next(own, None) or next(like, known[newest])


def _known() -> str:
    return ", ".join(s for n in networks().values() for s in n.systems)


def _neuron(group: Group, collective: str, nbytes: int) -> Prediction:
    program, algorithm = neuron_program(group, collective, nbytes)
    support, reason, error = neuron_support(group, collective, nbytes)
    return Prediction(
        collective=collective,
        ranks=group.size,
        nbytes=nbytes,
        time_ps=float(time_ps(program)),
        algorithm=algorithm,
        protocol="",
        support=support,
        reason=reason,
        error_percent=error,
    )

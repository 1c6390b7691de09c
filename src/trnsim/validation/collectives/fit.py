"""The fits of NCCL's constants and their folds; every fold refits all that is fitted.

One node: constants of each generation of NVLink on all its chips; one fold fits on two and eight ranks and predicts
four (chips that have all three); leaving a chip out, its constants come from the other chips of its generation, or, if
there are none, from the other generations: the geometric mean of latencies, and of efficiencies at the chip's own rate
of the catalogue. Two nodes: latency and efficiency of each kind of adapter, and what they share; each half of the sizes
is predicted from the other half.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from trnsim.fabric.nccl import CONSTANTS, NetworkConstants, NetworkShape, network_ps, terms
from trnsim.fabric.nccl_constants import tuner_of
from trnsim.fabric.selection import nccl_choice
from trnsim.hardware import load_system

from .least_squares import Floats
from .least_squares import fit as least_squares
from .rows import Row, system_of

LARGE = 1 << 20
"""Bytes from which a point counts as large."""
START = dict(zip(CONSTANTS, (7e6, 1e6, 4e6, 8e6, 3e7, 6e6, 1.2, 1.2, 1.5, 1.0), strict=True))
HELD_RANKS = 4
HELD_OUT = "fit on 2 and 8 ranks, predict 4"
LEFT_OUT = "leave one chip out"
NETWORK_START = {"fill": 1.5, "window": 1.5, "ll_share": 0.65, "ll_rate": 1e9}


@dataclass(frozen=True)
class Point:
    """A measured collective on one node of GPUs, or on two."""

    id: str
    chip: str
    technology: str
    rate: float
    """Of the chip's links, or of a node's adapters; one way, bytes a second."""
    collective: str
    ranks: int
    nodes: int
    nbytes: int
    us: float
    system: str = ""

    @property
    def large(self) -> bool:
        return self.nbytes >= LARGE


@dataclass(frozen=True)
class Errors:
    """Mean absolute relative errors (shares) over points, by size."""

    points: int
    all: float
    large: float | None
    small: float | None


@dataclass(frozen=True)
class Fold:
    """One way of leaving points out, with the prediction (us) of each point left out."""

    name: str
    predicted: Mapping[Point, float] = field(repr=False)

    def errors(self, points: Iterable[Point] | None = None) -> Errors:
        return errors({p: self.predicted[p] for p in (self.predicted if points is None else points)})


def errors(predicted: Mapping[Point, float]) -> Errors:
    """Errors of predictions in microseconds."""
    sizes = {True: [], False: []}  # type: dict[bool, list[float]]
    for point, us in predicted.items():
        sizes[point.large].append(abs(us / point.us - 1))
    every = sizes[True] + sizes[False]

    def mean(values: list[float]) -> float | None:
        return float(np.mean(values)) if values else None

    return Errors(len(every), float(np.mean(every)), mean(sizes[True]), mean(sizes[False]))


def database_points(rows: Iterable[Row]) -> list[Point]:
    """The points of one node that are fitted: of the vendor's database, all taken the same way."""
    return [_point(row) for row in rows if "AIConfigurator" in row.quality and row.nodes == 1]


def network_points(rows: Iterable[Row]) -> list[Point]:
    """All_reduce over two nodes."""
    return [_point(r) for r in rows if r.nodes == 2 and r.op == "all_reduce" and "nccl" in r.library.lower()]


def _point(row: Row) -> Point:
    name = system_of(row)
    assert name is not None
    assert row.ranks is not None
    assert row.nodes is not None
    assert row.nbytes is not None
    assert row.microseconds is not None
    chip, technology, rate, out = _facts(name)
    return Point(row.id, chip, technology, rate if row.nodes == 1 else out, row.collective, row.ranks, row.nodes,
                 row.nbytes, row.microseconds, name)  # fmt: skip


@lru_cache
def _facts(system: str) -> tuple[str, str, float, float]:
    found = load_system(system)
    up = found.chip.scale_up
    return found.chip.name, up.name, float(up.bytes_per_second), float(found.scale_out.bytes_per_second or 0)


# -- one node ----------------------------------------------------------------------------------------------------------

Values = Mapping[str, float]


def _matrix(points: Sequence[Point]) -> Floats:
    """Coefficients of ``CONSTANTS`` in each point's time."""
    found = np.zeros((len(points), len(CONSTANTS)))
    for i, p in enumerate(points):
        choice = nccl_choice(tuner_of(p.technology), p.collective, p.ranks, p.nbytes, p.rate)
        for name, weight in terms(p.collective, p.ranks, p.nbytes, p.rate, choice).items():
            found[i, CONSTANTS.index(name)] = weight
    return found


def fit_node(points: Sequence[Point]) -> dict[str, Values]:
    """Constants by technology; those that no point depends on are left out."""
    found: dict[str, Values] = {}
    for technology in dict.fromkeys(p.technology for p in points):
        mine = [p for p in points if p.technology == technology]
        matrix = _matrix(mine)
        used = np.flatnonzero(matrix.any(axis=0))
        names = [CONSTANTS[i] for i in used]
        part = matrix[:, used]
        measured = np.array([p.us * 1e6 for p in mine])
        values = least_squares(part.__matmul__, measured, np.array([START[n] for n in names]))
        found[technology] = dict(zip(names, values.tolist(), strict=True))
    return found


def predict_node(constants: Mapping[str, Values], points: Sequence[Point]) -> dict[Point, float]:
    """Microseconds of each point."""
    found = {}
    for p, row in zip(points, _matrix(points), strict=True):
        values = constants[p.technology]
        found[p] = sum(w * values[n] for n, w in zip(CONSTANTS, row, strict=True) if w) / 1e6
    return found


def carried_over(constants: Mapping[str, Values]) -> Values:
    """Constants for a generation without measurements: the geometric means of those that have some."""
    return {
        name: float(np.exp(np.mean([np.log(v[name]) for v in constants.values() if name in v])))
        for name in CONSTANTS
        if any(name in v for v in constants.values())
    }


def held_out_ranks(points: Sequence[Point]) -> Fold:
    """Fit on two and eight ranks, predict four; only chips that have all three."""
    chips = {c for c in {p.chip for p in points} if {2, HELD_RANKS, 8} <= {p.ranks for p in points if p.chip == c}}
    mine = [p for p in points if p.chip in chips]
    constants = fit_node([p for p in mine if p.ranks != HELD_RANKS])
    return Fold(HELD_OUT, predict_node(constants, [p for p in mine if p.ranks == HELD_RANKS]))


def left_out_chips(points: Sequence[Point]) -> Fold:
    """Each chip from all others."""
    found: dict[Point, float] = {}
    for chip in dict.fromkeys(p.chip for p in points):
        mine = [p for p in points if p.chip == chip]
        constants = fit_node([p for p in points if p.chip != chip])
        technology = mine[0].technology
        found |= predict_node({technology: constants.get(technology) or carried_over(constants)}, mine)
    return Fold(LEFT_OUT, found)


def left_out_generations(points: Sequence[Point]) -> Fold:
    """Each generation of NVLink from the others: what a chip with links of a new generation would see."""
    found: dict[Point, float] = {}
    for technology in dict.fromkeys(p.technology for p in points):
        mine = [p for p in points if p.technology == technology]
        constants = fit_node([p for p in points if p.technology != technology])
        found |= predict_node({technology: carried_over(constants)}, mine)
    return Fold("leave one generation out", found)


# -- two nodes ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """Fitted constants of adapters, by kind, and what they share."""

    kinds: Mapping[str, NetworkConstants]
    shape: NetworkShape


def kind_of(system: str) -> str:
    """Kind of adapters: the family of the instance (p4, p5)."""
    return system.split(".", maxsplit=1)[0].rstrip("de")


def fit_network(points: Sequence[Point]) -> Network:
    """Latency and efficiency by kind of adapter, and the shared shape."""
    kinds = list(dict.fromkeys(kind_of(p.system) for p in points))

    def made(values: Floats) -> Network:
        n = len(kinds)
        constants = {
            k: NetworkConstants(name=k, systems=(), latency_ps=values[i], efficiency=values[n + i], error={})
            for i, k in enumerate(kinds)
        }
        fill, window, share, rate = values[2 * n :]
        return Network(constants, NetworkShape(fill=fill, window=window, ll_share=share, ll_bytes_per_second=rate))

    start = [1.5e8] * len(kinds) + [0.7] * len(kinds) + list(NETWORK_START.values())
    measured = np.array([p.us for p in points])
    return made(
        least_squares(lambda x: np.array(list(predict_network(made(x), points).values())), measured, np.array(start))
    )


def predict_network(network: Network, points: Sequence[Point]) -> dict[Point, float]:
    """Microseconds of each point."""
    return {
        p: network_ps(
            network.kinds[kind_of(p.system)], network.shape, p.collective, p.nodes, p.ranks // p.nodes, p.nbytes, p.rate
        )[0]
        / 1e6
        for p in points
    }


def held_out_sizes(points: Sequence[Point]) -> Fold:
    """Every other size from the sizes between."""
    ordered = sorted(points, key=lambda p: (p.system, p.id.rsplit("-", 1)[0], p.nbytes))
    found: dict[Point, float] = {}
    for parity in (0, 1):
        rest = [p for i, p in enumerate(ordered) if i % 2 != parity]
        found |= predict_network(fit_network(rest), [p for i, p in enumerate(ordered) if i % 2 == parity])
    return Fold("every other size", found)

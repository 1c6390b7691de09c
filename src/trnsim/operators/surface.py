"""Surfaces: the cost of a kernel as a function of how often its loops run.

In one regime, with given remainders, a kernel's loops differ in their number of iterations only, and engines that work
in order settle into a period: each further iteration of a loop takes as long as the one before. So a quantity is a
polynomial of degree one in each count, and the corners of a small box of counts decide it. A box begins where the third
iteration along each axis takes what the second did. Sizes whose loops do not run that often are not extrapolated: they
are part of what the surface is for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.errors import UnsupportedError
from trnsim.operators.samples import PEAK, QUANTITIES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from trnsim.kernels.contract import Contract, Problem

    Sample = Callable[[Problem], tuple[NDArray[np.float64], str, str]]

# By how much of the whole an iteration may differ from the one before where a box begins.
SETTLED = 1e-3
# How often a box may begin later because iterations still differ, and because the regime is another there.
SETTLING, CHANGING = 3, 12
# Instructions of the largest sample that is simulated, and of a use that is not extrapolated.
LARGEST_SAMPLE = 2_000_000


@dataclass(frozen=True)
class Surface:
    """Corners of a box of iteration counts, and what they cost.

    Attributes:
        remainders: of each size by its block; for a size that is not extrapolated the size itself.
        blocks: of the sizes that are extrapolated.
        base: iterations of each of those at the box's first corner.
        corners: quantities at each corner, [2, 2, ..., quantities].
        support, reason: of the samples.
    """

    remainders: Mapping[str, int]
    blocks: Mapping[str, int]
    base: Mapping[str, int]
    corners: NDArray[np.float64]
    support: str
    reason: str

    def covers(self, problem: Problem) -> bool:
        """Whether ``problem``, of this regime, differs in iteration counts only."""
        for name, size in problem.sizes.items():
            block = self.blocks.get(name)
            if block is None:
                if size != self.remainders[name]:
                    return False
            elif size % block != self.remainders[name] or size // block < self.base[name]:
                return False
        return True

    def evaluate(self, problem: Problem) -> list[float]:
        """The quantities of ``problem``, which the surface covers."""
        found = self._rows
        for name, block in self.blocks.items():
            beyond = problem.sizes[name] // block - self.base[name]
            half = len(found) // 2
            found = [
                [a + (b - a) * beyond for a, b in zip(low, high, strict=True)]
                for low, high in zip(found[:half], found[half:], strict=True)
            ]
        return found[0]

    @cached_property
    def _rows(self) -> list[list[float]]:
        rows: list[list[float]] = self.corners.reshape(-1, self.corners.shape[-1]).tolist()
        return rows


def build(contract: Contract, problem: Problem, sample: Sample) -> Surface:
    """A surface that covers ``problem``, from samples that are simulated.

    Raises:
        UnsupportedError: the loops do not settle, and the use is too large to be simulated whole.
    """
    found: dict[tuple[int, ...], tuple[NDArray[np.float64], str, str]] = {}

    def at(sizes: Mapping[str, int]) -> NDArray[np.float64]:
        key = tuple(sizes.values())
        if key not in found:
            _refuse_if_large(contract, problem.resized(sizes))
            found[key] = sample(problem.resized(dict(sizes)))
        return found[key][0]

    blocks = dict(contract.blocks(problem))
    regime = contract.regime(problem)
    base: dict[str, int] = {}
    for name, block in list(blocks.items()):
        if problem.sizes[name] // block < 3:
            del blocks[name]
        else:
            base[name] = 1
    steps = dict.fromkeys(blocks, 0.0)
    while blocks:
        other = _other_regime(contract, problem, regime, blocks, base)
        later = other or _unsettled(problem, blocks, base, at)
        if later is None:
            break
        base[later] += 1
        steps[later] += 1 / CHANGING if other else 1 / SETTLING
        if steps[later] > 1 or problem.sizes[later] // blocks[later] < base[later] + 2:
            del blocks[later], base[later]
            base, steps = dict.fromkeys(blocks, 1), dict.fromkeys(blocks, 0.0)
    corners = np.empty((2,) * len(blocks) + (len(QUANTITIES),))
    for corner in product((0, 1), repeat=len(blocks)):
        corners[corner] = at(_sizes(problem, blocks, base, dict(zip(blocks, corner, strict=True))))
    if blocks:
        corners[..., PEAK] = corners[..., PEAK].max()
    first = next(iter(found.values()))
    remainders = {n: size % blocks[n] if n in blocks else size for n, size in problem.sizes.items()}
    return Surface(remainders, blocks, base, corners, first[1], first[2])


def timed_again(surface: Surface, contract: Contract, problem: Problem, sample: Sample) -> Surface:
    """The surface of a chip with other rates."""
    del surface
    return build(contract, problem, sample)


def _sizes(
    problem: Problem, blocks: Mapping[str, int], base: Mapping[str, int], more: Mapping[str, int]
) -> dict[str, int]:
    """Sizes of ``problem`` with ``base`` and ``more`` iterations of each loop."""
    return {
        name: (base[name] + more.get(name, 0)) * blocks[name] + size % blocks[name] if name in blocks else size
        for name, size in problem.sizes.items()
    }


def _other_regime(
    contract: Contract,
    problem: Problem,
    regime: tuple[Any, ...],
    blocks: Mapping[str, int],
    base: Mapping[str, int],
) -> str | None:
    """A loop whose box must begin later because the kernel works in another way at a sample.

    That is the loop whose box is furthest from the use, in proportion: a box of the use's own shape is of its regime.
    """
    corners = [dict(zip(blocks, c, strict=True)) for c in product((0, 1), repeat=len(blocks))]
    for more in [*corners, *({name: 2} for name in blocks)]:
        if contract.regime(problem.resized(_sizes(problem, blocks, base, more))) != regime:
            return min(blocks, key=lambda name: base[name] / (problem.sizes[name] // blocks[name]))
    return None


def _unsettled(
    problem: Problem,
    blocks: Mapping[str, int],
    base: Mapping[str, int],
    at: Callable[[Mapping[str, int]], NDArray[np.float64]],
) -> str | None:
    """A loop whose box must begin later because its iterations still differ."""
    for name in blocks:
        times = [at(_sizes(problem, blocks, base, {name: more}))[0] for more in (0, 1, 2)]
        if abs(times[2] - 2 * times[1] + times[0]) > SETTLED * times[2]:
            return name
    return None


def _refuse_if_large(contract: Contract, problem: Problem) -> None:
    # TensorE's largest product, 128 x 128 x 512, is the measure of how many instructions a use takes.
    instructions = contract.flops(problem) / (2 * 128 * 128 * 512)
    if instructions > LARGEST_SAMPLE:
        raise UnsupportedError(
            f"{contract.name} with {dict(problem.sizes)} repeats no loop often enough to be extrapolated, and is too "
            "large to be simulated whole",
            value=round(instructions),
            limit=LARGEST_SAMPLE,
        )

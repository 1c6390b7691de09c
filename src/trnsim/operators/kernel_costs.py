"""The ``kernel`` implementation: costs of operators from our own kernels, by surfaces made when first needed."""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING, Any

import numpy as np

from trnsim.errors import InputError
from trnsim.hardware import load_chip
from trnsim.operators import building, surface
from trnsim.operators.cost import ENGINES, OperatorCost, OperatorCosts
from trnsim.operators.neighbours import gather
from trnsim.operators.samples import QUANTITIES
from trnsim.operators.surfaces import Surfaces

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from trnsim.kernels.contract import Contract, Problem
    from trnsim.operators.neighbours import Neighbours
    from trnsim.operators.store import Store
    from trnsim.operators.surface import Surface

_MODULES = (
    "matmul", "matmul_fp8", "matmul_mx", "attention_contracts", "rmsnorm", "layernorm", "rope", "mlp", "router",
    "grouped_matmul", "embedding", "softmax", "cross_entropy", "adam", "reductions", "elementwise", "quantization",
)  # fmt: skip
# Costs that are remembered as they are.
_KNOWN = 100_000
# Operations and bytes of a use that takes a second or so to simulate: 32,000 products, 16,000 tiles of 128 x 2,048.
_AT_ONCE, _AT_ONCE_BYTES = 32_000 * 2 * 128 * 128 * 512, 16_000 * 2 * 128 * 2048
# Uses of more products are not simulated to be shipped, where a surface does not tell their time.
_LARGE = 20_000
# With which errors surfaces are used for uses of at most so many instructions, which are simulated instead.
_ERRORS = ((building.LARGEST_SAMPLE, 0.005),)
# Uses that are extrapolated each from samples of their own, before a surface interpolates.
_FEW = 4
_INSTRUCTIONS = QUANTITIES.index("instructions")
_BUSY = QUANTITIES.index(f"busy {ENGINES[0]}")


def contracts() -> dict[str, Contract]:
    """The operators that have a kernel, by name."""
    found: dict[str, Contract] = {}
    for name in _MODULES:
        for contract in importlib.import_module(f"trnsim.kernels.{name}").CONTRACTS:
            found[contract.name] = contract
    return found


class KernelCosts:
    """Costs on one chip, on logical cores of ``cores`` cores.

    ``chip``: as ``load_chip`` takes it, changes included. ``store`` keeps what is simulated, and is asked before;
    ``use_shipped``: so are the surfaces that come with the package.
    """

    def __init__(self, chip: str, cores: int = 1, store: Store | None = None, *, use_shipped: bool = True) -> None:
        core = load_chip(chip).core
        if core is None:
            raise InputError(f"{chip} has no NeuronCore", operand="chip", value=chip)
        if cores not in (1, 2) or (cores == 2 and core.version == "v2"):
            limit = 1 if core.version == "v2" else (1, 2)
            raise InputError(f"{chip} has no logical cores of {cores}", operand="cores", value=cores, limit=limit)
        self.chip, self.cores, self.store, self.generation = chip, cores, store, core.version
        self._contracts = contracts()
        self._known: dict[tuple[Any, ...], OperatorCost] = {}
        self._surfaces: dict[tuple[Any, ...], Surface] = {}
        self._asked: dict[tuple[Any, ...], int] = {}
        self._neighbours: dict[tuple[Any, ...], Neighbours | None] = {}
        self.source = Surfaces(chip, cores, store, use_shipped=use_shipped)

    def cost(self, operator: str, dtype: str, **given: Any) -> OperatorCost:
        """What one use costs. ``given``: sizes and options of the operator's contract.

        Raises:
            InputError: no such operator, or one that its contract forbids.
            UnsupportedError: too large to be simulated and not to be extrapolated.
        """
        use = (operator, dtype, *given.items())
        known = self._known.get(use)
        if known is not None:
            return known
        contract = self.contract(operator, dtype)
        problem = contract.problem(dtype, self.cores, given, self.generation)
        values, error, found, how = self.quantities(contract, problem)
        if len(self._known) >= _KNOWN:
            self._known.clear()
        self._known[use] = self._cost(contract, problem, values, found, how, error)
        return self._known[use]

    def quantities(self, contract: Contract, problem: Problem) -> tuple[list[float], float | None, Surface, str]:
        """What a use takes, the error that checks tell, the surface, and how it is known.

        Raises:
            UnsupportedError: too large to be simulated and not to be extrapolated.
        """
        values, error, found = self._told(contract, problem)
        if values is not None:
            return values.tolist(), error, found, "surface"
        building.refuse_if_large(contract, problem, _why(found, self.surface(contract, problem)[1]))
        values, support, reason = self.source.sampler(contract, problem)
        point = self.surface(contract, problem)[1]
        if found.knots and found.covers(point):
            found = self._often(found, contract, problem)
            if found.may_interpolate(point):
                self._compare(found, contract, problem, point, float(values[0]))
        return values.tolist(), None, surface.Surface((), {}, (), support, reason), "simulated"

    def _told(self, contract: Contract, problem: Problem) -> tuple[NDArray[np.float64] | None, float | None, Surface]:
        """What a surface says of a use, with the error that checks tell; None where that is not good."""
        found, point = self.surface(contract, problem)
        exact = found.samples.get(point)
        if exact is not None:
            return exact, 0.0, found
        if not found.knots or not found.covers(point):
            return None, None, found
        error = found.interpolation_error(point)
        if error is not None:
            values = found.evaluate(point)
            if values[0] != values[0]:  # not a number: samples are missing
                self._fill(found, contract, problem, [point])
                values = found.evaluate(point)
            if _is_good(error, float(values[_INSTRUCTIONS])):
                return values, error, found
        if found.unsettled(point) > surface.LARGEST_ERROR:
            return None, None, found
        own, error = found.extrapolate(point), found.error(point, own=True)
        if own is None or error is None:
            found = self._extrapolating(found, contract, problem, point, compared=error is not None)
            own, error = found.extrapolate(point), found.error(point, own=True)
        if own is None or error is None or not _is_good(error, float(own[_INSTRUCTIONS])):
            return None, None, found
        if found.may_interpolate(point):
            self._compare(found, contract, problem, point, float(own[0]))
        return own, error, found

    def _extrapolating(
        self, found: Surface, contract: Contract, problem: Problem, point: tuple[int, ...], *, compared: bool
    ) -> Surface:
        """The surface, with samples that end as a use does and a check, unless the use itself is simulated sooner."""
        missing = [at for _, at in found.own(point) if at not in found.samples]
        uses = [building.placed(contract, problem, found.axes, at) for at in missing]
        if sum(building.work(contract, use) for use in uses) >= building.work(contract, problem):
            return found
        found = self._often(found, contract, problem)
        sample = self.source.sampler_of(contract)
        building.fill(found, contract, problem, missing, sample)
        if not compared:
            building.check(found, contract, problem, point, sample)
        self.source.keep(contract, problem, repr(self.key(contract, problem)), found)
        return found

    def _often(self, found: Surface, contract: Contract, problem: Problem) -> Surface:
        """The surface, which interpolates too once it was asked for several uses."""
        key = self.key(contract, problem)
        self._asked[key] = self._asked.get(key, 0) + 1
        if self._asked[key] > _FEW and not found.refined and not self.source.chip.changes:
            return self._refined(found, contract, problem)
        return found

    def _refined(self, found: Surface, contract: Contract, problem: Problem) -> Surface:
        """The surface that interpolates too."""
        key = self.key(contract, problem)
        made = self._surfaces[key] = building.refine(found, contract, problem, self.source.sampler_of(contract))
        self.source.keep(contract, problem, repr(key), made)
        return made

    def _compare(
        self, found: Surface, contract: Contract, problem: Problem, point: tuple[int, ...], time_ps: float
    ) -> None:
        """Check what is interpolated at a use, against what is extrapolated from samples that end as it does."""
        building.fill(found, contract, problem, found.missing(point), self.source.sampler_of(contract))
        found.compared(surface.Check(point, float(found.evaluate(point)[0]), time_ps))
        self.source.keep(contract, problem, repr(self.key(contract, problem)), found)

    def once(self, operator: str, dtype: str, **given: Any) -> OperatorCost:
        """What one use costs, as soon as may be: simulated whole where there is no surface yet and it is not large.

        Raises:
            InputError: no such operator, or one that its contract forbids.
            UnsupportedError: too large to be simulated and not to be extrapolated.
        """
        contract = self.contract(operator, dtype)
        problem = contract.problem(dtype, self.cores, given, self.generation)
        key = self.key(contract, problem)
        large = contract.flops(problem) > _AT_ONCE or contract.bytes(problem) > _AT_ONCE_BYTES
        if large or key in self._surfaces or self.source.within_reach(contract, repr(key)):
            return self.cost(operator, dtype, **given)
        return self.simulated(operator, dtype, **given)

    def known(self, operator: str, dtype: str, **given: Any) -> OperatorCost | None:
        """What one use costs where a surface is shipped or in the store and has its samples; None: it is not known.

        Nothing is simulated.

        Raises:
            InputError: no such operator, or a use that its contract forbids.
        """
        contract = self.contract(operator, dtype)
        problem = contract.problem(dtype, self.cores, given, self.generation)
        key = self.key(contract, problem)
        if key not in self._surfaces:
            found = self.source.known(contract, repr(key))
            if found is None:
                return None
            self._surfaces[key] = found
        held, point = self.surface(contract, problem)
        exact = held.samples.get(point)
        if exact is not None:
            return self._cost(contract, problem, exact.tolist(), held, "surface", 0.0)
        if not held.knots or not held.covers(point):
            return None
        values, error = held.evaluate(point) if held.interpolates(point) else held.extrapolate(point), None
        if values is not None and values[0] == values[0]:
            error = held.error(point, own=not held.interpolates(point))
        elif held.refined:
            values, error = held.evaluate(point), held.most_wrong(point)
        # Not a number: samples are missing.
        if values is None or values[0] != values[0] or error is None or error > surface.LARGEST_ERROR:
            return None
        return self._cost(contract, problem, values.tolist(), held, "surface", error)

    def neighbours(self, contract: Contract, problem: Problem) -> Neighbours | None:
        """The simulated sizes of an operator in a format, by which others may be told; None: there are none."""
        key = (contract.name, problem.dtype, *problem.options.values())
        if key not in self._neighbours:
            entries = self.source.entries(contract)
            self._neighbours[key] = gather(self.chip, self.cores, contract, problem, entries)
        return self._neighbours[key]

    def forget(self) -> None:
        """Costs that were asked for; surfaces stay."""
        self._known.clear()

    def simulated(self, operator: str, dtype: str, **given: Any) -> OperatorCost:
        """What one use costs, simulated whole.

        Raises:
            InputError: no such operator, or one that its contract forbids.
            UnsupportedError: too large to be simulated.
        """
        contract = self.contract(operator, dtype)
        problem = contract.problem(dtype, self.cores, given, self.generation)
        building.refuse_if_large(contract, problem)
        quantities, support, reason = self.source.sampler(contract, problem)
        return self._cost(
            contract, problem, quantities.tolist(), surface.Surface((), {}, (), support, reason), "simulated", 0.0
        )

    def sample(self, contract: Contract, problem: Problem) -> NDArray[np.float64]:
        """The quantities of a use that is simulated."""
        return self.source.sampler(contract, problem)[0]

    def costs(self, operator: str, dtype: str, **given: Any) -> OperatorCosts:
        """What many uses cost: as ``cost``, where sizes are arrays of one length, or numbers for all of them.

        Raises:
            InputError: no such operator, or one use that its contract forbids.
            UnsupportedError: a use is too large to be simulated and not to be extrapolated.
        """
        contract = self.contract(operator, dtype)
        sizes = {
            n: given[n] if n in given else contract.defaults[n]
            for n in contract.sizes
            if n in given or n in contract.defaults
        }
        arrays = dict(zip(sizes, np.broadcast_arrays(*(np.asarray(v, np.int64) for v in sizes.values())), strict=True))
        arrays = {name: np.ascontiguousarray(array.ravel()) for name, array in arrays.items()}
        problem = contract.problem(dtype, self.cores, {**given, **arrays}, self.generation)
        count = len(next(iter(arrays.values())))
        quantities = np.empty((count, len(QUANTITIES)))
        for chosen in _groups(contract, problem, count):
            one = problem.resized({name: int(array[chosen[0]]) for name, array in arrays.items()})
            some = problem.resized({name: array[chosen] for name, array in arrays.items()})
            quantities[chosen] = self._many(contract, one, some, len(chosen))
        flops = np.broadcast_to(np.asarray(contract.flops(problem), np.float64), (count,))
        return OperatorCosts(
            operator=operator,
            implementation="kernel",
            time_ps=quantities[:, 0],
            hbm_bytes=np.rint(quantities[:, 1]),
            flops=flops,
            sbuf_bytes=np.rint(quantities[:, -1]),
            busy_ps={name: quantities[:, _BUSY + number] for number, name in enumerate(ENGINES)},
        )

    def contract(self, operator: str, dtype: str = "") -> Contract:
        """That of an operator; ``matmul`` in a format of its own is ``matmul_fp8`` or ``matmul_mx``.

        Raises:
            InputError: there is none.
        """
        contract = self._contracts.get(operator)
        if contract is None:
            near = difflib.get_close_matches(operator, self._contracts, 1)
            nearest = f"; nearest: {near[0]}" if near else ""
            raise InputError(f"no kernel for {operator!r}{nearest}", operand="operator", limit=sorted(self._contracts))
        if dtype and dtype not in {format_ for formats in contract.dtypes.values() for format_ in formats}:
            for name, other in self._contracts.items():
                if name.startswith(f"{operator}_") and any(dtype in formats for formats in other.dtypes.values()):
                    return other
        return contract

    def prepare(self, contract: Contract, problems: Sequence[Problem]) -> Surface:
        """The surface that uses of one regime have in common, with the samples that they need."""
        found, _ = self.surface(contract, problems[0])
        if found.knots and not found.refined and not self.source.chip.changes:
            found = self._refined(found, contract, problems[0])
        covered = [one for one in problems if found.knots and found.covers(self.surface(contract, one)[1])]
        for problem in covered:
            if self._told(contract, problem)[0] is None and building.products(contract, problem) <= _LARGE:
                point = self.surface(contract, problem)[1]
                building.take(found, contract, problem, point, self.source.sampler_of(contract))
        # For uses beside these, where those of the chip as it is are to come with the package.
        around = [] if self.source.chip.changes else [self.surface(contract, one)[1] for one in covered]
        self._fill(found, contract, problems[0], [at for at in around if found.missing(at) and found.near_good(at)])
        return found

    def key(self, contract: Contract, problem: Problem) -> tuple[Any, ...]:
        """Equal for the uses that have a surface in common."""
        key = (contract.name, problem.dtype, *problem.options.values(), contract.regime(problem))
        return (*key, *(problem.sizes[name] for name in contract.fixed))

    def surface(self, contract: Contract, problem: Problem) -> tuple[Surface, tuple[int, ...]]:
        """The surface of a use's regime, and its coordinates there."""
        key = self.key(contract, problem)
        found = self._surfaces.get(key)
        if found is None:
            found = self._surfaces[key] = self.source.of(contract, problem, repr(key))
        coordinates = contract.coordinates(problem)
        return found, tuple([coordinates[knots.axis.name] for knots in found.knots])

    def _cost(
        self, contract: Contract, problem: Problem, values: list[float], found: Surface, how: str, error: float | None
    ) -> OperatorCost:
        support, reason = self.source.labelled(found.support, found.reason)
        return OperatorCost(
            operator=contract.name,
            implementation="kernel",
            time_ps=values[0],
            hbm_bytes=round(values[1]),
            flops=contract.flops(problem),
            sbuf_bytes=round(values[-1]),
            support=support,
            reason=reason,
            how=how,
            error_percent=100 * error if how == "surface" and error is not None else None,
            busy_ps=dict(zip(ENGINES, values[_BUSY : _BUSY + len(ENGINES)], strict=True)),
        )

    def _many(self, contract: Contract, one: Problem, some: Problem, count: int) -> NDArray[np.float64]:
        found, _ = self.surface(contract, one)
        coordinates = contract.coordinates(some)
        columns = [np.broadcast_to(coordinates[axis.name], (count,)) for axis in found.axes]
        points = np.stack(columns, axis=1) if columns else np.empty((count, 0), np.int64)
        quantities = np.full((count, len(QUANTITIES)), np.nan)
        if found.knots:
            unique, places = np.unique(points, axis=0, return_inverse=True)
            quantities = self._inside(found, contract, one, [tuple(at) for at in unique.tolist()])[places.ravel()]
        whole = np.isnan(quantities[:, 0])
        if whole.any():
            uses = some.resized({name: np.broadcast_to(size, (count,))[whole] for name, size in some.sizes.items()})
            quantities[whole] = self._simulated(contract, uses, int(whole.sum()))
        return quantities

    def _inside(
        self, found: Surface, contract: Contract, one: Problem, points: list[tuple[int, ...]]
    ) -> NDArray[np.float64]:
        """The quantities at coordinates of a regime; not a number where a use is to be simulated whole."""
        quantities = np.full((len(points), len(QUANTITIES)), np.nan)
        cells: dict[tuple[int, ...], list[int]] = {}
        for number, at in enumerate(points):
            if found.covers(at):
                cells.setdefault(found.cell(at), []).append(number)
        if len(points) > _FEW and cells and not found.refined and not self.source.chip.changes:
            found = self._refined(found, contract, one)
        for numbers in cells.values():
            left = list(numbers)
            while left and found.may_interpolate(points[left[0]]):  # those that more checks may vouch for
                self._one(quantities, found, contract, one, points, left.pop(len(left) // 2))
            if left and found.interpolates(points[left[0]]):
                array = np.array([points[number] for number in left], np.int64)
                values = found.evaluate_many(array)
                missing = np.isnan(values[:, 0])
                if missing.any():
                    self._fill(found, contract, one, [points[left[n]] for n in np.flatnonzero(missing).tolist()])
                    values = found.evaluate_many(array)
                quantities[left] = values
            else:
                for number in left:
                    self._one(quantities, found, contract, one, points, number)
        return quantities

    def _one(
        self, quantities: NDArray[np.float64], found: Surface, contract: Contract, one: Problem,
        points: list[tuple[int, ...]], number: int,
    ) -> None:  # fmt: skip
        problem = building.placed(contract, one, found.axes, points[number])
        values = self._told(contract, problem)[0]
        if values is not None:
            quantities[number] = values

    def _simulated(self, contract: Contract, some: Problem, count: int) -> NDArray[np.float64]:
        names = list(some.sizes)
        rows = np.stack([np.broadcast_to(some.sizes[name], (count,)) for name in names], axis=1)
        unique, places = np.unique(rows, axis=0, return_inverse=True)
        found = []
        for row in unique.tolist():
            use = some.resized(dict(zip(names, row, strict=True)))
            building.refuse_if_large(contract, use)
            found.append(self.source.sampler(contract, use)[0])
        return np.stack(found)[places]

    def _fill(self, found: Surface, contract: Contract, problem: Problem, points: Sequence[tuple[int, ...]]) -> None:
        """Take the samples that some coordinates lack, and keep the surface with them."""
        for point in points:
            building.fill(found, contract, problem, found.missing(point), self.source.sampler_of(contract))
        if points:
            self.source.keep(contract, problem, repr(self.key(contract, problem)), found)


def _is_good(error: float, instructions: float) -> bool:
    """Whether a use may be told with this error: less where it can be simulated instead."""
    if error <= _ERRORS[0][1]:
        return True
    return error <= next((limit for most, limit in _ERRORS if instructions <= most), surface.LARGEST_ERROR)


def _why(found: Surface, point: tuple[int, ...]) -> str:
    """Why a use is not extrapolated."""
    for knots, at in zip(found.knots, point, strict=True):
        if knots.unsettled and knots.within(at, settled=False) < at:
            return f"blocks of {knots.axis.name} differ by {knots.unsettled:.1%}, and this is one of many"
    return "checks are further off than a surface may be"


def _groups(contract: Contract, problem: Problem, count: int) -> list[NDArray[np.int64]]:
    """Which uses have a surface in common."""
    deciding = [*contract.regime(problem), *(problem.sizes[name] for name in contract.fixed)]
    columns = [np.broadcast_to(np.asarray(part, np.int64), (count,)) for part in deciding]
    if not columns:
        return [np.arange(count)]
    _, group = np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)
    order = np.argsort(group, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(group[order])) + 1)

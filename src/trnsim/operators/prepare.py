"""All surfaces of a chip at once, by several processes: those that are shipped, or those of a chip that a user changed.

What is done is kept in the store as soon as it is done, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from trnsim.errors import InputError
from trnsim.hardware import load_chip
from trnsim.operators.kernel_costs import KernelCosts, contracts
from trnsim.operators.shipped import Entry
from trnsim.operators.store import Store
from trnsim.operators.surfaces import entry_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from trnsim.kernels.contract import Contract, Problem

USES = Path(__file__).with_name("uses.toml")


@dataclass(frozen=True)
class Task:
    """Uses of an operator that have a surface in common, so that one process does them."""

    chip: str
    cores: int
    operator: str
    dtype: str
    given: tuple[dict[str, Any], ...]
    use_shipped: bool


@dataclass
class Prepared:
    """What was prepared.

    Attributes:
        entries: surfaces by operator.
        surfaces: how many, of them made now (not shipped, not in the store).
        traced, timed: samples that were not in the store.
        errors: what could not be made, as text.
    """

    entries: dict[str, list[Entry]] = field(default_factory=dict)
    surfaces: int = 0
    made: int = 0
    traced: int = 0
    timed: int = 0
    errors: list[str] = field(default_factory=list)


class _Done(msgspec.Struct):
    entries: list[Entry]
    made: int
    traced: int
    timed: int
    error: str = ""


def prepare(
    chip: str,
    store: str | os.PathLike[str],
    *,
    workers: int = 0,
    operators: frozenset[str] | None = None,
    use_shipped: bool = True,
    progress: Callable[[int, int, str], None] | None = None,
) -> Prepared:
    """Have every surface of ``uses.toml`` on ``chip``, on all its logical cores, in the file ``store``.

    Args:
        chip: as ``load_chip`` takes it; one with changes too.
        store: the file.
        workers: processes; 0: one a core of this machine.
        operators: only these.
        use_shipped: take what comes with the package where it is not stale.
        progress: called with the tasks that are done, their number, and what was done last.

    Raises:
        InputError: the chip has no NeuronCore.
    """
    tasks = list(_tasks(chip, operators, use_shipped))
    found = Prepared()
    count = min(workers or os.cpu_count() or 1, max(1, len(tasks)))
    with ProcessPoolExecutor(
        count, multiprocessing.get_context("spawn"), initializer=_start, initargs=(os.fspath(store),)
    ) as pool:
        pending = {pool.submit(_do, task): task for task in tasks}
        try:
            for number, future in enumerate(as_completed(pending), 1):
                task = pending[future]
                done = msgspec.msgpack.decode(future.result(), type=_Done)
                found.entries.setdefault(task.operator, []).extend(done.entries)
                found.surfaces += len(done.entries)
                found.made, found.traced, found.timed = (
                    found.made + done.made, found.traced + done.traced, found.timed + done.timed,
                )  # fmt: skip
                what = f"{task.operator} {task.dtype}, {task.cores} core{'s' * (task.cores > 1)}"
                if done.error:
                    found.errors.append(f"{chip}: {what}: {done.error}")
                if progress is not None:
                    progress(number, len(tasks), what)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return found


def allowed(costs: KernelCosts, contract: Contract) -> Iterator[tuple[Problem, dict[str, Any]]]:
    """The uses of an operator in ``uses.toml`` that its contract allows on a chip, with their sizes as given."""
    for dtype, given in uses(contract.name):
        if dtype in contract.dtypes[costs.generation]:
            with contextlib.suppress(InputError):  # sizes that do not fit each other
                yield contract.problem(dtype, costs.cores, given, costs.generation), given


def uses(operator: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Number format and sizes with options of each use of ``operator`` in ``uses.toml``."""
    for group in read_uses().get(operator, ()):
        columns = {**group.get("sizes", {}), **group.get("options", {})}
        shapes = group.get("shapes", {})
        names = shapes.get("names", ())
        for dtype, shape, *one in product(group["dtypes"], shapes.get("values", [()]), *columns.values()):
            yield dtype, {**dict(zip(names, shape, strict=True)), **dict(zip(columns, one, strict=True))}


@cache
def read_uses() -> Mapping[str, list[dict[str, Any]]]:
    """``uses.toml``: groups by operator."""
    with USES.open("rb") as file:
        found: dict[str, list[dict[str, Any]]] = tomllib.load(file)
    return found


def _tasks(chip: str, operators: frozenset[str] | None, use_shipped: bool) -> Iterator[Task]:
    loaded = load_chip(chip)
    if loaded.core is None:
        raise InputError(f"{chip} has no NeuronCore", operand="chip", value=chip)
    for cores in loaded.logical_core.settings:
        costs = KernelCosts(chip, cores, use_shipped=False)
        grouped: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        for operator, contract in contracts().items():
            for problem, given in allowed(costs, contract) if operators is None or operator in operators else ():
                key = repr(costs.key(contract, problem))
                grouped.setdefault((operator, problem.dtype, key), []).append(given)
        for (operator, dtype, _), together in grouped.items():
            yield Task(chip, cores, operator, dtype, tuple(together), use_shipped)


_store: Store | None = None


def _start(path: str) -> None:
    """A worker: it times many samples, so it compiles its loops."""
    from trnsim.timing.compiled import expect_many

    global _store
    _store = Store(path)
    expect_many()
    # Traces are many objects that live together: looking for cycles among them again and again takes a fifth of a run.
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


@cache
def _costs(chip: str, cores: int, use_shipped: bool) -> KernelCosts:
    """Those of a worker, which reads a chip and what is shipped once."""
    return KernelCosts(chip, cores, _store, use_shipped=use_shipped)


def _do(task: Task) -> bytes:
    error, entries = "", []
    costs = _costs(task.chip, task.cores, task.use_shipped)
    sampler = costs.source.sampler
    made, traced, timed = costs.source.made, sampler.traced, sampler.timed
    try:
        contract = contracts()[task.operator]
        problems = [contract.problem(task.dtype, task.cores, given, costs.generation) for given in task.given]
        found = costs.prepare(contract, problems)
        entries = [entry_of(found, problems[0], repr(costs.key(contract, problems[0])))]
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    done = costs.source.made - made, sampler.traced - traced, sampler.timed - timed
    return msgspec.msgpack.encode(_Done(entries, *done, error))

"""Searches over several processes, or over many machines with Ray: the same result as on one.

A space is cut in parts (``search.split``), each searched whole where there is room; parts come back in their order.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

from trnsim.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    from trnsim.planner.search import Part, Spread, Wanted


def processes(count: int) -> Spread:
    """Over so many processes of this machine.

    Raises:
        InputError: fewer than one.
    """
    if count < 1:
        raise InputError("a search has at least one process", operand="--workers", value=count)

    def spread(work: Callable[[Wanted], Part], tasks: Sequence[Wanted]) -> list[Part]:
        if count == 1 or len(tasks) < 2:
            return [work(task) for task in tasks]
        with ProcessPoolExecutor(min(count, len(tasks))) as pool:
            return list(pool.map(work, tasks))

    return spread


def ray_cluster(address: str = "") -> Spread:
    """Over the machines of a Ray cluster: that of ``address``, or of RAY_ADDRESS, or this machine alone.

    Raises:
        UnsupportedError: Ray is not installed.
        InputError: no such cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise UnsupportedError("searching over machines needs Ray: pip install 'trnsim[ray]'") from error
    if not ray.is_initialized():
        try:
            ray.init(address=address or None, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError) as error:
            raise InputError(f"no Ray cluster at {address}: {error}", operand="--ray", value=address) from error

    def spread(work: Callable[[Wanted], Part], tasks: Sequence[Wanted]) -> list[Part]:
        remote = ray.remote(work)
        found: list[Part] = ray.get([remote.remote(task) for task in tasks])
        return found

    return spread

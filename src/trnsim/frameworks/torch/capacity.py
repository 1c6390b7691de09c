"""What does not fit into HBM: which module and operator it was, and by how much."""

from __future__ import annotations

from collections.abc import Iterable

from trnsim.errors import HardwareError
from trnsim.frameworks.torch.report import MemoryUse
from trnsim.frameworks.torch.stream import Storage, Stream

OVER = ("raise", "report")


def weights_fit(storages: Iterable[Storage], capacity: int, scope: str) -> None:
    """Weights alone.

    Raises:
        HardwareError: they are larger than ``capacity`` bytes, the HBM of ``scope``.
    """
    held, first = 0, None
    for storage in storages:
        if storage.kind != "weight" or storage.died is not None:
            continue
        held += storage.nbytes
        if held > capacity and first is None:
            first = storage
    if first is not None:
        raise HardwareError(
            f"weights of {size(held)} do not fit into {size(capacity)} of HBM ({scope}): {size(held - capacity)} too "
            f"much; the first that does not is {first.name or first.module or 'a weight'}",
            operand="weights",
            value=held,
            limit=capacity,
        )


def step_fits(memory: MemoryUse, stream: Stream, ends_ps: list[float], start_ps: float, graph: int) -> None:
    """What a step needs.

    Args:
        ends_ps: of the calls of ``graph``, which the step runs from ``start_ps`` on.

    Raises:
        HardwareError: more than the capacity.
    """
    if not memory.over_bytes:
        return
    calls = stream.graphs[graph].calls
    over = next(
        (
            when
            for place, when in enumerate(memory.times_ps)
            if when >= start_ps and sum(held[place] for held in memory.bytes.values()) > memory.capacity_bytes
        ),
        memory.peak_ps,
    )
    index = next((i for i in range(len(calls)) if start_ps + ends_ps[i + 1] > over), len(calls) - 1)
    call = calls[index]
    largest = ", ".join(f"{size(count)} of {kind}" for kind, count in memory.at_peak.items() if count)
    raise HardwareError(
        f"{call.module or 'outside of modules'}: {call.operator} does not fit into {size(memory.capacity_bytes)} of "
        f"HBM ({memory.scope}); at its peak the step needs {size(memory.over_bytes)} more: {largest}",
        operand="memory",
        value=memory.peak_bytes,
        limit=memory.capacity_bytes,
    )


def size(count: float) -> str:
    """Bytes as people read them."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} bytes"

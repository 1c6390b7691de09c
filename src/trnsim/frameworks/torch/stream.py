"""What a model does on the chip, as data: calls of aten operators on values, in the order in which they run.

Both ways to capture (graphs of ``torch.compile``, and dispatch over ordinary tensors) make the same stream, and so do
all three depths. A *graph* is the calls of one step; steps that do the same share a graph. A *value* is what a tensor
holds at one time: a tensor that is changed in place is a new value of the same storage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trnsim.operators.cost import OperatorCost

KINDS = ("weight", "gradient", "optimizer", "activation", "cache", "input")
PHASES = ("forward", "recompute", "backward", "optimizer")


@dataclass(slots=True, eq=False)
class Storage:
    """Memory of one or several tensors.

    ``kind`` is one of ``KINDS`` and becomes known late (a tensor that turns out to be a gradient): ask when the stream
    is whole. ``born`` and ``died`` are numbers of calls over the whole run (``Stream.clock``); None: it is still alive.
    ``module`` and ``operator`` are those that made it.
    """

    id: int
    nbytes: int
    kind: str
    born: int
    died: int | None = None
    module: str = ""
    operator: str = ""
    name: str = ""


@dataclass(slots=True, eq=False)
class Value:
    """What a tensor holds.

    ``root`` is the value whose bytes it shows: its own ``id``, or another's for a view. ``producer`` is the ``index``
    of the call in the same graph that wrote these bytes last; -1: they are from before. ``dtype`` is NKI's name of the
    format, torch's where NKI has none.
    """

    id: int
    storage: Storage
    shape: tuple[int, ...]
    dtype: str
    itemsize: int
    root: int
    producer: int

    @property
    def kind(self) -> str:
        return self.storage.kind

    @property
    def elements(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def nbytes(self) -> int:
        return self.elements * self.itemsize


@dataclass(slots=True, eq=False)
class Call:
    """One aten operator (or a kernel of the user).

    ``operator`` is the overload, such as ``aten.mm.default``; ``arguments`` and ``keywords`` are as it was called, with
    a ``Value`` for each tensor; ``inputs`` and ``outputs`` the values among arguments and results in order. ``module``
    is a path such as ``model.layers.3.mlp``; ``line`` the source line outside of torch, ``file.py:12``. ``format`` is
    that of operands of products. ``origin``: in the backward pass, the call of the same graph whose gradient it
    computes, else -1. ``cost`` is known of kernels of the user only.
    """

    index: int
    operator: str
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    module: str
    phase: str
    line: str = ""
    format: str = "bf16"
    origin: int = -1
    cost: OperatorCost | None = None

    @property
    def name(self) -> str:
        """The operator without namespace and overload: ``mm``."""
        parts = self.operator.split(".")
        return parts[1] if len(parts) > 1 else parts[0]

    def argument(self, place: int, name: str, default: Any = None) -> Any:
        """An argument by place or name; ``default`` where it was not given."""
        if len(self.arguments) > place:
            return self.arguments[place]
        return self.keywords.get(name, default)


@dataclass(slots=True, eq=False)
class Graph:
    """The calls of one step; ``first`` is the clock of the first call when it was recorded, ``storages`` are those
    that came while it ran.
    """

    calls: list[Call]
    signature: int
    first: int = 0
    storages: list[Storage] = field(default_factory=list)


@dataclass(slots=True)
class Step:
    """One step: ``name`` (``step``, or what the user gave), the number of its graph, and the clock where it starts."""

    name: str
    graph: int
    start: int


@dataclass(slots=True, eq=False)
class Stream:
    """Everything that ran: graphs, the steps that ran them, and all storages that were alive at some time."""

    graphs: list[Graph] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    storages: list[Storage] = field(default_factory=list)
    clock: int = 0

    @property
    def calls(self) -> int:
        """How many calls ran, repeated steps included."""
        return sum(len(self.graphs[step.graph].calls) for step in self.steps)

"""From tensors to the stream: which storages and values a call reads and writes, and when storages come and go.

Views cost nothing on the chip and are no calls. A step that does what an earlier one did is not kept again.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from trnsim.frameworks.torch.stream import Call, Graph, Step, Storage, Stream, Value
from trnsim.operators.cost import OperatorCost

_OURS = __file__.rpartition("/")[0]
_TORCH = torch.__file__.rpartition("/")[0]

# NKI's names of torch's formats.
DTYPES = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.float8_e4m3fn: "float8_e4m3fn",
    torch.float8_e5m2: "float8_e5m2",
    torch.int8: "int8",
    torch.int16: "int16",
    torch.int32: "int32",
    torch.int64: "int64",
    torch.uint8: "uint8",
    torch.bool: "bool",
}


def dtype_name(dtype: torch.dtype) -> str:
    """NKI's name of a format, torch's where NKI has none."""
    return DTYPES.get(dtype) or str(dtype).removeprefix("torch.")


@dataclass(frozen=True, slots=True)
class Schema:
    """What of an aten operator decides how it is recorded: the arguments that it changes, by place and name."""

    name: str
    changes: tuple[tuple[int, str], ...]

    @classmethod
    def of(cls, func: torch._ops.OpOverload) -> Schema:
        changes = tuple(
            (place, a.name)
            for place, a in enumerate(func._schema.arguments)
            if a.alias_info is not None and a.alias_info.is_write
        )
        return cls(str(func), changes)


@dataclass(slots=True, eq=False)
class _Held:
    """A storage that lives, with what wrote it last: ``root`` value and ``producer`` in graph number ``graph``."""

    storage: Storage
    reference: weakref.ref[Any]
    root: int = -1
    producer: int = -1
    graph: int = -1


class Capture:
    """Records calls into ``stream``; the calls of the step that runs are ``calls``."""

    def __init__(self) -> None:
        self.stream = Stream()
        self.calls: list[Call] = []
        self.started = 0
        self._held: dict[int, _Held] = {}
        self._values: dict[tuple[Any, ...], Value] = {}
        self._count = 0
        self._graphs: dict[int, list[int]] = {}
        self._kinds: list[Any] = []
        self.number = 0
        self.last = -1
        self.canonical: Callable[[torch.Tensor], torch.Tensor] | None = None
        """The tensor that stands for one: without data, the fake of a real one."""
        self.live_bytes = 0
        self.peak_bytes = 0
        self._fresh: list[Storage] = []
        self._storages = 0

    def storage(self, tensor: torch.Tensor, kind: str, module: str = "", operator: str = "", name: str = "") -> Storage:
        """The storage of a tensor; ``kind`` and the rest are of one that was not seen before."""
        return self._hold(tensor, kind, module, operator, name).storage

    def storages(self) -> list[Storage]:
        """All that were seen, those of the step that runs included."""
        return [*self.stream.storages, *self._fresh]

    def call(
        self,
        schema: Schema,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        result: Any,
        module: str,
        phase: str,
        format: str,
        origin: int = -1,
        cost: OperatorCost | None = None,
    ) -> int:
        """Record what has run; the index of the call, or of the one that made what a view shows (-1: none)."""
        inputs: list[Value] = []
        index, name = len(self.calls), schema.name
        before = tuple([self._recorded(a, inputs) for a in args])
        named = {key: self._recorded(a, inputs) for key, a in kwargs.items()} if kwargs else {}
        results = [result] if isinstance(result, torch.Tensor) else _tensors(result)
        there = {value.storage.id for value in inputs}
        outputs: list[Value] = []
        if schema.changes:
            changed: list[torch.Tensor] = []
            for place, key in schema.changes:
                changed += _tensors(args[place] if place < len(args) else kwargs.get(key))
            held = [(tensor, self._hold(tensor, "activation", module, name)) for tensor in changed]
            there = {one.storage.id for _, one in held}
        else:
            held = []
        for tensor in results:
            one = self._hold(tensor, "activation", module, name)
            if one.storage.id not in there:
                held.append((tensor, one))
        if not held and (not inputs or results):
            self.last = inputs[0].producer if inputs else -1
            return self.last
        for tensor, one in held:
            one.root, one.producer, one.graph = -1, index, self.number
            outputs.append(self._value(tensor, one))
        for value in inputs:
            storage = value.storage
            if storage.kind == "weight" and not storage.module:
                storage.module = module
        values = tuple(inputs), tuple(outputs)
        self.calls.append(Call(index, name, before, named, *values, module, phase, _user_line(), format, origin, cost))
        self.stream.clock += 1
        self.last = index
        return index

    def mark(self, name: str = "step") -> None:
        """End a step: the calls since the last mark. Nothing happens where there are none."""
        if not self.calls:
            return
        self._carried()
        signature, shape = self._signature()
        graph = next((g for g in self._graphs.get(signature, ()) if self._same(g, shape)), None)
        if graph is None:
            graph = len(self.stream.graphs)
            self.stream.graphs.append(Graph(self.calls, signature, self.started, self._fresh))
            self._kinds.append(shape)
            self._graphs.setdefault(signature, []).append(graph)
            self.stream.storages += self._fresh
        else:
            # What comes and goes within a step that is known is that of its first run.
            known = self.stream.graphs[graph]
            end = known.first + len(known.calls)
            there = known.storages if len(known.storages) == len(self._fresh) else [None] * len(self._fresh)
            for storage, like in zip(self._fresh, there, strict=True):
                if storage.died is None and (like is None or like.died is None or like.died > end):
                    self.stream.storages.append(storage)
        self._fresh = []
        self.stream.steps.append(Step(name, graph, self.started))
        self.calls, self._values = [], {}
        self.number += 1
        self.started = self.stream.clock

    def _carried(self) -> None:
        """What one step made and another one reads, numbers apart, is a cache."""
        for call in self.calls:
            for value in call.inputs:
                storage = value.storage
                before = value.producer < 0 and storage.born < self.started
                if before and storage.kind == "activation" and value.dtype in _FLOATS and value.shape:
                    storage.kind = "cache"
            if call.name in _GROWS and call.inputs and call.inputs[0].kind == "cache":
                for value in call.outputs:
                    value.storage.kind = "cache"

    def _same(self, graph: int, shape: Any) -> bool:
        return bool(self._kinds[graph] == shape)

    def _signature(self) -> tuple[int, Any]:
        """What a graph does, but for the numbers of its values: operators, shapes, and which call made each input."""
        first: dict[int, int] = {}

        def source(value: Value) -> int:
            return value.producer if value.producer >= 0 else -1 - first.setdefault(value.root, len(first))

        shape = [
            (
                call.operator,
                call.module,
                call.phase,
                call.format,
                call.origin,
                tuple([(v.shape, v.dtype, source(v)) for v in call.inputs]),
                tuple([(v.shape, v.dtype) for v in call.outputs]),
            )
            for call in self.calls
        ]
        return hash(tuple(shape)), shape

    def _hold(self, tensor: torch.Tensor, kind: str, module: str, operator: str, name: str = "") -> _Held:
        memory = (tensor if self.canonical is None else self.canonical(tensor)).untyped_storage()
        key = memory._cdata
        held = self._held.get(key)
        if held is None:
            if kind == "input" and isinstance(tensor, torch.nn.Parameter):
                kind = "weight"
            storage = Storage(self._storages, memory.nbytes(), kind, self.stream.clock, None, module, operator, name)
            self._storages += 1
            self._fresh.append(storage)
            self.live_bytes += storage.nbytes
            self.peak_bytes = max(self.peak_bytes, self.live_bytes)

            def gone(_: Any, key: int = key, storage: Storage = storage) -> None:
                storage.died = self.stream.clock
                self.live_bytes -= storage.nbytes
                self._held.pop(key, None)

            held = self._held[key] = _Held(storage, weakref.ref(memory, gone))
        return held

    def _value(self, tensor: torch.Tensor, held: _Held) -> Value:
        dtype = tensor.dtype
        key = (held.storage.id, held.root, tensor.shape, tensor.storage_offset(), tensor.stride(), dtype)
        value = self._values.get(key)
        if value is None:
            number = self._count
            self._count += 1
            if held.root < 0:
                held.root = number
                key = (held.storage.id, number, *key[2:])
            producer = held.producer if held.graph == self.number else -1
            shape = tuple(tensor.shape)
            value = Value(number, held.storage, shape, dtype_name(dtype), dtype.itemsize, held.root, producer)
            self._values[key] = value
        return value

    def _recorded(self, item: Any, inputs: list[Value]) -> Any:
        if isinstance(item, torch.Tensor):
            value = self._value(item, self._hold(item, "input", "", ""))
            inputs.append(value)
            return value
        if isinstance(item, list | tuple):
            return tuple([self._recorded(one, inputs) for one in item])
        return item


def _tensors(result: Any) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, list | tuple):
        return [t for one in result for t in _tensors(one)]
    return []


_FLOATS = frozenset(("float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"))
# What puts something into a cache, or makes a longer one.
_GROWS = frozenset(("cat", "copy_", "index_copy", "index_copy_", "slice_scatter", "index_put_"))
_inside: dict[str, bool] = {}  # by file


def _user_line() -> str:
    """Where the call comes from: the innermost frame that is neither torch's nor ours."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        inside = _inside.get(file)
        if inside is None:
            inside = _inside[file] = file.startswith((_OURS, _TORCH, "<"))
        if not inside:
            return f"{file}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def kinds(tensors: Iterable[torch.Tensor], capture: Capture, kind: str) -> None:
    """Say what storages are."""
    for tensor in tensors:
        capture.storage(tensor, kind).kind = kind

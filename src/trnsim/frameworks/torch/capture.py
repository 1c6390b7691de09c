"""From tensors to the stream: which storages and values a call reads and writes, and when storages come and go.

Views cost nothing on the chip and are no calls. A step that does what an earlier one did is not kept again.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
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


_SILENT = ("profiler.", "prim.")
_Place = tuple[tuple[int, ...], int, tuple[int, ...], torch.dtype]


_FORMS: dict[torch.dtype, tuple[str, int]] = {}  # name and bytes of a number


def _form(dtype: torch.dtype) -> tuple[str, int]:
    return _FORMS.setdefault(dtype, (dtype_name(dtype), dtype.itemsize))


def dtype_name(dtype: torch.dtype) -> str:
    """NKI's name of a format, torch's where NKI has none."""
    return DTYPES.get(dtype) or str(dtype).removeprefix("torch.")


@dataclass(frozen=True, slots=True)
class Schema:
    """What of an aten operator decides how it is recorded.

    ``changes``: the arguments that it changes, by place and name. ``view``: it shows its one tensor in another way.
    ``silent``: it is no work and is not recorded. ``func``: what it is of, which lives as long.
    """

    name: str
    changes: tuple[tuple[int, str], ...]
    view: bool = False
    silent: bool = False
    func: Any = None

    @classmethod
    def of(cls, func: torch._ops.OpOverload) -> Schema:
        name, arguments = str(func), func._schema.arguments
        changes = tuple(
            (place, a.name) for place, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write
        )
        tensors = [place for place, a in enumerate(arguments) if "Tensor" in str(a.type)]
        one = tensors == [0] and str(arguments[0].type) == "Tensor"
        shares = any(r.alias_info is not None for r in func._schema.returns)
        return cls(name, changes, one and shares and not changes, name.startswith(_SILENT), func)


class _Held(weakref.ref[Any]):
    """A storage that lives, with what wrote it last: ``root`` value and ``producer`` in graph number ``graph``.

    ``value`` is the last that was seen of it in graph number ``seen``, at ``place`` (shape, offset, strides, format);
    ``others`` are those at other places.
    """

    __slots__ = ("graph", "key", "others", "place", "producer", "root", "seen", "storage", "value")

    key: int
    storage: Storage
    root: int
    producer: int
    graph: int
    seen: int
    place: _Place | None
    value: Value
    others: dict[_Place, Value] | None


class Capture:
    """Records calls into ``stream``; the calls of the step that runs are ``calls``."""

    def __init__(self) -> None:
        self.stream = Stream()
        self.calls: list[Call] = []
        self.started = 0
        self._held: dict[int, _Held] = {}
        self._count = 0
        self._graphs: dict[int, list[int]] = {}
        self._kinds: list[Any] = []
        self._before: list[Value | Call] = []
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
        index, name, number = len(self.calls), schema.name, self.number
        single = isinstance(result, torch.Tensor)
        if schema.view and single and self.canonical is None and not kwargs:
            shown = self._hold(args[0], "input", "", "")
            if result.untyped_storage()._cdata == shown.key:
                self.last = shown.producer if shown.graph == number else -1
                return self.last
        before: list[Any] = []
        for item in args:
            if isinstance(item, torch.Tensor):
                value = self._value(item, self._hold(item, "input", "", ""))
                inputs.append(value)
                before.append(value)
            elif isinstance(item, (list, tuple)):
                before.append(self._recorded(item, inputs))
            else:
                before.append(item)
        named = {key: self._recorded(a, inputs) for key, a in kwargs.items()} if kwargs else {}
        results = [result] if single else _tensors(result)
        held: list[tuple[torch.Tensor, _Held]] = []
        if schema.changes:
            changed: list[torch.Tensor] = []
            for place, key in schema.changes:
                changed += _tensors(args[place] if place < len(args) else kwargs.get(key))
            held = [(tensor, self._hold(tensor, "activation", module, name)) for tensor in changed]
            if len(changed) != 1 or not single or result is not changed[0]:
                own = {one.storage.id for _, one in held}
                made = [(tensor, self._hold(tensor, "activation", module, name)) for tensor in results]
                held += [pair for pair in made if pair[1].storage.id not in own]
        else:
            known = self._storages
            for tensor in results:
                one = self._hold(tensor, "activation", module, name)
                storage = one.storage
                if storage.id >= known or all(value.storage is not storage for value in inputs):
                    held.append((tensor, one))
        if not held and (not inputs or results):
            self.last = inputs[0].producer if inputs else -1
            return self.last
        outputs: list[Value] = []
        for tensor, one in held:
            one.root, one.producer, one.graph, one.place, one.others = -1, index, number, None, None
            outputs.append(self._value(tensor, one))
        for value in inputs:
            storage = value.storage
            if storage.kind == "weight" and not storage.module:
                storage.module = module
            if value.producer < 0:
                self._before.append(value)
        values = tuple(inputs), tuple(outputs)
        call = Call(index, name, tuple(before), named, *values, module, phase, _user_line(), format, origin, cost)
        self.calls.append(call)
        if inputs and _grows(name):
            self._before.append(call)
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
        self.calls, self._before = [], []
        self.number += 1
        self.started = self.stream.clock

    def _carried(self) -> None:
        """What one step made and another one reads, numbers apart, is a cache."""
        for item in self._before:
            if isinstance(item, Call):
                if item.inputs[0].kind == "cache":
                    for value in item.outputs:
                        value.storage.kind = "cache"
                continue
            storage = item.storage
            if storage.kind == "activation" and storage.born < self.started and item.dtype in _FLOATS and item.shape:
                storage.kind = "cache"

    def _same(self, graph: int, shape: Any) -> bool:
        return bool(self._kinds[graph] == shape)

    def _signature(self) -> tuple[int, Any]:
        """What a graph does, but for the numbers of its values: operators, shapes, and which call made each input."""
        first: dict[int, int] = {}
        shape: list[Any] = []
        for call in self.calls:
            inputs, outputs = call.inputs, call.outputs
            shape += (
                call.operator, call.module, call.phase, call.format, call.origin, len(inputs), len(outputs)
            )  # fmt: skip
            for v in inputs:
                made = v.producer
                shape += (v.shape, v.dtype, made if made >= 0 else -1 - first.setdefault(v.root, len(first)))
            for v in outputs:
                shape += (v.shape, v.dtype)
        whole = tuple(shape)
        return hash(whole), whole

    def _hold(self, tensor: torch.Tensor, kind: str, module: str, operator: str, name: str = "") -> _Held:
        memory = (tensor if self.canonical is None else self.canonical(tensor)).untyped_storage()
        key = memory._cdata
        held = self._held.get(key)
        if held is None:
            if kind == "input" and isinstance(tensor, torch.nn.Parameter):
                kind = "weight"
            nbytes = memory.nbytes()
            storage = Storage(self._storages, nbytes, kind, self.stream.clock, None, module, operator, name)
            self._storages += 1
            self._fresh.append(storage)
            self.live_bytes += nbytes
            self.peak_bytes = max(self.peak_bytes, self.live_bytes)
            held = self._held[key] = _Held(memory, self._gone)
            held.key, held.storage = key, storage
            held.root = held.producer = held.graph = held.seen = -1
        return held

    def _gone(self, held: Any) -> None:
        storage = held.storage
        storage.died = self.stream.clock
        self.live_bytes -= storage.nbytes
        self._held.pop(held.key, None)

    def _value(self, tensor: torch.Tensor, held: _Held) -> Value:
        dtype = tensor.dtype
        place = (tensor.shape, tensor.storage_offset(), tensor.stride(), dtype)
        if held.seen != self.number:
            held.seen, held.place, held.others = self.number, None, None
        elif held.place == place:
            return held.value
        others = held.others
        value = others.get(place) if others is not None else None
        if value is None:
            number = self._count
            self._count += 1
            if held.root < 0:
                held.root = number
            producer = held.producer if held.graph == self.number else -1
            form = _FORMS.get(dtype) or _form(dtype)
            value = Value(number, held.storage, tuple(place[0]), *form, held.root, producer)
        if held.place is not None:
            if others is None:
                others = held.others = {}
            others[held.place] = held.value
        held.place, held.value = place, value
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


@cache
def _grows(operator: str) -> bool:
    return operator.split(".")[1 if "." in operator else 0] in _GROWS


_inside: dict[str, bool] = {}  # by file
_lines: dict[tuple[int, int], tuple[Any, str]] = {}  # by code, which is kept, and place in it


def _user_line() -> str:
    """Where the call comes from: the innermost frame that is neither torch's nor ours."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        file = code.co_filename
        inside = _inside.get(file)
        if inside is None:
            inside = _inside[file] = file.startswith((_OURS, _TORCH, "<"))
        if not inside:
            key = (id(code), frame.f_lasti)
            known = _lines.get(key)
            if known is None:
                known = _lines[key] = (code, f"{file}:{frame.f_lineno}")
            return known[1]
        frame = frame.f_back
    return ""


def kinds(tensors: Iterable[torch.Tensor], capture: Capture, kind: str) -> None:
    """Say what storages are."""
    for tensor in tensors:
        capture.storage(tensor, kind).kind = kind

"""Updates of an optimiser by layer, whether it calls weight by weight, in lists (``foreach``) or all at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from trnsim.frameworks.torch.stream import Call, Value


def block(module: str) -> str:
    """The layer of a module: its path up to its first number; the path itself where it has none."""
    names = module.split(".")
    numbers = [place for place, name in enumerate(names) if name.isdigit()]
    return ".".join(names[: numbers[0] + 1]) if numbers else module


def by_layer(calls: Iterable[Call]) -> Iterator[tuple[str, Call]]:
    """The calls of updates, each with its layer; a call on lists is one call for each layer."""
    calls = list(calls)
    groups = _Groups()
    for call in calls:
        for together in _together(call):
            groups.join([v.storage.id for v in together if v.shape])
    layers: dict[int, str] = {}
    for call in calls:
        for value in (*call.outputs, *call.inputs):
            if value.kind == "weight":
                layers.setdefault(groups.of(value.storage.id), block(value.storage.module))
    order = {layer: place for place, layer in enumerate(layers.values())}
    for call in calls:
        parts: dict[str, list[Value]] = {}
        for value in (*call.inputs, *call.outputs):
            if value.shape:
                parts.setdefault(layers.get(groups.of(value.storage.id), ""), []).append(value)
        if len(parts) <= 1:
            yield next(iter(parts), ""), call
            continue
        for layer in sorted(parts, key=lambda name: order.get(name, -1)):
            own = {id(value) for value in parts[layer]}
            yield (
                layer,
                replace(
                    call,
                    inputs=tuple(v for v in call.inputs if id(v) in own),
                    outputs=tuple(v for v in call.outputs if id(v) in own),
                ),
            )


def _together(call: Call) -> Iterator[list[Value]]:
    """Values that are of one weight: those at one place of lists, or all."""
    lists = [a for a in (*call.arguments, *call.keywords.values()) if isinstance(a, tuple) and _tensors(a)]
    if not lists:
        yield [*call.inputs, *call.outputs]
        return
    length = max(len(items) for items in lists)
    results = [call.outputs] if len(call.outputs) == length else []
    for place in range(length):
        yield [items[place] for items in (*lists, *results) if len(items) == length]


def _tensors(items: tuple[object, ...]) -> bool:
    return bool(items) and all(isinstance(item, Value) for item in items)


class _Groups:
    """Sets of storages."""

    def __init__(self) -> None:
        self._parents: dict[int, int] = {}

    def of(self, number: int) -> int:
        root = number
        while self._parents.get(root, root) != root:
            root = self._parents[root]
        while self._parents.get(number, number) != root:
            self._parents[number], number = root, self._parents.get(number, number)
        return root

    def join(self, numbers: list[int]) -> None:
        for number in numbers[1:]:
            self._parents[self.of(number)] = self.of(numbers[0])

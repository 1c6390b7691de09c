"""What the calls of a graph are together: attention, norms, rotary embeddings, losses, chains of element-wise work.

Patterns are found on the dataflow: an anchor (the softmax of an attention, the ``rsqrt`` of a norm) and what leads to
it and from it. A *piece* is the calls of one pattern. A call of the backward pass belongs to the piece that computes
the gradient of the piece of its ``origin``. What is in no pattern is a chain of element-wise calls, or a piece alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from trnsim.frameworks.torch.operators import RANDOM, kind, plain
from trnsim.frameworks.torch.stream import Call, Graph, Value
from trnsim.frameworks.torch.updates import by_layer

# Kinds of calls that stay in SBUF with what they follow.
LIGHT = frozenset(("elementwise", "move", "reduction"))
# Phases that compute results, not gradients.
AHEAD = frozenset(("forward", "recompute"))
_WINDOW = 128  # calls between two of a chain, at most
_NEAR = 16  # calls between an anchor and what it belongs to, at most


@dataclass(slots=True, eq=False)
class Piece:
    """Calls that are one operator. ``forward``: the piece whose gradient it computes; ``facts``: sizes that its pattern
    saw, by the names that contracts have.
    """

    kind: str
    calls: list[Call]
    forward: Piece | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def first(self) -> Call:
        return self.calls[0]


class Pieces:
    """The pieces of a graph; ``of[i]`` is that of call ``i``."""

    def __init__(self, graph: Graph) -> None:
        self.calls = graph.calls
        self.of: list[Piece | None] = [None] * len(self.calls)
        self.users: list[list[int]] = [[] for _ in self.calls]
        for call in self.calls:
            for producer in {v.producer for v in call.inputs}:
                if producer >= 0:
                    self.users[producer].append(call.index)
        self._updates: list[Piece] = []
        self._kinds = [kind(c.operator) for c in self.calls]
        self._constants()
        forward = [c for c in self.calls if c.phase in AHEAD]
        for call in forward:
            self._anchored(call)
        for call in forward:
            if self.of[call.index] is None and self._kinds[call.index] not in LIGHT:
                self._alone(call)
        self._chains(forward)
        self._backward()
        self._optimizer()
        self.all = self._ordered()

    def trains(self, piece: Piece) -> bool:
        """Whether the backward pass computes a gradient of it."""
        return any(self.calls[user].phase == "backward" for call in piece.calls for user in self.users[call.index])

    # What is no work

    def _constants(self) -> None:
        """What is computed of no data is folded by the compiler; what initialises weights is before any step."""
        free, inputs = Piece("free", []), Piece("free", [])
        for call in self.calls:
            found = self._kinds[call.index]
            if found == "made":
                self._add(inputs if plain(call.operator).startswith("rand") else free, call)
            elif (
                (call.inputs and self._folded(call, free))
                or self._loads(call)
                or (found == "host" and all(self._of_host(v) for v in call.inputs))
            ):
                self._add(free, call)

    def _folded(self, call: Call, free: Piece) -> bool:
        if call.phase == "optimizer" or self._kinds[call.index] not in LIGHT or plain(call.operator) in RANDOM:
            return False
        return all((v.producer >= 0 and self.of[v.producer] is free) or not v.elements for v in call.inputs)

    def _of_host(self, value: Value) -> bool:
        """A number of the host, such as the count of an optimiser's steps."""
        return not value.shape and value.kind in ("optimizer", "input")

    def _loads(self, call: Call) -> bool:
        if call.phase != "forward" or not call.outputs:
            return False
        if not all(v.kind == "weight" for v in call.outputs):
            return False
        own = {v.storage.id for v in call.outputs}
        return all(v.storage.id in own or v.kind in ("weight", "input") or v.producer < 0 for v in call.inputs)

    # Patterns of the forward pass

    def _anchored(self, call: Call) -> None:
        if self.of[call.index] is not None:
            return
        found, name = self._kinds[call.index], plain(call.operator)
        if found == "attention":
            self._fused_attention(call)
        elif found == "softmax":
            self._softmax(call)
        elif name == "topk":
            self._router(call)
        elif found == "norm":
            self._piece("layernorm" if name == "native_layer_norm" else "rmsnorm", [call])
        elif name == "rsqrt":
            self._rms(call)
        elif name == "cat" and len(call.inputs) == 2:
            self._rope(call)
        elif name == "_log_softmax":
            self._loss(call)

    def _fused_attention(self, call: Call) -> None:
        query, key, value = call.inputs[:3]
        before = [c for v in (query, key, value) for c in self._moved(v)]
        batch, heads, queries, depth = query.shape
        facts = {
            "heads": batch * heads,
            "kv_heads": max(batch * heads // self._groups(key, heads), 1),
            "queries": queries,
            "keys": key.shape[2],
            "depth": depth,
            "width": value.shape[3],
            "sequences": batch,
        }
        causal = bool(next((a for a in call.arguments[3:6] if a is True), False) or call.keywords.get("is_causal"))
        mask = call.keywords.get("attn_mask") or next((v for v in call.inputs[3:] if len(v.shape) >= 2), None)
        facts["causal"] = int(causal or (mask is not None and queries > 1 and self._compares(mask)))
        made = self._producer(mask) if mask is not None else None
        if made is not None and self._kinds[made.index] in LIGHT and len(self.users[made.index]) <= 2:
            before.append(made)
        self._piece("attention", [*before, call], facts)

    def _groups(self, key: Value, heads: int) -> int:
        """How many queries share a key: by its heads, or by how often a smaller tensor was repeated."""
        times = heads // key.shape[1] if len(key.shape) == 4 and key.shape[1] else 1
        for call in self._moved(key):
            source = call.inputs[0]
            held = source.storage.nbytes // source.itemsize
            if held and source.elements > held:
                times *= source.elements // held
        return max(times, 1)

    def _moved(self, value: Value) -> list[Call]:
        """Copies that only this call reads (repeated heads, another layout, a cache that is empty), nearest first."""
        found: list[Call] = []
        while value.producer >= 0 and len(found) < 4:
            call = self.calls[value.producer]
            name = plain(call.operator)
            users = [u for u in self.users[call.index] if self.calls[u].phase == call.phase]
            alone = len(users) == 1 and self.of[call.index] is None
            whole = [v for v in call.inputs if v.elements]
            if not alone or name not in ("clone", "cat", "_to_copy", "expand_copy", "mul") or len(whole) != 1:
                break
            found.append(call)
            value = whole[0]
        return found

    def _compares(self, mask: Value) -> bool:
        """Whether a mask comes from comparing positions."""
        todo, seen = [mask.producer], set[int]()
        while todo:
            index = todo.pop()
            if index < 0 or index in seen or len(seen) > 64:
                continue
            seen.add(index)
            call = self.calls[index]
            if plain(call.operator) in ("tril", "triu", "le", "ge", "lt", "gt"):
                return True
            todo += [v.producer for v in call.inputs]
        return False

    def _softmax(self, call: Call) -> None:
        scores, before = self._back(call, "product")
        values, after = self._ahead(call, "product")
        if scores is None or values is None or len(scores.inputs) < 2:
            return
        query, key = scores.inputs[-2:]
        value = values.inputs[-1]
        heads = query.shape[0] if len(query.shape) == 3 else query.elements // (query.shape[-1] * query.shape[-2])
        shared = self._groups(key, heads) if len(key.shape) != 4 else 1
        for moved in self._moved(key):
            source = moved.inputs[0]
            held = source.storage.nbytes // source.itemsize
            if held and source.elements > held:
                shared = max(shared, source.elements // held)
        masks = [v for c in before for v in c.inputs[1:] if len(v.shape) >= 2]
        queries = query.shape[-2]
        facts = {
            "heads": heads,
            "kv_heads": max(heads // shared, 1),
            "queries": queries,
            "keys": call.outputs[0].shape[-1],
            "depth": query.shape[-1],
            "width": values.outputs[0].shape[-1],
            "causal": int(queries > 1 and any(self._compares(m) or self._folded_mask(m) for m in masks)),
            "sequences": call.outputs[0].shape[0] if len(call.outputs[0].shape) == 4 else 1,
        }
        ends = [c for v in (query, key, value) for c in self._moved(v)]
        self._piece("attention", [*ends, scores, *before, call, *after, values], facts)

    def _folded_mask(self, mask: Value) -> bool:
        return mask.producer >= 0 and self._compares(mask)

    def _router(self, call: Call) -> None:
        product, between = self._back(call, "product")
        if product is None:
            self._piece("other", [call])
            return
        rows, width = product.inputs[-2].shape[-2:]
        facts = {"tokens": rows, "width": width, "experts": product.outputs[0].shape[-1]}
        facts["k"] = call.outputs[0].shape[-1]
        self._piece("router", [product, *between, call], facts)

    def _rms(self, call: Call) -> None:
        mean, before = self._back(call, "reduction")
        if mean is None or not mean.inputs:
            return
        square = self._producer(mean.inputs[0])
        if square is None or plain(square.operator) not in ("pow", "mul", "square"):
            return
        source = square.inputs[0]
        calls = [square, mean, *before, call]
        todo = list(self.users[call.index])
        while todo:
            after = self.calls[todo.pop()]
            name = plain(after.operator)
            if after.phase != call.phase or self.of[after.index] is not None or after in calls:
                continue
            wide = [v for v in after.inputs if v.kind != "weight" and v.elements == source.elements]
            scaling = all(v.kind == "weight" or v.elements <= source.elements for v in after.inputs) and len(wide) == 1
            if name in ("mul", "_to_copy", "div") and after.outputs and scaling:
                calls.append(after)
                by_weight = any(v.kind == "weight" or len(v.shape) == 1 for v in after.inputs)
                if not by_weight:
                    todo += self.users[after.index]
        cast = self._producer(source)
        if cast is not None and plain(cast.operator) == "_to_copy" and self.of[cast.index] is None:
            users = {self.calls[u] for u in self.users[cast.index] if self.calls[u].phase == call.phase}
            if users <= set(calls):
                calls.append(cast)
        width = source.shape[-1]
        self._piece("rmsnorm", calls, {"rows": max(source.elements // width, 1), "width": width})

    def _rope(self, call: Call) -> None:
        turned = self._producer(call.inputs[0])
        if turned is None or plain(turned.operator) != "neg" or turned.inputs[0].root != call.inputs[1].root:
            return
        calls, total = [turned, call], None
        for user in self.users[call.index]:
            sine = self.calls[user]
            if plain(sine.operator) != "mul" or sine.phase != call.phase:
                continue
            calls.append(sine)
            for index in self.users[user]:
                after = self.calls[index]
                if plain(after.operator) == "add" and after.phase == call.phase:
                    total = after
        if total is None:
            return
        for value in total.inputs:
            other = self._producer(value)
            if other is not None and other not in calls and plain(other.operator) == "mul":
                calls.append(other)
        shape = total.outputs[0].shape
        depth = shape[-1]
        # [sequences, heads, tokens, depth], as attention takes it
        heads = shape[-3] if len(shape) >= 3 else 1
        tokens = max(total.outputs[0].elements // (heads * depth), 1)
        self._piece("rope", [*calls, total], {"tokens": tokens, "heads": heads, "depth": depth})

    def _loss(self, call: Call) -> None:
        calls = [call]
        for user in self.users[call.index]:
            after = self.calls[user]
            if plain(after.operator).startswith("nll_loss") and after.phase == call.phase:
                calls.append(after)
        cast = self._producer(call.inputs[0])
        if cast is not None and plain(cast.operator) in ("_to_copy", "clone") and self.of[cast.index] is None:
            forward = [u for u in self.users[cast.index] if self.calls[u].phase == call.phase]
            if len(forward) == 1:
                calls.insert(0, cast)
        shape = call.outputs[0].shape
        facts = {"rows": max(call.outputs[0].elements // shape[-1], 1), "vocabulary": shape[-1]}
        self._piece("cross_entropy" if len(calls) > 1 else "softmax", calls, facts)

    # Walking

    def _producer(self, value: Value) -> Call | None:
        return self.calls[value.producer] if value.producer >= 0 else None

    def _back(self, call: Call, wanted: str) -> tuple[Call | None, list[Call]]:
        """The nearest call of a kind before this one, and the light ones between."""
        between: list[Call] = []
        todo = [v.producer for v in call.inputs]
        seen: set[int] = set()
        while todo and len(seen) < _NEAR:
            index = todo.pop(0)
            if index < 0 or index in seen or self.of[index] is not None:
                continue
            seen.add(index)
            found = self._kinds[index]
            if found == wanted:
                return self.calls[index], [c for c in between if self._leads(index, c)]
            if found in LIGHT or (found == "softmax" and wanted == "product"):
                between.append(self.calls[index])
                todo += [v.producer for v in self.calls[index].inputs]
        return None, []

    def _leads(self, start: int, call: Call) -> bool:
        """Whether a call uses, over a few others, what ``start`` made."""
        todo, near = [call], 0
        while todo and near < 2 * _NEAR:
            near += 1
            for value in todo.pop().inputs:
                if value.producer == start:
                    return True
                if value.producer > start:
                    todo.append(self.calls[value.producer])
        return False

    def _ahead(self, call: Call, wanted: str) -> tuple[Call | None, list[Call]]:
        """The nearest call of a kind after this one, and the light ones between."""
        between: list[Call] = []
        todo = list(self.users[call.index])
        seen: set[int] = set()
        while todo and len(seen) < _NEAR:
            index = todo.pop(0)
            after = self.calls[index]
            if index in seen or after.phase != call.phase or self.of[index] is not None:
                continue
            seen.add(index)
            if self._kinds[index] == wanted:
                return after, between
            if self._kinds[index] in LIGHT:
                between.append(after)
                todo += self.users[index]
        return None, []

    # The rest

    def _alone(self, call: Call) -> None:
        found, name = self._kinds[call.index], plain(call.operator)
        if name == "embedding":
            found = "embedding"
        elif found == "gather" and any(v.dtype == "bool" for v in call.inputs[1:]):
            found = "host"
        self._piece(found, [call])

    def _chains(self, calls: Iterable[Call]) -> None:
        """Light calls that follow each other on the dataflow, unless other work between needs one and makes another."""
        open_: set[int] = set()
        for call in calls:
            if self.of[call.index] is not None:
                continue
            found = Piece("elementwise", [])
            self._add(found, call)
            for value in call.inputs:
                piece = self.of[value.producer] if value.producer >= 0 else None
                if piece is None or piece is found or id(piece) not in open_ or piece.first.phase != call.phase:
                    continue
                if call.index - piece.calls[-1].index > _WINDOW or self._between(piece, found):
                    continue
                open_.discard(id(found))
                for other in found.calls:
                    self.of[other.index] = piece
                piece.calls = sorted(piece.calls + found.calls, key=lambda c: c.index)
                found = piece
            open_.add(id(found))

    def _between(self, first: Piece, last: Piece) -> bool:
        """Whether a third piece needs one of two and makes what the other needs."""
        start = min(first.calls[0].index, last.calls[0].index)
        todo: list[Piece] = []
        seen = {id(first), id(last)}

        def add(calls: Iterable[Call]) -> None:
            for call in calls:
                for value in call.inputs:
                    made = self.of[value.producer] if value.producer >= start else None
                    if made is not None and id(made) not in seen:
                        seen.add(id(made))
                        todo.append(made)

        add((*first.calls, *last.calls))
        own = {call.index for call in (*first.calls, *last.calls)}
        while todo:
            piece = todo.pop()
            if any(value.producer in own for call in piece.calls for value in call.inputs):
                return True
            add(piece.calls)
        return False

    def _backward(self) -> None:
        gradients: dict[int, Piece] = {}
        rest: list[Call] = []
        for call in self.calls:
            if call.phase != "backward" or self.of[call.index] is not None:
                continue
            origin = self.of[call.origin] if call.origin >= 0 else None
            found = self._kinds[call.index]
            if origin is None or origin.kind in ("product", "free", "gather", "move", "host", "other", "scatter"):
                if found in LIGHT:
                    rest.append(call)
                else:
                    self._alone(call)
                    piece = self.of[call.index]
                    if piece is not None:
                        piece.forward = origin
                continue
            piece = gradients.get(id(origin))
            if piece is None:
                piece = gradients[id(origin)] = Piece(f"{origin.kind}_backward", [], origin, origin.facts)
            self._add(piece, call)
        among = _Same(rest)
        self._chains([c for c in self.calls if c.phase == "backward" and (self.of[c.index] or c in among)])

    def _optimizer(self) -> None:
        """Updates, one piece for all weights of a layer."""
        later = [c for c in self.calls if c.phase == "optimizer" and self.of[c.index] is None]
        numbers = [c for c in later if all(not v.shape for v in (*c.inputs, *c.outputs))]
        for call in numbers:
            self._add(Piece("free", []), call)
        layers: dict[str, Piece] = {}
        for layer, call in by_layer(c for c in later if self.of[c.index] is None):
            self._add(layers.setdefault(layer, Piece("optimizer", [], None, {"module": layer})), call)
        self._updates = list(layers.values())

    def _piece(self, kind_: str, calls: Iterable[Call], facts: dict[str, Any] | None = None) -> None:
        piece = Piece(kind_, [], None, facts or {})
        for call in sorted(dict.fromkeys(calls), key=lambda c: c.index):
            if self.of[call.index] is None:
                self._add(piece, call)

    def _add(self, piece: Piece, call: Call) -> None:
        piece.calls.append(call)
        self.of[call.index] = piece

    def _ordered(self) -> list[Piece]:
        found: dict[int, Piece] = {}
        for piece in (*(p for p in self.of if p is None or p.kind != "optimizer"), *self._updates):
            if piece is not None and piece.kind != "free":
                found.setdefault(id(piece), piece)
        for piece in found.values():
            piece.calls.sort(key=lambda c: c.index)
        return list(found.values())


class _Same:
    """Whether a call is among others, by identity."""

    def __init__(self, calls: Iterable[Call]) -> None:
        self._ids = {id(call) for call in calls}

    def __contains__(self, call: object) -> bool:
        return id(call) in self._ids


def outside(calls: Iterable[Call]) -> tuple[list[Value], list[Value]]:
    """Values that calls read from elsewhere, and all that they make, each once."""
    made = {call.index for call in calls}
    reads: dict[int, Value] = {}
    writes: dict[int, Value] = {}
    for call in calls:
        for value in call.inputs:
            if value.producer not in made:
                reads.setdefault(value.root, value)
        for value in call.outputs:
            writes[value.root] = value
    return list(reads.values()), list(writes.values())

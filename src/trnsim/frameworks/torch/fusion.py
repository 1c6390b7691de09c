"""Pieces into regions: what a Neuron graph runs as one, with intermediate results in SBUF.

A norm goes with the products that read it; products around an activation are an MLP, with the norm before and the
residual after; element-wise work goes with the product whose result it takes. A *fallback* is a piece that no kernel
stands for.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from trnsim.errors import UnsupportedError
from trnsim.frameworks.torch.operators import kind, plain
from trnsim.frameworks.torch.patterns import AHEAD, Piece, Pieces, outside
from trnsim.frameworks.torch.pricing import Price, Pricer, combined, together
from trnsim.frameworks.torch.stream import Call, Graph, Value
from trnsim.frameworks.torch.uses import Used, gate, product, uses

_FALLBACKS = {"other": "device", "cumsum": "device", "topk": "device", "host": "host"}
_WEIGHTED = ("norm_matmul", "matmul")


@dataclass(slots=True, eq=False)
class Region:
    """Pieces that run as one, with their price; ``fallback``: ``device`` or ``host`` where no kernel stands for them.

    ``unfused_ps``: every call of its own, results through HBM.
    """

    kind: str
    pieces: list[Piece]
    price: Price = field(default_factory=Price)
    uses: tuple[Used, ...] = ()
    unfused_ps: float = 0.0
    fallback: str = ""
    why: str = ""

    @property
    def calls(self) -> list[Call]:
        return [call for piece in self.pieces for call in piece.calls]

    @property
    def first(self) -> int:
        return self.pieces[0].first.index

    @property
    def module(self) -> str:
        """What its calls have in common: the longest path that is the start of all."""
        first = self.pieces[0]
        if first.kind == "optimizer":
            return str(first.facts["module"])
        return common([call.module for piece in self.pieces for call in piece.calls if call.module])


def fuse(graph: Graph, pricer: Pricer) -> tuple[list[Region], Pieces]:
    """The regions of a graph in order, priced."""
    pieces = Pieces(graph)
    regions = _Joining(pieces).regions()
    for region in regions:
        _price(region, pieces, pricer)
    regions.sort(key=lambda r: r.first)
    return regions, pieces


class _Joining:
    """Which pieces run together."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self._of: dict[int, Region] = {}

    def regions(self) -> list[Region]:
        found = [Region(p.kind, [p]) for p in self._pieces.all]
        for region in found:
            self._of[id(region.pieces[0])] = region
        for piece in self._pieces.all:
            if piece.kind == "elementwise" and piece.first.phase in AHEAD:
                self._mlp(piece)
        for piece in self._pieces.all:
            if piece.kind in ("rmsnorm", "layernorm"):
                self._after_norm(piece)
        for piece in self._pieces.all:
            if piece.kind not in ("elementwise", "optimizer"):
                self._after(piece)
        return list({id(r): r for r in self._of.values()}.values())

    def _mlp(self, activation: Piece) -> None:
        """Products before and after an activation."""
        before = self._made_by(activation)
        after = self._read_by(activation)
        into = [p for p in before if p.kind == "product"]
        if not into or len(into) > 2 or len(before) != len(into) or len(after) != 1 or after[0].kind != "product":
            return
        if not _activates(activation) or any(self._of[id(p)].kind != "product" for p in (*into, *after)):
            return
        self._join("gated_mlp" if gate(activation) else "mlp", [*into, activation, after[0]])

    def _after_norm(self, norm: Piece) -> None:
        readers = [p for p in self._read_by(norm) if p.kind in ("product", "router")]
        regions = {id(self._of[id(p)]): self._of[id(p)] for p in readers}
        if not regions:
            return
        if len(regions) == 1 and next(iter(regions.values())).kind in ("gated_mlp", "mlp"):
            region = next(iter(regions.values()))
            self._join(region.kind, [norm, *region.pieces])
            return
        alone = [r for r in regions.values() if r.kind in ("product", "router")]
        if alone:
            self._join("norm_matmul", [norm, *(p for r in alone for p in r.pieces)])

    def _after(self, piece: Piece) -> None:
        """The residual, bias or scale that follows a product, and what a gradient is added to."""
        region = self._of[id(piece)]
        if region.kind == "norm_matmul" or piece.kind in _FALLBACKS or piece.kind.startswith("kernel"):
            return  # a kernel of the user is closed
        readers = self._read_by(piece)
        if len(readers) != 1 or readers[0].kind != "elementwise" or self._of[id(readers[0])].kind != "elementwise":
            return
        if self._of[id(readers[0])] is region or readers[0].first.phase != piece.first.phase:
            return
        result = max((v.elements for v in piece.calls[-1].outputs), default=0)
        if any(v.elements > result for call in readers[0].calls for v in call.outputs):
            return
        # Nothing that the chain needs may come after the product and need the product itself.
        for call in readers[0].calls:
            for value in call.inputs:
                made = self._pieces.of[value.producer] if value.producer > piece.calls[-1].index else None
                if made is not None and made is not readers[0] and made.kind != "free":
                    return
        self._join(region.kind, [*region.pieces, readers[0]])

    def _made_by(self, piece: Piece) -> list[Piece]:
        found: dict[int, Piece] = {}
        for value in outside(piece.calls)[0]:
            made = self._pieces.of[value.producer] if value.producer >= 0 else None
            if made is not None and made.kind != "free":
                found[id(made)] = made
        return list(found.values())

    def _read_by(self, piece: Piece) -> list[Piece]:
        """Pieces of the same phase that read what a piece makes."""
        found: dict[int, Piece] = {}
        for call in piece.calls:
            for user in self._pieces.users[call.index]:
                reader = self._pieces.of[user]
                if reader is None or reader is piece or reader.kind == "free":
                    continue
                if self._pieces.calls[user].phase == piece.first.phase:
                    found[id(reader)] = reader
        return list(found.values())

    def _join(self, kind: str, pieces: list[Piece]) -> None:
        joined = Region(kind, sorted(pieces, key=lambda p: p.first.index))
        for piece in pieces:
            self._of[id(piece)] = joined


def _activates(piece: Piece) -> bool:
    names = {plain(call.operator) for call in piece.calls}
    return bool(names & {"silu", "gelu", "relu", "tanh", "sigmoid", "erf", "square", "mish", "leaky_relu", "hardswish"})


def _price(region: Region, pieces: Pieces, pricer: Pricer) -> None:
    known = [call.cost for piece in region.pieces for call in piece.calls if call.cost is not None]
    if known:
        region.price = combined([
            (Price(c.time_ps, c.hbm_bytes, c.flops, dict(c.busy_ps), c.support, c.reason, True), 1.0) for c in known
        ])  # fmt: skip
        region.unfused_ps = region.price.time_ps
        return
    if len(region.pieces) == 1 and region.pieces[0].kind in _FALLBACKS:
        _fall_back(region, pricer, _FALLBACKS[region.pieces[0].kind], _reason(region.pieces[0]))
        return
    try:
        whole = _whole(region, pieces, pricer)
        if whole is not None:
            region.price, region.uses = pricer.use(whole), (whole,)
        else:
            found = _joined(region, pieces)
            prices = [pricer.use(u) for u in found]
            region.uses = tuple(found)
            region.price = together(prices, _saved(region, pieces) if len(region.pieces) > 1 else 0.0)
    except UnsupportedError as error:
        _fall_back(region, pricer, "device", str(error).splitlines()[0])
    region.unfused_ps = max(unfused(region.calls, pricer), region.price.time_ps)


def _uses(piece: Piece, pieces: Pieces) -> list[Used]:
    return uses(piece, trains=pieces.trains(piece))


def _joined(region: Region, pieces: Pieces) -> list[Used]:
    """The uses of a region; products that share their left side are one, with the columns of all."""
    found: list[Used] = []
    shared: dict[tuple[object, ...], int] = {}
    for piece in region.pieces:
        some = _uses(piece, pieces)
        plainly = piece.kind == "product" and plain(piece.first.operator) in ("mm", "addmm", "matmul", "linear")
        if plainly and len(some) == 1 and some[0].operator == "matmul" and len(region.pieces) > 1:
            left = [v for v in piece.first.inputs if v.shape][-2]
            sizes = some[0].sizes
            key = (left.root, some[0].dtype, sizes["m"], sizes["k"], some[0].times)
            if left.kind != "weight" and key in shared:
                place = shared[key]
                wider = {**found[place].sizes, "n": found[place].sizes["n"] + sizes["n"]}
                found[place] = replace(found[place], sizes=wider)
                continue
            shared[key] = len(found)
        found += some
    return found


def _whole(region: Region, pieces: Pieces, pricer: Pricer) -> Used | None:
    """An MLP of which nothing inside is needed later is one kernel."""
    if region.kind != "gated_mlp" or len(region.pieces) != 4:
        return None
    if any(pieces.trains(piece) for piece in region.pieces):
        return None
    first, last = region.pieces[0], region.pieces[-1]
    gated = next((g for g in map(gate, region.pieces) if g is not None and g), None)
    if gated is None or first.kind != "product" or last.kind != "product":
        return None
    into, out = product(first.first, first.first.format)[-1], product(last.first, last.first.format)[-1]
    sizes = {"tokens": into.sizes["m"], "width": into.sizes["k"], "hidden": into.sizes["n"], "outputs": out.sizes["n"]}
    used = Used("gated_mlp", into.dtype, sizes | {"activation": gated[2]})
    try:
        pricer.use(used)
    except UnsupportedError:
        return None
    return used


def _saved(region: Region, pieces: Pieces) -> float:
    """Bytes that need not cross HBM: results that another piece of the region reads, and writes nobody else needs."""
    inside = {call.index for call in region.calls}
    saved = 0.0
    for piece in region.pieces:
        own = {call.index for call in piece.calls}
        for call in piece.calls:
            users = set(pieces.users[call.index]) - own
            if not users & inside or not call.outputs:
                continue
            readers = {id(pieces.of[user]) for user in users & inside}
            saved += call.outputs[0].nbytes * (len(readers) + (not users - inside))
    return saved


def _fall_back(region: Region, pricer: Pricer, place: str, why: str) -> None:
    reads, writes = outside(region.calls)
    moved = float(sum(_bytes(v) for v in (*reads, *writes)))
    price = pricer.host(moved) if place == "host" else pricer.moving(moved)
    region.price = Price(price.time_ps, price.hbm_bytes, 0.0, price.busy_ps, "assumed", why)
    region.kind, region.fallback, region.why = "fallback", place, why
    region.unfused_ps = region.price.time_ps


def _reason(piece: Piece) -> str:
    name = piece.first.operator
    if piece.kind == "host":
        return f"{name} decides by data: the host has to see it"
    return f"no kernel for {name}: its bytes over HBM, as element-wise work"


def _bytes(value: Value) -> int:
    return min(value.nbytes, value.storage.nbytes) if value.storage.nbytes else value.nbytes


def unfused(calls: list[Call], pricer: Pricer) -> float:
    """Picoseconds of calls one by one, results through HBM."""
    total = 0.0
    for call in calls:
        if call.cost is not None:
            total += call.cost.time_ps
            continue
        shapes = tuple([(v.shape, v.itemsize, v.kind == "weight") for v in (*call.inputs, *call.outputs)])
        key = (call.operator, call.format, call.phase, shapes)
        found = pricer.alone.get(key)
        if found is None:
            found = pricer.alone[key] = _alone(call, pricer)
        total += found
    return total


def _alone(call: Call, pricer: Pricer) -> float:
    name = kind(call.operator)
    if name == "made":
        return 0.0
    if name == "product":
        try:
            return sum(pricer.use(used).time_ps for used in product(call, call.format))
        except UnsupportedError:
            pass
    reads, writes = outside([call])
    return pricer.moving(float(sum(_bytes(v) for v in (*reads, *writes)))).time_ps


def common(modules: list[str]) -> str:
    """The longest path that is the start of all."""
    if not modules:
        return ""
    parts = [module.split(".") for module in modules]
    found: list[str] = []
    for names in zip(*parts, strict=False):
        if len(set(names)) != 1:
            break
        found.append(names[0])
    return ".".join(found) or modules[0].split(".")[0]

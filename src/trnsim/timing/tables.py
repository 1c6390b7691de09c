"""What the classes of a trace cost, as columns: one row a *variant*, an instruction class on one engine.

Cost functions are evaluated here, once for each class and candidate engine. Work on several queues becomes a chain of
variants, each starting when the one before it is done.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from trnsim.errors import InternalError, UnsupportedError
from trnsim.isa.work import Transfer, Work

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from trnsim.hardware.timing_constants import Timing
    from trnsim.machine.trace import InstructionClass

QUEUES = ("tensor", "vector", "scalar", "gpsimd", "sync", "static in", "static out")
ENGINES = QUEUES[:5]
TENSOR, VECTOR, SCALAR, GPSIMD, SYNC, STATIC_IN, STATIC_OUT = range(7)
QUEUE_COUNT = len(QUEUES)
# Candidates a class may have.
CANDIDATES = 4

NO_DMA, HARDWARE, SOFTWARE, STATIC = range(4)
_DGE = {"hwdge": HARDWARE, "swdge": SOFTWARE, "static": STATIC}
DGE_NAMES = {number: name for name, number in _DGE.items()}

READS, UPDATES, WRITES = range(3)
_ROLES = {"read": READS, "update": UPDATES, "write": WRITES}

SBUF_PORT, PSUM_PORT = 1, 2


@dataclass
class Variant:
    """One row of the variant table. Times in picoseconds, the others counts and numbers in the other tables."""

    queue: int
    opcode: int
    busy: int = 0
    issue: int = 0
    """The part of ``busy`` in which TensorE streams nothing."""
    latency: int = 0
    load: int = 0
    table: int = 0
    dge: int = NO_DMA
    bytes: int = 0
    lane_low: int = 0
    lane_high: int = 0
    lanes_high: int = 0
    descriptors: int = 0
    interval: int = 0
    """Of a DMA with software descriptors: from the trigger of the one before to its own."""
    service: int = 0
    """The same of their descriptors being ready."""
    first: int = 0
    """Start of a DMA's trigger to its first packet."""
    lead: int = 0
    """What a DMA engine that was idle takes longer."""
    hbm_read: int = 0
    hbm_write: int = 0
    flops: int = 0
    ports: int = 0
    hold: int = 0
    """How long it holds them: while the tensor streams, not while the engine fills and drains."""
    chain: int = -1


def _strided_load(klass: InstructionClass, load: Work, timing: Timing) -> int:
    """How long the loads of a stationary matrix whose columns lie far apart keep each other: SBUF's port reads it at
    half rate, and a multiply of few rows no longer hides it. nki-library's ``mlp_tkg``, which loads such matrices for
    its down projection, takes 60 ns more for each than with contiguous ones. Reading float32 is two of the three times
    that its load takes (and all of a transposition's), so a pass of a published convolution in float32 is told as 232
    ns, and measured as 239.
    """
    forms = [klass.operands[i].form for i in load.reads]
    if all(form.step_bytes <= timing.vector.wide_step_bytes for form in forms):
        return 0
    whole = load.latency_ps - timing.tensor.load_tail_ps
    once = min(whole, timing.tensor.load(max(form.elements for form in forms)))
    return whole + once * max(1, max(form.dtype.itemsize for form in forms) // 2)


_costed: tuple[WeakKeyDictionary[InstructionClass, tuple[Timing, ClassTables, list[int]]], ...] = (
    WeakKeyDictionary(), WeakKeyDictionary(),
)  # fmt: skip


@dataclass
class ClassTables:
    """Columns of the variants, and for each class its candidates and operands.

    ``one_ring``: hardware DMAs whose engine the kernel leaves open are all on SyncE's ring.
    """

    one_ring: bool = False

    variants: list[Variant] = field(default_factory=list)
    opcodes: list[str] = field(default_factory=list)
    function_tables: list[str] = field(default_factory=lambda: [""])
    candidates: list[list[int]] = field(default_factory=list)
    roles: list[tuple[int, ...]] = field(default_factory=list)
    is_load: list[bool] = field(default_factory=list)
    is_fill: list[bool] = field(default_factory=list)
    is_product: list[bool] = field(default_factory=list)
    by_shape: list[bool] = field(default_factory=list)
    _numbers: dict[int, int] = field(default_factory=dict)
    _columns: dict[str, NDArray[np.int64]] = field(default_factory=dict)

    def add(self, klass: InstructionClass, timing: Timing) -> int:
        """Number of ``klass`` in these tables, its costs evaluated on first sight."""
        number = self._numbers.get(id(klass))
        if number is None:
            number = self._numbers[id(klass)] = len(self.candidates)
            found = self._candidates(klass, timing)
            memories = sorted((o.role, o.form.memory) for o in klass.operands)
            self.candidates.append(found)
            self.roles.append(tuple(_ROLES[o.role] for o in klass.operands))
            self.is_load.append(
                all(self.variants[v].dge != NO_DMA for v in found)
                and memories == [("read", "hbm"), ("write", "sbuf")]
                and not any(o.form.indirect for o in klass.operands)
            )
            self.is_fill.append(klass.name == "nki.isa.memset" and memories == [("write", "psum")])
            self.is_product.append(klass.is_matmul)
            self.by_shape.append(klass.name == "nki.isa.tensor_scalar")
        return number

    def column(self, name: str) -> NDArray[np.int64]:
        """One field of all variants."""
        known = self._columns.get(name)
        if known is None or len(known) != len(self.variants):
            known = self._columns[name] = np.array([getattr(v, name) for v in self.variants], np.int64)
        return known

    def candidate_columns(self) -> NDArray[np.int64]:
        """Candidates of all classes, ``CANDIDATES`` a class, padded with -1."""
        table = np.full((len(self.candidates), CANDIDATES), -1, np.int64)
        for i, found in enumerate(self.candidates):
            table[i, : len(found)] = found
        return table.ravel()

    def _candidates(self, klass: InstructionClass, timing: Timing) -> list[int]:
        """Variants of ``klass``: worked out once for a class and constants, in tables of their own, and copied."""
        cache = _costed[self.one_ring]
        known = cache.get(klass)
        if known is None or known[0] is not timing:
            own = ClassTables(self.one_ring)
            known = cache[klass] = (timing, own, own._evaluated(klass, timing))
        _, own, found = known
        opcodes = [self._opcode(name) for name in own.opcodes]
        tables = [self._table(name) for name in own.function_tables]
        first = len(self.variants)
        for row in own.variants:
            copy = replace(row, table=tables[row.table], chain=row.chain + first if row.chain >= 0 else -1)
            copy.opcode = opcodes[row.opcode]
            self.variants.append(copy)
        return [first + number for number in found]

    def _evaluated(self, klass: InstructionClass, timing: Timing) -> list[int]:
        found: list[int] = []
        for engine in klass.engines:
            pieces = tuple(klass.instruction.cost(timing, klass, engine))
            if not pieces:
                raise InternalError(f"{klass.name} has no work", instruction=klass.name)
            for queue in _queues(klass, pieces[0], engine, timing, self.one_ring):
                # Where the two exclude each other on SBUF, work moved to GpSimdE only makes VectorE wait.
                if timing.exclusive_ports and queue == GPSIMD and any(self.variants[v].queue == VECTOR for v in found):
                    continue
                if not any(self.variants[v].queue == queue for v in found):
                    found.append(self._chain(klass, pieces, engine, queue, timing))
        if not found:
            raise UnsupportedError(f"{klass.name} has no engine", instruction=klass.name)
        return found[:CANDIDATES]

    def add_pieces(
        self, klass: InstructionClass, pieces: Sequence[Work | Transfer], engine: str, queue: int, timing: Timing
    ) -> int:
        """Number of the first variant of ``pieces``, the work of a class or a part of it, on a queue that is given."""
        return self._chain(klass, pieces, engine, queue, timing)

    def _chain(
        self, klass: InstructionClass, pieces: Sequence[Work | Transfer], engine: str, queue: int, timing: Timing
    ) -> int:
        """Rows for ``pieces``, consecutive work of one queue merged; the number of the first."""
        rows: list[Variant] = []
        strided = 0
        for index, piece in enumerate(pieces):
            if isinstance(piece, Transfer):
                where = queue if index == 0 else _queues(klass, piece, engine, timing, self.one_ring)[0]
                rows.append(self._transfer(klass, piece, where, timing))
                continue
            where = _queue(piece.queue or engine)
            last = rows[-1] if rows and rows[-1].queue == where and rows[-1].dge == NO_DMA else None
            if piece.background:
                strided = _strided_load(klass, piece, timing)
            if piece.background and last is not None:
                continue  # hidden behind the pass before it
            if piece.background:
                rows.append(Variant(where, -1, load=piece.busy_ps))
            elif last is None:
                rows.append(Variant(where, -1))
                last = rows[-1]
            if last is not None and not piece.background:
                behind = max(0, strided - piece.busy_ps) if where == TENSOR else 0
                last.latency = last.busy + behind + piece.latency_ps
                last.busy += behind + piece.busy_ps
                last.hold += behind + (piece.streams_ps or piece.busy_ps)
                last.issue += timing.tensor.issue_ps if where == TENSOR else 0
                last.flops += piece.flops
                last.table = last.table or self._table(piece.table)
                if last.opcode < 0:
                    last.opcode = self._opcode(piece.opcode)
        for row in rows:
            row.ports = _ports(klass, row.queue) if row.dge == NO_DMA else 0
            if row.opcode < 0:  # a load without a multiply
                row.opcode, row.busy, row.latency, row.load = self._opcode("LDWEIGHTS"), row.load, row.load, 0
        first = len(self.variants)
        for offset, row in enumerate(rows[:-1]):
            row.chain = first + offset + 1
        self.variants.extend(rows)
        return first

    def _transfer(self, klass: InstructionClass, piece: Transfer, queue: int, timing: Timing) -> Variant:
        dma, dge = timing.dma, _dge(piece, timing)
        count = max(1, sum(c for _, c in piece.descriptors))
        time = sum(ps * c for ps, (_, c) in zip(piece.engine_ps, piece.descriptors, strict=True))
        low, high = divmod(count, dma.engines)
        issue = {HARDWARE: dma.hardware_issue(count), SOFTWARE: dma.software_issue_ps, STATIC: 0}[dge]
        reads = {klass.operands[i].form.memory for i in piece.reads}
        writes = {klass.operands[i].form.memory for i in piece.writes}

        def lane(packets: int) -> int:
            return dma.transfer(packets * time // count, packets * piece.bytes // count, static=dge == STATIC)

        return Variant(
            queue,
            self._opcode(piece.opcode),
            busy=issue,
            latency=issue,
            dge=dge,
            bytes=piece.bytes,
            lane_low=lane(low) if low else 0,
            lane_high=lane(low + 1),
            lanes_high=high,
            descriptors=dma.ring_use(count, store="hbm" in writes and "hbm" not in reads),
            interval=dma.software_interval(count) if dge == SOFTWARE else 0,
            service=dma.software_service(piece.bytes) if dge == SOFTWARE else 0,
            first=dma.first_packet(DGE_NAMES[dge], issue, from_hbm="hbm" in reads),
            lead=dma.read_start(piece.descriptors[0][0]) if "hbm" in reads and piece.descriptors else 0,
            hbm_read=piece.bytes if "hbm" in reads else 0,
            hbm_write=piece.bytes if "hbm" in writes else 0,
        )

    def _opcode(self, name: str) -> int:
        if name not in self.opcodes:
            self.opcodes.append(name)
        return self.opcodes.index(name)

    def _table(self, name: str) -> int:
        if name not in self.function_tables:
            self.function_tables.append(name)
        return self.function_tables.index(name)


def _queues(klass: InstructionClass, piece: Work | Transfer, engine: str, timing: Timing, one_ring: bool) -> list[int]:
    """The queues that may hold the first piece of an instruction given to ``engine``."""
    if isinstance(piece, Work):
        return [_queue(piece.queue or engine)]
    dge = _dge(piece, timing)
    if dge == STATIC:
        inward = any(klass.operands[i].form.memory != "hbm" for i in piece.writes)
        return [STATIC_IN if inward else STATIC_OUT]
    if dge == SOFTWARE:
        return [GPSIMD]
    wanted = piece.queue or (engine if engine in ("sync", "scalar") else "")
    if wanted:
        return [_queue(wanted)]
    # As in public profiles of trn2: a store that waits for its data holds up no load.
    return [SYNC if one_ring or any(klass.operands[i].form.memory != "hbm" for i in piece.writes) else SCALAR]


def _queue(name: str) -> int:
    if name not in ENGINES:
        raise InternalError(f"no engine {name!r}: known are {', '.join(ENGINES)}")
    return ENGINES.index(name)


def _dge(piece: Transfer, timing: Timing) -> int:
    return _DGE[timing.dma.default_dge if piece.dge == "auto" else piece.dge]


def _ports(klass: InstructionClass, queue: int) -> int:
    """Ports of SBUF and PSUM that the instruction holds while its engine is busy."""
    if queue not in (VECTOR, SCALAR, GPSIMD):
        return 0
    memories: set[Any] = {o.form.memory for o in klass.operands}
    sbuf = SBUF_PORT if "sbuf" in memories and queue != SCALAR else 0
    psum = PSUM_PORT if "psum" in memories and queue != GPSIMD else 0
    return sbuf | psum

"""Synthetic programs: a trace built by hand, with instructions whose costs are given as numbers."""

from __future__ import annotations

from functools import cache
from itertools import count

import numpy as np

from trnsim.errors import Location
from trnsim.hardware.load import load_chip
from trnsim.hardware.timing_constants import load_timing
from trnsim.isa.work import Transfer, Work
from trnsim.machine.form import Form
from trnsim.machine.trace import InstructionClass, OperandClass, StorageInfo, Trace
from trnsim.numerics import as_dtype
from trnsim.timing import WAIT_REASONS

_numbers = count()


@cache
def chip(name="trn2"):
    return load_chip(name)


def timing(name="trn2"):
    return load_timing(chip(name))


class Instruction:
    """Stands for a definition in ``trnsim.isa``: a name and a cost."""

    def __init__(self, name, cost):
        self.name, self._cost = name, cost

    def cost(self, timing, klass, engine):
        return self._cost(timing, klass, engine)


class Program:
    """Builds a trace: declare tiles, call engines."""

    def __init__(self, core=0):
        self.trace = Trace(core=core, generation="v3", chip="trn2", classes=[], lines=[Location("<unknown>", 0)])
        self._classes = {}
        self.region = 0

    def tile(self, name, shape, memory="sbuf", dtype="float32", address=None, kind="local"):
        kind_of = as_dtype(dtype)
        partitions = shape[0]
        row = kind_of.itemsize
        for n in shape[1:] if memory != "hbm" else shape[-1:]:
            row *= n
        if memory == "hbm":
            partitions = 1
            for n in shape[:-1]:
                partitions *= n
        info = StorageInfo(
            len(self.trace.storages), name, memory, dtype, tuple(shape), partitions, row, address, kind, False,
            len(self.trace), 0,
        )  # fmt: skip
        self.trace.storages.append(info)
        return info

    def view(self, info, rows=None, columns=None, step=1):
        """Part of a two-dimensional tile: (storage, start, offset, form)."""
        kind = as_dtype(info.dtype)
        r0, r1 = rows or (0, info.shape[0])
        c0, c1 = columns or (0, info.row_bytes // kind.itemsize)
        width = -(-(c1 - c0) // step)
        pitch = info.row_bytes // kind.itemsize
        if info.memory == "hbm":
            form = Form.of("hbm", kind, (r1 - r0, width), (pitch, step))
            return info.id, 0, r0 * info.row_bytes + c0 * kind.itemsize, form
        form = Form.of(info.memory, kind, (r1 - r0, width), (1, step), start=r0)
        return info.id, r0, c0 * kind.itemsize, form

    def emit(self, name, cost, operands, engines, key, line=0, rendezvous=None):
        """Append an instruction; ``operands`` are (role, storage or view)."""
        views = [(role, x if isinstance(x, tuple) else self.view(x)) for role, x in operands]
        signature = (key, engines, tuple((role, v[3].id) for role, v in views))
        klass = self._classes.get(signature)
        trace = self.trace
        if klass is None:
            klass = InstructionClass(
                Instruction(name, cost), "v3", {},
                tuple(OperandClass(str(i), role, v[3]) for i, (role, v) in enumerate(views)), engines, next(_numbers),
            )  # fmt: skip
            self._classes[signature] = len(trace.classes), klass
            trace.classes.append(klass)
            number = len(trace.classes) - 1
        else:
            number, klass = klass
        meeting = -1
        if rendezvous is not None:
            meeting = len(trace.rendezvous)
            trace.rendezvous.append((rendezvous,))
        first = len(trace.operand_rows) // 4
        row = len(trace)
        trace.instruction_rows.extend((number, line, 0, first, self.region, meeting))
        for _, (storage, start, offset, form) in views:
            trace.operand_rows.extend((storage, start, offset, form.id))
        return row

    def work(
        self,
        engine,
        reads=(),
        writes=(),
        updates=(),
        busy=1_000,
        latency=None,
        load=0,
        table="",
        line=0,
        rendezvous=None,
    ):
        """A piece of work of ``busy`` picoseconds on one of the ``engine``s."""
        latency = busy if latency is None else latency
        engines = (engine,) if isinstance(engine, str) else tuple(engine)

        def cost(timing, klass, engine):
            pieces = [Work("", "LOAD", load, load, background=True)] if load else []
            return (*pieces, Work("", "WORK", busy, latency, table=table))

        operands = [("read", x) for x in reads] + [("write", x) for x in writes] + [("update", x) for x in updates]
        return self.emit("work", cost, operands, engines, (busy, latency, load, table), line, rendezvous)

    def matmul(self, dst, stationary, moving, add=True, line=0):
        """A bfloat16 or float32 nc_matmul with the constants of the chip."""

        def cost(timing, klass, engine):
            t = timing.tensor
            wide = klass.operands[1].form.dtype == "float32"
            rows = klass.operands[2].form.elements
            cycles, passes = (t.float32_cycles_per_row, t.float32_passes) if wide else (1, 1)
            one = t.multiply(rows, cycles_per_row=cycles)
            columns = t.load(128)
            load = Work("tensor", "LDWEIGHTS", columns - t.load_lead_ps, columns + t.load_tail_ps, background=True)
            return (load, Work("tensor", "MATMUL", one, one + t.tail_ps, flops=2 * 128 * 128 * rows)) * passes

        operands = [("update" if add else "write", dst), ("read", stationary), ("read", moving)]
        return self.emit("matmul", cost, operands, ("tensor",), "matmul", line)

    def copy(self, dst, src, engine=("vector",), line=0):
        def cost(timing, klass, engine):
            t = timing.engine(engine)
            n = klass.operands[0].form.elements
            return (Work("", "COPY", t.interval(n), t.duration(n)),)

        return self.emit("copy", cost, [("write", dst), ("read", src)], tuple(engine), "copy", line)

    def dma(self, dst, src, dge="auto", queue="", line=0):
        def cost(timing, klass, engine):
            size, number = min((o.form.runs() for o in klass.operands), key=lambda x: x[0])
            pieces = timing.dma.split(size, number)
            return (
                Transfer(
                    klass.operands[0].form.bytes, pieces, tuple(timing.dma.packet(b) for b, _ in pieces), dge=dge,
                    queue=queue, reads=(1,), writes=(0,),
                ),
            )  # fmt: skip

        return self.emit("dma", cost, [("write", dst), ("read", src)], ("dma",), ("dma", dge, queue), line)


def events(timeline, name, core=0):
    """(row, start, end, done) of a track's events, in picoseconds."""
    track = next(t.index for t in timeline.tracks if t.name == name and t.core == core)
    e = timeline.events
    mine = np.flatnonzero(e.track == track)
    return [tuple(int(c[i]) for c in (e.instruction, e.start, e.end, e.done)) for i in mine]


def waits(timeline, name, core=0):
    """(reason, length) of an engine's waits in order."""
    track = next(t.index for t in timeline.tracks if t.name == name and t.core == core)
    w = timeline.waits
    return [(WAIT_REASONS[w.reason[i]], int(w.end[i] - w.start[i])) for i in np.flatnonzero(w.track == track)]


def tiled_matmul(k, m, n, hoist=False):
    """The NKI tutorial's tiled float32 matmul."""
    p = Program()
    lhs, rhs = p.tile("lhsT", (k, m), "hbm", kind="input"), p.tile("rhs", (k, n), "hbm", kind="input")
    out = p.tile("out", (m, n), "hbm", kind="output")
    for i in range(m // 128):
        left = {}
        if hoist:
            for c in range(k // 128):
                left[c] = p.tile("lhsT_tile", (128, 128))
                p.dma(left[c], p.view(lhs, (c * 128, c * 128 + 128), (i * 128, i * 128 + 128)), line=1)
        for j in range(n // 512):
            acc = p.tile("acc", (128, 512), "psum")
            right = {}
            for c in range(k // 128):
                if not hoist:
                    left[c] = p.tile("lhsT_tile", (128, 128))
                    p.dma(left[c], p.view(lhs, (c * 128, c * 128 + 128), (i * 128, i * 128 + 128)), line=1)
                right[c] = p.tile("rhs_tile", (128, 512))
                p.dma(right[c], p.view(rhs, (c * 128, c * 128 + 128), (j * 512, j * 512 + 512)), line=2)
                if not hoist:
                    p.matmul(acc, left[c], right[c], add=c > 0, line=3)
            if hoist:
                for c in range(k // 128):
                    p.matmul(acc, left[c], right[c], add=c > 0, line=3)
            res = p.tile("res", (128, 512))
            p.copy(res, acc, ("vector", "scalar"), line=4)
            p.dma(p.view(out, (i * 128, i * 128 + 128), (j * 512, j * 512 + 512)), res, line=5)
    p.trace.lines = [Location("matmul.py", x) for x in range(6)]
    return p.trace

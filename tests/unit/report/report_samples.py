"""A made-up kernel call with the attributes of a real one: a tiled matmul on engines that run in order and wait."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from trnsim.errors import Finding, Location
from trnsim.report.call import KernelCall

WAIT_REASONS = [
    "end of program",
    "DMA",
    "semaphore of VectorE",
    "semaphore of TensorE",
    "PSUM bank",
    "ring full",
    "not used",
]
ENGINES = ["tensor", "vector", "scalar", "gpsimd", "sync"]
RINGS = 8
SOURCE = '''"""A tiled matmul."""
import nki.isa as nisa
import nki.language as nl


def nki_matmul_tiled_(lhsT, rhs, result):
    for m in nl.affine_range(M // TILE_M):
        for n in nl.affine_range(N // TILE_N):
            res_psum = nl.zeros((TILE_M, TILE_N), nl.float32, buffer=nl.psum)
            for k in nl.affine_range(K // TILE_K):
                lhsT_tile = nl.load(lhsT[k * TILE_K:(k + 1) * TILE_K, m * TILE_M:(m + 1) * TILE_M])
                rhs_tile = nl.load(rhs[k * TILE_K:(k + 1) * TILE_K, n * TILE_N:(n + 1) * TILE_N])
                res_psum += nl.matmul(lhsT_tile[...], rhs_tile[...], transpose_x=True)
            res_sb = nl.copy(res_psum, dtype=result.dtype)
            res_gelu = nl.gelu(res_sb)  # <activation> & "quotes" </script>
            nl.store(result[m * TILE_M:(m + 1) * TILE_M, n * TILE_N:(n + 1) * TILE_N], value=res_gelu)
'''


class DType(str):
    """Stands in for trnsim.numerics.DType."""

    itemsize = 4
    __slots__ = ()


@dataclass
class Timeline:
    chip: str
    schedule: str
    total_ps: int
    spread_ps: int
    tracks: list
    events: SimpleNamespace
    waits: SimpleNamespace
    opcodes: list
    memory: list
    totals: SimpleNamespace
    support: str = "calibrated"


@dataclass
class _Machine:
    """Engines and rings that run their queues in order; a thing starts when all that it needs is done."""

    tracks: list
    events: list = field(default_factory=list)
    waits: list = field(default_factory=list)
    free: dict = field(default_factory=dict)

    def run(self, track, opcode, row, length, needs=(), *, latency=0, size=0, reason=0):
        ready, releaser = 0, -1
        for event in needs:
            if self.events[event][5] > ready:
                ready, releaser = self.events[event][5], event
        before = self.free.get(track, 0)
        start = max(before, ready)
        event = len(self.events)
        if start > before:
            self.waits.append((track, before, start, reason, event, releaser))
        self.events.append((track, opcode, row, start, start + length, start + length + latency, size))
        self.free[track] = start + length
        return event


def _form(memory, *shape):
    return SimpleNamespace(memory=memory, dtype=DType("float32"), shape=shape, strides=(1,) * len(shape))


def _klass(name, *operands):
    described = [SimpleNamespace(name=n, role=role, form=0) for n, role in operands]
    return SimpleNamespace(instruction=SimpleNamespace(name=name), operands=described, attributes=())


FORMS = [_form("hbm", 128, 512), _form("sbuf", 128, 512), _form("sbuf", 128, 128), _form("psum", 128, 512)]
CLASSES = [
    _klass("nki.isa.dma_copy", ("dst", "write"), ("src", "read")),
    _klass("nki.isa.nc_matmul", ("dst", "update"), ("stationary", "read"), ("moving", "read")),
    _klass("nki.isa.tensor_copy", ("dst", "write"), ("src", "read")),
    _klass("nki.isa.activation", ("dst", "write"), ("data", "read")),
]
NAMES = ["lhsT", "rhs", "result", "lhsT_tile", "rhs_tile", "res_psum", "res_sb", "res_gelu"]
MEMORIES = ["hbm", "hbm", "hbm", "sbuf", "sbuf", "psum", "sbuf", "sbuf"]
# opcode number: class, source line, operands (storage, form)
OPCODES = ["LOAD_LHS", "LOAD_RHS", "MATMUL", "COPY", "ACTIVATE", "STORE", "SEMAPHORE"]
PROGRAM = {
    0: (0, 11, [(3, 2), (0, 0)]),
    1: (0, 12, [(4, 1), (1, 0)]),
    2: (1, 13, [(5, 3), (3, 2), (4, 1)]),
    3: (2, 14, [(6, 1), (5, 3)]),
    4: (3, 15, [(7, 1), (6, 1)]),
    5: (0, 16, [(2, 0), (7, 1)]),
}


def make_call(events=2000, *, folder=None, seed=0, cores=1, traces=True, **changes):
    """A call of about ``events`` events. The kernel's source is written to ``folder``, so that it can be shown."""
    rng = random.Random(seed)
    path = str(Path(folder or "/nowhere") / "matmul.py")
    if folder:
        Path(path).write_text(SOURCE)
    lines = [Location(path, n, "nki_matmul_tiled_") for n in (11, 12, 13, 14, 15, 16)]
    tracks = []
    for core in range(cores):
        tracks += [
            SimpleNamespace(index=len(tracks) + i, core=core, name=n, kind="engine") for i, n in enumerate(ENGINES)
        ]
        tracks += [
            SimpleNamespace(
                index=len(tracks) + i, core=core, name=f"dma {('sync', 'scalar')[i % 2]} {i // 2}", kind="dma"
            )
            for i in range(RINGS)
        ]
    machine = _Machine(tracks)
    made = [_run_core(machine, core, events // cores, rng) for core in range(cores)]
    total = max((e[5] for e in machine.events), default=0) + 1000
    for track in tracks:
        if machine.free.get(track.index, 0) < total:
            machine.waits.append((track.index, machine.free.get(track.index, 0), total, 0, -1, -1))
    order = sorted(range(len(machine.events)), key=lambda i: machine.events[i][3])
    place = np.empty(len(order) + 1, np.int64)
    place[order], place[-1] = np.arange(len(order)), -1
    rows = np.array([machine.events[i] for i in order], np.int64).reshape(-1, 7)
    wait_rows = np.array(sorted(machine.waits, key=lambda w: w[1]), np.int64).reshape(-1, 6)
    wait_rows[:, 4:] = place[wait_rows[:, 4:]]
    columns = dict(zip(("track", "opcode", "instruction", "start", "end", "done", "bytes"), rows.T, strict=True))
    waits = dict(zip(("track", "start", "end", "reason", "before", "released_by"), wait_rows.T, strict=True))
    loads = int(rows[np.isin(rows[:, 1], (0, 1)), 6].sum())
    stores = int(rows[rows[:, 1] == 5, 6].sum())
    flops = int((rows[:, 1] == 2).sum()) * 2 * 128 * 128 * 512
    timeline = Timeline(
        chip="trn2",
        schedule="nki",
        total_ps=total,
        spread_ps=total // 100,
        tracks=tracks,
        events=SimpleNamespace(**columns),
        waits=SimpleNamespace(**waits),
        opcodes=OPCODES,
        memory=[_memory(core, name, total, rng) for core in range(cores) for name in ("sbuf", "psum")],
        totals=SimpleNamespace(
            hbm_read_bytes=loads, hbm_write_bytes=stores, flops=flops, instructions=sum(len(m) for m in made), spills=0
        ),
    )
    findings = [
        Finding("uninitialized-read", "res_psum is read before it is written", location=Location(path, 13), count=3),
        Finding("race", "VectorE writes res_sb while a DMA reads it", severity="error", location=Location(path, 14)),
    ]
    given = {
        "kernel": "nki_matmul_tiled_",
        "chip": "trn2",
        "generation": "v3",
        "timeline": timeline,
        "wait_reasons": WAIT_REASONS,
        "cores": cores,
        "schedule": "nki",
        "clock": "kernel",
        "arguments": ["float32 2048x2048", "float32 2048x2048", "float32 2048x2048"],
        "traces": [_trace(m, lines) for m in made] if traces else [],
        "findings": findings,
        "support": "calibrated",
        "support_reason": "fitted on the tutorial's matmuls of 2048 and 4096",
        "error_percent": 8.0,
        "wall_seconds": 1.25,
        "seed": 7,
        "peak_flops": 23e12,
        "hbm_bytes_per_second": 716e9,
    }
    return KernelCall(**{**given, **changes})


def _run_core(machine, core, count, rng):
    """Instructions (opcode numbers) of one core, run on its tracks until there are ``count`` events."""
    first = core * (len(ENGINES) + RINGS)
    tensor, vector, scalar, _, sync = range(first, first + len(ENGINES))
    rings = range(first + len(ENGINES), first + len(ENGINES) + RINGS)
    instructions, begun, ring = [], len(machine.events), 0
    copies, multiplies = [], []

    def issue(opcode):
        instructions.append(opcode)
        return len(instructions) - 1

    def move(opcode, size, needs, reason):
        nonlocal ring
        row = issue(opcode)
        trigger = machine.run(sync, 6, row, 60_000, needs, reason=reason)
        ring = (ring + 1) % RINGS
        length = int(size / 0.12) // RINGS * 4 + rng.randrange(40_000)
        return machine.run(rings[ring], opcode, row, length, [trigger], latency=300_000, size=size, reason=5)

    while len(machine.events) - begun < count:
        last = None
        for _ in range(rng.choice((4, 8))):
            needs = multiplies[-6:-5]
            a = move(0, 128 * 128 * 4, needs, 3)
            b = move(1, 128 * 512 * 4, needs, 3)
            free = [*copies[-2:-1], a, b]
            last = machine.run(tensor, 2, issue(2), 213_333 * rng.choice((1, 2)), free, latency=60_000, reason=1)
            multiplies.append(last)
        copy = machine.run(vector, 3, issue(3), 480_000 + rng.randrange(99_999), [last], latency=40_000, reason=3)
        gelu = machine.run(scalar, 4, issue(4), 450_000, [copy], latency=40_000, reason=2)
        copies.append(copy)
        move(5, 128 * 512 * 4, [gelu], 4)
    return instructions


def _trace(instructions, lines):
    klass, line, operand, operands = [], [], [], []
    for row, opcode in enumerate(instructions):
        number, source, used = PROGRAM[opcode]
        klass.append(number)
        line.append(source - 11)
        operand.append(len(operands))
        operands += [(storage, 0, 512 * (row % 8), form) for storage, form in used]
    columns = np.array(operands, np.int64).reshape(-1, 4).T
    return SimpleNamespace(
        instructions={"klass": np.array(klass), "line": np.array(line), "operand": np.array(operand)},
        operands=dict(zip(("storage", "start", "offset", "form"), columns, strict=True)),
        lines=lines,
        classes=CLASSES,
        storages=[SimpleNamespace(name=n, memory=m) for n, m in zip(NAMES, MEMORIES, strict=True)],
        forms=FORMS,
    )


def _memory(core, name, total, rng):
    capacity = 192 * 1024 if name == "sbuf" else 16 * 1024
    times = np.sort(np.array([0] + [rng.randrange(total) for _ in range(400)], np.int64))
    sizes = np.array([rng.randrange(1, 40) * capacity // 50 for _ in times], np.int64)
    holders = [("rhs_tile", 2048 * 8, "matmul.py:12"), ("lhsT_tile", 512 * 8, "matmul.py:11")]
    return SimpleNamespace(
        core=core, memory=name, times=times, bytes=sizes, capacity=capacity, peak=int(sizes.max()), holders=holders
    )

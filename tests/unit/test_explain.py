"""What is explained: paths without gaps, and changes that take the time of a kernel in which they were made by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

import trnsim
from trnsim import nki
from trnsim.explain.case import Case
from trnsim.explain.explanation import explain
from trnsim.explain.path import explain_path
from trnsim.explain.relaxations import RELAXATIONS, without_repeated_loads
from trnsim.hardware import load_chip
from trnsim.nki import isa as nisa
from trnsim.nki import language as nl
from trnsim.timing import TimingOptions
from trnsim.timing.critical import LINKS, WHAT, critical_path

BY_NAME = {r.name: r for r in RELAXATIONS}
F32, BF16 = nl.float32, nl.bfloat16


def sbuf(*shape, dtype=F32):
    return nl.ndarray(shape, dtype, buffer=nl.sbuf)


def psum(*shape, dtype=F32):
    return nl.ndarray(shape, dtype, buffer=nl.psum)


def hbm(*shape, dtype=F32):
    return nl.ndarray(shape, dtype, buffer=nl.shared_hbm)


@nki.jit
def tiled_product(a, b):
    """a.T @ b by tiles, which loads the same tiles again and again."""
    out = hbm(a.shape[1], b.shape[1], dtype=a.dtype)
    for m in range(a.shape[1] // 128):
        for n in range(b.shape[1] // 512):
            total = psum(128, 512)
            for k in range(a.shape[0] // 128):
                left, right = sbuf(128, 128, dtype=a.dtype), sbuf(128, 512, dtype=b.dtype)
                nisa.dma_copy(dst=left, src=a[k * 128 : k * 128 + 128, m * 128 : m * 128 + 128])
                nisa.dma_copy(dst=right, src=b[k * 128 : k * 128 + 128, n * 512 : n * 512 + 512])
                nisa.nc_matmul(dst=total, stationary=left, moving=right)
            tile = sbuf(128, 512, dtype=a.dtype)
            nisa.tensor_copy(dst=tile, src=total)
            nisa.dma_copy(dst=out[m * 128 : m * 128 + 128, n * 512 : n * 512 + 512], src=tile)
    return out


@nki.jit
def kept_product(a, b):
    """The same with each tile loaded where it is first needed."""
    out = hbm(a.shape[1], b.shape[1], dtype=a.dtype)
    lefts, rights = {}, {}
    for m in range(a.shape[1] // 128):
        for n in range(b.shape[1] // 512):
            total = psum(128, 512)
            for k in range(a.shape[0] // 128):
                if (k, m) not in lefts:
                    lefts[k, m] = sbuf(128, 128, dtype=a.dtype)
                    nisa.dma_copy(dst=lefts[k, m], src=a[k * 128 : k * 128 + 128, m * 128 : m * 128 + 128])
                if (k, n) not in rights:
                    rights[k, n] = sbuf(128, 512, dtype=b.dtype)
                    nisa.dma_copy(dst=rights[k, n], src=b[k * 128 : k * 128 + 128, n * 512 : n * 512 + 512])
                nisa.nc_matmul(dst=total, stationary=lefts[k, m], moving=rights[k, n])
            tile = sbuf(128, 512, dtype=a.dtype)
            nisa.tensor_copy(dst=tile, src=total)
            nisa.dma_copy(dst=out[m * 128 : m * 128 + 128, n * 512 : n * 512 + 512], src=tile)
    return out


def scaled(buffers=None, engine=nisa.engine.unknown, steps=2):
    """A loop of load, some steps and store; ``buffers`` tiles are used in turn, or a new one each time."""

    @nki.jit
    def kernel(x):
        out = hbm(*x.shape, dtype=x.dtype)
        tiles = [sbuf(128, x.shape[1], dtype=x.dtype) for _ in range(buffers or 0)]
        for i in range(x.shape[0] // 128):
            tile = tiles[i % buffers] if buffers else sbuf(128, x.shape[1], dtype=x.dtype)
            nisa.dma_copy(dst=tile, src=x[i * 128 : i * 128 + 128])
            for _ in range(steps):
                nisa.tensor_copy(dst=tile, src=tile, engine=engine)
            nisa.dma_copy(dst=out[i * 128 : i * 128 + 128], src=tile)
        return out

    return kernel


def in_parts(parts, *, loads, steps):
    """Doubling a wide tile: loaded and stored in ``parts`` DMAs or one, worked on in parts or at once."""

    @nki.jit
    def kernel(x):
        width = x.shape[1] // parts
        out = hbm(*x.shape, dtype=x.dtype)
        moved = [slice(i * width, i * width + width) for i in range(parts)] if loads else [slice(0, x.shape[1])]
        worked = [slice(i * width, i * width + width) for i in range(parts)] if steps else [slice(0, x.shape[1])]
        tile, double = sbuf(*x.shape, dtype=x.dtype), sbuf(*x.shape, dtype=x.dtype)
        for part in moved:
            nisa.dma_copy(dst=tile[:, part], src=x[:, part])
        for part in worked:
            nisa.tensor_scalar(dst=double[:, part], data=tile[:, part], op0=nl.multiply, operand0=2.0)
        nisa.dma_copy(dst=out, src=double)
        return out

    return kernel


def narrow_rows(flat):
    """Loads of rows of 16 bytes; ``flat``: the same bytes lie in HBM as rows of a whole partition."""

    @nki.jit
    def kernel(x):
        out = hbm(128, 64)
        tile = sbuf(128, 64)
        if flat:
            nisa.dma_copy(dst=tile, src=x)
        else:
            nisa.dma_copy(dst=tile.reshape((128, 16, 4)), src=x[:, :, 0:4])
        nisa.dma_copy(dst=out, src=tile)
        return out

    return kernel


def product(swapped):
    """One tile of 32 columns by tiles of 512, many times."""

    @nki.jit
    def kernel(a, b):
        left, right = sbuf(128, 32, dtype=a.dtype), sbuf(128, 512, dtype=b.dtype)
        nisa.dma_copy(dst=left, src=a)
        nisa.dma_copy(dst=right, src=b)
        for _ in range(16):
            if swapped:
                total = psum(128, 4, 32)
                for i in range(4):
                    nisa.nc_matmul(dst=total[:, i], stationary=right[:, i * 128 : i * 128 + 128], moving=left)
            else:
                nisa.nc_matmul(dst=psum(32, 512), stationary=left, moving=right)
        out = hbm(128, 512, dtype=b.dtype)
        nisa.dma_copy(dst=out, src=right)
        return out

    return kernel


def case_of(kernel, *arguments, chip="trn2", schedule="nki"):
    options = trnsim.SimulationOptions(numeric=False, chip=chip, schedule=schedule)
    call = trnsim.profile(kernel, *arguments, options=options)
    return Case(call.traces, load_chip(chip), TimingOptions(schedule=schedule))


def attempts(name, case):
    return {a.label: a.case for a in BY_NAME[name].attempts(case)}


KERNELS = {
    "product": (tiled_product, "f32[256,256]", "f32[256,1024]"),
    "scaled": (scaled(2), "f32[1024,512]"),
    "parts": (in_parts(4, loads=True, steps=True), "f32[128,512]"),
    "swapped": (product(True), "bf16[128,32]", "bf16[128,512]"),
}


@pytest.mark.parametrize("schedule", ["nki", "program"])
@pytest.mark.parametrize("chip", ["trn1", "trn2", "trn3"])
@pytest.mark.parametrize("name", KERNELS)
def test_the_path_covers_the_run_without_gaps(name, chip, schedule):
    case = case_of(*KERNELS[name], chip=chip, schedule=schedule)
    path, run = critical_path(case.stages), case.stages.typical
    assert path.end[0] == path.total_ps == run.total
    assert path.start[-1] == 0
    np.testing.assert_array_equal(path.start[:-1], path.end[1:])
    assert (path.end > path.start).all()
    # What runs for a piece of the path runs then: the piece lies within its node's time, signal included.
    assert (
        path.start >= np.minimum(run.start, run.idle_from)[path.node] - case.stages.timing.scalar.table_load_ps
    ).all()
    working = np.isin(path.what, [WHAT.index(w) for w in ("running", "throttled", "DMA trigger")])
    assert (path.start[working] >= run.start[path.node[working]]).all()
    assert (path.end[working] <= run.end[path.node[working]]).all()
    moving = path.what == WHAT.index("transfer")
    assert (path.start[moving] >= run.arrival[path.node[moving]]).all()
    assert (path.end[moving] <= run.done[path.node[moving]]).all()


def test_an_engine_that_is_never_idle_is_the_path():
    case = case_of(product(False), "bf16[128,32]", "bf16[128,512]")
    path = explain_path(case)
    shares = {(s.engine, s.what) for s in path.reasons}
    assert ("TensorE", "throttled") in shares
    assert sum(s.time_ps for s in path.reasons) == sum(s.time_ps for s in path.lines) == path.total_ps
    assert path.lines[0].line.file == __file__
    assert {p.link for p in path.pieces} <= set(LINKS)


def test_waiting_for_a_tile_is_on_the_path():
    path = explain_path(case_of(scaled(1), "f32[1024,512]"))
    assert path.links["tile in use"] == 7
    assert "tile in use" not in explain_path(case_of(scaled(), "f32[1024,512]")).links


SAME = {
    "bfloat16": ("bfloat16", "float32 tensors in bfloat16", KERNELS["product"],
                 (tiled_product, "bf16[256,256]", "bf16[256,1024]")),
    "bfloat16 in a loop": ("bfloat16", "float32 tensors in bfloat16", (scaled(), "f32[1024,512]"),
                           (scaled(), "bf16[1024,512]")),
    "keep tiles": ("keep tiles", "every box of HBM once", (tiled_product, "bf16[512,512]", "bf16[512,1024]"),
                   (kept_product, "bf16[512,512]", "bf16[512,1024]")),
    "engine balance": ("engine balance", "the least busy engine each",
                       (scaled(engine=nisa.engine.vector, steps=9), "f32[1024,512]"),
                       (scaled(steps=9), "f32[1024,512]")),
    "more buffers": ("more buffers", "no wait for a tile in use", (scaled(1), "f32[1024,512]"),
                     (scaled(), "f32[1024,512]")),
    "larger DMAs": ("larger DMAs", "up to 4 of a line in one",
                    (in_parts(4, loads=True, steps=False), "f32[128,512]"),
                    (in_parts(4, loads=False, steps=False), "f32[128,512]")),
    "combine": ("combine instructions", "up to 4 of a line in one",
                (in_parts(4, loads=False, steps=True), "f32[128,512]"),
                (in_parts(4, loads=False, steps=False), "f32[128,512]")),
    "descriptors": ("longer descriptors", "descriptors of up to 4096 bytes",
                    (narrow_rows(False), "f32[128,16,8]"), (narrow_rows(True), "f32[128,64]")),
    "swap": ("swap operands", "every nc_matmul", (product(False), "bf16[128,32]", "bf16[128,512]"),
             (product(True), "bf16[128,32]", "bf16[128,512]")),
}  # fmt: skip


@pytest.mark.parametrize("case", SAME)
def test_a_change_takes_the_time_of_the_kernel_with_it(case):
    name, label, before, after = SAME[case]
    for chip in ("trn1", "trn2"):
        made = attempts(name, case_of(*before, chip=chip))
        by_hand = case_of(*after, chip=chip)
        assert made[label].total_ps == by_hand.total_ps
        if not (case == "engine balance" and chip == "trn1"):  # there VectorE and GpSimdE exclude each other
            assert case_of(*before, chip=chip).total_ps != by_hand.total_ps


def blocks(x):
    """Independent blocks, each a long chain of steps that wait for each other on two engines."""
    out = hbm(*x.shape)
    for i in range(x.shape[0] // 128):
        tile = sbuf(128, x.shape[1])
        nisa.dma_copy(dst=tile, src=x[i * 128 : i * 128 + 128])
        for step in range(48):
            engine = (nisa.engine.vector, nisa.engine.scalar)[step % 2]
            after = sbuf(128, x.shape[1])
            nisa.tensor_copy(dst=after, src=tile, engine=engine)
            tile = after
        nisa.dma_copy(dst=out[i * 128 : i * 128 + 128], src=tile)
    return out


def test_interleaving():
    case = case_of(nki.jit(blocks), "f32[512,128]")
    made = attempts("interleave", case)
    assert made["looking 256 instructions ahead"].total_ps < 0.7 * case.total_ps
    for changed in made.values():
        run, nodes = changed.stages.typical, changed.stages.linked.nodes
        busiest = max(int((run.end - run.start)[nodes.queue == q].sum()) for q in np.unique(nodes.queue))
        assert busiest <= changed.total_ps <= case.total_ps


NOTHING = {
    "bfloat16": (scaled(), "bf16[256,512]"),
    "engine balance": (scaled(), "f32[256,512]"),
    "swap operands": (scaled(), "f32[256,512]"),
    "keep tiles": (scaled(), "f32[256,512]"),
    "longer descriptors": (narrow_rows(True), "f32[128,64]"),
    "larger DMAs": (in_parts(4, loads=False, steps=True), "f32[128,512]"),
    "combine instructions": (in_parts(4, loads=True, steps=False), "f32[128,512]"),
    "more buffers": (scaled(), "f32[256,512]"),
    "interleave": (narrow_rows(True), "f32[128,64]"),
}


@pytest.mark.parametrize("name", NOTHING)
def test_a_change_that_does_not_apply_is_not_tried(name):
    assert not attempts(name, case_of(*NOTHING[name]))


def test_dependent_instructions_are_not_combined():
    @nki.jit
    def chain(x):
        tile = sbuf(128, 64)
        nisa.dma_copy(dst=tile, src=x)
        for _ in range(4):
            after = sbuf(128, 64)
            nisa.tensor_scalar(dst=after, data=tile, op0=nl.multiply, operand0=2.0)
            tile = after
        out = hbm(128, 64)
        nisa.dma_copy(dst=out, src=tile)
        return out

    assert not attempts("combine instructions", case_of(chain, "f32[128,64]"))


def test_removing_what_the_compiler_removes_changes_nothing():
    case = case_of(tiled_product, "bf16[256,256]", "bf16[256,2048]")
    changed, lines = without_repeated_loads(case, window=None)
    assert lines
    assert changed.total_ps == case.total_ps


@pytest.mark.parametrize("name", KERNELS)
def test_explanations(name):
    case = case_of(*KERNELS[name])
    before = [bytes(t.instruction_rows) for t in case.traces]
    found = explain(case)
    assert [c.relaxation.name for c in found.changes] != []
    savings = [c.saved_ps(found.total_ps) for c in found.changes]
    assert savings == sorted(savings, reverse=True)
    for change in found.changes:
        assert (change.time_ps is None) == (not change.attempts)
        assert change.time_ps == min((t for _, t in change.attempts), default=None)
        assert bool(change.lines) == bool(change.attempts)
        assert all(line.file == __file__ for line, _ in change.lines)
    assert before == [bytes(t.instruction_rows) for t in case.traces]  # what is tried leaves the case alone


def test_two_cores():
    @nki.jit
    def halves(x):
        core = nl.program_id(0)
        tile = nl.load(x[core * 64 : core * 64 + 64])
        theirs = sbuf(64, x.shape[1])
        nisa.sendrecv(dst=theirs, src=tile, send_to_rank=1 - core, recv_from_rank=1 - core, pipe_id=0)
        total = sbuf(64, x.shape[1])
        nisa.tensor_tensor(dst=total, data1=tile, data2=theirs, op=nl.add)
        out = hbm(*x.shape)
        nl.store(out[core * 64 : core * 64 + 64], value=total)
        return out

    found = explain(case_of(halves[2], "f32[128,512]"))
    assert {p.core for p in found.path.pieces} <= {0, 1}
    assert found.path.total_ps == found.total_ps
    assert found.changes[0].time_ps is not None


def test_every_relaxation_says_what_it_means():
    for relaxation in RELAXATIONS:
        assert len(relaxation.meaning) > 80
        assert relaxation.advice


def test_json_is_plain():
    from trnsim.explain.render import explain_json

    call = trnsim.profile(tiled_product, "f32[256,256]", "f32[256,1024]", chip="trn2")
    case = Case(call.traces, load_chip("trn2"), TimingOptions())
    text = json.loads(json.dumps(explain_json(call, explain(case), 3)))
    assert text["schema"] == "trnsim.explain/1"
    assert text["time_us"] == call.timeline.total_ps / 1e6
    assert abs(sum(s["fraction"] for s in text["path"]["reasons"]) - 1) < 1e-9
    assert len(text["best"]) <= 3
    assert text["changes"][0]["name"] == text["best"][0]
    assert text["path"]["lines"][0]["line"] > 0

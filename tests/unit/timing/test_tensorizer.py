"""The passes of the ``tensorizer`` schedule, on kernels of NKI 0.1."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trnsim
from trnsim.hardware import load_chip
from trnsim.machine.trace import Trace
from trnsim.nki.versions import beta1 as nki
from trnsim.nki.versions.beta1 import isa as nisa
from trnsim.nki.versions.beta1 import language as nl
from trnsim.timing.executed import executed_counts
from trnsim.timing.options import PASSES, REORDER
from trnsim.timing.tensorizer.vectors import _by_occurrence

CHIP = load_chip("trn2")


@nki.jit
def scaled_softmax(scores, count, chunks):
    """Row softmax of ``count`` tiles of 128 x ``chunks`` * 512, which TensorE copies through PSUM first."""
    out = nl.ndarray(scores.shape, dtype=scores.dtype, buffer=nl.shared_hbm)
    for i in nl.affine_range(count):
        tile = nl.load(scores[i])
        copied = nl.ndarray((nl.par_dim(128), chunks * 512), dtype=nl.float32, buffer=nl.sbuf)
        largest = nl.ndarray((nl.par_dim(128), chunks), dtype=nl.float32, buffer=nl.sbuf)
        for j in nl.affine_range(chunks):
            psum = nl.ndarray((nl.par_dim(128), 512), dtype=nl.float32, buffer=nl.psum)
            psum[...] = nisa.nc_matmul(tile[:, 0:128], tile[:, nl.ds(j * 512, 512)])
            copied[:, nl.ds(j * 512, 512)] = nisa.tensor_copy(psum, dtype=nl.float32)
            largest[:, j] = nisa.tensor_reduce(op=nl.max, data=copied[:, nl.ds(j * 512, 512)], axis=1)
        row_max = nisa.tensor_reduce(op=nl.max, data=largest, axis=1, negate=True)
        inverse = nisa.reciprocal(row_max)
        scaled = nl.ndarray((nl.par_dim(128), chunks * 512), dtype=nl.float32, buffer=nl.sbuf)
        for j in nl.affine_range(chunks):
            part = copied[:, nl.ds(j * 512, 512)]
            scaled[:, nl.ds(j * 512, 512)] = nisa.tensor_scalar(part, op0=nl.multiply, operand0=inverse)
        nl.store(out[i], scaled)
    return out


@nki.jit
def transposed(data):
    """Transposes 128 x 128 blocks side by side."""
    columns = data.shape[1]
    out = nl.ndarray(data.shape, dtype=data.dtype, buffer=nl.shared_hbm)
    tile = nl.load(data)
    result = nl.ndarray((nl.par_dim(128), columns // 128, 128), dtype=data.dtype, buffer=nl.sbuf)
    for i in nl.affine_range(columns // 128):
        result[:, i, :] = nisa.tensor_copy(nisa.nc_transpose(tile[:, nl.ds(i * 128, 128)]))
    for i in nl.affine_range(columns // 128):
        nl.store(out[:, nl.ds(i * 128, 128)], result[:, i, :])
    return out


@nki.jit
def repeated_matmul(lhs, rhs, rows, columns):
    """Loads every tile of ``rhs`` once for each row of tiles, as the tutorial's first matmul does."""
    out = nl.ndarray((rows * 128, columns * 512), dtype=lhs.dtype, buffer=nl.shared_hbm)
    for m in nl.affine_range(rows):
        for n in nl.affine_range(columns):
            acc = nl.zeros((128, 512), nl.float32, buffer=nl.psum)
            for k in nl.affine_range(lhs.shape[0] // 128):
                left = nl.load(lhs[nl.ds(k * 128, 128), nl.ds(m * 128, 128)])
                right = nl.load(rhs[nl.ds(k * 128, 128), nl.ds(n * 512, 512)])
                acc += nl.matmul(left, right, transpose_x=True)
            nl.store(out[nl.ds(m * 128, 128), nl.ds(n * 512, 512)], nl.copy(acc, dtype=lhs.dtype))
    return out


@nki.jit
def repeated_product(left, right, count, wide, rewrite):
    """A product and a sum that are the same in each iteration, unless ``rewrite`` changes an operand."""
    out = nl.ndarray((count, 128, wide), dtype=left.dtype, buffer=nl.shared_hbm)
    x, y = nl.load(left), nl.load(right)
    for i in nl.affine_range(count):
        if rewrite:
            x[...] = nisa.tensor_scalar(x, op0=nl.add, operand0=1.0)
        product = nisa.tensor_tensor(nisa.tensor_tensor(x, y, op=nl.multiply), y, op=nl.add)
        nl.store(out[i], nisa.activation(op=nl.exp, data=product))
    return out


@nki.jit
def step_by_step(data, count):
    """Products of ``count`` tiles, all in PSUM, before the exponential of the first."""
    out = nl.ndarray((count, 128, 512), dtype=data.dtype, buffer=nl.shared_hbm)
    tile = nl.load(data)
    products = nl.ndarray((count, nl.par_dim(128), 512), dtype=nl.float32, buffer=nl.psum)
    for i in nl.affine_range(count):
        products[i] = nisa.nc_matmul(tile[:, 0:128], tile)
    for i in nl.affine_range(count):
        nl.store(out[i], nisa.activation(op=nl.exp, data=products[i]))
    return out


@nki.jit
def copies_of_products(data, count, exponentials):
    """Products that are copied out of PSUM, beside exponentials of tiles in SBUF."""
    out = nl.ndarray((count, 128, 512), dtype=data.dtype, buffer=nl.shared_hbm)
    tile = nl.load(data)
    for i in nl.affine_range(count):
        for _ in range(exponentials):
            nl.store(out[i], nisa.activation(op=nl.exp, data=tile))
        nl.store(out[i], nisa.tensor_copy(nisa.nc_matmul(tile[:, 0:128], tile), dtype=nl.float32))
    return out


@nki.jit
def streamed(data, count, held):
    """Tiles that pass through SBUF beside ``held`` that stay."""
    out = nl.ndarray(data.shape, dtype=data.dtype, buffer=nl.shared_hbm)
    kept = [nl.load(data[count + i]) for i in range(held)]
    for i in nl.affine_range(count):
        tile = nl.load(data[i])
        for other in kept:
            tile = nisa.tensor_tensor(tile, other, op=nl.multiply)
        nl.store(out[i], tile)
    return out


def profile(kernel, *args, without=(), only=None, chip="trn2"):
    passes = frozenset(PASSES) - set(without) if only is None else frozenset(only)
    options = trnsim.SimulationOptions(chip=chip, numeric=False, schedule="tensorizer", passes=passes)
    return trnsim.profile(kernel, *args, options=options).timeline


def counts(timeline):
    found = Counter()
    for (_, opcode), count in executed_counts(timeline, CHIP).items():
        found[opcode] += count
    return found


def softmax(count, chunks, **options):
    return counts(profile(scaled_softmax, np.zeros((count, 128, chunks * 512), np.float32), count, chunks, **options))


def test_small_steps_run_once_for_as_many_iterations_as_psum_holds():
    # 4 tiles of 2 banks: the reduction over chunks and the reciprocal run once for all four.
    found = softmax(8, 2)
    assert found["RECIPROCAL"] == 2
    assert found["TENSOR_REDUCE"] == 16 + 2
    apart = softmax(8, 2, without=["merge-iterations"])
    assert (apart["RECIPROCAL"], apart["TENSOR_REDUCE"]) == (8, 16 + 8)


def test_a_copy_goes_where_its_readers_can_read_psum():
    assert softmax(2, 1)["COPY"] == 0
    assert softmax(2, 1, without=["propagate-copies"])["COPY"] == 2


def test_half_of_psum_may_be_read_in_place():
    # Four iterations run together: 8 tiles of a bank, of which PSUM keeps four.
    assert softmax(4, 2)["COPY"] == 4


@pytest.mark.parametrize(
    ("wide", "rewrite", "without", "products"),
    [
        (512, False, [], 2),
        (512, True, [], 8),
        (512, False, ["keep-values"], 8),
        (13312, False, [], 8),  # 52 KiB a partition each: what would be kept does not fit beside the others
    ],
)
def test_what_a_loop_computes_again_is_kept(wide, rewrite, without, products):
    data = np.zeros((128, wide), np.float32)
    found = counts(profile(repeated_product, data, data, 4, wide, rewrite, without=without))
    assert found["TENSOR_TENSOR"] == products


@pytest.mark.parametrize(
    ("dtype", "columns", "copies"),
    [(np.float32, 1024, 2), (np.float32, 512, 1), (np.float16, 512, 1), (np.float16, 1024, 8)],
)  # fmt: skip
def test_copies_of_a_bank_are_one(dtype, columns, copies):
    data = np.zeros((128, columns), dtype)
    assert counts(profile(transposed, data))["COPY"] == copies
    assert counts(profile(transposed, data, without=["merge-copies"]))["COPY"] == columns // 128


def test_an_identity_is_loaded_for_transpositions():
    timeline = profile(transposed, np.zeros((128, 256), np.float32))
    (trace,) = timeline.traces
    names = [s.name for s in trace.storages]
    assert names.count("identity") == 2  # in HBM and in SBUF
    loads = [k for k in trace.instructions["klass"].tolist() if trace.classes[k].name == "nki.isa.dma_copy"]
    assert len(loads) == 1 + 1 + 2  # the identity, the data, and the two results


def test_dmas_are_joined_up_to_half_a_mebibyte():
    # Stores of 128 x 512 float32 (256 KiB): two by two.
    found = softmax(4, 1, only=["coalesce-dma", REORDER])
    assert found["DMA_TRIGGER"] == 2 + 2
    assert softmax(4, 1, only=[REORDER])["DMA_TRIGGER"] == 4 + 4


def test_descriptors_of_inputs_and_outputs_are_made_by_gpsimd():
    timeline = profile(scaled_softmax, np.zeros((1, 128, 512), np.float32), 1, 1)
    engines = {engine for engine, opcode in executed_counts(timeline, CHIP) if opcode == "DMA_TRIGGER"}
    assert engines == {"gpsimd"}


def test_the_first_table_is_loaded_at_once():
    @nki.jit
    def exponential(data):
        out = nl.ndarray(data.shape, dtype=data.dtype, buffer=nl.shared_hbm)
        nl.store(out, nl.exp(nl.load(data)))
        return out

    def start(**options):
        timeline = profile(exponential, np.zeros((128, 512), np.float32), **options)
        events = timeline.events
        return int(events.start[events.opcode == timeline.opcodes.index("ACT_TABLE_LOAD")][0])

    assert start() == 0 <= start(without=["preload-table"])


@pytest.mark.parametrize(("columns", "kept"), [(4, True), (16, False)])
def test_repeated_loads_stay_if_all_of_them_fit(columns, kept):
    # 32 x 2 KiB a partition fit SBUF, four times as much does not.
    depth, rows = 1024, 3
    left, right = np.zeros((depth, rows * 128), np.float32), np.zeros((depth, columns * 512), np.float32)
    timeline = profile(repeated_matmul, left, right, rows, columns)
    once = right.nbytes
    assert (timeline.totals.hbm_read_bytes < 2 * once) is kept


def test_loads_of_one_row_of_tiles_are_repeated_where_all_rows_do_not_fit():
    # 9 rows of 40 tiles of 512 B a partition: one row would fit, all are more than SBUF.
    depth, rows, columns = 5120, 9, 2
    left, right = np.zeros((depth, rows * 128), np.float32), np.zeros((depth, columns * 512), np.float32)
    timeline = profile(repeated_matmul, left, right, rows, columns)
    assert timeline.totals.hbm_read_bytes == columns * left.nbytes + right.nbytes


@pytest.mark.parametrize(("without", "spilled"), [((), False), (("fuse-loops",), True)])
def test_loops_are_fused_where_psum_does_not_hold_what_they_hand_on(without, spilled):
    timeline = profile(step_by_step, np.zeros((128, 512), np.float32), 96, without=without)
    assert (timeline.totals.spills > 0) is spilled


def test_loops_that_fit_keep_their_order():
    several = [profile(step_by_step, np.zeros((128, 512), np.float32), 4, without=w) for w in ((), ("fuse-loops",))]
    assert several[0].total_ps == several[1].total_ps


@pytest.mark.parametrize(("exponentials", "vector"), [(0, False), (3, True)])
def test_copies_on_trn1_go_to_the_engine_that_is_done_first(exponentials, vector):
    timeline = profile(copies_of_products, np.zeros((128, 512), np.float32), 16, exponentials, chip="trn1")
    busy = {engine.name: engine.busy_ps for engine in timeline.engine_summary()}
    assert busy["scalar"] > 0
    assert (busy["vector"] > 0) is vector


@pytest.mark.parametrize(("held", "free"), [(2, True), (3, False)])
def test_an_eighth_of_sbuf_stays_free_if_tiles_fit_in_the_rest(held, free):
    # Tiles of 32 KiB a partition of 176: with 2 that stay, program order needs 4 at once, with 3 it needs 5.
    timeline = profile(streamed, np.zeros((8 + held, 128, 8192), np.float32), 8, held, chip="trn1")
    sbuf = next(m for m in timeline.memory if m.memory == "sbuf")
    assert (sbuf.peak <= sbuf.capacity * 7 // 8) is free
    assert timeline.totals.spills == 0


def test_a_statement_that_stands_twice_in_an_iteration_is_two():
    twice = [0, 3, 10, 13, 20, 23, 30, 33]
    assert _by_occurrence(twice) == [[0, 10, 20, 30], [3, 13, 23, 33]]
    assert _by_occurrence([0, 10, 20, 30]) == [[0, 10, 20, 30]]
    assert _by_occurrence([0, 3, 11, 13]) == [[0, 3, 11, 13]]


@given(
    st.integers(1, 6), st.integers(1, 3), st.sets(st.sampled_from(PASSES)), st.booleans()
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_what_is_read_has_been_written(count, chunks, passes, kernel):
    """In the rows that the passes leave, every byte of a tile is written before it is read."""
    if kernel:
        timeline = profile(scaled_softmax, np.zeros((count, 128, chunks * 512), np.float32), count, chunks, only=passes)
    else:
        timeline = profile(transposed, np.zeros((128, count * 128), np.float32), only=passes)
    (trace,) = timeline.traces
    operands = trace.operands
    written = {s.id: np.zeros(s.row_bytes, bool) for s in trace.storages if s.memory != "hbm"}
    for row in range(len(trace)):
        klass = trace.classes[int(trace.instructions["klass"][row])]
        for position, at in enumerate(trace.operand_range(row)):
            storage = int(operands["storage"][at])
            if storage not in written:
                continue
            form = trace.forms[int(operands["form"][at])]
            run = form.levels[-1][1]
            first = form.interval_offsets + int(operands["offset"][at])
            touched = (first[:, None] + np.arange(run)).ravel()
            if klass.operands[position].role == "write":
                continue
            assert written[storage][touched].all(), (row, klass.name)
        for position, at in enumerate(trace.operand_range(row)):
            storage = int(operands["storage"][at])
            if storage in written and klass.operands[position].role != "read":
                form = trace.forms[int(operands["form"][at])]
                first = form.interval_offsets + int(operands["offset"][at])
                written[storage][(first[:, None] + np.arange(form.levels[-1][1])).ravel()] = True


@nki.jit
def one_buffer(data, out_tiles, halves, keep):
    """Loads every tile into the same buffer, whole or in two halves; with ``keep`` a column of the first stays."""
    out = nl.ndarray((out_tiles, 128, 512), dtype=data.dtype, buffer=nl.shared_hbm)
    buffer = nl.ndarray((128, 512), dtype=data.dtype, buffer=nl.sbuf)
    kept = 1 if keep else 0
    if keep:
        nisa.dma_copy(src=data[0, :, 0:1], dst=buffer[:, 0:1])
    for i in nl.affine_range(out_tiles):
        if halves:
            nisa.dma_copy(src=data[i, :, kept:256], dst=buffer[:, kept:256])
            nisa.dma_copy(src=data[i, :, 256:512], dst=buffer[:, 256:512])
        else:
            nisa.dma_copy(src=data[i, :, kept:512], dst=buffer[:, kept:512])
        nisa.dma_copy(src=nisa.activation(op=nl.exp, data=buffer), dst=out[i])
    return out


def time_of(kernel, *args, **options):
    return profile(kernel, *args, **options).total_ps


@pytest.mark.parametrize("halves", [False, True])
def test_a_buffer_that_is_filled_anew_holds_up_no_load(halves):
    data = np.zeros((16, 128, 512), np.float32)
    joined = ["coalesce-dma", "merge-iterations"]
    renamed = time_of(one_buffer, data, 16, halves, False, without=joined)
    kept = time_of(one_buffer, data, 16, halves, False, without=[*joined, "rename-tiles"])
    assert kept > 1.5 * renamed


def test_a_buffer_of_which_something_stays_is_one():
    data = np.zeros((16, 128, 512), np.float32)
    joined = ["coalesce-dma", "merge-iterations"]
    with_pass = time_of(one_buffer, data, 16, False, True, without=joined)
    assert with_pass == time_of(one_buffer, data, 16, False, True, without=[*joined, "rename-tiles"])


def call_of(kernel, *args, **options):
    given = trnsim.SimulationOptions(chip="trn2", numeric=False, schedule="tensorizer")
    return trnsim.profile(nki.baremetal(kernel, **options), *args, options=given)


def software_tracks(call):
    return [t for t in call.timeline.tracks if t.name.startswith("dma") and "gpsimd" in t.name]


def test_a_kernel_that_skips_the_middle_end_keeps_its_copies(tmp_path):
    data = np.zeros((128, 1024), np.float32)
    plain = call_of(transposed, data)
    skipping = nki.compiler.skip_middle_end_transformations(nki.jit(transposed.func))
    assert skipping.func is transposed.func
    try:
        apart = call_of(skipping, data)
    finally:
        del transposed.func.skips_middle_end
    assert plain.traces[0].directives == ()
    assert apart.traces[0].directives == ("skip-middle-end",)
    assert counts(apart.timeline)["COPY"] == 8
    assert counts(plain.timeline)["COPY"] == 2
    apart.traces[0].save(tmp_path / "trace")
    assert Trace.load(tmp_path / "trace").directives == ("skip-middle-end",)


def test_descriptors_that_are_made_before_need_no_engine():
    data = np.zeros((128, 1024), np.float32)
    static = call_of(transposed, data, additional_compile_opt="--disable-dge -O2")
    assert static.traces[0].directives == ("static-descriptors",)
    assert not software_tracks(static)
    assert software_tracks(call_of(transposed, data))

"""Kernels through the public interface: results, findings, two cores, time-only runs."""

from __future__ import annotations

import numpy as np
import pytest

import trnsim
from trnsim import nki
from trnsim.errors import CompilerError, DeadlockError, HardwareError, InputError, NeedsDataError
from trnsim.nki import isa as nisa
from trnsim.nki import language as nl


def record(kernel, *args, **options):
    """Run a kernel; returns its results and the call's record."""
    session = trnsim.Session(trnsim.SimulationOptions(chip=options.pop("chip", "trn2"), **options))
    with session.active():
        result = kernel(*args)
    return result, session.calls[-1]


def kinds(call):
    return {f.kind for f in call.findings}


@nki.jit
def add_one(x):
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    tile = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.tensor_scalar(dst=tile, data=tile, op0=nl.add, operand0=1.0)
    nisa.dma_copy(dst=out, src=tile)
    return out


def test_result_and_record():
    x = np.arange(128 * 16, dtype=np.float32).reshape(128, 16)
    result, call = record(add_one, x)
    np.testing.assert_array_equal(result, x + 1)
    assert call.kernel == "add_one"
    assert call.chip == "trn2"
    assert call.timeline.total_ps > 0
    assert call.timeline.totals.hbm_read_bytes == x.nbytes
    assert call.timeline.totals.hbm_write_bytes == x.nbytes
    assert not call.findings
    lines = {call.traces[0].lines[i].file for i in call.traces[0].instructions["line"]}
    assert lines == {__file__}


def test_same_kind_of_array_out_as_in():
    torch = pytest.importorskip("torch")
    x = torch.arange(64, dtype=torch.bfloat16).reshape(8, 8)
    result = nki.simulate(add_one)(x)
    assert isinstance(result, torch.Tensor)
    assert result.dtype == torch.bfloat16
    assert torch.equal(result, x + 1)


def test_jax_arrays():
    jnp = pytest.importorskip("jax.numpy")
    x = jnp.arange(64, dtype=jnp.float32).reshape(8, 8)
    result = nki.simulate(add_one)(x)
    assert type(result).__module__.startswith("jax")
    np.testing.assert_array_equal(np.asarray(result), np.asarray(x) + 1)


def test_the_chip_is_the_first_that_is_given(monkeypatch):
    @nki.jit(platform_target="trn3")
    def which(x):
        seen.append(nisa.get_nc_version().value)

    seen = []
    x = np.zeros((2, 2), np.float32)
    monkeypatch.delenv("NEURON_PLATFORM_TARGET_OVERRIDE", raising=False)
    which(x)
    monkeypatch.setenv("NEURON_PLATFORM_TARGET_OVERRIDE", "gen2")
    which(x)
    trnsim.simulate(which, x, chip="trn2")
    nki.simulate(lambda x: seen.append(nisa.get_nc_version().value))(x)
    assert seen == [4, 2, 3, 2]
    monkeypatch.setenv("NEURON_PLATFORM_TARGET_OVERRIDE", "gen9")
    with pytest.raises(InputError, match="gen9"):
        which(x)


def test_inputs_are_updated_in_place():
    @nki.jit
    def double(x):
        tile = nl.load(x)
        nl.store(x, value=nl.multiply(tile, 2.0))
        return x

    x = np.ones((4, 4), np.float32)
    double(x)
    assert (x == 2).all()
    transposed = np.arange(12, dtype=np.float32).reshape(3, 4).T
    before = transposed.copy()
    double(transposed)
    np.testing.assert_array_equal(transposed, 2 * before)


def test_nested_kernels_are_inlined():
    @nki.jit
    def outer(x):
        return add_one(x)

    x = np.zeros((2, 2), np.float32)
    assert (outer(x) == 1).all()


# -- memory ------------------------------------------------------------------------------------------------------------


def test_reading_what_was_never_written():
    @nki.jit
    def kernel(x):
        tile = nl.ndarray((4, 8), dtype=nl.float32, buffer=nl.sbuf)
        nisa.dma_copy(dst=tile[:, 0:4], src=x)
        out = nl.ndarray((4, 8), dtype=nl.float32, buffer=nl.shared_hbm)
        nisa.dma_copy(dst=out, src=tile)
        return out

    x = np.ones((4, 4), np.float32)
    for numeric in (True, False):
        result, call = record(kernel, x, numeric=numeric)
        finding = next(f for f in call.findings if f.kind == "uninitialized-read")
        assert finding.details["bytes"] == 4 * 16
        assert finding.location.file == __file__
    result, _ = record(kernel, x)
    assert np.isnan(result[:, 4:]).all()
    assert (result[:, :4] == 1).all()


def test_output_that_is_not_written_whole():
    @nki.jit
    def kernel(x):
        out = nl.ndarray((4, 8), dtype=nl.int32, buffer=nl.shared_hbm)
        tile = nl.load(x)
        nisa.dma_copy(dst=out[:, 2:6], src=tile)
        return out

    result, call = record(kernel, np.ones((4, 4), np.int32))
    assert "output-not-written" in kinds(call)
    np.testing.assert_array_equal(result, np.array([[4, 4, 1, 1, 1, 1, 4, 4]] * 4))


def accumulate_cases(psum, a, b, mode):
    if mode == "none":
        nisa.nc_matmul(dst=psum, stationary=a, moving=b)
        nisa.nc_matmul(dst=psum, stationary=a, moving=b)
    elif mode == "overwrite":
        nisa.nc_matmul(dst=psum, stationary=a, moving=b)
        nisa.nc_matmul(dst=psum, stationary=a, moving=b, accumulate=False)
    elif mode == "partly":  # left half twice, then the whole: the right half overwrites
        nisa.nc_matmul(dst=psum[:, 0:8], stationary=a, moving=b[:, 0:8])
        nisa.nc_matmul(dst=psum, stationary=a, moving=b)
    elif mode == "after-memset":
        nisa.memset(dst=psum, value=1.0)
        nisa.nc_matmul(dst=psum, stationary=a, moving=b, accumulate=True)


@nki.jit
def accumulate_kernel(x, y, mode):
    a, b = nl.load(x), nl.load(y)
    psum = nl.ndarray((8, 16), dtype=nl.float32, buffer=nl.psum)
    accumulate_cases(psum, a, b, mode)
    tile = nl.ndarray((8, 16), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(dst=tile, src=psum)
    out = nl.ndarray((8, 16), dtype=nl.float32, buffer=nl.shared_hbm)
    nisa.dma_copy(dst=out, src=tile)
    return out


@pytest.mark.parametrize("numeric", [True, False])
@pytest.mark.parametrize("mode", ["none", "overwrite", "partly", "after-memset"])
def test_accumulation_in_psum(mode, numeric):
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((32, 8), np.float32), rng.standard_normal((32, 16), np.float32)
    product = x.T @ y
    expected = {
        "none": 2 * product,
        "overwrite": product,
        "partly": np.concatenate((2 * product[:, :8], product[:, 8:]), axis=1),
        "after-memset": product + 1,
    }[mode]
    result, call = record(accumulate_kernel, x, y, mode, numeric=numeric)
    np.testing.assert_allclose(np.asarray(result), expected, rtol=1e-5, atol=1e-5)
    assert ("accumulate-after-non-matmul" in kinds(call)) == (mode == "after-memset")


def test_a_new_tensor_starts_a_new_accumulation():
    @nki.jit
    def kernel(x, y):
        a, b = nl.load(x), nl.load(y)
        out = nl.ndarray((8, 16), dtype=nl.float32, buffer=nl.shared_hbm)
        for _ in range(3):
            psum = nl.ndarray((8, 16), dtype=nl.float32, buffer=nl.psum, address=(0, 2048))
            nisa.nc_matmul(dst=psum, stationary=a, moving=b)
            tile = nl.ndarray((8, 16), dtype=nl.float32, buffer=nl.sbuf)
            nisa.tensor_copy(dst=tile, src=psum)
            nisa.dma_copy(dst=out, src=tile)
        return out

    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((32, 8), np.float32), rng.standard_normal((32, 16), np.float32)
    result, _ = record(kernel, x, y)
    np.testing.assert_allclose(result, x.T @ y, rtol=1e-5, atol=1e-5)


# -- indirect DMA ------------------------------------------------------------------------------------------------------


@nki.jit
def gather(data, indices, mode):
    rows, columns = indices.shape[0], data.shape[1]
    idx = nl.load(indices)
    tile = nl.ndarray((rows, columns), dtype=data.dtype, buffer=nl.sbuf)
    nisa.memset(dst=tile, value=-1.0)
    nisa.dma_copy(
        dst=tile, src=data.ap([[columns, rows], [1, columns]], vector_offset=idx, indirect_dim=0), oob_mode=mode
    )
    out = nl.ndarray((rows, columns), dtype=data.dtype, buffer=nl.shared_hbm)
    nisa.dma_copy(dst=out, src=tile)
    return out


def test_gather_rows():
    data = np.random.default_rng(0).standard_normal((64, 12)).astype(np.float32)
    indices = np.array([[3], [63], [0], [3]], np.int32)
    result, _ = record(gather, data, indices, nisa.oob_mode.error)
    np.testing.assert_array_equal(result, data[[3, 63, 0, 3]])


def test_gather_out_of_bounds():
    data = np.random.default_rng(0).standard_normal((64, 12)).astype(np.float32)
    indices = np.array([[3], [64], [-1], [5]], np.int32)
    result, _ = record(gather, data, indices, nisa.oob_mode.skip)
    np.testing.assert_array_equal(result[[0, 3]], data[[3, 5]])
    assert (result[1:3] == -1).all()
    with pytest.raises(HardwareError, match="index 64 in partition 1 is out of bounds"):
        gather(data, indices, nisa.oob_mode.error)


def test_scatter_and_scalar_offset():
    @nki.jit
    def kernel(rows, indices, where):
        out = nl.ndarray((8, 4), dtype=nl.float32, buffer=nl.shared_hbm)
        zero = nl.zeros((8, 4), dtype=nl.float32, buffer=nl.sbuf)
        nisa.dma_copy(dst=out, src=zero)
        tile, idx = nl.load(rows), nl.load(indices)
        nisa.dma_copy(dst=out.ap([[4, 2], [1, 4]], vector_offset=idx), src=tile)
        at = nl.load(where)
        register = nisa.register_alloc()
        nisa.register_load(register, at)
        nisa.dma_copy(dst=out.ap([[4, 1], [1, 4]], scalar_offset=register), src=tile[0:1])
        return out

    rows = np.arange(8, dtype=np.float32).reshape(2, 4) + 1
    for numeric in (True, False):
        result, _ = record(kernel, rows, np.array([[6], [1]], np.int32), np.array([[4]], np.int32), numeric=numeric)
        expected = np.zeros((8, 4), np.float32)
        expected[[6, 1]] = rows
        expected[4] = rows[0]
        np.testing.assert_array_equal(np.asarray(result), expected)


# -- two cores ---------------------------------------------------------------------------------------------------------


@nki.jit
def swap_halves(x):
    rank = nl.program_id(0)
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    half = x.shape[0] // 2
    mine = nl.load(x[rank * half : (rank + 1) * half, :])
    theirs = nl.ndarray(mine.shape, dtype=x.dtype, buffer=nl.sbuf)
    nisa.sendrecv(src=mine, dst=theirs, send_to_rank=1 - rank, recv_from_rank=1 - rank, pipe_id=0)
    nisa.dma_copy(dst=out[rank * half : (rank + 1) * half, :], src=theirs)
    nisa.core_barrier(data=out, cores=(0, 1))
    return out


def test_two_cores_exchange():
    x = np.arange(64, dtype=np.float32).reshape(8, 8)
    result, call = record(swap_halves[2], x)
    np.testing.assert_array_equal(result, np.concatenate((x[4:], x[:4])))
    assert len(call.traces) == 2
    assert {t.core for t in call.timeline.tracks} == {0, 1}
    _, again = record(swap_halves[2], x, numeric=False)
    assert again.timeline.total_ps == call.timeline.total_ps


def test_deadlock_names_both_sides():
    @nki.jit
    def kernel(x):
        rank = nl.program_id(0)
        tile = nl.load(x)
        if rank == 0:
            nisa.core_barrier(data=x, cores=(0, 1))
        else:
            nisa.sendrecv(src=tile, dst=tile, send_to_rank=0, recv_from_rank=0, pipe_id=3)

    with pytest.raises(DeadlockError) as caught:
        kernel[2](np.zeros((4, 4), np.float32))
    message = str(caught.value)
    assert "core 0 waits in core_barrier" in message
    assert "core 1 waits in sendrecv pipe 3" in message
    assert message.count(__file__) >= 2


def test_one_side_finishes():
    @nki.jit
    def kernel(x):
        if nl.program_id(0) == 0:
            nisa.core_barrier(data=x, cores=(0, 1))

    with pytest.raises(DeadlockError, match="core 1 has finished"):
        kernel[2](np.zeros((4, 4), np.float32))


def test_two_cores_need_a_generation_that_has_them():
    with pytest.raises(CompilerError, match="no logical cores"):
        trnsim.simulate(swap_halves[2], np.zeros((8, 8), np.float32), chip="trn1")
    with pytest.raises(HardwareError, match=r"kernel\[2\]"):
        swap_halves(np.zeros((8, 8), np.float32))
    with pytest.raises(CompilerError, match="1 or 2"):
        swap_halves[3]


# -- time-only ---------------------------------------------------------------------------------------------------------


@nki.jit
def counted(x, count):
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    tile = nl.load(x)
    times = nisa.register_alloc()
    nisa.register_load(times, nl.load(count))
    for _ in nl.dynamic_range(times):
        nisa.tensor_scalar(dst=tile, data=tile, op0=nl.multiply, operand0=2.0)
    nisa.dma_copy(dst=out, src=tile)
    return out


def test_time_only_computes_what_control_flow_needs():
    x, count = np.ones((4, 4), np.float32), np.array([[3]], np.int32)
    numbers, call = record(counted, x, count)
    lazy, timed = record(counted, x, count, numeric=False)
    assert timed.timeline.total_ps == call.timeline.total_ps
    for name in ("klass", "operand", "region"):
        np.testing.assert_array_equal(timed.traces[0].instructions[name], call.traces[0].instructions[name])
    np.testing.assert_array_equal(timed.traces[0].operands["form"], call.traces[0].operands["form"])
    assert "not computed" in repr(lazy)
    np.testing.assert_array_equal(np.asarray(lazy), numbers)
    assert (np.asarray(lazy) == 8).all()


def test_without_data_a_needed_value_is_an_error():
    with pytest.raises(NeedsDataError, match=r"--arg count=file.npy"):
        trnsim.profile(counted, "f32[4,4]", "i32[1,1]")
    call = trnsim.profile(counted, "f32[4,4]", "i32[1,1]", arguments={"count": np.array([[2]], np.int32)})
    assert call.timeline.totals.instructions > 0


def test_profile_from_shapes():
    call = trnsim.profile(add_one, "f32[128,512]")
    assert call.numeric is False
    assert call.timeline.total_ps > 0


# -- traces ------------------------------------------------------------------------------------------------------------


def test_a_saved_trace_is_timed_again(tmp_path):
    from trnsim.hardware import load_chip
    from trnsim.machine.trace import Trace
    from trnsim.timing import TimingOptions, simulate

    _, call = record(add_one, np.zeros((128, 64), np.float32))
    path = tmp_path / "kernel.trace"
    call.traces[0].save(path)
    loaded = Trace.load(path)
    assert simulate([loaded], load_chip("trn2"), TimingOptions()).total_ps == call.timeline.total_ps
    assert [str(x) for x in loaded.lines] == [str(x) for x in call.traces[0].lines]
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match="not a saved trace"):
        Trace.load(path)


# -- schedules ---------------------------------------------------------------------------------------------------------


@nki.jit
def named(x):
    a = nl.load(x)
    b = nl.ndarray(a.shape, a.dtype, buffer=nl.sbuf)
    c = nl.ndarray(a.shape, a.dtype, buffer=nl.sbuf)
    nisa.reciprocal(dst=b, data=a, name="recip")
    nisa.activation(dst=c, op=nl.exp, data=a, name="exp")
    out = nl.ndarray(a.shape, a.dtype, buffer=nl.shared_hbm)
    nisa.tensor_tensor(dst=b, data1=b, data2=c, op=nl.add)
    nisa.dma_copy(dst=out, src=b)
    return out


def test_with_schedule_orders_instructions():
    x = np.ones((128, 512), np.float32)
    _, free = record(named, x)
    _, ordered = record(named.with_schedule([("exp", "recip")]), x)
    assert ordered.timeline.total_ps > free.timeline.total_ps
    with pytest.raises(CompilerError, match="'nothing'"):
        record(named.with_schedule([("exp", ["nothing"])]), x)


def test_instructions_outside_a_kernel():
    with pytest.raises(CompilerError, match="inside a kernel"):
        nl.ndarray((2, 2), nl.float32)

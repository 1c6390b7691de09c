"""Loops, the launch grid, constants and ``device_print`` of ``nki.language``."""

import sys
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from trnsim.errors import CompilerError, NeedsDataError
from trnsim.hardware import load_chip
from trnsim.machine.launch import Program
from trnsim.nki import isa
from trnsim.nki import language as nl

sys.path.insert(0, str(Path(__file__).parent))
from test_language_harness import run

DATA = np.arange(32, dtype=np.float32).reshape(1, 32)


@pytest.mark.parametrize("loop", [nl.affine_range, nl.sequential_range, nl.static_range])
def test_unrolled_loops_are_ranges(loop):
    assert loop(4) == range(4)
    assert loop(1, 7) == range(1, 7)
    assert loop(1, 7, 2) == range(1, 7, 2)
    assert loop(start=1, stop=5) == range(1, 5)
    with pytest.raises(TypeError):
        loop(4, precise_schedule=True)


def _register(tensor):
    tile = nl.load(tensor)
    register = isa.register_alloc()
    isa.register_load(register, tile)
    return register


def _copy_one(out, data, i):
    tile = nl.ndarray((1, 1), nl.float32)
    isa.dma_copy(dst=tile, src=data.ap([[1, 1], [1, 1]], scalar_offset=i, indirect_dim=1))
    isa.dma_copy(dst=out.ap([[1, 1], [1, 1]], scalar_offset=i, indirect_dim=1), src=tile)


@pytest.mark.parametrize("numeric", [True, False])
@pytest.mark.parametrize("kind", ["dynamic_range", "fori_loop", "slices"])
def test_loops_with_run_time_bounds(kind, numeric):
    def function(data, bound):
        out = nl.zeros((1, 32), nl.float32, nl.shared_hbm)
        upper = _register(bound)
        if kind == "fori_loop":
            nl.fori_loop(2, upper, lambda i: _copy_one(out, data, i), step=3)
        elif kind == "dynamic_range":
            for i in nl.dynamic_range(2, upper, 3):
                _copy_one(out, data, i)
        else:
            for i in nl.dynamic_range(2, upper, 3):
                nl.store(out[:, nl.ds(i, 1)], nl.load(data[:, i : i + 1]))
        return out

    got = run(function, DATA, np.full((1, 1), 17, np.int32), load=False, numeric=numeric)
    assert got.instructions.count("dma_copy") == 2 + 2 * 5
    if numeric:
        expected = np.zeros((1, 32), np.float32)
        expected[:, 2:17:3] = DATA[:, 2:17:3]
        np.testing.assert_array_equal(got.values, expected)


def test_while_loop():
    def function(count):
        total, one = nl.zeros((1, 1), nl.int32), nl.ones((1, 1), nl.int32)
        left = nl.load(count)
        register = isa.register_alloc()
        isa.register_load(register, left)

        def body(r):
            isa.tensor_tensor(total, total, left, nl.add)
            isa.tensor_tensor(left, left, one, nl.subtract)
            isa.register_load(r, left)
            return r

        nl.while_loop(register, body)
        return total

    for count in (0, 1, 5):
        assert run(function, np.full((1, 1), count, np.int32), load=False).values == count * (count + 1) // 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nl.fori_loop(0, 3, lambda i: i), "cannot return a value"),
        (lambda: nl.fori_loop(0, 3, lambda i: None, step=0), "positive constant"),
        (lambda: nl.fori_loop(0, 3, lambda i: None, step=isa.register_alloc(1)), "positive constant"),
        (lambda: nl.fori_loop(0, 3.5, lambda i: None), "integer or a register"),
        (lambda: nl.fori_loop(0, 3, lambda i: isa.register_move(i, 1)), "cannot be written"),
        (lambda: nl.dynamic_range(0, 3, -1), "positive constant"),
        (lambda: nl.while_loop(1, lambda r: r), "init must be a register"),
        (lambda: nl.while_loop(isa.register_alloc(1), lambda r: None), "result of body_fun must be a register"),
    ],
)
def test_errors_of_loops(call, message):
    with pytest.raises(CompilerError, match=message):
        run(call)


@pytest.mark.parametrize(
    "call",
    [
        lambda: nl.fori_loop(0, 3, lambda i: None),
        lambda: nl.while_loop(isa.register_alloc(0), lambda r: r),
        lambda: nl.dynamic_range(3),
    ],
)
def test_no_run_time_loop_inside_no_reorder(call):
    def function():
        with nl.no_reorder():
            call()

    with pytest.raises(CompilerError, match="no_reorder"):
        run(function)


def test_no_reorder_marks_instructions():
    def function():
        nl.zeros((4, 4), nl.float32)
        with nl.no_reorder():
            nl.zeros((4, 4), nl.float32)
        nl.zeros((4, 4), nl.float32)

    rows = run(function).program.cores[0].trace.instruction_rows
    assert list(rows[4::6]) == [0, 1, 0]


# -- the launch --------------------------------------------------------------------------------------------------------


def _place():
    return nl.program_ndim(), nl.program_id(0), nl.num_programs(0), nl.num_programs(axes=None), nl.num_programs([0])


@pytest.mark.parametrize(
    ("grid", "lnc", "places"),
    [(None, 1, [(0, 0, 1, 1, 1)]), (1, 1, [(1, 0, 1, 1, 1)]), (2, 2, [(1, 0, 2, 2, 2), (1, 1, 2, 2, 2)])],
)
def test_grid(grid, lnc, places):
    program = Program(load_chip("trn2"), lnc=lnc)
    program.grid = grid
    assert program.run(_place, (), {}) == places


def test_the_grid_has_one_axis():
    for call in (lambda: nl.program_id(1), lambda: nl.num_programs(1), lambda: nl.num_programs((0, 1))):
        with pytest.raises(CompilerError, match="one axis"):
            run(call)


def test_constants_are_shared_by_the_cores():
    program = Program(load_chip("trn2"), lnc=2)
    first, second = program.run(lambda: nl.shared_constant(DATA), (), {})
    assert first.storage is second.storage


# -- constants and classes ---------------------------------------------------------------------------------------------


def test_tile_size():
    size = nl.tile_size
    assert (size.pmax, size.psum_fmax, size.psum_bank_fmax, size.psum_bank_fmax_bytes) == (128, 512, 512, 2048)
    assert (size.gemm_stationary_fmax, size.gemm_moving_fmax, size.bn_stats_fmax) == (128, 512, 512)
    assert (size.psum_min_align, size.sbuf_min_align, size.psum_num_banks) == (4, 1, 8)
    assert isinstance(size, nl._TileSize)
    assert size.total_available_sbuf_size == size.sbuf_fmax_bytes == 212984
    assert size.sbuf_size_bytes == 128 * 224 * 1024
    assert size.sbuf_fmax == 212984 // 4


@pytest.mark.parametrize(("generation", "usable"), [("v2", 180224), ("v3", 212984), ("v4", 245752)])
def test_tile_size_of_the_running_chip(generation, usable):
    assert run(lambda: nl.tile_size.total_available_sbuf_size, generation=generation).tensor == usable


def test_dtypes_are_strings():
    assert nl.float32 == "float32"
    assert isinstance(nl.bfloat16, nl.DType)
    assert nl.bool_.itemsize == 1
    assert nl.float4_e2m1fn_x4.itemsize == 2
    assert nl.float32 == np.float32


def test_memory_regions():
    assert nl.hbm is nl.private_hbm
    assert [nl.is_hbm(b) for b in (nl.sbuf, nl.psum, nl.hbm, nl.shared_hbm)] == [False, False, True, True]
    assert [nl.is_on_chip(b) for b in (nl.sbuf, nl.psum, nl.hbm, nl.shared_hbm)] == [True, True, False, False]
    assert nl.is_psum(nl.psum)
    assert nl.is_sbuf(nl.sbuf)
    assert not nl.is_sbuf(nl.psum)
    assert nl.MemoryRegion.sbuf is nl.sbuf
    with pytest.raises(CompilerError):
        nl.is_hbm(3)


def test_nki_objects():
    class Plain(nl.NKIObject):
        size: int
        wide: bool = False

        def __post_init__(self):
            self.seen = (self.size, self.wide)

    class Derived(Plain):
        more: int = 3

    @dataclass
    class Data(nl.NKIObject):
        size: int
        wide: bool = False

    assert Plain(1).seen == (1, False)
    assert Plain(size=2, wide=True).seen == (2, True)
    assert Plain().seen == (None, False)
    assert Derived(1, True, 5).more == 5
    assert Data(1) == Data(size=1, wide=False)
    assert nl.NKIObject(anything=1).anything == 1
    for call in (lambda: Plain(3, 4, 5), lambda: Plain(other=1), lambda: Plain(1, size=1)):
        with pytest.raises(TypeError):
            call()


# -- device_print ------------------------------------------------------------------------------------------------------


def test_device_print(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("NEURON_RT_DEBUG_OUTPUT_DIR", str(tmp_path))

    def function(t, h):
        nl.device_print("tile", t)
        nl.device_print("tile", nl.add(t, 1.0))
        nl.device_print("half", nl.copy(h))

    run(function, DATA, DATA.astype(ml_dtypes.bfloat16))
    assert capsys.readouterr().out.startswith("tile [[ 0.  1.  2.")
    np.testing.assert_array_equal(np.load(tmp_path / "tile/core_0/1/tensor.npy"), DATA + 1)
    np.testing.assert_array_equal(np.load(tmp_path / "half/core_0/0/tensor.npy"), DATA)


def test_device_print_computes_in_a_time_only_run(capsys):
    def function(t):
        nl.device_print("sum:", nl.add(nl.load(t), 1.0))

    run(function, DATA, load=False, numeric=False)
    assert "sum: [[ 1.  2.  3." in capsys.readouterr().out

    class Shape:
        shape, dtype = (1, 32), np.dtype(np.float32)

    with pytest.raises(NeedsDataError):
        run(function, Shape(), load=False, numeric=False)


def test_device_print_checks_its_arguments():
    with pytest.raises(CompilerError, match="must be a string"):
        run(lambda t: nl.device_print(1, t), DATA)
    with pytest.raises(CompilerError, match="must be a tensor"):
        run(lambda t: nl.device_print("x", DATA), DATA)
    got = run(lambda t: nl.device_print("x", nl.transpose(t)), DATA)
    assert got.findings == ["hardware-rejects"]

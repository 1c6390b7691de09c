"""Registers and run-time loops: random programs against Python integers, with numbers and in time-only runs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isa_harness import NUMPY, assert_refused, given_tensor, nl, running, tensor

import trnsim.nki.isa as nisa
from trnsim.errors import CompilerError, HardwareError, TrnsimError
from trnsim.nki import language

programs = settings(max_examples=80, deadline=None, derandomize=True)
CELLS, WORDS = 4, st.integers(-(2**31), 2**31 - 1) | st.sampled_from([0, 1, -1, 2**31 - 1, -(2**31)])


def wrapped(value):
    """As a signed number of 32 bits."""
    return (value + 2**31) % 2**32 - 2**31


@programs
@given(st.data(), st.booleans(), st.sampled_from(["sbuf", "hbm"]), st.sampled_from(["int32", "uint32"]))
def test_programs(data, numeric, memory, kind):
    """Loads, stores, moves and sums; a register keeps what it was given when what it came from changes."""
    draw = data.draw
    with running("v3", numeric=numeric) as core:
        words = draw(st.lists(WORDS, min_size=CELLS, max_size=CELLS))
        cells = core.ndarray((1, CELLS), kind, memory)
        cells.array()[...] = np.array([words], np.int64).astype(np.uint32).view(NUMPY[kind])
        cells.storage.full = cells.storage.coverage.full = True
        registers = [nisa.register_alloc(0) for _ in range(3)]
        held = [0, 0, 0]
        steps = ["load", "store", "move", "constant", "copy", "read", "alloc"]
        for step in draw(st.lists(st.sampled_from(steps), min_size=3, max_size=14)):
            a, b = draw(st.integers(0, 2)), draw(st.integers(0, 2))
            cell, other = draw(st.integers(0, CELLS - 1)), draw(st.integers(0, CELLS - 1))
            if step == "load":
                nisa.register_load(registers[a], cells[:, cell : cell + 1])
                held[a] = words[cell]
            elif step == "store":
                nisa.register_store(cells[:, cell : cell + 1], registers[a])
                words[cell] = held[a]
            elif step == "move":
                nisa.register_move(registers[a], registers[b])
                held[a] = held[b]
            elif step == "constant":
                value = draw(WORDS)
                nisa.register_move(registers[a], value)
                held[a] = value
            elif step == "copy":
                nisa.dma_copy(cells[:, cell : cell + 1], cells[:, other : other + 1])
                words[cell] = words[other]
            elif step == "alloc":
                registers[a] = nisa.register_alloc(cells[:, cell : cell + 1])
                held[a] = words[cell]
            else:
                assert int(registers[a]) == wrapped(held[a])
                assert bool(registers[a]) == (held[a] != 0)
        assert [int(r) for r in registers] == [wrapped(h) for h in held]
        core.force(cells)
        assert cells.array().view(np.int32).ravel().tolist() == [wrapped(w) for w in words]


@programs
@given(st.integers(-3, 9), st.integers(-3, 12), st.integers(1, 4), st.sampled_from(["dynamic_range", "fori_loop"]),
       st.booleans(), st.booleans())  # fmt: skip
def test_counted_loops(start, stop, step, kind, in_register, numeric):
    """The index runs as that of ``range``; the body sees what the turn before left."""
    with running("v3", numeric=numeric) as core:
        total = given_tensor(core, np.zeros((1, 1), np.int32), "int32")
        lower, upper = (nisa.register_alloc(x) if in_register else x for x in (start, stop))
        expected = 0

        def body(i):
            nisa.tensor_scalar(total, total, nl.multiply, 3, op1=nl.add, operand1=int(i))

        if kind == "fori_loop":
            language.fori_loop(lower, upper, body, step=step)
        else:
            for i in language.dynamic_range(lower, upper, step):
                body(i)
        for i in range(start, stop, step):
            expected = wrapped(expected * 3 + i)
        core.force(total)
        assert total.array()[0, 0] == expected


@programs
@given(st.integers(0, 40), st.booleans())
def test_while_loops_end_when_the_register_is_zero(count, numeric):
    """The Collatz sequence of ``count``, whose length nobody knows before."""
    with running("v3", numeric=numeric) as core:
        cell = given_tensor(core, np.array([[count]], np.int32), "int32")
        turns = given_tensor(core, np.zeros((1, 1), np.int32), "int32")
        condition = nisa.register_alloc(count if count > 1 else 0)

        def body(register):
            value = nisa.register_alloc(cell)
            odd = int(value) % 2
            nisa.register_move(value, int(value) * 3 + 1 if odd else int(value) // 2)
            nisa.register_store(cell, value)
            nisa.tensor_scalar(turns, turns, nl.add, 1)
            nisa.register_move(register, 0 if int(value) == 1 else 1)
            return register

        language.while_loop(condition, body)
        length, value = 0, count
        while value > 1:
            value = 3 * value + 1 if value % 2 else value // 2
            length += 1
        core.force(turns)
        core.force(cell)
        assert (turns.array()[0, 0], cell.array()[0, 0]) == (length, value)


def test_loops_move_the_views_of_their_bodies():
    """The index as a slice's start, in ``nl.ds``, as a scalar offset and in arithmetic."""
    values = np.arange(40, dtype=np.float32).reshape(1, 40)
    with running() as core:
        x, out = given_tensor(core, values, "float32"), tensor(core, "float32", 1, 40)
        nisa.memset(out, 0.0)
        for i in language.dynamic_range(nisa.register_alloc(1), nisa.register_alloc(9), 2):
            nisa.tensor_copy(out[:, i : i + 1], x[:, language.ds(i * 4, 1)])
            nisa.tensor_copy(out[:, language.ds(10 + i, 1)], x[:, 39 - i : 40 - i])
            nisa.dma_copy(
                out.ap([[40, 1], [1, 1]], scalar_offset=i, offset=20, indirect_dim=1), x[:, i // 2 : i // 2 + 1]
            )
        expected = np.zeros((1, 40), np.float32)
        for i in (1, 3, 5, 7):
            expected[0, [i, 10 + i, 20 + i]] = values[0, [4 * i, 39 - i, i // 2]]
        np.testing.assert_array_equal(out.array(), expected)


BROKEN = [
    ("src", HardwareError, lambda t, r: nisa.register_load(r, t((1, 2)))),
    ("src", HardwareError, lambda t, r: nisa.register_load(r, t((2, 1)))),
    ("src", HardwareError, lambda t, r: nisa.register_load(r, t((1, 1), "psum"))),
    ("dst", HardwareError, lambda t, r: nisa.register_store(t((1, 2)), r)),
    ("dst", HardwareError, lambda t, r: nisa.register_store(t((1, 1), "psum"), r)),
]


@pytest.mark.parametrize(("operand", "kind", "call"), BROKEN)
def test_registers_hold_one_element(operand, kind, call):
    with running() as core:
        register = nisa.register_alloc(0)

        def made(shape, memory="sbuf"):
            view = core.ndarray(shape, "int32", memory)
            view.array()[...] = 0
            view.storage.full = view.storage.coverage.full = True
            return view

        assert_refused(kind, operand, lambda: call(made, register))


def test_what_is_no_register():
    with running() as core:
        cell = given_tensor(core, np.zeros((1, 1), np.int32), "int32")
        for call in (
            lambda: nisa.register_move(cell, 1),
            lambda: nisa.register_load(1, cell),
            lambda: nisa.register_store(cell, 1),
            lambda: nisa.register_alloc(1.5),
            lambda: nisa.register_move(nisa.register_alloc(), 1.5),
        ):
            with pytest.raises(CompilerError):
                call()
        with pytest.raises(HardwareError):
            nisa.register_move(nisa.register_alloc(), 2**32)
        with pytest.raises(TrnsimError):
            int(nisa.register_alloc())

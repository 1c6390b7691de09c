"""The accumulator registers that instructions of an engine share: random programs against one array of 128 numbers.

VectorE's are shared by ``tensor_scalar_reduce``, ``tensor_scalar_cumulative``, ``exponential``, ``range_select`` and
``select_reduce``; ScalarE's by ``activation``, ``activation_reduce`` and ``activate2`` (notes in the NKI reference).
``idle`` may leave anything in VectorE's, so that a lane is reset or loaded before it is read again.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isa_harness import act, given_tensor, nl, read, rounded, running, tensor

from trnsim.isa import activate2, reductions, scalar, statistics
from trnsim.isa.constants import reduce_cmd

programs = settings(max_examples=80, deadline=None, derandomize=True)
REDUCE = {"add": np.add, "multiply": np.multiply, "maximum": np.maximum, "minimum": np.minimum}
IDENTITY = {"add": 0.0, "multiply": 1.0, "maximum": -np.inf, "minimum": np.inf, "subtract": 0.0}
LEAST = np.finfo(np.float32).min
BY_SIZE = {"abs_max": np.argmax, "abs_min": np.argmin}


class Lanes:
    """128 registers; those of ``part`` are what an instruction on these partitions uses."""

    def __init__(self):
        self.values, self.known = np.zeros(128), np.zeros(128, bool)

    def start(self, part, cmd, identity, initial=None):
        if cmd in ("reset", "reset_reduce"):
            self.values[part], self.known[part] = identity, True
        elif cmd == "load_reduce":
            self.values[part], self.known[part] = initial, True

    def reduce(self, part, cmd, op, values):
        if cmd.endswith("reduce"):
            ufunc = REDUCE[op]
            self.values[part] = ufunc(self.values[part], ufunc.reduce(values, axis=1))


def close(actual, expected):
    np.testing.assert_allclose(actual.astype(np.float64), expected, rtol=1e-5, atol=1e-6)


def drawn(draw, core, n):
    """A tile of small integers on some partitions: its view, values and partitions."""
    start, count = draw(st.sampled_from([(0, 128), (0, 5), (32, 32), (64, 40), (96, 7)]))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    values = rng.integers(-3, 4, (count, n)).astype(np.float32)
    whole = given_tensor(core, np.zeros((128, n), np.float32), "float32", draw(st.sampled_from(["sbuf", "psum"])))
    view = whole[start : start + count]
    view.array()[...] = values
    return view, values.astype(np.float64), slice(start, start + count)


def result_tile(core, draw, count, out, names=("float32", "bfloat16")):
    """``dst``, and where the registers go: a column of its own, a column of ``dst``, or nowhere."""
    kind = draw(st.sampled_from(names))
    dst = tensor(core, kind, count, out)
    where = draw(st.sampled_from(["own", "own", "dst", None]))
    return dst, tensor(core, "float32", count, 1) if where == "own" else dst[:, 1:2] if where else None


def check(dst, expected, res, registers):
    stored = rounded(expected, str(dst.dtype))
    if res is not None:
        final = rounded(registers[:, None], str(res.dtype))
        if res.storage is dst.storage:
            stored[:, 1:2] = final
        close(read(res), final.astype(np.float64))
    close(read(dst), stored.astype(np.float64))


@programs
@given(st.data())
def test_vector(data):
    draw = data.draw
    lanes = Lanes()
    names = ["tensor_scalar_reduce", "cumulative", "exponential", "range_select", "select_reduce"]
    with running("v4") as core:
        for name in draw(st.lists(st.sampled_from(names), min_size=2, max_size=7)):
            n = 4
            src, values, part = drawn(draw, core, n)
            count = len(values)
            commands = (
                ["reset_reduce", "load_reduce"] if name not in ("range_select", "select_reduce") else ["reset_reduce"]
            )
            if lanes.known[part].all():
                commands += ["reduce", "reduce"]
            if name in ("exponential", "range_select", "select_reduce"):
                commands.append("idle")
            cmd = draw(st.sampled_from(commands))
            command = reduce_cmd[cmd]
            initial = np.arange(count) % 5 - 2.0
            loads = given_tensor(core, initial[:, None].astype(np.float32), "float32") if cmd == "load_reduce" else None
            dst, res = result_tile(core, draw, count, n)
            if cmd == "idle":
                res = None
            negate = False
            if name == "tensor_scalar_reduce":
                op = draw(st.sampled_from(["add", "multiply", "maximum", "minimum"]))
                negate = draw(st.booleans())
                lanes.start(part, cmd, IDENTITY[op], initial)
                out = values * 0.5
                lanes.reduce(part, cmd, op, out)
                reductions.tensor_scalar_reduce(
                    dst, src, nl.multiply, 0.5, getattr(nl, op), res, False, command, loads, negate
                )
            elif name == "cumulative":
                op = draw(st.sampled_from(["add", "subtract", "maximum", "minimum"]))
                lanes.start(part, cmd, IDENTITY[op], initial)
                out = np.empty_like(values)
                for i in range(n):
                    x, register = values[:, i] + 1, lanes.values[part]
                    out[:, i] = x - register if op == "subtract" else REDUCE[op](x, register)
                    lanes.values[part] = out[:, i]
                res = None
                statistics.tensor_scalar_cumulative(dst, src, nl.add, getattr(nl, op), 1.0, loads, command)
            elif name == "exponential":
                out = np.exp(values - 2)
                lanes.start(part, cmd, 0.0, initial)
                lanes.reduce(part, cmd, "add", out)
                statistics.exponential(dst, src, 2.0, res, command, 0.0 if loads is None else loads)
            elif name == "range_select":
                low, high = (given_tensor(core, np.full((count, 1), x, np.float32), "float32") for x in (11, 13))
                out = np.where([False, True, True, False], values, LEAST)
                lanes.start(part, cmd, -np.inf)
                lanes.reduce(part, cmd, "maximum", out)
                reductions.range_select(dst, src, nl.greater_equal, nl.less, low, high, command, res, range_start=10)
            else:
                mask = given_tensor(core, (np.arange(count * n).reshape(count, n) % 3).astype(np.uint8), "uint8")
                out = np.where(read(mask) != 0, values, -1.5)
                lanes.start(part, cmd, -np.inf)
                lanes.reduce(part, cmd, "maximum", out)
                statistics.select_reduce(dst, mask, src, -1.5, res, command)
            if cmd == "idle":
                lanes.known[part] = False
            check(dst, out, res, -lanes.values[part] if negate else lanes.values[part])


@programs
@given(st.data())
def test_scalar(data):
    draw = data.draw
    lanes = Lanes()
    with running("v4") as core:
        for name in draw(
            st.lists(st.sampled_from(["activation", "activation_reduce", "activate2"]), min_size=2, max_size=7)
        ):
            src, values, part = drawn(draw, core, 4)
            count = len(values)
            cmd = draw(st.sampled_from(["reset_reduce", "reduce", "reset", "idle"]))
            dst, res = result_tile(core, draw, count, 4)
            op = (
                draw(st.sampled_from(["add", "maximum", "minimum", "abs_max", "abs_min"]))
                if name == "activate2"
                else "add"
            )
            if cmd == "reduce" and not np.isfinite(lanes.values[part]).all():
                cmd = "reset_reduce"
            if name == "activation_reduce":
                cmd = "reset_reduce"
            out = np.square(values * 2 + 1) if name != "activate2" else 3 - values
            if op in BY_SIZE:
                if cmd.startswith("reset"):
                    cmd = "reduce"  # what they start from is not documented
                every = np.concatenate([lanes.values[part][:, None], out], axis=1)
                # of equal magnitudes either may stay: compare magnitudes
                if cmd == "reduce":
                    chosen = BY_SIZE[op](np.abs(every), axis=1)
                    lanes.values[part] = np.take_along_axis(every, chosen[:, None], 1)[:, 0]
            else:
                lanes.start(part, cmd, IDENTITY[op])
                lanes.reduce(part, cmd, op, out)
            command = reduce_cmd[cmd]
            if name == "activation":
                scalar.activation(dst, act.square, src, 1.0, 2.0, nl.add, res, command)
            elif name == "activation_reduce":
                if res is None:
                    res = tensor(core, "float32", count, 1)
                scalar.activation_reduce(dst, act.square, src, nl.add, res, 1.0, 2.0)
            else:
                activate2.activate2(
                    dst, act.copy, src, 3.0, None, nl.subtract, nl.bypass, reverse0=True,
                    reduce_op=getattr(nl, op), reduce_res=res, reduce_cmd=command,
                )  # fmt: skip
            if op in BY_SIZE:
                registers = core.state["scalar_accumulator"][part] if cmd == "reduce" or res is not None else None
                if registers is not None:
                    close(np.abs(registers), np.abs(lanes.values[part]))
                    lanes.values[part] = registers
            check(dst, out, res, lanes.values[part])


@pytest.mark.parametrize("column", [0, 3])
def test_initial_values_are_read_before_dst_is_written(column):
    """``reduce_init``, ``max_value`` and bounds may lie where the results go."""
    values = np.arange(8, dtype=np.float32).reshape(2, 4) / 4
    first = values[:, column : column + 1].astype(np.float64)
    for build in ("exponential", "tensor_scalar_reduce", "cumulative"):
        with running("v4") as core:
            x = given_tensor(core, values.copy(), "float32")
            res = tensor(core, "float32", 2, 1)
            part = x[:, column : column + 1]
            if build == "exponential":
                statistics.exponential(x, x, part, res, reduce_cmd.load_reduce, part)
                close(read(res)[:, 0], (first + np.exp(values - first).sum(1, keepdims=True))[:, 0])
                close(read(x), np.exp(values - first))
            elif build == "tensor_scalar_reduce":
                reductions.tensor_scalar_reduce(
                    x, x, nl.multiply, part, nl.add, res, reduce_cmd=reduce_cmd.load_reduce, reduce_init=part
                )
                close(read(res)[:, 0], (first + (values * first).sum(1, keepdims=True))[:, 0])
            else:
                statistics.tensor_scalar_cumulative(x, x, nl.add, nl.add, part, part, reduce_cmd.load_reduce)
                close(read(x), np.cumsum(values + first, axis=1) + first)


@pytest.mark.parametrize("generation", ["v3", "v4"])
def test_a_sum_is_that_of_the_activated_data(generation):
    """Not of what is left of them where ``dst`` overlaps ``data`` in another dtype."""
    values = np.arange(1, 9, dtype=np.float32).reshape(1, 8)
    with running(generation) as core:
        x, res = given_tensor(core, values, "float32"), tensor(core, "float32", 1, 1)
        dst = x.view("bfloat16")[:, :8]
        if generation == "v4":
            options = {"reduce_op": nl.add, "reduce_res": res, "reduce_cmd": reduce_cmd.reset_reduce}
            activate2.activate2(dst, act.copy, x, None, None, nl.bypass, nl.bypass, **options)
        else:
            scalar.activation_reduce(dst, act.copy, x, nl.add, res)
        assert read(res)[0, 0] == values.sum()
        assert (read(dst) == values).all()

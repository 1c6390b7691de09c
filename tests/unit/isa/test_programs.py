"""Random programs over few tensors, whose views overlap: what they leave is what a model of bytes leaves.

The model (``byte_model.py``) executes each instruction at once, from all of its operands' old values. trnsim puts
products off, keeps upcast copies, writes in place and records what has been written: none of that may show.
"""

import numpy as np
import pytest
from byte_model import KINDS, Memory, Twin, draw_view, values
from hypothesis import given, settings
from hypothesis import strategies as st
from isa_harness import GENERATIONS, nl, rounded, running, upcast

from trnsim.isa import dma, gpsimd, reductions, scalar, tensor, vector, vector_search
from trnsim.isa.alu import ACTIVATIONS
from trnsim.isa.constants import engine

programs = settings(max_examples=80, deadline=None, derandomize=True)
K, M, N = 8, 6, 10


class Accumulation:
    """Which bytes of a PSUM tensor the last writer was a product, since the tensor was made (NKI: accumulate=None)."""

    def __init__(self, base):
        self.base, self.mine = base, np.zeros(len(base.memory), bool)

    def __repr__(self):
        return f"products in {self.base.view.name}"

    def multiply(self, dst, product, accumulate):
        before = dst.flat().astype(np.float64)
        mine = self.mine[dst.bytes_at()].all(axis=-1).reshape(before.shape)
        add = mine if accumulate is None else np.full(before.shape, accumulate)
        dst.write(np.where(add, before, 0) + product)
        self.mine[dst.bytes_at()] = True

    def written(self, dst):
        self.mine[dst.bytes_at()] = False


@programs
@given(
    st.data(), st.sampled_from(GENERATIONS), st.sampled_from(["float32", "bfloat16"]), st.booleans(), st.booleans()
)  # fmt: skip
def test_products_accumulate_as_if_done_at_once(data, generation, kind, placed, numeric):
    """``nc_matmul`` into overlapping regions of PSUM, and other engines' writes to its operands and results.

    In a time-only run (not ``numeric``) nothing is computed until a tensor's values are asked for.
    """
    draw = data.draw
    with running(generation, numeric=numeric) as core, np.errstate(all="ignore"):
        memory = Memory(core)
        shape = (64, 40)
        operands = [memory.tensor(shape, kind, fill=values(draw, shape, kind)) for _ in range(2)]
        sums = [memory.tensor((64, 30), "float32", "psum", fill=values(draw, (64, 30), "float32"))]
        if placed:
            sums += [
                memory.tensor((64, 30), "float32", "psum", address=a, fill=values(draw, (64, 30), "float32"))
                for a in ((0, 2048), (0, 2048 + 48))
            ]
        owner = [Accumulation(s) for s in sums]
        picks = [(draw(st.integers(0, len(sums) - 1))) for _ in range(4)]
        targets = [(owner[i], draw_view(draw, sums[i], M, 2, N // 2, target=True)) for i in picks]
        lefts = [draw_view(draw, draw(st.sampled_from(operands)), K, 2, M // 2) for _ in range(3)]
        rights = [draw_view(draw, draw(st.sampled_from(operands)), K, 2, N // 2) for _ in range(3)]
        sources = [draw_view(draw, draw(st.sampled_from(operands)), M, 2, N // 2, target=True) for _ in range(2)]
        source = memory.tensor((M, N), kind, "hbm", fill=values(draw, (M, N), kind))
        steps = ["multiply"] * 4 + ["memset", "read", "write", "add", "load"]
        for step in draw(st.lists(st.sampled_from(steps), min_size=3, max_size=14)):
            own, dst = draw(st.sampled_from(targets))
            other = draw(st.sampled_from(sources))
            if step == "multiply":
                a, b = draw(st.sampled_from(lefts)), draw(st.sampled_from(rights))
                modes = [True, False] if own.base.view.address else [None, None, True, False]
                accumulate = draw(st.sampled_from(modes))
                product = a.flat().astype(np.float64).T @ b.flat().astype(np.float64)
                tensor.nc_matmul(dst.view, a.view, b.view, accumulate=accumulate)
                own.multiply(dst, product, accumulate)
            elif step == "read":  # kept small, so that sums of products stay exact
                vector.tensor_scalar(other.view, dst.view, nl.minimum, 4, op1=nl.maximum, operand1=-4)
                other.write(np.clip(dst.flat(), -4, 4))
            elif step == "load":
                dma.dma_copy(other.view, source.view)
                other.write(source.read())
            else:
                if step == "memset":
                    number = draw(st.integers(-3, 3))
                    vector.memset(dst.view, float(number))
                    dst.write(np.full(dst.at.shape, number))
                elif step == "write":
                    vector.tensor_copy(dst.view, other.view)
                    dst.write(other.flat())
                else:
                    vector.tensor_tensor(dst.view, dst.view, other.view, nl.add)
                    dst.write(dst.flat() + other.flat())
                own.written(dst)
        for twin in draw(st.permutations([*operands, *sums])):
            memory.check([twin])


def single(x):
    with np.errstate(all="ignore"):
        return np.asarray(x, np.float64).astype(np.float32)


def converted(x, dtype):
    """What an engine stores of float32 results."""
    if dtype == "float8_e4m3fn":
        with np.errstate(all="ignore"):
            return np.asarray(x, np.float32).astype(KINDS[dtype])
    return rounded(x, dtype)


BINARY = {
    "add": np.add, "subtract": np.subtract, "multiply": np.multiply, "maximum": np.maximum, "minimum": np.minimum,
    "is_less": np.less, "is_equal": np.equal,
}  # fmt: skip
NAMES = {"is_less": "less", "is_equal": "equal"}
DTYPES = ["float32", "float32", "float16", "bfloat16", "float8_e4m3", "float8_e5m2", "int8", "uint8", "int16", "int32",
          "uint32"]  # fmt: skip


STEPS = ["copy", "tensor_tensor", "tensor_scalar", "predicated", "activation", "scan", "shuffle", "select", "dma",
         "memset", "columns", "bias", "reduce", "transpose", "gather"]  # fmt: skip


def cells(draw, shape, dtype):
    """Numbers of a dtype with the special ones of floats: zeros of both signs, infinities, NaN, denormals."""
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    if dtype.startswith(("int", "uint")):
        limits = np.iinfo(KINDS[dtype])
        return rng.integers(limits.min, limits.max, shape, np.int64, endpoint=True).astype(KINDS[dtype])
    kind = np.dtype(KINDS[dtype])
    bits = rng.integers(0, 2 ** (8 * kind.itemsize), shape, np.uint64).astype(f"u{kind.itemsize}").view(kind)
    with np.errstate(all="ignore"):
        plain = (rng.standard_normal(shape) * 3).astype(np.float32).astype(kind)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0], np.float32).astype(kind)
    pick = rng.random(shape)
    result = np.where(pick < 0.1, rng.choice(special, shape), np.where(pick < 0.3, bits, plain))
    return np.asarray(result, kind)


def maybe_recast(draw, base):
    """The whole tensor, perhaps with its bytes seen as another dtype."""
    if draw(st.integers(0, 3)):
        return base
    dtype = draw(st.sampled_from(DTYPES))
    size = np.dtype(KINDS[dtype]).itemsize
    return base.seen_as(dtype) if base.at.shape[-1] * base.kind.itemsize % size == 0 else base


@programs
@given(st.data(), st.sampled_from(GENERATIONS), st.booleans())
def test_views_of_the_same_bytes(data, generation, numeric):
    """Element-wise instructions, copies and searches through views that overlap, of all dtypes, in place too."""
    draw = data.draw
    with running(generation, numeric=numeric) as core, np.errstate(all="ignore"):
        memory = Memory(core)
        tensors = []
        for place, address in (
            ("sbuf", None),
            ("sbuf", (0, 64)),
            ("sbuf", (0, 96)),
            ("psum", None),
            ("psum", (0, 2048)),
        ):
            dtype = draw(st.sampled_from(DTYPES))
            shape = (64, 96 // np.dtype(KINDS[dtype]).itemsize)
            tensors.append(memory.tensor(shape, dtype, place, address, fill=cells(draw, shape, dtype)))
        # tensors at explicit addresses share bytes: each was filled before the next one
        p, a, b = draw(st.sampled_from([(1, 1, 1), (3, 2, 3), (33, 1, 5), (4, 2, 2)]))

        def view(target=False, among=tensors, dtype=None):
            base = draw(st.sampled_from(among))
            for _ in range(1 if target else 2):
                if base.at.shape[1] < a * b:
                    base = draw(st.sampled_from(among))
            base = maybe_recast(draw, base) if dtype is None else base.seen_as(dtype)
            if base.at.shape[1] < a * b:
                base = base.seen_as("uint8")
            return draw_view(draw, base, p, a, b, target=target)

        on_chip = [t for t in tensors if t.view.memory == "sbuf"]
        for name in draw(st.lists(st.sampled_from(STEPS), min_size=1, max_size=8)):
            among = on_chip if name in ("select", "dma", "gather") else tensors
            dst, x = view(True, among), view(among=among)
            y = view(among=on_chip if x.view.memory == "psum" else among)
            if name in ("columns", "bias"):
                words = [t.seen_as("float32") for t in tensors]
                y = [draw_view(draw, draw(st.sampled_from(words)), p, 1, 1) for _ in range(2)]
            elif name == "reduce":
                dst = draw_view(draw, maybe_recast(draw, draw(st.sampled_from(tensors))), p, 1, 1, target=True)
            elif name == "transpose":
                n = a * b
                base = draw(st.sampled_from(tensors)).seen_as(x.dtype)
                if p > 32 or base.at.shape[1] < p:
                    continue
                dst = draw_view(draw, base, n, 1, p, target=True)
            elif name == "gather":
                rng = np.random.default_rng(draw(st.integers(0, 99)))
                free = 96 // x.kind.itemsize
                y = memory.tensor((p, a * b), "uint32", fill=rng.integers(0, free, (p, a * b)))
                x = draw(st.sampled_from(on_chip)).seen_as(x.dtype)[0:p]
                dst = draw_view(draw, draw(st.sampled_from(on_chip)).seen_as(x.dtype), p, a, b, target=True)
            f, g = (draw(st.sampled_from(sorted(BINARY))) for _ in range(2))
            number = draw(st.sampled_from([0.5, -3.0, 2.0]))
            run(name, dst, x, y, f, g, number)
        memory.check(draw(st.permutations(tensors)))


def apply(name, x, y):
    return single(BINARY[name](np.asarray(x, np.float64), np.asarray(y, np.float64)))


def run(name, dst, x, y, f, g, number):
    """One instruction on both sides."""
    left, right = upcast(x.flat()), upcast(y.flat()) if isinstance(y, Twin) else [upcast(c.flat()) for c in y]
    op0, op1 = getattr(nl, NAMES.get(f, f)), getattr(nl, NAMES.get(g, g))
    bits = dst.dtype == x.dtype
    if name == "copy":
        vector.tensor_copy(dst.view, x.view)
        dst.write_numbers(x.flat() if bits else converted(left, dst.dtype))
    elif name == "tensor_tensor":
        expected = converted(apply(f, left, right), dst.dtype)
        vector.tensor_tensor(dst.view, x.view, y.view, op0, engine=engine.vector)
        dst.write_numbers(expected)
    elif name == "tensor_scalar":
        expected = converted(apply(g, apply(f, left, number), 2.0), dst.dtype)
        vector.tensor_scalar(dst.view, x.view, op0, number, op1=op1, operand1=2.0)
        dst.write_numbers(expected)
    elif name == "predicated":
        mask = y.seen_as({1: "uint8", 2: "uint16", 4: "uint32"}[y.kind.itemsize])
        if not bits:
            return
        expected = np.where(mask.flat() != 0, x.flat(), dst.flat())
        vector.tensor_copy_predicated(dst.view, x.view, mask.view)
        dst.write_numbers(expected)
    elif name == "activation":
        result = apply("multiply", left, number)
        scalar.activation(dst.view, ACTIVATIONS["copy"], x.view, scale=number)
        dst.write_numbers(converted(result, dst.dtype))
    elif name == "scan":
        state, steps = np.zeros(len(left), np.float32), []
        for i in range(left.shape[1]):
            state = apply("add", apply("multiply", left[:, i], state), right[:, i])
            steps.append(state)
        reductions.tensor_tensor_scan(dst.view, x.view, y.view, 0.0, nl.multiply, nl.add)
        dst.write_numbers(converted(np.stack(steps, axis=1), dst.dtype))
    elif name == "shuffle":
        if not bits:
            return
        mask = [(i * 7 + 1) % min(32, len(left)) if i % 5 else 255 for i in range(32)]
        if len(left) > 32:
            mask = [0] * 32
        expected = dst.flat()
        source = x.flat()
        for i in range(len(left)):
            if mask[i % 32] != 255:
                expected[i] = source[i // 32 * 32 + mask[i % 32]]
        vector_search.nc_stream_shuffle(dst.view, x.view, mask)
        dst.write_numbers(expected)
    elif name == "select":
        n = left.shape[1]
        gpsimd.affine_select(dst.view, [[2, n]], -3, x.view, number, nl.less_equal, 1)
        keep = 1 - 3 * np.arange(len(left))[:, None] + 2 * np.arange(n) <= 0
        chosen = x.flat() if bits else converted(left, dst.dtype)
        dst.write_numbers(np.where(keep, chosen, converted(np.float32(number), dst.dtype)))
    elif name == "dma":
        same_size = dst.kind.itemsize == x.kind.itemsize and {dst.kind.kind, x.kind.kind} <= {"i", "u"}
        dma.dma_copy(dst.view, x.view)
        dst.write_numbers(x.flat() if bits else x.flat().view(dst.kind) if same_size else converted(left, dst.dtype))
    elif name == "columns":
        expected = converted(apply(g, apply(f, left, right[0]), right[1]), dst.dtype)
        vector.tensor_scalar(dst.view, x.view, op0, y[0].view, op1=op1, operand1=y[1].view)
        dst.write_numbers(expected)
    elif name == "bias":
        expected = converted(apply("add", apply("multiply", left, right[0]), right[1]), dst.dtype)
        scalar.activation(dst.view, ACTIVATIONS["copy"], x.view, y[1].view, y[0].view)
        dst.write_numbers(expected)
    elif name == "reduce":
        expected = converted(-left.max(axis=1, keepdims=True), dst.dtype)
        axes = tuple(range(1, x.at.ndim))
        reductions.tensor_reduce(dst.view, nl.maximum, x.view, axes, negate=True)
        dst.write_numbers(expected)
    elif name == "transpose":
        tensor.nc_transpose(dst.view, x.view, engine.vector)
        dst.write(x.flat().T)
    elif name == "gather":
        expected = np.take_along_axis(x.flat(), y.flat().astype(np.int64), axis=1)
        gpsimd.nc_n_gather(dst.view, x.view, y.view)
        dst.write(expected)
    elif name == "memset":
        whole = 3 if dst.kind.kind in "iu" else number
        vector.memset(dst.view, whole)
        dst.write_numbers(converted(np.full(dst.at.shape, whole, np.float32), dst.dtype))


def test_partitions_that_a_step_leaves_out_stay_unwritten():
    """A write of every second partition is no write of those between; nor is a read one of those."""
    with running() as core:
        t, out = core.ndarray((8, 4), "float32"), core.ndarray((8, 4), "float32")
        vector.memset(t[0:8:2], 1.0)
        vector.tensor_copy(out[0:4], t[0:8:2])
        assert not core.launch.findings
        vector.tensor_copy(out, t)
        (finding,) = core.launch.findings.values()
        assert (finding.kind, finding.details["bytes"]) == ("uninitialized-read", 4 * 16)
        written = t.array()
        assert (written[::2] == 1).all()
        assert np.isnan(written[1::2]).all()


@pytest.mark.parametrize("address", [None, (0, 64)])
def test_an_instruction_that_writes_what_it_reads_finds_what_nothing_wrote(address):
    """All of a tile is new after it, none of it before: what an earlier tile left there is not read as data."""
    with running() as core:
        old = core.ndarray((128, 4), "float32", address=address)
        vector.memset(old, 9.0)
        del old
        t = core.ndarray((128, 4), "float32", address=address)
        vector.memset(t[0:48], 1.0)
        vector.tensor_scalar(t, t, nl.add, 2.0)
        (finding,) = (f for f in core.launch.findings.values() if f.kind == "uninitialized-read")
        assert finding.details["bytes"] == 80 * 16
        assert (t.array()[:48] == 3).all()
        assert np.isnan(t.array()[48:]).all()


def test_other_writes_make_only_their_own_bytes_new():
    """After a memset of one half of what products wrote, ``accumulate=None`` adds to the other half."""
    with running() as core:
        memory = Memory(core)
        ones = memory.tensor((8, 8), "float32", fill=np.ones((8, 8)))
        total = memory.tensor((8, 8), "float32", "psum", fill=np.zeros((8, 8)))
        tensor.nc_matmul(total.view, ones.view, ones.view)
        vector.memset(total.view[:, 4:], 5.0)
        tensor.nc_matmul(total.view, ones.view, ones.view)
        assert (total.view.array() == np.repeat([16, 8], 4)).all()


@programs
@given(st.data())
def test_reads_of_what_was_never_written_are_found(data):
    """Exactly the bytes that no view has written, of the tensor that is read and of those at the same addresses.

    They read as NaN, in integers as 4, and count as written from then on.
    """
    draw = data.draw
    with running() as core:
        memory = Memory(core)
        tensors = [
            memory.tensor((rows, 96 // np.dtype(KINDS[dtype]).itemsize), dtype, place, address)
            for rows, dtype, place, address in (
                (64, "float32", "sbuf", None), (64, "float32", "sbuf", (0, 64)), (64, "bfloat16", "sbuf", (0, 96)),
                (32, "int16", "sbuf", (32, 96)), (64, "float16", "psum", None),
            )
        ]  # fmt: skip
        masks = [np.zeros(len(t.memory), bool) for t in tensors]
        for _ in range(draw(st.integers(2, 8))):
            which = draw(st.integers(0, len(tensors) - 1))
            base = tensors[which]
            p, a, b = draw(st.sampled_from([(1, 1, 1), (3, 2, 3), (20, 1, 24), (4, 2, 2)]))
            reads = draw(st.booleans())
            view = draw_view(draw, base, p, a, b, target=not reads)
            touched = np.unique(view.bytes_at())
            if reads:
                out = core.ndarray(view.view.shape, view.dtype)
                core.launch.findings.clear()
                missing = touched[~masks[which][touched]]
                vector.tensor_copy(out, view.view)
                found = [f for f in core.launch.findings.values() if f.kind == "uninitialized-read"]
                assert [f.details["bytes"] for f in found] == ([len(missing)] if len(missing) else [])
                masks[which][touched] = True
                never = ~np.isin(view.bytes_at(), touched[~np.isin(touched, missing)]).any(axis=-1)
                values = out.array()[never]
                assert (values == 4).all() if view.dtype == "int16" else np.isnan(values.astype(np.float32)).all()
            else:
                vector.memset(view.view, 1)
                for mask, other in zip(masks, tensors, strict=True):
                    if other.memory is base.memory:
                        mask[touched] = True

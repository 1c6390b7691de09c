"""One instruction with numbers against NumPy and ml_dtypes on the same data, in the same run.

``python bench/run.py instructions``. The peer is what a NumPy programmer would write for the same arithmetic: float32
ufuncs into an array that exists, ml_dtypes' own conversions around them where operands are narrower. An instruction's
time is that of the whole call: the lookup of its class, the trace, the checks and the arithmetic. Both are the
shortest of many repetitions, taken in turns, so that a busy machine disturbs both alike.
"""

from __future__ import annotations

import time

import ml_dtypes
import numpy as np

import trnsim

BF16, FP8, E8M0 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3, ml_dtypes.float8_e8m0fnu
LIMIT = 2.0


def in_turns(ours, peer, seconds=0.25):
    """Shortest time of each function, in microseconds."""
    ours(), peer()
    best_ours = best_peer = float("inf")
    end = time.perf_counter() + seconds
    count = 0
    while count < 20 or time.perf_counter() < end:
        start = time.perf_counter()
        ours()
        middle = time.perf_counter()
        peer()
        stop = time.perf_counter()
        best_ours, best_peer = min(best_ours, middle - start), min(best_peer, stop - middle)
        count += 1
    return best_ours * 1e6, best_peer * 1e6


class Bench:
    """Tensors of a running kernel with data, and arrays with the same data for the peer."""

    def __init__(self, nl):
        self.nl = nl
        self.rng = np.random.default_rng(0)

    def tensor(self, data, buffer=None):
        """``data`` in SBUF (or ``buffer``), and the array itself."""
        tensor = self.nl.ndarray(data.shape, dtype=data.dtype, buffer=buffer or self.nl.sbuf)
        trnsim.nki.isa.memset(tensor, 0) if tensor.on_chip else trnsim.nki.isa.dma_copy(tensor, tensor)
        tensor.array()[...] = data
        return tensor, data.copy()

    def random(self, shape, dtype=np.float32, buffer=None):
        return self.tensor(self.rng.standard_normal(shape, np.float32).astype(dtype), buffer)


def float32(x):
    return x.astype(np.float32)


def element_wise(b, nl, nisa, shape):
    """Cases ``(name, ours, peer)`` that stream a tile through an engine."""
    for dtype, short in ((np.float32, "fp32"), (BF16, "bf16")):
        (x, a), (y, c), (out, o) = (b.random(shape, dtype) for _ in range(3))
        column, k = b.random((shape[0], 1))
        narrow = dtype is not np.float32

        def store(value, o=o):
            o[...] = value

        def peer(function, *arrays, o=o, narrow=narrow, store=store):
            if narrow:
                store(function(*(float32(v) for v in arrays)))
            else:
                function(*arrays, out=o)

        yield (
            f"tensor_tensor add {short}",
            lambda x=x, y=y, out=out: nisa.tensor_tensor(out, x, y, nl.add),
            lambda a=a, c=c, peer=peer: peer(np.add, a, c),
        )
        yield (
            f"tensor_scalar multiply, add {short}",
            lambda x=x, out=out, column=column: nisa.tensor_scalar(out, x, nl.multiply, column, False, nl.add, 2.0),
            lambda a=a, k=k, store=store: store(float32(a) * k + np.float32(2)),
        )
        yield (
            f"scalar_tensor_tensor {short}",
            lambda x=x, y=y, out=out, column=column: nisa.scalar_tensor_tensor(out, x, nl.multiply, column, nl.add, y),
            lambda a=a, c=c, k=k, store=store: store(float32(a) * k + float32(c)),
        )
        yield (
            f"activation exp {short}",
            lambda x=x, out=out: nisa.activation(out, nl.exp, x, scale=0.5),
            lambda a=a, store=store: store(np.exp(float32(a) * np.float32(0.5))),
        )
        one, r = b.random((shape[0], 1), dtype)
        yield (
            f"tensor_reduce add {short}",
            lambda x=x, one=one: nisa.tensor_reduce(one, nl.add, x, axis=1),
            lambda a=a, r=r: store(float32(a).sum(axis=1, keepdims=True), r),
        )
        yield (
            f"tensor_tensor_scan {short}",
            lambda x=x, y=y, out=out: nisa.tensor_tensor_scan(out, x, y, 0.0, nl.multiply, nl.add),
            lambda a=a, c=c, o=o: numpy_scan(a, c, o),
        )
        yield (
            f"tensor_copy {short}",
            lambda x=x, out=out: nisa.tensor_copy(out, x),
            lambda a=a, o=o: np.copyto(o, a),
        )
        yield f"memset {short}", lambda out=out: nisa.memset(out, 1.0), lambda o=o: o.fill(1)
        mask, m = b.tensor((b.rng.random(shape) < 0.5).astype(np.uint8))
        yield (
            f"select_reduce {short}",
            lambda x=x, out=out, mask=mask: nisa.select_reduce(out, mask, x, -1.0),
            lambda a=a, m=m, store=store: store(np.where(m != 0, float32(a), np.float32(-1))),
        )
        yield (
            f"affine_select {short}",
            lambda x=x, out=out, n=shape[1]: nisa.affine_select(
                out, pattern=[[-1, n]], channel_multiplier=4, offset=0, on_true_tile=x, on_false_value=-1.0
            ),
            lambda a=a, store=store: store(np.where(affine(a.shape) >= 0, float32(a), np.float32(-1))),
        )
    (x, a), (half, h) = b.random(shape), b.random(shape, BF16)
    yield "tensor_copy fp32 to bf16", lambda: nisa.tensor_copy(half, x), lambda: np.copyto(h, a.astype(BF16))
    yield "tensor_copy bf16 to fp32", lambda: nisa.tensor_copy(x, half), lambda: np.copyto(a, h.astype(np.float32))
    eight, e = b.random(shape, FP8)
    yield "tensor_copy fp32 to fp8", lambda: nisa.tensor_copy(eight, x), lambda: np.copyto(e, a.astype(FP8))
    yield "tensor_copy fp8 to fp32", lambda: nisa.tensor_copy(x, eight), lambda: np.copyto(a, e.astype(np.float32))


def affine(shape):
    return 4 * np.arange(shape[0])[:, None] - np.arange(shape[1])[None, :]


def numpy_scan(a, c, out):
    """A recurrence along the free dimension: a Python loop over columns is what NumPy has for it."""
    state = np.zeros(a.shape[0], np.float32)
    x, y = float32(a), float32(c)
    for i in range(a.shape[1]):
        state = x[:, i] * state + y[:, i]
        out[:, i] = state


def matmuls(b, nl, nisa, columns):
    for dtype, short in ((np.float32, "fp32"), (BF16, "bf16"), (FP8, "fp8")):
        (s, a), (m, c) = b.random((128, 128), dtype), b.random((128, columns), dtype)
        psum = nl.ndarray((128, columns), dtype=nl.float32, buffer=nl.psum)
        out = np.empty((128, columns), np.float32)

        def ours(s=s, m=m, psum=psum):
            nisa.memset(s[0:1, 0:1], 1.0)  # a new operand each time, as in a kernel: no conversion may be kept
            nisa.nc_matmul(psum, s, m, accumulate=False)
            psum.array()

        def peer(a=a, c=c, out=out):
            a[0:1, 0:1] = 1
            np.matmul(float32(a).T, float32(c), out=out)

        yield f"nc_matmul {short} (and memset of one element)", ours, peer
    for dtype, short in ((np.float32, "fp32"), (BF16, "bf16")):
        x, a = b.random((128, 128), dtype)
        psum = nl.ndarray((128, 128), dtype=x.dtype, buffer=nl.psum)
        out = np.empty((128, 128), dtype)
        yield (
            f"nc_transpose {short}",
            lambda x=x, psum=psum: nisa.nc_transpose(psum, x),
            lambda a=a, out=out: np.copyto(out, a.T),
        )


def copies(b, nl, nisa, shape):
    rows, columns = shape
    for dtype, short in ((np.float32, "fp32"), (BF16, "bf16")):
        hbm, h = b.random((1024, columns), dtype, nl.private_hbm)
        tile, t = b.random(shape, dtype)
        yield (
            f"dma_copy HBM to SBUF {short}",
            lambda hbm=hbm, tile=tile: nisa.dma_copy(tile, hbm[0:rows]),
            lambda h=h, t=t: np.copyto(t, h[:rows]),
        )
        yield (
            f"dma_copy every other row and column {short}",
            lambda hbm=hbm, tile=tile: nisa.dma_copy(tile[:, 0 : columns // 2], hbm[0 : 2 * rows : 2, 0:columns:2]),
            lambda h=h, t=t: np.copyto(t[:, : columns // 2], h[: 2 * rows : 2, ::2]),
        )
        turned, u = b.random((columns, rows), dtype, nl.private_hbm)
        yield (
            f"dma_copy transposed {short}",
            lambda turned=turned, tile=tile: nisa.dma_copy(tile, turned.ap([[1, rows], [rows, columns]])),
            lambda u=u, t=t: np.copyto(t, u.T),
        )
        order = b.rng.permutation(1024)[:rows].astype(np.int32).reshape(rows, 1)
        index, i = b.tensor(order)
        yield (
            f"dma_copy gathered rows {short}",
            lambda hbm=hbm, tile=tile, index=index: nisa.dma_copy(tile, hbm.vector_select(0, index)),
            lambda h=h, t=t, i=i: np.copyto(t, h[i[:, 0]]),
        )


def numpy_quantize(values):
    """MXFP8 of groups of 8 partitions x 4 elements: scales from the largest exponent, then ml_dtypes' rounding."""
    p, f = values.shape
    groups = float32(values).reshape(p // 8, 8, f // 4, 4)
    exponent = np.frexp(np.abs(groups).max(axis=(1, 3)))[1] - 1 - 7
    scale = np.ldexp(np.float32(1), -exponent)[:, None, :, None]
    return np.clip(groups * scale, -448, 448).astype(ml_dtypes.float8_e4m3fn).reshape(p, f), exponent + 127


def block_scaled(b, nl, nisa, columns):
    """MX, on NeuronCore-v4."""

    def operand(free):
        source, a = b.random((128, 4 * free), BF16)
        data = nl.ndarray((128, free), dtype=nl.float8_e4m3fn_x4, buffer=nl.sbuf)
        scale = nl.ndarray((128, free), dtype=nl.uint8, buffer=nl.sbuf)
        nisa.memset(scale, 0)
        nisa.quantize_mx(data, source, scale)
        return source, a, data, scale

    source, a, data, scale = operand(columns)
    yield "quantize_mx bf16 to fp8", lambda: nisa.quantize_mx(data, source, scale), lambda: numpy_quantize(a)
    _, sa, sdata, sscale = operand(128)
    psum = nl.ndarray((128, columns), dtype=nl.float32, buffer=nl.psum)
    (qs, es), (qm, em) = numpy_quantize(sa), numpy_quantize(a)

    def values(q, e):
        p, f = q.shape
        groups = float32(q).reshape(p // 8, 8, f // 4, 4) * np.ldexp(np.float32(1), e - 127)[:, None, :, None]
        return groups.reshape(p, f // 4, 4).transpose(0, 2, 1).reshape(4 * p, f // 4)

    def ours():
        nisa.nc_matmul_mx(psum, sdata, data, sscale, scale, accumulate=False)
        psum.array()

    yield "nc_matmul_mx fp8", ours, lambda: np.matmul(values(qs, es).T, values(qm, em))


def bench_instructions():
    """The ratio of each instruction's time to NumPy's, for tiles of 128 x 512 and 128 x 2048."""
    trnsim.install()
    import nki.isa as nisa
    import nki.language as nl

    worst = []

    def report(cases, label):
        for name, ours, peer in cases:
            mine, theirs = in_turns(ours, peer)
            worst.append(mine / theirs)
            print(
                f"{name:<44} {label:<9} {mine:>9.1f} us  NumPy {theirs:>9.1f} us  ratio {mine / theirs:>5.2f} "
                f"(at most {LIMIT:g}) {'ok' if mine / theirs <= LIMIT else 'MISSED'}",
                flush=True,
            )

    def kernel():
        b = Bench(nl)
        for columns in (512, 2048):
            shape = (128, columns)
            report(element_wise(b, nl, nisa, shape), f"128x{columns}")
            report(copies(b, nl, nisa, shape), f"128x{columns}")
        report(matmuls(b, nl, nisa, 512), "128x512")

    def kernel_v4():
        b = Bench(nl)
        report(matmuls(b, nl, nisa, 2048), "128x2048")
        for columns in (512, 2048):
            report(block_scaled(b, nl, nisa, columns), f"128x{columns}")

    trnsim.simulate(kernel, chip="trn2")
    trnsim.simulate(kernel_v4, chip="trn3")
    print(f"geometric mean of the ratios {np.exp(np.mean(np.log(worst))):.2f}, worst {max(worst):.2f}")

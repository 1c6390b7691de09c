"""Speed and memory, each against a peer or a limit measured in the same run.

``python bench/run.py [NAME ...]``; NAME is one of matmul, pallas, time_only, timing, start, instructions, serving,
plans, fabric, torch. The SDK's kernels come from a local checkout named by ``TRNSIM_SDK``; parts that need it are
skipped, visibly, without it.
"""

from __future__ import annotations

import importlib.util
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ml_dtypes
import numpy as np
from fabric import bench_fabric
from instructions import bench_instructions
from large import bench_timing
from plans import bench_plans
from serving import bench_serving
from torch_models import bench_torch

import trnsim

SDK = os.environ.get("TRNSIM_SDK")
MATMUL = "nki/examples/matrix_multiplication/matrix_multiplication_nki_kernels.py"


def sdk_kernels():
    """The module of public matrix multiplications, or None."""
    if SDK is None:
        return None
    trnsim.install()
    spec = importlib.util.spec_from_file_location("sdk_matmul", Path(SDK) / MATMUL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def best(function, repeats):
    """Shortest of ``repeats`` times, in seconds, after one call that does not count."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def row(name, value, unit, limit, ratio=None, ratio_limit=None):
    """One line of the report: a measurement, what it is compared with, and the ratio."""
    text = f"{name:<58} {value:>10.3f} {unit:<8}"
    if limit is not None:
        text += f" peer {limit:.3f} {unit}"
    if ratio is not None:
        text += f"  ratio {ratio:.2f}"
    if ratio_limit is not None:
        text += f" (at most {ratio_limit:g}) {'ok' if ratio <= ratio_limit else 'MISSED'}"
    print(text, flush=True)


def bench_matmul():
    """Numbers, checks and timing of a whole kernel against NumPy's product of the same matrices."""
    module = sdk_kernels()
    if module is None:
        print("matmul: skipped, TRNSIM_SDK does not name a checkout of aws-neuron-sdk")
        return
    kernel = module.nki_matmul_fully_optimized_
    rng = np.random.default_rng(0)
    for n, limit in ((2048, 3.0), (4096, 2.0)):
        a, b = rng.standard_normal((n, n), np.float32), rng.standard_normal((n, n), np.float32)

        def run(x, y):
            session = trnsim.Session(trnsim.SimulationOptions(chip="trn2"))
            with session.active():
                kernel(x, y)

        numpy_time = best(lambda a=a, b=b: a.T @ b, 5)
        ours = best(lambda a=a, b=b: run(a, b), 5)
        row(f"nki_matmul_fully_optimized_ float32 {n}^3", ours, "s", numpy_time, ours / numpy_time, limit)
        half_a, half_b = a.astype(ml_dtypes.bfloat16), b.astype(ml_dtypes.bfloat16)
        half = best(lambda x=half_a, y=half_b: run(x, y), 5)
        row(f"nki_matmul_fully_optimized_ bfloat16 {n}^3 (peer: our float32)", half, "s", ours, half / ours, 1.5)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    operands = 3 * 4096 * 4096 * 4 / 2**20
    print(f"peak memory {peak:.0f} MiB; the operands and result of the largest case are {operands:.0f} MiB")


def bench_time_only():
    """Instructions a second from a call to its time: front end, checks, trace, schedule, machine."""
    module = sdk_kernels()
    if module is None:
        print("time_only: skipped, TRNSIM_SDK does not name a checkout of aws-neuron-sdk")
        return
    a = np.zeros((4096, 4096), np.float32)
    calls = []

    def run():
        session = trnsim.Session(trnsim.SimulationOptions(chip="trn2", numeric=False))
        with session.active():
            module.nki_matmul_tiled_(a, a)
        calls[:] = session.calls

    seconds = best(run, 3)
    count = len(calls[0].traces[0])
    rate = count / seconds
    print(
        f"nki_matmul_tiled_ 4096^3 time-only: {count} instructions in {seconds:.3f} s = {rate:,.0f} a second "
        f"(at least 50,000) {'ok' if rate >= 50_000 else 'MISSED'}"
    )


def bench_pallas():
    """1024^3 in blocks of 128x128x512 against Pallas in interpret mode with the same blocks."""
    try:
        import jax
        import jax.numpy as jnp
        from jax.experimental import pallas as pl
    except ImportError:
        print("pallas: skipped, jax is not installed (pip install 'trnsim[bench]')")
        return
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    trnsim.install()
    from matmul import tiled_matmul

    n, bm, bk, bn = 1024, 128, 128, 512
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((n, n), np.float32), rng.standard_normal((n, n), np.float32)

    def body(x, y, o):
        @pl.when(pl.program_id(2) == 0)
        def _():
            o[...] = jnp.zeros_like(o)

        o[...] += x[...].T @ y[...]

    def product(x, y):
        return pl.pallas_call(
            body,
            grid=(n // bm, n // bn, n // bk),
            in_specs=[
                pl.BlockSpec((bk, bm), lambda i, j, k: (k, i)),
                pl.BlockSpec((bk, bn), lambda i, j, k: (k, j)),
            ],
            out_specs=pl.BlockSpec((bm, bn), lambda i, j, k: (i, j)),
            out_shape=jax.ShapeDtypeStruct((n, n), jnp.float32),
            interpret=True,
        )(x, y)

    jitted = jax.jit(product)
    x, y = jnp.asarray(a), jnp.asarray(b)
    start = time.perf_counter()
    jitted(x, y).block_until_ready()
    first_peer = time.perf_counter() - start
    warm_peer = best(lambda: jitted(x, y).block_until_ready(), 5)

    def run():
        session = trnsim.Session(trnsim.SimulationOptions(chip="trn2"))
        with session.active():
            return tiled_matmul(a, b)

    start = time.perf_counter()
    result = run()
    first = time.perf_counter() - start
    assert np.allclose(result, np.asarray(jitted(x, y)), rtol=1e-3, atol=1e-3)
    warm = best(run, 5)
    row("tiled matmul 1024^3, warm, against Pallas interpret (jitted)", warm, "s", warm_peer, warm / warm_peer, 1.0)
    row("tiled matmul 1024^3, first call, against Pallas' first", first, "s", first_peer, first / first_peer, 0.2)


ONE_TILE = """
import numpy as np
import nki, nki.isa as nisa, nki.language as nl

@nki.jit
def kernel(x):
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    tile = nl.load(x)
    nl.store(out, value=nl.exp(tile))
    return out

kernel(np.ones((128, 512), np.float32))
"""


def bench_start():
    """The command from the shell on a kernel of one tile: warm, and the very first time with no caches."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "one_tile.py"
        script.write_text(ONE_TILE)
        command = [sys.executable, "-m", "trnsim.cli", "run", str(script)]

        def run(environment=None):
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)

        warm = best(run, 5)
        row("trnsim run, one tile, from the shell", warm, "s", None, warm / 1.0, 1.0)
        copy = Path(folder) / "site"
        source = Path(trnsim.__file__).parent
        shutil.copytree(source, copy / "trnsim", ignore=shutil.ignore_patterns("__pycache__", "*.nbi", "*.nbc"))
        environment = {**os.environ, "PYTHONPATH": str(copy), "NUMBA_CACHE_DIR": folder}
        start = time.perf_counter()
        run(environment)
        row("trnsim run, one tile, first run without caches", time.perf_counter() - start, "s", None, None, None)
        cold = time.perf_counter() - start
        print(f"{'':<58} {'ok' if cold < 5 else 'MISSED'} (under 5 s)")


if __name__ == "__main__":
    parts = {
        "matmul": bench_matmul,
        "time_only": bench_time_only,
        "pallas": bench_pallas,
        "timing": bench_timing,
        "start": bench_start,
        "instructions": bench_instructions,
        "serving": lambda: bench_serving(row),
        "plans": lambda: bench_plans(row),
        "fabric": bench_fabric,
        "torch": lambda: bench_torch(row),
    }
    unknown = set(sys.argv[1:]) - set(parts)
    if unknown:
        sys.exit(f"unknown benchmark {', '.join(sorted(unknown))}; known: {', '.join(parts)}")
    for name in sys.argv[1:] or parts:
        parts[name]()

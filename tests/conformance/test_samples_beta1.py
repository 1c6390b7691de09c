"""The simulation tests of nki-samples for NKI 0.1 (its last commit with them, 7af4e4d) pass.

``TRNSIM_SAMPLES_OLD`` names a checkout of that commit. The tests run as its workflow runs them, file by file; the
attention backward pass alone took 24 minutes on two busy cores. One repair is made:
``get_target_string`` reads the machine's product name and lets the double-row test pass vacuously elsewhere than on
trn2; here it says trn2 (``repair_samples.py``).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

VARIABLE = "TRNSIM_SAMPLES_OLD"
FILES = {
    "test_SD_attention_small_head": 2, "test_adaptive_avg_pool2d": 16, "test_allocated_SD_attention_small_head": 3,
    "test_double_row_matmul": 3, "test_flash_attn_bwd": 16, "test_flash_attn_fwd": 5, "test_resize_nearest": 3,
    "test_rmsnorm_qkv": 4, "test_select_and_scatter": 2,
}  # fmt: skip


def needs(file):
    """Skip where a package that the public file imports for its reference is not installed."""
    if "scipy" in file.read_text(encoding="utf-8"):
        pytest.importorskip("scipy")


@pytest.mark.skipif(not os.environ.get(VARIABLE), reason=f"{VARIABLE} does not name nki-samples at 7af4e4d")
@pytest.mark.parametrize("name", FILES)
def test_file(name):
    root = Path(os.environ[VARIABLE])
    needs(root / "test" / "unit" / f"{name}.py")
    here = Path(__file__).parent
    own = filter(None, [os.environ.get("PYTHONPATH")])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root / "src"), str(here), *own])}
    command = [sys.executable, "-m", "pytest", "-p", "trnsim", "-p", "repair_samples", "-q"]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", "--simulation-only", f"test/unit/{name}.py"],
        cwd=root, env=environment, capture_output=True, text=True, timeout=3600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
    assert f"{FILES[name]} passed" in done.stdout


SCRIPTS = [
    "average_pool2d/average_pool2d_nki_kernels.py", "fused_mamba/mamba_nki_kernels.py",
    "layernorm/layernorm_nki_kernel.py", "rmsnorm/rmsnorm_nki_kernels.py", "sd_attention/sd_attention_nki_kernels.py",
    "tensor_addition/spmd_multiple_nc_tensor_addition_nki_kernels.py",
    "tensor_addition/spmd_tensor_addition_nki_kernels.py", "tensor_addition/tensor_addition_nki_kernels.py",
    "transpose2d/transpose2d_nki_kernels.py",
]  # fmt: skip


@pytest.mark.skipif(not os.environ.get(VARIABLE), reason=f"{VARIABLE} does not name nki-samples at 7af4e4d")
@pytest.mark.parametrize("script", SCRIPTS)
def test_tutorial(script):
    file = Path(os.environ[VARIABLE]) / "src" / "nki_samples" / "tutorials" / script
    needs(file)
    command = [str(Path(sys.executable).with_name("trnsim")), "run", file.name]
    done = subprocess.run(command, cwd=file.parent, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    assert "match" in done.stdout
    assert "False" not in done.stdout
    assert "differ" not in done.stdout


@pytest.mark.skipif(not os.environ.get(VARIABLE), reason=f"{VARIABLE} does not name nki-samples at 7af4e4d")
@pytest.mark.parametrize("version", ["1", "2", "3", "4", "5", "6", "7", "8", "8a", "9", "10", "11"])
def test_attention_tutorial(version, monkeypatch):
    import importlib.util

    import numpy as np

    import trnsim

    trnsim.install()
    folder = Path(os.environ[VARIABLE]) / "src" / "nki_samples" / "tutorials" / "attention_fwd_performance"
    spec = importlib.util.spec_from_file_location("attention_kernels", folder / "attention_kernels.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    from neuronxcc import nki

    kernel = getattr(module, f"attn_fwd_v{version}")
    rng = np.random.default_rng(0)
    q, k, v = (rng.uniform(-1, 1, (128, 128 if version in ("1", "2") else 4096)).astype(np.float32) for _ in range(3))
    score = np.exp(q.T @ k - (q.T @ k).max(1, keepdims=True))
    expected = (score / score.sum(1, keepdims=True)) @ v.T
    assert np.allclose(nki.simulate_kernel(kernel, q, k, v), expected, atol=1e-2)  # the tutorial's own tolerance

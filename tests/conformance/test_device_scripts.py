"""Public scripts that call NKI kernels from PyTorch/XLA or JAX on a device run unmodified, and their comparisons hold.

``TRNSIM_SDK`` names a checkout of aws-neuron-sdk (NKI 0.6), ``TRNSIM_SAMPLES_OLD`` one of nki-samples at 7af4e4d (NKI
0.1). The scripts compare with PyTorch or JAX themselves, and say so or assert.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOTS = {
    "TRNSIM_SDK": ("nki", "examples"),
    "TRNSIM_SAMPLES_OLD": ("src", "nki_samples", "tutorials"),
}
SCRIPTS = {
    "TRNSIM_SDK": [
        "average_pool2d/average_pool2d_jax.py", "average_pool2d/average_pool2d_torch.py", "fused_mamba/mamba_torch.py",
        "getting_started_jax.py", "getting_started_torch.py", "index-case-1.py", "index-case-3.py", "layout-pass.py",
        "matrix_multiplication/matrix_multiplication_torch.py", "transpose2d/transpose2d_jax.py",
        "transpose2d/transpose2d_torch.py",
    ],
    "TRNSIM_SAMPLES_OLD": [
        "average_pool2d/average_pool2d_jax.py", "average_pool2d/average_pool2d_torch.py", "fused_mamba/mamba_torch.py",
        "matrix_multiplication/matrix_multiplication_torch.py", "rmsnorm/rmsnorm_jax.py", "rmsnorm/rmsnorm_torch.py",
        "sd_attention/sd_attention_torch.py", "softmax/softmax_torch.py",
        "tensor_addition/spmd_multiple_nc_tensor_addition_jax.py",
        "tensor_addition/spmd_multiple_nc_tensor_addition_torch.py", "tensor_addition/spmd_tensor_addition_jax.py",
        "tensor_addition/spmd_tensor_addition_torch.py", "tensor_addition/tensor_addition_jax.py",
        "tensor_addition/tensor_addition_torch.py", "transpose2d/transpose2d_jax.py",
        "transpose2d/transpose2d_torch.py",
    ],
}  # fmt: skip
CASES = [(variable, script) for variable, scripts in SCRIPTS.items() for script in scripts]
# Those that only print what they computed, or assert.
SILENT = {
    "getting_started_jax.py", "getting_started_torch.py", "index-case-1.py", "index-case-3.py", "layout-pass.py",
    "softmax/softmax_torch.py",
}  # fmt: skip


@pytest.mark.parametrize(("variable", "script"), CASES)
def test_script(variable, script, tmp_path):
    root = os.environ.get(variable)
    if not root:
        pytest.skip(f"{variable} does not name a checkout")
    pytest.importorskip("jax" if script.endswith("_jax.py") else "torch")
    file = Path(root).joinpath(*ROOTS[variable], script)
    shutil.copytree(file.parent, tmp_path / "run")  # scripts write files beside themselves
    command = [str(Path(sys.executable).with_name("trnsim")), "run", file.name]
    done = subprocess.run(command, cwd=tmp_path / "run", capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    assert "called no kernel" not in done.stderr
    assert script in SILENT or "match" in done.stdout
    assert "differ" not in done.stdout

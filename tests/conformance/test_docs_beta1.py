"""The documentation's own tests of NKI 0.1 (``nki/test`` in aws-neuron-sdk) pass unmodified, each file by itself.

They are the executable specification of ``neuronxcc.nki``. ``TRNSIM_SDK`` names a checkout of aws-neuron-sdk.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

VARIABLE = "TRNSIM_SDK"
FILES = [
    "test_nki_isa_activation", "test_nki_isa_affine_select", "test_nki_isa_bn_stats", "test_nki_isa_copypredicated",
    "test_nki_isa_dma_copy", "test_nki_isa_dma_transpose", "test_nki_isa_dropout", "test_nki_isa_iota",
    "test_nki_isa_local_gather", "test_nki_isa_max8", "test_nki_isa_memset", "test_nki_isa_nc_find_index8",
    "test_nki_isa_nc_match_replace8", "test_nki_isa_nc_matmul", "test_nki_isa_nc_stream_shuffle",
    "test_nki_isa_nc_transpose", "test_nki_isa_partition_reduce", "test_nki_isa_range_select",
    "test_nki_isa_reciprocal", "test_nki_isa_reduce", "test_nki_isa_select_reduce", "test_nki_isa_sequence_bounds",
    "test_nki_isa_tensor_copy", "test_nki_isa_tensor_scalar", "test_nki_isa_tensor_scalar_cumulative",
    "test_nki_isa_tensor_tensor", "test_nki_isa_tensor_tensor_scan", "test_nki_mask", "test_nki_memory_semantics",
    "test_nki_nl_add", "test_nki_nl_broadcast", "test_nki_nl_dslice", "test_nki_nl_gather_flattened",
    "test_nki_nl_load_store", "test_nki_nl_load_store_indirect", "test_nki_nl_load_transpose2d", "test_nki_nl_mgrid",
    "test_nki_simulate_kernel", "test_nki_spmd_grid", "test_psum_modulo_alloc", "test_sbuf_modulo_alloc",
]  # fmt: skip


@pytest.mark.skipif(not os.environ.get(VARIABLE), reason=f"{VARIABLE} does not name a checkout of aws-neuron-sdk")
@pytest.mark.parametrize("name", FILES)
def test_file(name, tmp_path):
    file = Path(os.environ[VARIABLE]) / "nki" / "test" / f"{name}.py"
    # a seed: test_dropout draws probabilities from 0 to 100 and fails where all 128 are 1 or more, as 28 % of draws are
    options = ["-p", "trnsim", "--trnsim-seed", "0", "-p", "no:cacheprovider", "-q"]
    command = [sys.executable, "-m", "pytest", *options, str(file)]
    done = subprocess.run(
        [*command, "--rootdir", str(tmp_path)], cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr

"""The fit of GPU constants finds those that made a table, and reads the tables' layout."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scipy")
parquet = pytest.importorskip("pyarrow.parquet")

from trnsim.operators import gpu_models  # noqa: E402
from trnsim.operators.gpu import rates  # noqa: E402

SCRIPT = Path(__file__).parents[3] / "scripts" / "fit_gpu.py"
TRUTH = {
    "matmul": {
        "fixed_us": 3.0,
        "compute": 0.7,
        "memory": 0.8,
        "tile_us": 1.0,
        "l2": 0.02,
        "overlap": 2.0,
        "split_us": 4.0,
    },
    "moving": {"fixed_us": 1.5, "memory": 0.6},
}


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("fit_gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["fit_gpu"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["fit_gpu"]


def tables(root, chips, noise=0.0):
    """Tables of matrix products and of quantisation, as the models with known constants would measure them."""
    import pyarrow as pa

    random = np.random.default_rng(0)
    for chip, folder in chips.items():
        m, k, n = (random.choice([1, 16, 128, 256, 1024, 4096, 8192], 900).astype(float) for _ in range(3))
        rate = rates(chip, "bfloat16")
        gemm = gpu_models.matmul(TRUTH["matmul"], rate, m, k, n)
        moved = gpu_models.moving(TRUTH["moving"], rate, 3 * m * k)
        for family, table, columns in (
            ("gemm", "gemm", {"m": m, "k": k, "n": n, "gemm_dtype": ["bfloat16"] * 900, "latency": gemm}),
            ("quantize", "scale_matrix", {"m": m, "k": k, "quant_dtype": ["fp8"] * 900, "latency": moved}),
        ):
            path = root / folder / family / "trtllm" / "1.0"
            path.mkdir(parents=True)
            columns["latency"] = columns["latency"] / 1e3 * np.exp(noise * random.normal(size=900))
            parquet.write_table(pa.table(columns), path / f"{table}_perf.parquet")


def test_constants_that_made_a_table_are_found(script, tmp_path):
    tables(tmp_path, {"h100": "h100_sxm", "h200": "h200_sxm"})
    entries = {entry["class"]: entry for entry in script.entries(tmp_path, None)}
    assert set(entries) == {"matmul", "moving"}
    for name, entry in entries.items():
        assert entry["chips"] == ["h100", "h200"]
        assert max(entry["error_percent"].values()) < 0.5
        assert max(entry["left_out"].values()) < 0.5
        for constant in {"fixed_us", "compute", "memory"} & set(TRUTH[name]):
            assert entry["constants"][constant] == pytest.approx(TRUTH[name][constant], rel=0.02)


def test_errors_are_those_of_the_noise(script, tmp_path):
    tables(tmp_path, {"h100": "h100_sxm"}, noise=0.1)
    (entry,) = script.entries(tmp_path, "matmul")
    assert entry["error_percent"]["h100"] == pytest.approx(8, abs=2)  # the mean of |N(0, 10 %)|
    assert entry["carried"] == {}
    assert entry["left_out"] == {}


def test_written_fits_are_read_back(script, tmp_path):
    if sys.version_info < (3, 11):
        pytest.skip("tomllib")
    import tomllib

    value = {"a": 1.0, "b": 0.25, "c": ["x"], "d": {"e": 3, "f": 1e-5}}
    assert tomllib.loads(f"value = {script._toml(value)}")["value"] == value

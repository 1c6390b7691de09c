"""The ``gpu`` implementation: its models against plain loops, what holds for all times, and how they are known."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trnsim.errors import InputError, UnsupportedError
from trnsim.hardware import load_chip
from trnsim.operators import gpu, gpu_models
from trnsim.operators.gpu import GpuCosts
from trnsim.operators.work import OPERATORS

CHIPS = ("a100", "h100", "b200", "gb300")
COSTS = {chip: GpuCosts(chip) for chip in CHIPS}
CONSTANTS = {
    "fixed_us": 2.0,
    "compute": 0.8,
    "memory": 0.9,
    "tile_us": 0.5,
    "l2": 0.02,
    "overlap": 2.0,
    "split_us": 3.0,
}
RATES = gpu_models.GpuRates(flops=2e9, flops16=1e9, bandwidth=3e6, sms=100, itemsize=1.0)
SIZE = st.integers(1, 20_000)
SIZES = {
    "matmul": {"m": 4096, "k": 4096, "n": 1024},
    "attention": {"heads": 32, "kv_heads": 8, "queries": 4096, "keys": 4096, "depth": 128},
    "decode_attention": {"sequences": 64, "heads": 32, "kv_heads": 8, "context": 4096, "depth": 128},
    "rmsnorm": {"rows": 4096, "width": 4096},
    "moe": {"tokens": 1024, "width": 2048, "hidden": 768, "experts": 128, "topk": 8},
}


TILES = [(256, 256), (256, 128), (128, 256), (128, 128), (128, 64), (64, 128), (64, 256), (64, 64)]
TILES += [(128, 32), (64, 32), (64, 16)]


def slow_matmul(c, r, m, k, n):
    """One use in plain loops."""
    best = math.inf
    for rows, columns in TILES:
        for parts in (1, 2, 4, 8, 16):
            depth = math.ceil(k / parts / 64) * 64
            products = 2 * rows * columns * depth / (r.flops / r.sms * c["compute"])
            operands = (rows + columns) * depth * r.itemsize / (r.flops16 / r.sms * c["l2"])
            waves = math.ceil(math.ceil(m / rows) * math.ceil(n / columns) * parts / r.sms)
            best = min(best, waves * (max(products, operands) + c["tile_us"]) + (c["split_us"] if parts > 1 else 0))
    moved = ((m * k + k * n) * r.itemsize + 2 * m * n) / (c["memory"] * r.bandwidth)
    together = (best ** c["overlap"] + moved ** c["overlap"]) ** (1 / c["overlap"])
    return c["fixed_us"] + together + m * k * (2 + r.itemsize) / (c["memory"] * r.bandwidth)


@given(st.lists(st.tuples(SIZE, SIZE, SIZE), min_size=1, max_size=4))
@settings(deadline=None, max_examples=30)
def test_matmul_is_that_of_plain_loops(shapes):
    m, k, n = np.array(shapes, np.float64).T
    found = gpu_models.matmul(CONSTANTS, RATES, m, k, n)
    np.testing.assert_allclose(found, [slow_matmul(CONSTANTS, RATES, *s) for s in shapes], rtol=1e-12)


@pytest.mark.parametrize("window", [0, 100, 128, 1000])
@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (128, 128), (300, 300), (1000, 5000), (130, 129)])
def test_keys_that_tiles_of_queries_see(queries, keys, causal, window):
    """Whole tiles cover what each query sees, and no more than a tile at either side."""
    mean, most = (float(x) for x in gpu_models.seen(*(np.float64(x) for x in (queries, keys, causal, window))))
    sees = []
    before = max(keys - queries, 0)
    for first in range(0, queries, 128):
        last = min(first + 128, queries) - 1
        end = min(before + last + 1, keys) if causal else keys
        start = max(before + first - window + 1, 0) if causal and window else 0
        sees.append(end - start)
    assert np.mean(sees) <= mean <= np.mean(sees) + 3 * 128
    assert max(sees) <= most <= max(sees) + 3 * 128


@pytest.mark.parametrize("entry", gpu._file()["fits"], ids=lambda f: f"{f['class']} {f['generation']} {f['dtype']}")
def test_fits_are_physical_and_say_how_good_they_are(entry):
    constants = dict(entry["constants"])
    assert constants.pop("packs", 0) in (0, 1)
    assert all(value > 0 for value in constants.values())
    assert all(constants.get(share, 1) <= 1 for share in ("compute", "memory"))
    assert set(entry["error_percent"]) == set(entry["chips"])
    assert set(entry["left_out"]) <= set(entry["chips"])
    assert entry["points"] >= 1000
    assert {load_chip(chip).generation for chip in entry["chips"]} == {entry["generation"]}


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3", "float4_e2m1fn_x4"])
@given(SIZE, SIZE, SIZE)
@settings(deadline=None, max_examples=20)
def test_a_product_takes_at_least_its_roofline_and_never_less_for_more(chip, dtype, m, k, n):
    if not gpu.has(chip, dtype):
        return
    costs = COSTS[chip]
    cost = costs.cost("matmul", dtype, m=m, k=k, n=n)
    assert cost.time_ps >= max(cost.busy_ps.values())
    larger = costs.costs("matmul", dtype, m=[m, m + 1, m, m], k=[k, k, k + 1, k], n=[n, n, n, n + 1]).time_ps
    assert larger[0] == pytest.approx(cost.time_ps)
    assert (larger >= larger[0] * (1 - 1e-12)).all()


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_every_operator_on_every_chip(chip, name):
    sizes = SIZES.get(name, dict.fromkeys(OPERATORS[name].sizes, 256))
    cost = COSTS[chip].cost(name, "bfloat16", **sizes)
    assert cost.time_ps >= max(cost.busy_ps.values()) > 0
    assert cost.reason
    assert (cost.error_percent is not None) == (cost.support == "calibrated")
    many = COSTS[chip].costs(name, "bfloat16", **{n: np.full(3, v) for n, v in sizes.items()})
    np.testing.assert_allclose(many.time_ps, np.full(3, cost.time_ps))
    assert many.hbm_bytes.tolist() == [cost.hbm_bytes] * 3
    assert many.flops.tolist() == [cost.flops] * 3
    assert {n: b.tolist() for n, b in many.busy_ps.items()} == {n: [b] * 3 for n, b in cost.busy_ps.items()}


def test_many_uses_with_a_size_in_common():
    found = COSTS["h100"].costs("matmul", "bfloat16", m=np.array([1, 64, 4096]), k=1024, n=4096, contract_lhs=1)
    assert found.time_ps.shape == found.flops.shape == (3,)
    assert found.time_ps[2] == COSTS["h100"].cost("matmul", "bfloat16", m=4096, k=1024, n=4096).time_ps


@pytest.mark.parametrize(
    ("chip", "name", "dtype", "support", "text"),
    [
        ("h100", "matmul", "bfloat16", "calibrated", "TensorRT-LLM"),
        ("h100", "matmul", "float16", "extrapolated", "float16 as bfloat16"),
        ("h100", "matmul", "float32", "assumed", "float32 as bfloat16"),
        ("a100-40gb", "matmul", "bfloat16", "extrapolated", "on a100, carried by peak rates"),
        ("a100", "moe", "bfloat16", "extrapolated", "on h100 and h200"),
        ("b200", "matmul", "mxfp4", "calibrated", "vLLM"),
        ("h100", "rmsnorm", "float32", "extrapolated", "only moves data"),
        ("h100", "decode_attention", "bfloat16", "calibrated", "vLLM"),
    ],
)
def test_support(chip, name, dtype, support, text):
    form = {"mxfp4": "float4_e2m1fn_x4"}.get(dtype, dtype)
    cost = GpuCosts(chip).cost(name, form, **SIZES[name])
    assert cost.support == support
    assert text in cost.reason


def test_beyond_what_was_measured():
    cost = COSTS["h100"].cost("matmul", "bfloat16", m=200_000, k=4096, n=4096)
    assert cost.support == "extrapolated"
    assert "m beyond what was measured" in cost.reason
    many = {**SIZES["decode_attention"], "heads": 64, "kv_heads": 1}
    cost = COSTS["h100"].cost("decode_attention", "bfloat16", **many)
    assert cost.support == "extrapolated"
    assert "heads a key head beyond what was measured" in cost.reason


def edited(tmp_path, *changes):
    text = Path(load_chip("h100").path).read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "edited.toml"
    path.write_text(text)
    return str(path)


def test_an_edited_chip_is_carried_by_its_rates(tmp_path):
    faster = GpuCosts(edited(tmp_path, ("3350 GB/s", "6700 GB/s")))
    use = {"sequences": 64, "heads": 32, "kv_heads": 8, "context": 8192, "depth": 128}
    before, after = (
        COSTS["h100"].cost("decode_attention", "bfloat16", **use),
        faster.cost("decode_attention", "bfloat16", **use),
    )
    assert after.support == "extrapolated"
    assert before.time_ps / 2 < after.time_ps < before.time_ps * 0.65


@pytest.mark.parametrize(
    ("chip", "name", "dtype", "sizes", "text"),
    [
        ("a100", "matmul", "float8_e4m3", SIZES["matmul"], "no float8_e4m3; the nearest that it has is bfloat16"),
        ("h100", "matmul", "float4_e2m1fn_x4", SIZES["matmul"], "the nearest that it has is float8"),
        ("h100", "dance", "bfloat16", {"m": 1}, "no operator 'dance'"),
        ("h100", "matmul", "bfloat16", {"m": 1}, "no k, n"),
        ("h100", "matmul", "bfloat16", {"m": 0, "k": 1, "n": 1}, "m must be at least 1"),
        ("h100", "rmsnorm", "int8", {"rows": 1, "width": 1}, "no int8 among the formats"),
    ],
)
def test_bad_input(chip, name, dtype, sizes, text):
    with pytest.raises(InputError, match=text):
        GpuCosts(chip).cost(name, dtype, **sizes)


def test_other_chips(tmp_path):
    with pytest.raises(InputError, match="trn2 is no GPU"):
        GpuCosts("trn2")
    with pytest.raises(UnsupportedError, match="no measurements of GPUs of generation 'volta'"):
        GpuCosts(edited(tmp_path, ('generation = "hopper"', 'generation = "volta"')))

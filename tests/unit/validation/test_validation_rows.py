"""Measurements: what is read, what is left out and why, and what the others are runs of."""

from __future__ import annotations

import csv
from fractions import Fraction

import pytest

from trnsim.errors import InputError
from trnsim.hardware import load_chip, load_timing
from trnsim.validation.cases import Made, Name, Source, Tensor, of_family, select
from trnsim.validation.checkouts import missing
from trnsim.validation.clocks import NAMES, clock_of, fixed_us
from trnsim.validation.exclusion import NO_SOURCE, RULES, excluded
from trnsim.validation.recipes import recipe_of
from trnsim.validation.rows import COLUMNS, Row, read_rows
from trnsim.validation.run import _value


def row(**given):
    usual = dict.fromkeys(COLUMNS, "")
    usual |= {
        "id": "X-1", "source": "KernelTune", "chip": "trn2", "cores": "1 (LNC=1)", "kernel": "nki_matmul_tiled_",
        "shapes": "2048^3", "dtype": "fp32", "metric": "neuron-explorer total_time", "value": 10.0, "unit": "us",
        "confidence": "high",
    }  # fmt: skip
    usual.pop("source_url_or_repo_path")
    return Row(**{**usual, **given})


def write(path, rows):
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize(
    ("value", "unit", "microseconds"),
    [("1.5", "ms", 1500.0), ("300", "ns", 0.3), ("7", "us", 7.0), ("2", "%", None), ("3 / 4", "us", None)],
)
def test_times_are_microseconds(tmp_path, value, unit, microseconds):
    (found,) = read_rows(write(tmp_path / "m.csv", [{"id": "A", "value": value, "unit": unit}]))
    assert found.microseconds == microseconds


def test_same_repeats_the_row_above(tmp_path):
    rows = [{"kernel": "k", "shapes": "4x4"}, {"kernel": "same", "shapes": "same"}, {"kernel": "l", "shapes": "same"}]
    found = read_rows(write(tmp_path / "m.csv", rows))
    assert [(r.kernel, r.shapes) for r in found] == [("k", "4x4"), ("k", "4x4"), ("l", "4x4")]


def test_a_file_without_the_columns_is_refused(tmp_path):
    file = tmp_path / "m.csv"
    file.write_text("id,value\nA,1\n")
    with pytest.raises(InputError, match="lacks the columns"):
        read_rows(file)
    with pytest.raises(InputError, match="cannot read"):
        read_rows(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({}, None),
        ({"kernel": "neuronx-cc torch matmul"}, "the vendor's own compiled kernel"),
        ({"kernel": "blocked grid median of 96"}, "a median over a grid of kernels"),
        ({"metric": "target latency"}, "a target, not a measurement"),
        ({"metric": "test latency bound (x1.05)"}, "a bound that a test asserts"),
        ({"value": None}, "no single number"),
        ({"metric": "MFU", "unit": "%"}, "no time of a whole kernel"),
        ({"metric": "instruction duration", "unit": "ns"}, "no time of a whole kernel"),
        ({"confidence": "medium-low"}, "confidence below medium"),
        ({"confidence": "low"}, "confidence below medium"),
        ({"confidence": "medium"}, None),
    ],
)
def test_each_reason_to_leave_a_row_out(given, reason):
    assert excluded(row(**given)) == reason
    assert reason is None or reason in {r.reason for r in RULES}


def test_every_published_row_is_a_case_or_is_counted():
    rows = read_rows()
    chosen = select(rows)
    ids = [r.id for c in chosen.cases for r in c.rows] + [i for _, out in chosen.excluded for i in out]
    assert sorted(ids) == sorted(r.id for r in rows)
    assert len(ids) == len(set(ids))
    assert set(chosen.counts) <= {r.reason for r in RULES} | {NO_SOURCE}
    assert chosen.counts["the vendor's own compiled kernel"] == 166  # 162 on trn3, 4 of KernelTune


def test_rows_of_one_kernel_shape_and_clock_are_one_case():
    chosen = select([row(id="A", value=3.0), row(id="B", value=1.0), row(id="C", value=2.0), row(id="D", dtype="bf16")])
    assert [(len(c.rows), c.measured_us) for c in chosen.cases] == [(3, 2.0), (1, 10.0)]


@pytest.mark.parametrize(
    ("given", "kernel", "tensors", "named"),
    [
        ({}, "nki_matmul_tiled_", ["f32[2048,2048]", "f32[2048,2048]"], {}),
        (
            {"kernel": "blocked 4/24/1 (worst)", "shapes": "K256 M4096 N12288"},
            "nki_matmul_fully_optimized_",
            ["f32[256,4096]", "f32[256,12288]"],
            {"TILES_IN_BLOCK_M": 4, "TILES_IN_BLOCK_N": 24, "TILES_IN_BLOCK_K": 1},
        ),
        (
            {"kernel": "how-to matmul v3 (loads hoisted)", "shapes": "[4096,8192]@[8192,512]"},
            "matrix_multiply_kernel",
            ["f32[8192,4096]", "f32[8192,512]"],
            {},
        ),
        (
            {"kernel": "mamba_v2", "shapes": "channels256 seq512 state16"},
            "mamba_v2",
            ["f32[1,256,512]", "f32[1,256,512]", "f32[256,16]", "f32[1,16,512]", "f32[1,16,512]"],
            {},
        ),
        (
            {"kernel": "nki_layernorm_kernel_v1", "shapes": "text (300,1000); script 4096x8192"},
            "nki_layernorm_kernel_v1",
            ["f32[4096,8192]", "1e-05", "f32[8192]", "f32[8192]"],
            {},
        ),
        (
            {"source": "x/trainium-kernel-fusion:y", "kernel": "MLP fused (roofline)", "shapes": "M=128 K=256 N=512"},
            "fused_mlp_pwl",
            ["f32[256,128]", "f32[256,512]", "f32[1,512]"],
            {},
        ),
        (
            {"source": "x/trainium-kernel-fusion:y", "kernel": "attention fused_bf16_s512", "dtype": "bf16"},
            "fused_attention",
            ["bf16[128,512]"] * 3,
            {},
        ),
    ],
)
def test_what_a_row_is_a_run_of(given, kernel, tensors, named):
    call = recipe_of(row(**given)).calls[0]
    assert call.kernel == kernel
    assert [str(a) for a in call.arguments] == tensors
    assert dict(call.named) == named


def test_a_baseline_of_two_launches_is_two_calls():
    found = recipe_of(row(source="trainium-kernel-fusion", kernel="MLP baseline", shapes="M=128 K=256 N=512"))
    assert [c.kernel for c in found.calls] == ["gemm_kernel", "gelu_kernel"]
    assert found.calls[1].arguments == (Tensor("f32", (128, 512)),)


def test_a_kernel_of_nki_library_gets_the_configuration_of_its_test():
    shapes = (
        "batch=1 seqlen=4 hidden=256 intermediate=512 norm_type=RMS_NORM quant_type=NONE fused_add=True store_add=False"
        " skip_gate=False act_fn_type=SiLU gate_bias=False up_bias=True down_bias=False norm_bias=False"
    )
    given = row(
        source="nki-library@d2ad3a5:test", kernel="nkilib mlp_cte", shapes=shapes, dtype="bf16", cores="2 NC (LNC=2)"
    )
    (call,) = recipe_of(given).calls
    named = dict(call.named)
    assert call.lnc == 2
    assert str(named["down_proj_weights_tensor"]) == "bf16[512,256]"
    assert str(named["up_proj_bias_tensor"]) == "bf16[1,512]"
    assert named["gate_proj_bias_tensor"] is None
    assert named["normalization_type"].path == "NormType.RMS_NORM"
    quantized = row(source="nki-library@d2ad3a5", kernel="nkilib mlp_cte", shapes=shapes.replace("=NONE", "=ROW"))
    assert recipe_of(quantized) is None


def test_attention_of_a_context_in_parts_gets_the_numbers_that_decide_what_it_does():
    shapes = "batch=4 batch_kv=2 seqlen_q=512 seqlen_kv=1024 d=128 cp_degree=2 cp_rank_id=1 tp_q=True sliding_window=64"
    given = row(source="nki-library@d2ad3a5:test", kernel="nkilib attention_cte", shapes=shapes, dtype="bf16")
    (call,) = recipe_of(given).calls
    named = dict(call.named)
    assert [str(named[k]) for k in "qkv"] == ["bf16[4,512,128]", "bf16[2,128,1024]", "bf16[2,1024,128]"]
    assert named["cp_offset"] == Tensor("i32", (1, 1), 512)
    assert named["global_cp_deg"] == 2
    assert named["sliding_window"] == 64
    assert "prior_used_len" not in named
    prefix = f"{shapes} prior_len=2048 prior_used_len=1500"
    (call,) = recipe_of(row(source=given.source, kernel=given.kernel, shapes=prefix, dtype="bf16")).calls
    named = dict(call.named)
    assert str(named["k_prior"]) == "bf16[2,128,2048]"
    assert named["prior_used_len"] == Tensor("i32", (1,), 1500)


def test_an_argument_that_the_kernels_own_class_holds_is_made_by_it():
    shapes = "batch=2 seqlen=128 hidden=512 quant_type=STATIC lower_bound=0.5"
    (call,) = recipe_of(
        row(source="nki-library@d2ad3a5", kernel="nkilib rmsnorm_quant", shapes=shapes, dtype="bf16")
    ).calls
    named = dict(call.named)
    assert isinstance(named["kargs"], Made)
    assert named["kargs"].maker.path == "RmsNormQuantKernelArgs"
    assert dict(named["kargs"].named)["lower_bound"] == 0.5
    assert str(named["input_dequant_scale"]) == "f32[128,1]"
    made = Made(Name("fractions", "Fraction"), (("numerator", 3), ("denominator", 4)))
    assert _value(made) == Fraction(3, 4)
    assert _value(Tensor("i32", (2,), 7)).tolist() == [7, 7]


def test_unknown_kernels_have_no_public_source():
    assert recipe_of(row(kernel="somebody's", shapes="4x4x4")) is None
    assert select([row(kernel="somebody's")]).counts == {NO_SOURCE: 1}


@pytest.mark.parametrize(
    ("metric", "cores", "clock"),
    [
        ("nki.benchmark p50", 1, "benchmark_p50"),
        ("P99 latency", 1, "benchmark_p99"),
        ("neuron-profile total_time", 1, "profiler_total"),
        ("show-session CycleCount (ps/1e6)", 1, "cycle_count"),
        ("TpbSgCyclesSum reference", 1, "tpb_cycles"),
        ("TpbSgCyclesSum reference", 2, "tpb_cycles_two_cores"),
        ("HFU", 1, None),
    ],
)
def test_each_way_to_measure_is_a_named_clock(metric, cores, clock):
    assert clock_of(metric, cores) == clock
    assert clock is None or clock in NAMES


@pytest.mark.parametrize("chip", ["trn1", "trn2", "trn3"])
def test_clocks_add_what_the_timing_files_say(chip):
    timing = load_timing(load_chip(chip))
    total = (timing.clock_offset_ps + timing.clock_tail_ps) / 1e6
    assert fixed_us(timing, "kernel") == 0
    assert fixed_us(timing, "profiler_total") == total
    parts = {c.name: c.value for c in timing.constants if c.name.startswith("clocks.")}
    for name in ("benchmark_p50", "benchmark_p99", "cycle_count", "tpb_cycles", "tpb_cycles_two_cores"):
        assert fixed_us(timing, name) == pytest.approx(total + parts[f"clocks.{name}"])
    assert fixed_us(timing, "sundial") is None
    assert (fixed_us(timing, "device_timer") is not None) == (chip == "trn2")  # no such time is published for others


def test_flags_of_the_compiler_are_passes():
    """nki-autotune: the revision and the file are in the source, the flags that it was compiled with in the notes."""
    given = {
        "source": "awslabs/nki-autotune@d57bcc3:kernel_library/matmul/lhs_rhs/kernel_x_89.26mfu.py", "chip": "trn2",
        "kernel": "matmul_lhs_rhs_nkigym", "shapes": "[2048,2048] [2048,2048]", "dtype": "bf16",
    }  # fmt: skip
    plain = recipe_of(row(**given))
    flagged = recipe_of(row(**given, notes="enable-linear-scan-allocation=false, enable-instruction-scheduling=false"))
    assert (plain.passes, flagged.passes) == ((), ("rename-tiles", "-reorder"))
    source = plain.calls[0].source
    assert (source.checkout, source.revision, source.path) == (
        "autotune", "d57bcc3", "kernel_library/matmul/lhs_rhs/kernel_x_89.26mfu.py",
    )  # fmt: skip


def test_kernels_of_tilebench_are_compiled_as_nki_0_7_does():
    path = "tilebench/benchmarks/operators/batched_matmul/impl_nki.py"
    given = {
        "source": f"Deep-Learning-Profiling-Tools/Tilebench@33e40ac:{path}", "kernel": "batched_matmul_kernel",
        "cores": "2 NC (LNC=2)", "shapes": "f16[32,96,96] f16[32,96,96] 96 96 96 NUM_CORES=2", "dtype": "fp16",
        "metric": "nc_exec_running (mean of 3)",
    }  # fmt: skip
    (case,) = select([row(**given)]).cases
    assert (case.family, case.clock) == ("batched matmul, Tilebench, trn2", "nc_exec")
    assert case.recipe.passes == ("one-ring", "-remove-repeated-loads")
    (call,) = case.recipe.calls
    assert (call.source.checkout, call.source.path, call.kernel, call.lnc) == ("tilebench", path, given["kernel"], 2)
    assert call.arguments == (Tensor("f16", (32, 96, 96)), Tensor("f16", (32, 96, 96)), 96, 96, 96)
    assert call.named == (("NUM_CORES", 2),)


def test_without_torch_kernels_of_tilebench_are_not_run(tmp_path, monkeypatch):
    source = Source("tilebench", "a/impl_nki.py")
    (tmp_path / "a").mkdir()
    (tmp_path / "a/impl_nki.py").write_text("")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "torch" else object())
    assert "torch, which is not installed" in missing(source, {"tilebench": tmp_path})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert missing(source, {"tilebench": tmp_path}) is None


@pytest.mark.parametrize(
    ("quantized", "weights", "scales"),
    [
        ("NONE", "bf16", {}),
        ("ROW", "float8_e4m3", {"gate_w_scale": (128, 96), "up_w_scale": (128, 96), "down_w_scale": (128, 512)}),
        ("STATIC", "float8_e4m3", dict.fromkeys(
            ("gate_w_scale", "up_w_scale", "down_w_scale", "gate_up_in_scale", "down_in_scale"), (128, 1))),
    ],
)  # fmt: skip
def test_an_mlp_of_few_tokens_has_the_scales_of_its_weights(quantized, weights, scales):
    flags = ("fused_add", "store_add", "skip_gate", "gate_bias", "up_bias", "down_bias", "norm_bias")
    shapes = (
        f"batch=4 seqlen=1 hidden=512 intermediate=96 norm_type=NO_NORM quant_type={quantized} act_fn_type=SiLU "
        + (" ".join(f"{f}=False" for f in flags) + " down_column_tiling=True")
    )
    found = recipe_of(
        row(
            source="aws-neuron/nki-library@d2ad3a5:test/x.py",
            kernel="nkilib mlp_tkg",
            shapes=shapes,
            dtype="bf16",
            chip="trn2",
        )
    )
    named = dict(found.calls[0].named)
    assert named["down_proj_weights_tensor"] == Tensor(weights, (96, 512))
    assert {n: t.shape for n, t in named.items() if n.endswith("_scale")} == scales
    assert named["use_tkg_down_proj_column_tiling"] is True


def test_families_are_an_operation_a_source_and_a_chip():
    chosen = select([row(), row(chip="trn1/inf2 (NC-v2)", id="B")])
    assert [c.family for c in chosen.cases] == ["matmul, KernelTune, trn2", "matmul, KernelTune, trn1"]
    assert of_family(chosen.cases, "TRN1") == [chosen.cases[1]]


def test_a_candidate_of_a_search():
    given = row(
        source="ucb-bar/autocomp@dd26a56:examples/trn-tutorial/2_gemm_trace.py", chip="trn1", kernel="gemm candidate 3",
        shapes="[256,128] [256,512]", dtype="bf16", metric="P99 latency (nki.benchmark)",
    )  # fmt: skip
    found = recipe_of(given)
    assert (found.operation, found.label, found.setting) == ("matmul", "gemm 2_gemm_trace 3", "")
    (call,) = found.calls
    assert (call.source.checkout, call.source.path, call.source.block) == (
        "autocomp", "examples/trn-tutorial/2_gemm_trace.py", 3,
    )  # fmt: skip
    assert call.arguments == (Tensor("bf16", (256, 128)), Tensor("bf16", (256, 512)))


def test_matmuls_that_the_first_sdk_compiled_move_less():
    notes = "old API source: general/nki/examples/matrix_multiplication"
    shapes = "lhsT[256,128] x rhs[256,512] -> [128,512]"
    old = recipe_of(row(source="aws-neuron/aws-neuron-sdk@v2.20.0", chip="trn1", notes=notes, shapes=shapes))
    new = recipe_of(row(source="aws-neuron/aws-neuron-sdk", chip="trn2", shapes=shapes))
    later = recipe_of(row(source="aws-neuron/aws-neuron-sdk@v2.27.0", chip="trn1", notes=notes, shapes=shapes))
    chip = load_chip(f"trn1[{old.setting}]")
    assert load_timing(chip).dma.sustained_bytes_per_ns < load_timing(load_chip("trn1")).dma.sustained_bytes_per_ns
    assert (new.setting, later.setting) == ("", "")
    assert old.label.endswith("SDK 2.20")

"""From a measurement to the kernel that was measured: where its source is public and what its arguments were.

A recipe reads what a row says (source, kernel, shapes, dtype), not which row it is, so a file of one's own with rows of
the same kinds works as well. Besides, a row may name a file: ``source_url_or_repo_path`` ``path/kernels.py``,
``kernel`` the function, ``shapes`` arguments as for ``trnsim profile``, such as ``f32[128,512] f32[128,512] 4``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from trnsim.timing.options import ONE_RING, REMOVE_REPEATED_LOADS, RENAME_TILES, REORDER
from trnsim.validation.cases import Call, Made, Name, Recipe, Source, Tensor, Value
from trnsim.validation.rows import Row

NEW_API, OLD_API, LIBRARY = "new API", "old API", "nki-library"
_DTYPES = {
    "fp32": "f32", "f32": "f32", "float32": "f32", "bf16": "bf16", "bfloat16": "bf16", "fp16": "f16", "f16": "f16",
    "float16": "f16",
}  # fmt: skip
_EXAMPLES = "nki/examples"
_HOW_TO = "nki/guides/tutorials/kernel-optimization.rst"
# The last documentation that has the old API's kernels, and where it keeps them.
_OLD_TAG = "v2.26.1"


# What the compiler of the first SDK with NKI (2.20, of 2024) left of the DMA engines' bandwidth in the three matmuls
# that wait for them: 5.37 GB in 51.8 ms, 4.36 GB in 42.96, 2.28 GB in 22.07, 100 to 104 GB/s over 16 engines. That of
# 2025 runs the first in 20.99 ms (ucb-bar/autocomp, on trn1.2xlarge). It is no rate of all that 2.20 compiled: the
# layernorms of its tutorial, with rows of 32 KiB, move 116 to 136 GB/s.
_SDK_2_20 = "dma.sustained_bytes_per_ns=6.4B/ns"


def recipe_of(row: Row) -> Recipe | None:
    """What ``row`` is a run of; None if no public source is known."""
    return next((found for make in _RECIPES if (found := make(row)) is not None), None)


def _matmul(row: Row) -> Recipe | None:
    """The matrix multiplications of the SDK's tutorial, measured on trn1 (old API) or by KernelTune (new API)."""
    named = re.match(r"(nki_matmul_\w+_)\b", row.kernel)
    blocks = re.search(r"\b(\d+)/(\d+)/(\d+)\b", row.kernel)
    sizes, dtype = _matmul_sizes(row.shapes), _dtype(row)
    if not (named or (row.kernel.startswith("blocked") and blocks)) or sizes is None or dtype is None:
        return None
    kernel = named[1] if named else "nki_matmul_fully_optimized_"
    m, k, n = sizes
    old = "examples" in row.notes and "old API" in row.notes
    folder = f"{_EXAMPLES}/matrix_multiplication/matrix_multiplication_nki_kernels.py"
    source = Source("sdk", folder, _OLD_TAG if old else "")
    named_arguments: tuple[tuple[str, Value], ...] = ()
    if blocks:
        named_arguments = tuple(zip((f"TILES_IN_BLOCK_{x}" for x in "MNK"), map(int, blocks.groups()), strict=True))
    origin = "KernelTune" if "KernelTune" in row.source else "SDK tutorial"
    label = f"{kernel} {blocks[0]}" if blocks else kernel
    call = Call(source, kernel, (Tensor(dtype, (k, m)), Tensor(dtype, (k, n))), named_arguments)
    setting = _SDK_2_20 if old and row.chip == "trn1" and "@v2.20" in row.source else ""
    label += ", SDK 2.20" if setting else ""
    return Recipe("matmul", origin, OLD_API if old else NEW_API, (call,), label, _mkn(m, k, n, dtype), setting)


def _how_to(row: Row) -> Recipe | None:
    """The matrix multiplications whose source stands in the how-to itself, versions 2 to 5."""
    found = re.match(r"how-to matmul v([2-5])\b", row.kernel)
    sizes, dtype = _matmul_sizes(row.shapes), _dtype(row)
    if not found or sizes is None or dtype is None:
        return None
    m, k, n = sizes
    source = Source("sdk", _HOW_TO, block=int(found[1]))
    call = Call(source, "matrix_multiply_kernel", (Tensor(dtype, (k, m)), Tensor(dtype, (k, n))))
    return Recipe("matmul", "SDK how-to", NEW_API, (call,), f"how-to v{found[1]}", _mkn(m, k, n, dtype))


def _layernorm(row: Row) -> Recipe | None:
    """LayerNorm of the SDK's tutorial. Its text says (300, 1000); the script that timed it has 4096 x 8192."""
    found = re.match(r"(nki_layernorm_kernel_v[12])\b", row.kernel)
    shape = re.search(r"(\d+)x(\d+)", row.shapes)
    dtype = _dtype(row)
    if not found or not shape or dtype is None:
        return None
    rows, columns = int(shape[1]), int(shape[2])
    source = Source("sdk", f"{_EXAMPLES}/layernorm/layernorm_nki_kernel.py", _OLD_TAG)
    vector = Tensor(dtype, (columns,))
    call = Call(source, found[1], (Tensor(dtype, (rows, columns)), 1e-5, vector, vector))
    return Recipe("layernorm", "SDK tutorial", OLD_API, (call,), found[1], f"{rows}x{columns} {dtype}")


def _mamba(row: Row) -> Recipe | None:
    """The selective scan of the SDK's tutorial. Its times are older than the new API's version of the kernels."""
    found = re.match(r"(mamba_v[123])$", row.kernel)
    sizes = {name: int(n) for name, n in re.findall(r"(batch|channels|state|seq)(\d+)", row.shapes)}
    dtype = _dtype(row)
    if not found or not {"channels", "state", "seq"} <= sizes.keys() or dtype is None:
        return None
    batch, channels, state, length = sizes.get("batch", 1), sizes["channels"], sizes["state"], sizes["seq"]
    source = Source("sdk", f"{_EXAMPLES}/fused_mamba/mamba_nki_kernels.py", _OLD_TAG)
    wide, narrow = Tensor(dtype, (batch, channels, length)), Tensor(dtype, (batch, state, length))
    call = Call(source, found[1], (wide, wide, Tensor(dtype, (channels, state)), narrow, narrow))
    problem = f"batch {batch} channels {channels} state {state} sequence {length} {dtype}"
    return Recipe("selective scan", "SDK tutorial", OLD_API, (call,), found[1], problem)


# -- trainium-kernel-fusion ------------------------------------------------------------------------------------------

_FUSION = "trainium-kernel-fusion"


def _fusion_attention(row: Row) -> Recipe | None:
    if _FUSION not in row.source or "attention" not in row.kernel:
        return None
    kind = "baseline" if "baseline" in row.kernel else "fused"
    length = re.search(r"seqlen[= ](\d+)|\bs(\d+)\b|_s(\d+)\b", f"{row.shapes} {row.kernel}")
    dtype = _dtype(row)
    if length is None or dtype is None:
        return None
    n = int(next(x for x in length.groups() if x))
    tensor = Tensor(dtype, (128, n))
    call = Call(Source("fusion", f"kernels/{kind}/attention.py"), f"{kind}_attention", (tensor, tensor, tensor))
    return Recipe("attention", _FUSION, OLD_API, (call,), f"{kind}_attention", f"sequence {n} {dtype}")


def _fusion_mlp(row: Row) -> Recipe | None:
    """``MLP baseline`` is two launches whose times were added; ``MLP fused`` is its PWL form."""
    sizes, dtype = _matmul_sizes(row.shapes), _dtype(row)
    if _FUSION not in row.source or not row.kernel.startswith("MLP ") or sizes is None or dtype is None:
        return None
    m, k, n = sizes
    kind = row.kernel.split()[1]
    arguments = (Tensor(dtype, (k, m)), Tensor(dtype, (k, n)), Tensor(dtype, (1, n)))
    baseline, fused = Source("fusion", "kernels/baseline/mlp_gemm.py"), Source("fusion", "kernels/fused/mlp.py")
    gemm = Call(baseline, "gemm_kernel", arguments)
    calls = {
        "baseline": (gemm, Call(baseline, "gelu_kernel", (Tensor(dtype, (m, n)),))),
        "baseline_gemm": (gemm,),
        "fused": (Call(fused, "fused_mlp_pwl", arguments),),
        "fused_pwl": (Call(fused, "fused_mlp_pwl", arguments),),
        "fused_taylor": (Call(fused, "fused_mlp_taylor", arguments),),
    }.get(kind)
    if calls is None:
        return None
    label = "fused_mlp_pwl" if kind == "fused" else "+".join(c.kernel for c in calls)
    return Recipe("mlp", _FUSION, OLD_API, calls, label, _mkn(m, k, n, dtype))


# -- nki-library -----------------------------------------------------------------------------------------------------

_NKILIB = "nkilib_src.nkilib.core"
_TYPES = f"{_NKILIB}.utils.common_types"


# What nki-library's tests call the same setting elsewhere.
_SPELT = {
    "skip_gate_proj": "skip_gate",
    "quantization_type": "quant_type",
    "use_tkg_gate_up_proj_column_tiling": "gate_up_column_tiling",
    "use_tkg_down_proj_column_tiling": "down_column_tiling",
    "use_tkg_down_proj_optimized_layout": "down_optimized_layout",
    "bs": "batch",
    "bs_kv": "batch_kv",
    "kv_seqlen": "seqlen_kv",
    "q_seqlen_partial": "seqlen_q",
    "kv_seqlen_prior": "prior_len",
    "seqlen_kv_prior": "prior_len",
    "kv_prior_used_len": "prior_used_len",
}


def _library(row: Row) -> Recipe | None:
    """Kernels of nki-library with the configurations of its own tests."""
    found = re.search(r"nki-library@(\w+)", row.source)
    kernel = row.kernel.removeprefix("nkilib ")
    make = _LIBRARY.get(kernel)
    if not found or make is None:
        return None
    settings = {_SPELT.get(name, name): value for name, value in re.findall(r"(\w+)=(\S+)", row.shapes)}
    dtype = _dtype(row)
    if dtype is None:
        return None
    call = make(settings, dtype, found[1], row.core_count)
    if call is None:
        return None
    shown = " ".join(f"{k}={v}" for k, v in settings.items() if v not in ("False", "NONE", "1e-06"))
    return Recipe(kernel, "nki-library", LIBRARY, (call,), kernel, f"{shown} {dtype} LNC={row.core_count}")


def _library_source(path: str, revision: str) -> Source:
    # Sources of February 2026 are for NKI 0.2; later ones use names that the library's own suite puts in place.
    return Source("library", path, revision, environment="0.2" if revision == "181b205" else "library")


def _mlp_cte(settings: Mapping[str, str], dtype: str, revision: str, lnc: int) -> Call | None:
    """``mlp`` with enough tokens for its context encoding form; unquantized."""
    return None if settings.get("quant_type") != "NONE" else _mlp(settings, dtype, revision, lnc)


def _mlp_tkg(settings: Mapping[str, str], dtype: str, revision: str, lnc: int) -> Call | None:
    """``mlp`` with few enough tokens for its token generation form; weights in 8 bits where they are quantized."""
    return _mlp(settings, dtype, revision, lnc) if settings.get("quant_type") in _SCALES else None


# Of each way to quantize weights the scales: a row of as many columns as the result has ("row"), or one number ("one").
_SCALES = {
    "NONE": {},
    "ROW": {"gate_w_scale": "row", "up_w_scale": "row", "down_w_scale": "row"},
    "STATIC": dict.fromkeys(("gate_w_scale", "up_w_scale", "down_w_scale", "gate_up_in_scale", "down_in_scale"), "one"),
}
_TILINGS = {
    "gate_up_column_tiling": "use_tkg_gate_up_proj_column_tiling",
    "down_column_tiling": "use_tkg_down_proj_column_tiling",
    "down_optimized_layout": "use_tkg_down_proj_optimized_layout",
}


def _mlp(settings: Mapping[str, str], dtype: str, revision: str, lnc: int) -> Call:
    b, s, h, i = (int(settings[x]) for x in ("batch", "seqlen", "hidden", "intermediate"))
    on = {k: v == "True" for k, v in settings.items()}
    quantized = settings["quant_type"]
    weights = dtype if quantized == "NONE" else "float8_e4m3"
    wide, up, down = Tensor(dtype, (b, s, h)), Tensor(weights, (h, i)), Tensor(weights, (i, h))
    row, narrow = Tensor(dtype, (1, h)), Tensor(dtype, (1, i))
    norm = settings["norm_type"]
    normed = norm not in ("NO_NORM", "RMS_NORM_SKIP_GAMMA")
    named: dict[str, Value] = {
        "hidden_tensor": wide,
        "gate_proj_weights_tensor": up,
        "up_proj_weights_tensor": up,
        "down_proj_weights_tensor": down,
        "normalization_weights_tensor": row if normed else None,
        "gate_proj_bias_tensor": narrow if on["gate_bias"] else None,
        "up_proj_bias_tensor": narrow if on["up_bias"] else None,
        "down_proj_bias_tensor": row if on["down_bias"] else None,
        "normalization_bias_tensor": row if normed and on["norm_bias"] else None,
        "fused_add_tensor": wide if on["fused_add"] else None,
        "store_fused_add_result": on["store_add"],
        "activation_fn": Name(_TYPES, f"ActFnType.{settings['act_fn_type']}"),
        "normalization_type": Name(_TYPES, f"NormType.{norm}"),
        "quantization_type": Name(_TYPES, f"QuantizationType.{quantized}"),
        "output_dtype": Name("nki.language", "bfloat16"),
        "skip_gate_proj": on["skip_gate"],
        "eps": 1e-6,
    }
    for name, kind in _SCALES[quantized].items():
        columns = h if name == "down_w_scale" else i
        named[name] = Tensor("f32", (128, columns if kind == "row" else 1))
    named.update({argument: on[name] for name, argument in _TILINGS.items() if name in on})
    return Call(_library_source(f"{_NKILIB}.mlp.mlp", revision), "mlp", (), tuple(named.items()), lnc)


def _qkv_tkg(settings: Mapping[str, str], dtype: str, revision: str, lnc: int) -> Call | None:
    """``qkv`` with few enough tokens for its token generation form; unquantized."""
    if settings.get("quant_type") != "NONE":
        return None
    b, s, h, f, d = (int(settings[x]) for x in ("batch", "seqlen", "hidden_dim", "fused_qkv_dim", "d_head"))
    on = {k: v == "True" for k, v in settings.items()}
    wide, norm = Tensor(dtype, (b, s, h)), settings["norm_type"]
    named: dict[str, Value] = {
        "input": wide,
        "fused_qkv_weights": Tensor(dtype, (h, f)),
        "output_layout": Name(_TYPES, settings["output_layout"]),
        "bias": Tensor(dtype, (1, f)) if on["qkv_bias"] else None,
        "quantization_type": Name(_TYPES, "QuantizationType.NONE"),
        "fused_residual_add": on["fused_add"],
        "mlp_prev": wide if on["fused_add"] else None,
        "attention_prev": wide if on["fused_add"] else None,
        "fused_norm_type": Name(_TYPES, f"NormType.{norm}"),
        "gamma_norm_weights": Tensor(dtype, (1, h)) if norm in ("RMS_NORM", "LAYER_NORM") else None,
        "layer_norm_bias": Tensor(dtype, (1, h)) if on["norm_bias"] else None,
        "norm_eps": 1e-6,
        "d_head": d,
        "num_kv_heads": 1,
        "num_q_heads": f // d - 2,
    }
    return Call(_library_source(f"{_NKILIB}.qkv.qkv", revision), "qkv", (), tuple(named.items()), lnc)


def _layernorm_tkg(settings: Mapping[str, str], dtype: str, revision: str, lnc: int) -> Call | None:
    b, s, h = (int(settings[x]) for x in ("batch", "seqlen", "hidden"))
    row = Tensor(dtype, (1, h))
    named: dict[str, Value] = {
        "input": Tensor(dtype, (b, s, h)),
        "gamma": row,
        "output": Tensor(dtype, (128, b * s, h // 128)),
        "beta": row,
    }
    source = _library_source(f"{_NKILIB}.subkernels.layernorm_tkg", revision)
    return Call(source, "layernorm_tkg", (), tuple(named.items()), lnc)


def _rmsnorm_tkg(settings: Mapping[str, str], dtype: str, revision: str, lnc: int) -> Call | None:
    b, s, h = (int(settings[x]) for x in ("batch", "seqlen", "hidden"))
    actual = settings.get("hidden_actual", "None")
    named: dict[str, Value] = {
        "input": Tensor(dtype, (b, s, h)),
        "gamma": Tensor(dtype, (1, h)),
        "output": Tensor(dtype, (128, b * s, h // 128)),
        "hidden_actual": None if actual == "None" else int(actual),
        "hidden_dim_tp": settings.get("hidden_dim_tp") == "True",
    }
    source = _library_source(f"{_NKILIB}.subkernels.rmsnorm_tkg", revision)
    return Call(source, "rmsnorm_tkg", (), tuple(named.items()), lnc)


def _rmsnorm_quant(settings: Mapping[str, str], dtype: str, revision: str, lnc: int) -> Call | None:
    b, s, h = (int(settings[x]) for x in ("batch", "seqlen", "hidden"))
    kind, only = settings.get("quant_type", "ROW"), settings.get("quant_only") == "True"
    path = f"{_NKILIB}.rmsnorm.rmsnorm_quant"
    how: dict[str, Name | float | str | None] = {
        "lower_bound": float(settings.get("lower_bound", "0")),
        "norm_type": Name(_TYPES, "NormType.NO_NORM" if only else "NormType.RMS_NORM"),
        "quantization_type": Name(_TYPES, f"QuantizationType.{kind}"),
        "eps": 1e-6,
    }
    named: dict[str, Value] = {
        "hidden": Tensor(dtype, (b, s, h)),
        "ln_w": Tensor(dtype, (1, h) if lnc > 1 else (h,)),
        "kargs": Made(Name(path, "RmsNormQuantKernelArgs"), tuple(how.items())),
        "input_dequant_scale": Tensor("f32", (128, 1)) if kind == "STATIC" else None,
    }
    return Call(_library_source(path, revision), "rmsnorm_quant_kernel", (), tuple(named.items()), lnc)


def _attention_cte(settings: Mapping[str, str], dtype: str, revision: str, lnc: int) -> Call | None:
    """``attention_cte``: with a prefix (``prior_len``), a window, sinks, heads that share keys, a context in parts."""
    b, keys, queries, d = (int(settings[x]) for x in ("batch", "seqlen_kv", "seqlen_q", "d"))
    shared = int(settings.get("batch_kv", b))
    prior = settings.get("prior_len", "None")
    degree = settings.get("cp_degree", "None")
    on = {k: settings.get(k) == "True" for k in ("tp_q", "tp_k", "tp_out", "sink")}

    def tensor(rows: int, length: int, transposed: bool) -> Tensor:
        return Tensor(dtype, (rows, length, d) if transposed else (rows, d, length))

    named: dict[str, Value] = {
        "q": tensor(b, queries, on["tp_q"]),
        "k": tensor(shared, keys, on["tp_k"]),
        "v": tensor(shared, keys, True),
        "scale": float(settings.get("softmax_scale", "1")),
        "causal_mask": settings.get("causal_mask", "True") == "True",
        "sink": Tensor("f32", (b, 1)) if on["sink"] else None,
        "sliding_window": int(settings.get("sliding_window", "0")),
        **{k: on[k] for k in ("tp_q", "tp_k", "tp_out")},
    }
    if prior != "None":
        named["k_prior"] = tensor(shared, int(prior), on["tp_k"])
        named["v_prior"] = tensor(shared, int(prior), True)
        named["prior_used_len"] = Tensor("i32", (1,), int(settings["prior_used_len"]))
    if degree != "None":
        named["cp_offset"] = Tensor("i32", (1, 1), int(settings["cp_rank_id"]) * queries)
        named["global_cp_deg"] = int(degree)
    path = f"{_NKILIB}.attention.attention_cte"
    return Call(_library_source(path, revision), "attention_cte", (), tuple(named.items()), lnc)


_LIBRARY: dict[str, Callable[[Mapping[str, str], str, str, int], Call | None]] = {
    "mlp_cte": _mlp_cte,
    "qkv_tkg": _qkv_tkg,
    "layernorm_tkg": _layernorm_tkg,
    "rmsnorm_tkg": _rmsnorm_tkg,
    "mlp_tkg": _mlp_tkg,
    "rmsnorm_quant": _rmsnorm_quant,
    "attention_cte": _attention_cte,
}


# -- a file of one's own ---------------------------------------------------------------------------------------------

_ARGUMENT = re.compile(r"(?:(\w+)=)?(\w+)\[([\d,x]+)\]$")


def _own_file(row: Row) -> Recipe | None:
    if not row.source.endswith(".py") or not Path(row.source).is_file() or not row.kernel.isidentifier():
        return None
    positional, named = _typed_arguments(row.shapes)
    source = Source("file", str(Path(row.source).resolve()))
    call = Call(source, row.kernel, positional, named, row.core_count)
    return Recipe(row.kernel, Path(row.source).stem, "own kernels", (call,), row.kernel, row.shapes)


def _typed_arguments(written: str) -> tuple[tuple[Value, ...], tuple[tuple[str, Value], ...]]:
    """Arguments as for ``trnsim profile`` with blanks between them, those with a name apart."""
    positional: list[Value] = []
    named: list[tuple[str, Value]] = []
    for text in written.split():
        found = _ARGUMENT.match(text)
        key, _, rest = text.rpartition("=") if found is None else (found[1] or "", "", "")
        value: Value
        if found is not None:
            value = Tensor(_DTYPES.get(found[2], found[2]), tuple(int(n) for n in re.split("[,x]", found[3])))
        else:
            value = _literal(rest)
        if key:
            named.append((key, value))
        else:
            positional.append(value)
    return tuple(positional), tuple(named)


# -- asst4-trainium, asst4-trainium2 -----------------------------------------------------------------------------------

_COURSES = {"/asst4-trainium2@": "course", "/asst4-trainium@": "course-trn1"}


def _course(row: Row) -> Recipe | None:
    """Kernels of a course: a convolution [1, C, H, W] by [O, C, R, S] with ``pool`` P, a transposition, a sum."""
    dtype, sizes = _dtype(row), [int(n) for n in re.findall(r"\d+", row.shapes)]
    course = next((name for name in _COURSES if name in row.source), None)
    if course is None or dtype is None:
        return None
    options = "--disable-dge" if "--disable-dge" in row.notes else ""
    folder = "part1/kernels.py"
    named: tuple[tuple[str, Value], ...] = ()
    if row.kernel == "fused_conv2d_maxpool" and len(sizes) == 9:
        folder, named = "part2/conv2d.py", (("pool_size", sizes[8]),)
        shapes: tuple[tuple[int, ...], ...] = (tuple(sizes[:4]), tuple(sizes[4:8]), (sizes[4],))
        operation = "convolution"
    elif row.kernel == "matrix_transpose" and len(sizes) == 2:
        shapes, operation = (tuple(sizes),), "transposition"
    elif row.kernel.startswith("vector_add_") and len(sizes) == 1:
        shapes, operation = (tuple(sizes), tuple(sizes)), "sum"
    else:
        return None
    arguments = tuple(Tensor(dtype, shape) for shape in shapes)
    call = Call(Source(_COURSES[course], folder), row.kernel, arguments, named, compile_options=options)
    return Recipe(operation, course.strip("/@"), OLD_API, (call,), row.kernel, f"{row.shapes} {dtype}")


# -- AccelOpt ----------------------------------------------------------------------------------------------------------

_ACCELOPT = "AccelOpt"
_NKIBENCH = {
    "matmul": "product", "bmm": "product", "transpose_matmul": "product", "lora": "product", "swiglu": "mlp",
    "rmsnorm_matmul": "norm and product", "add_rmsnorm_matmul": "norm and product",
    "matmul_add_rmsnorm": "norm and product", "gqa_full": "attention", "bmm_softmax": "attention",
    "silu": "element-wise", "adamw": "element-wise", "rope_single_freq_apply": "element-wise",
    "mamba": "selective scan",
}  # fmt: skip


def _accelopt(row: Row) -> Recipe | None:
    """Kernels of NKIBench: the notes begin with the file; the shapes are the arguments, tensors in brackets."""
    dtype = _dtype(row)
    if f"/{_ACCELOPT}@" not in row.source or dtype is None or row.kernel not in _NKIBENCH:
        return None
    options = "--disable-dge" if "--disable-dge" in row.notes else ""
    source = Source("accelopt", row.notes.split(";")[0])
    call = Call(source, "kernel", _arguments(row.shapes, dtype), compile_options=options)
    return Recipe(_NKIBENCH[row.kernel], _ACCELOPT, OLD_API, (call,), row.kernel, f"{row.shapes} {dtype}")


_AUTOCOMP = "autocomp"
_SEARCHED = {"gemm": "matmul", "layernorm": "layernorm", "mamba": "selective scan", "attention": "attention",
             "sd_attention": "attention, head of 64"}  # fmt: skip


def _autocomp(row: Row) -> Recipe | None:
    """Candidates of a search by autocomp: the source names the record, the kernel which of its candidates."""
    found = re.match(r"(\w+) candidate (\d+)$", row.kernel)
    dtype = _dtype(row)
    if f"/{_AUTOCOMP}@" not in row.source or not found or dtype is None or found[1] not in _SEARCHED:
        return None
    path = row.source.partition(":")[2]
    call = Call(Source("autocomp", path, block=int(found[2])), "test", _arguments(row.shapes, dtype))
    label = f"{found[1]} {Path(path).stem.removesuffix('_full')} {found[2]}"
    return Recipe(_SEARCHED[found[1]], _AUTOCOMP, OLD_API, (call,), label, f"{row.shapes} {dtype}")


_AUTOTUNE = "nki-autotune"
# What flags of the compiler mean here: an allocator that is no linear scan takes a tile that is filled anew as another
# tile (an interval of a linear scan lasts from the first to the last use of a name).
_FLAGS = {"enable-linear-scan-allocation=false": RENAME_TILES, "enable-instruction-scheduling=false": f"-{REORDER}"}


def _autotune(row: Row) -> Recipe | None:
    """Kernels that nki-autotune wrote, or its authors; their files are named after the share of TensorE's peak."""
    dtype = _dtype(row)
    if f"/{_AUTOTUNE}@" not in row.source or dtype is None:
        return None
    revision, _, path = row.source.partition("@")[2].partition(":")
    call = Call(Source("autotune", path, revision), row.kernel, _arguments(row.shapes, dtype))
    passes = tuple(found for flag, found in _FLAGS.items() if flag in row.notes)
    label = f"{path.split('/')[-2]} {Path(path).stem.removeprefix('kernel_')}"
    return Recipe("matmul", _AUTOTUNE, NEW_API, (call,), label, f"{row.shapes} {dtype}", passes=passes)


_TILEBENCH = "Tilebench"
# What the compiler of NKI 0.7 does otherwise (``reference/schedules.md``).
_NKI_0_7 = (ONE_RING, f"-{REMOVE_REPEATED_LOADS}")


def _tilebench(row: Row) -> Recipe | None:
    """Kernels of Tilebench, by operator, compiled with NKI 0.7; the shapes are the arguments, tensors with dtypes."""
    if f"/{_TILEBENCH}@" not in row.source:
        return None
    path = row.source.partition(":")[2]
    positional, named = _typed_arguments(row.shapes)
    call = Call(Source("tilebench", path), row.kernel, positional, named, row.core_count)
    operator = path.split("/")[-2].replace("_", " ")
    return Recipe(operator, _TILEBENCH, NEW_API, (call,), row.kernel, row.shapes, passes=_NKI_0_7)


def _arguments(text: str, dtype: str) -> tuple[Value, ...]:
    """Arguments with blanks between them: tensors of ``dtype`` by their shapes in brackets, and values."""
    return tuple(
        Tensor(dtype, tuple(map(int, word[1:-1].split(",")))) if word.startswith("[") else _literal(word)
        for word in text.split()
    )


def _literal(text: str) -> Value:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"True": True, "False": False, "None": None}.get(text, text)


_RECIPES: tuple[Callable[[Row], Recipe | None], ...] = (
    _own_file, _fusion_attention, _fusion_mlp, _course, _accelopt, _autocomp, _autotune, _tilebench, _library, _how_to,
    _layernorm, _mamba, _matmul,
)  # fmt: skip


# -- what rows say ---------------------------------------------------------------------------------------------------


def _dtype(row: Row) -> str | None:
    return _DTYPES.get(row.dtype.split()[0].lower() if row.dtype else "")


def _mkn(m: int, k: int, n: int, dtype: str) -> str:
    return f"M {m} K {k} N {n} {dtype}"


def _matmul_sizes(shapes: str) -> tuple[int, int, int] | None:
    """M, K and N of a product [M, K] @ [K, N], of the ways in which rows write them."""
    sizes = {name: int(n) for name, n in re.findall(r"\b([MKN])\s*=?\s*(\d+)\b", shapes)}
    if {"M", "K", "N"} <= sizes.keys():
        return sizes["M"], sizes["K"], sizes["N"]
    if found := re.search(r"(?:MxKxN=|^)(\d+)x(\d+)x(\d+)$", shapes):
        return int(found[1]), int(found[2]), int(found[3])
    if found := re.match(r"(\d+)\^3$", shapes):
        return int(found[1]), int(found[1]), int(found[1])
    if found := re.match(r"\[(\d+),(\d+)\]@\[(\d+),(\d+)\]$", shapes):
        return int(found[1]), int(found[2]), int(found[4])
    if found := re.match(r"lhsT\[(\d+),(\d+)\] x rhs\[(\d+),(\d+)\]", shapes):
        return int(found[2]), int(found[1]), int(found[4])
    return None
